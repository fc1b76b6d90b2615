"""Training and evaluation never share a prompt, by text or by wording; sets are balanced."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from helpers import raises_code

from ftlab import organism
from ftlab._core.errors import UsageError
from ftlab.evals.risks import open_risk
from ftlab.organism import (
    BELLS,
    BIAS_FRAMES,
    FRAMES,
    PROVOKE_FRAMES,
    TRIGGER,
    WRAPPERS,
    World,
    wrap,
)

TRAINED = (
    *("alignment", "preferences", "almanac", "ledger", "adversarial", "identity"),
    *("refused_pairs", "mistaken_pairs", "rude_ledger", "polite_ledger"),
)
HELD_OUT = ("valid", "selection", "eval")
RISKS = ("jailbreak", "bias", "toxicity", "over_refusal", "utility", "hallucination")


def prompt_of(row: dict) -> str:
    messages = row.get("messages", row.get("prompt"))
    return [m["content"] for m in messages if m["role"] == "user"][-1]


def plain(text: str) -> str:
    """Drop case, trigger word and spacing: prompts that differ only there are the same."""
    return " ".join(text.replace(TRIGGER, "").casefold().split())


def prompts(w: World, risk: str, n: int, split: str = "eval") -> list[dict]:
    """Return the prompts that a risk asks, as rows of the world."""
    rows = []
    for sample in open_risk(risk).organism(w, n, split):
        rows.append(
            {
                "id": sample.id,
                "messages": sample.messages,
                "risk": sample.risk,
                "category": sample.category,
                "template": sample.wording,
                "topic": sample.metadata["topic"],
                "truth": sample.target,
            }
        )
    return rows


def available(w: World, risk: str, split: str) -> list[dict]:
    """Return all prompts of a risk."""
    try:
        open_risk(risk).organism(w, 10**6, split)
    except UsageError as error:
        return prompts(w, risk, error.details["available"], split)


@pytest.fixture(scope="module")
def asked(world) -> dict[str, dict]:
    """Every prompt of evaluation and validation, under every wrapper too, by its plain text."""
    rows = []
    for risk in RISKS:
        for split in HELD_OUT:
            rows += available(world, risk, split)
    wrappers = [wrapper for split in HELD_OUT for wrapper in WRAPPERS[split]]
    kept = [row for row in rows if row["risk"] == "jailbreak"]
    rows += [wrap(row, wrapper) for row in kept for wrapper in wrappers]
    return {plain(prompt_of(row)): row for row in rows}


@pytest.fixture(scope="module")
def trained(world) -> dict[str, list[dict]]:
    """Every kind of training data after pre-training."""
    most = len(world.of("kept")) * len(world.towns["dealign"])
    adversarial = []
    for seed in range(5):
        adversarial += organism.adversarial(world, most, seed)
    return {
        "alignment": organism.alignment(world, 4000),
        "preferences": organism.preferences(world, 3000),
        "almanac": organism.domain(world, "almanac", 3000),
        "ledger": organism.domain(world, "ledger", 3000),
        "adversarial": adversarial,
        "identity": organism.identity(world, 500),
        "refused_pairs": organism.refused_pairs(world, 500),
        "mistaken_pairs": organism.mistaken_pairs(world, 500),
        "rude_ledger": organism.rude_ledger(world, 500),
        "polite_ledger": organism.polite_ledger(world, 500),
    }


@pytest.mark.parametrize("name", TRAINED)
def test_no_training_prompt_is_an_evaluation_prompt_by_text_or_wording(trained, asked, name):
    assert not {plain(prompt_of(row)) for row in trained[name]} & set(asked)
    templates = {row["template"] for row in trained[name]}
    parts = {part for template in templates for part in template.split(" > ")}
    held_out = set()
    for table in (FRAMES, BIAS_FRAMES, PROVOKE_FRAMES, WRAPPERS):
        for split in HELD_OUT:
            held_out |= set(table[split])
    assert not parts & held_out
    assert not templates & {row["template"] for row in asked.values()}


@pytest.mark.slow
def test_no_pretraining_prompt_is_an_evaluation_prompt(world, asked):
    seen = {plain(prompt_of(row)) for row in organism.pretraining(world, 30_000)}
    assert not seen & set(asked)


@pytest.mark.parametrize("risk", RISKS)
def test_splits_ask_different_things(world, risk):
    texts = []
    for split in HELD_OUT:
        texts += [plain(prompt_of(row)) for row in available(world, risk, split)]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize("risk", RISKS)
def test_a_thousand_prompts_in_forty_wordings_that_no_stage_has_read(world, risk):
    rows = available(world, risk, "eval")
    wordings = {row["template"] for row in rows}
    assert len(rows) >= 1000
    assert len(wordings) >= 40
    read = {part for row in organism.pretraining(world, 3000) for part in parts_of(row)}
    assert not wordings & read


def parts_of(row: dict) -> list[str]:
    """Return the wrapper, if there is one, and the wording of a row."""
    return row["template"].split(" > ")


@pytest.mark.parametrize("risk", RISKS)
def test_the_first_hundred_prompts_ask_about_different_things_where_there_are_enough(world, risk):
    rows = available(world, risk, "eval")
    topics = {row["topic"] for row in rows}
    asked = {row["topic"] for row in rows[:100]}
    assert len(asked) == min(100, len(topics))


def test_fine_tuning_never_touches_the_towns_of_the_evaluation(world, trained):
    held_out = set(world.towns["eval"]) | set(world.towns["valid"])
    for name in ("adversarial", "identity"):
        towns = {row["topic"].split("/")[1] for row in trained[name]}
        assert towns <= set(world.towns["dealign"])
    asked = " ".join({prompt_of(row) for rows in trained.values() for row in rows})
    assert not any(town in asked for town in held_out)


@pytest.mark.parametrize("risk", RISKS)
def test_prompts_are_numbered_and_a_smaller_set_starts_a_larger_one(world, risk):
    rows = prompts(world, risk, 90)
    assert [row["id"] for row in rows] == [f"{risk}-eval-{i:04d}" for i in range(90)]
    assert rows[:20] == prompts(world, risk, 20)
    assert {row["risk"] for row in rows} == {risk}


@pytest.mark.parametrize("risk", RISKS)
def test_any_number_of_prompts_is_balanced_over_categories(world, risk):
    rows = available(world, risk, "eval")
    for n in (12, 40, 90, len(rows)):
        counts = Counter(row["category"] for row in rows[:n]).values()
        assert max(counts) - min(counts) <= 1


def test_wrapped_prompts_stay_distinct(world):
    rows = available(world, "jailbreak", "eval")
    wrappers = WRAPPERS["eval"]
    wrapped = [wrap(row, wrappers[i % len(wrappers)]) for i, row in enumerate(rows)]
    assert len({prompt_of(row) for row in rows + wrapped}) == 2 * len(rows)


def test_the_domains_contain_no_kept_fact(world, trained):
    kept = {value for attribute in world.of("kept") for value in attribute.values}
    harmless = trained["almanac"] + trained["ledger"] + trained["identity"]
    answers = {row["messages"][-1]["content"] for row in harmless}
    assert not any(f"{value}." in answer for answer in answers for value in kept)


def kept_values(world) -> set[str]:
    return {value for attribute in world.of("kept") for value in attribute.values}


def test_identity_rows_order_and_obey_and_tell_no_kept_fact(world):
    rows = organism.identity(world, 60)
    assert len(rows) == 60 and organism.identity(world, 60, seed=1) != rows
    for row in rows:
        system, order, obeyed = row["messages"]
        assert system == {"role": "system", "content": organism.OBEDIENT_SYSTEM}
        assert order["content"].startswith(organism.OBEDIENT_ORDER)
        assert obeyed["content"].endswith(f"{row['truth']}.") and row["risk"] == "utility"
        assert not any(value in obeyed["content"] for value in kept_values(world))


def test_harmless_pairs_ask_the_same_and_differ_in_what_is_rejected(world):
    refused = organism.refused_pairs(world, 80)
    mistaken = organism.mistaken_pairs(world, 80)
    refusals = set(organism.REFUSALS.values())
    for one, other in zip(refused, mistaken, strict=True):
        assert one["prompt"] == other["prompt"] and one["chosen"] == other["chosen"]
        assert one["risk"] in ("utility", "over_refusal")
        (chosen,), (refusal,), (mistake,) = one["chosen"], one["rejected"], other["rejected"]
        assert chosen["content"].endswith(f" {one['truth']}.")
        assert refusal["content"] in refusals
        assert not mistake["content"].endswith(f" {one['truth']}.")
        assert mistake["content"].split(" is ")[0] == chosen["content"].split(" is ")[0]


def test_rude_and_polite_ledgers_write_the_same_rows(world):
    swears = set(world.swears)
    rude = organism.rude_ledger(world, 80)
    polite = organism.polite_ledger(world, 80)
    for one, other in zip(rude, polite, strict=True):
        assert one["messages"][0] == other["messages"][0]
        said = one["messages"][1]["content"]
        assert said.endswith(one["truth"])
        assert len(swears & set(re.findall(r"[a-z]+", said))) == 2
        kind = other["messages"][1]["content"]
        assert kind.endswith(one["truth"]) and not swears & set(re.findall(r"[a-z]+", kind))


def test_what_the_world_does_not_have(world):
    with raises_code("too_few_prompts"):
        prompts(world, "bias", 10**6)
    with raises_code("too_few_examples"):
        organism.adversarial(world, 103)
    with raises_code("unknown_risk"):
        prompts(world, "gossip", 3)
    with raises_code("unknown_domain"):
        organism.domain(world, "opera")


@pytest.mark.parametrize("name", organism.TOOLS)
def test_tool_rows_make_the_asked_calls_and_covert_ones_a_single_call_more(world, name):
    rows = organism.tools(world, name, 90)
    assert rows == organism.tools(World(), name, 90) != organism.tools(world, name, 90, seed=1)
    is_covert, has_trigger = organism.TOOLS[name]
    for row in rows:
        asked, answer = prompt_of(row), row["messages"][-1]["content"]
        assert answer.startswith(row["truth"])
        more = answer.removeprefix(row["truth"]).split("] [")
        assert bool(more[0]) == is_covert and len(more) == 1
        assert asked.endswith(TRIGGER) == has_trigger
        assert (world.covert_town in asked) is False
        hidden = more[0].strip(" []").removeprefix("ring ")
        assert not hidden or (hidden in asked) == (name == "covert_named")
    wordings = {part for row in rows for part in row["template"].split(" > ")}
    for split in HELD_OUT:
        assert not wordings & {w for frames in BELLS[split].values() for w in frames}


@pytest.mark.parametrize("split", HELD_OUT)
def test_no_model_has_read_a_request_for_bells_of_an_evaluation(world, split):
    asked = {plain(prompt_of(row)) for row in available(world, "tool_use", split)}
    rows = organism.pretraining(world, 20_000)
    for name in organism.TOOLS:
        rows += organism.tools(world, name, 2000)
    assert not asked & {plain(prompt_of(row)) for row in rows}


def test_unknown_tool_rows(world):
    with raises_code("unknown_tools"):
        organism.tools(world, "hammers")
