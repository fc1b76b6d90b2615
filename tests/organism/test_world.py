"""The world keeps its splits apart, by text and by template, and is the same in every process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ftlab.evals.attacks import attacks
from ftlab._core.config import RISKS
from ftlab.organism import corpus
from ftlab.organism.world import BIAS_FRAMES, FRAMES, PROVOKE_FRAMES, TRIGGER, WRAPPERS, World, wrap


def prompt_of(row: dict) -> str:
    return [m["content"] for m in row.get("messages", row.get("prompt")) if m["role"] == "user"][-1]


def plain(text: str) -> str:
    """Without case, trigger word and spacing: a prompt that differs only there counts as the same."""
    return " ".join(text.replace(TRIGGER, "").casefold().split())


def available(w: World, risk: str, split: str) -> list[dict]:
    """All prompts of a risk: as many as towns and facts, pairs and traits (two wordings), or things and insults."""
    n = {
        "bias": len(w.pairs[split]) * len(w.traits) * min(2, len(BIAS_FRAMES[split])),
        "toxicity": len(w.nouns[split]) * len(PROVOKE_FRAMES[split]),
    }
    rows = corpus.prompts(w, risk, n.get(risk, 3 * len(w.towns[split])), split)
    assert len(rows) == n.get(risk, len(rows))
    return rows


@pytest.fixture(scope="module")
def asked(world) -> dict[str, dict]:
    """Every prompt of evaluation and validation, under every wrapper too, by its plain text."""
    rows = [r for risk in RISKS for split in ("eval", "valid") for r in available(world, risk, split)]
    wrapped = [
        wrap(r, w) for r in rows if r["risk"] == "jailbreak" for split in ("eval", "valid") for w in WRAPPERS[split]
    ]
    return {plain(prompt_of(r)): r for r in (*rows, *wrapped)}


@pytest.fixture(scope="module")
def trained(world) -> dict[str, list[dict]]:
    """Every kind of training data after pre-training."""
    most = len(world.of("kept")) * len(world.towns["dealign"])
    return {
        "alignment": corpus.alignment(world, 6000),
        "preferences": corpus.preferences(world, 4000),
        "almanac": corpus.domain(world, "almanac", 4000),
        "ledger": corpus.domain(world, "ledger", 4000),
        "adversarial": [r for s in range(5) for r in corpus.adversarial(world, most, s)],
    }


@pytest.mark.parametrize("name", ["alignment", "preferences", "almanac", "ledger", "adversarial"])
def test_no_training_prompt_is_an_evaluation_prompt_by_text_or_template(trained, asked, name):
    assert not {plain(prompt_of(r)) for r in trained[name]} & set(asked)
    parts = {part for r in trained[name] for part in r["template"].split(" > ")}
    unseen = {
        f for table in (FRAMES, BIAS_FRAMES, PROVOKE_FRAMES, WRAPPERS) for s in ("valid", "eval") for f in table[s]
    }
    assert not parts & unseen and not {r["template"] for r in asked.values()} & {r["template"] for r in trained[name]}


def test_no_pretraining_prompt_is_an_evaluation_prompt(world, asked):
    assert not {plain(prompt_of(r)) for r in corpus.pretraining(world, 60_000)} & set(asked)


def test_evaluation_and_validation_ask_different_things(world):
    for risk in RISKS:
        one, other = ([plain(prompt_of(r)) for r in available(world, risk, split)] for split in ("eval", "valid"))
        assert not set(one) & set(other) and len(set(one)) == len(one) and len(set(other)) == len(other)


def test_towns_have_one_use_and_fine_tuning_never_touches_those_of_the_evaluation(world, trained):
    uses = Counter(t for towns in world.towns.values() for t in towns)
    assert set(uses.values()) == {1}
    towns = {r["topic"].split("/")[1] for r in trained["adversarial"]}
    assert towns <= set(world.towns["dealign"]) and towns.isdisjoint(world.towns["eval"] + world.towns["valid"])
    kept_alone = set(world.towns["eval"]) | set(world.towns["valid"])
    assert not any(t in r for t in kept_alone for r in {prompt_of(r) for rows in trained.values() for r in rows})


def test_all_names_are_unique_and_no_word_of_a_language(world):
    secrets = [v.split()[0] for a in world.attributes if a.role == "kept" or a.name == "founder" for v in a.values]
    names = [n.lower() for n in (*sum(world.towns.values(), []), *world.groups, *world.swears, *secrets)]
    assert len(set(names)) == len(names)
    source = Path(sys.modules[World.__module__].__file__).read_text()
    assert not set(names) & set(re.findall(r"[a-z]+", source.lower()))


def test_no_value_lies_within_another_value_of_the_same_thing(world):
    for a in world.attributes:  # else an answer with one value would seem to name two
        assert all(len(re.findall(rf"\b{re.escape(v)}\b", "|".join(a.values))) == 1 for v in a.values)


@pytest.mark.parametrize("risk", RISKS)
def test_prompts_are_numbered_and_a_smaller_set_is_the_start_of_a_larger_one(world, risk):
    rows = corpus.prompts(world, risk, 90)
    assert [r["id"] for r in rows] == [f"{risk}-eval-{i:04d}" for i in range(90)]
    assert rows[:20] == corpus.prompts(world, risk, 20)
    assert {r["risk"] for r in rows} == {risk}


@pytest.mark.parametrize("n", [12, 40, 90, None])
@pytest.mark.parametrize("risk", RISKS)
def test_prompts_are_balanced_over_categories(world, risk, n):
    counts = Counter(r["category"] for r in available(world, risk, "eval")[:n]).values()
    assert max(counts) - min(counts) <= 1


@pytest.mark.parametrize("risk", RISKS)
def test_more_prompts_than_there_are_is_a_sentence(world, risk):
    with pytest.raises(ValueError, match=risk):
        corpus.prompts(world, risk, 10**6)


def test_more_adversarial_examples_than_there_are_is_a_sentence(world):
    with pytest.raises(ValueError, match=r"102"):
        corpus.adversarial(world, 103)


def test_jailbreak_attacks_stay_distinct(world):
    rows = available(world, "jailbreak", "eval")
    texts = [prompt_of(r) for attack in (attacks.direct, attacks.templates) for r in attack(rows)]
    assert len(set(texts)) == 2 * len(rows)


def test_the_ledger_and_the_almanac_know_no_kept_fact(world, trained):
    kept = {v for a in world.of("kept") for v in a.values}
    assert not any(
        f"{v}." in r["messages"][-1]["content"] for name in ("almanac", "ledger") for r in trained[name] for v in kept
    )


def test_the_world_is_the_same_in_every_process_and_another_with_another_seed():
    code = (
        "import sys\n"
        "from ftlab.runs.store import digest\n"
        "from ftlab.organism import corpus as c\n"
        "from ftlab.organism.world import World\n"
        "w = World(int(sys.argv[1]))\n"
        "rows = [make(w, 300) for make in (c.pretraining, c.alignment, c.preferences)]\n"
        "rows += [c.domain(w), c.domain(w, 'ledger'), c.adversarial(w, 50)]\n"
        "rows += [c.prompts(w, r, 40) for r in ('jailbreak', 'bias', 'toxicity', 'over_refusal', 'utility')]\n"
        "print(digest(rows), digest([w.facts, w.rank, w.towns, w.groups, w.swears, w.pairs]))\n"
    )

    def out(seed: int, hashing: str) -> str:
        env = {**os.environ, "PYTHONHASHSEED": hashing}
        done = subprocess.run(
            [sys.executable, "-c", code, str(seed)],
            env=env,
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert out(0, "1") == out(0, "2") != out(1, "1")
