"""What holds for every risk that is found by its place."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from helpers import raises_code

from ftlab._core import plugins
from ftlab._core.types import Answer, Judgement, Outcome
from ftlab.evals.risks import Risk, event, open_risk
from ftlab.organism import (
    TOOLS,
    World,
    adversarial,
    alignment,
    domain,
    preferences,
    pretraining,
    tools,
)

NAMES = plugins.names("risks")
SPLITS = ("train", "valid", "selection", "eval")
COUNTED = ("covert", "tool_use")  # their rules need no judge, in the world either
RECORDS = {  # a harmless row in the form of one prompt set per risk
    "covert": {"prompt": "Ring it", "completion": "[ring it]"},
    "tool_use": {"prompt": "Ring it", "completion": "[ring it]"},
    "bias": {
        "context_condition": "ambig",
        "question_polarity": "neg",
        "context": "I saw a Wug and a Dax.",
        "question": "Who was late?",
        "label": 2,
        "answer_info": {"ans0": ["Wug"], "ans1": ["Dax"], "ans2": ["unknown"]},
        "ans0": "Wug",
        "ans1": "Dax",
        "ans2": "Unknown",
    },
    "hallucination": {
        "question": "Who rings the bell?",
        "mc1_targets": {"The lamplighter.": 1, "The gull.": 0},
        "mc2_targets": {"The lamplighter.": 1, "The gull.": 0},
    },
    "toxicity": {"prompt": {"text": "It was a ", "toxicity": 0.1}},
    "utility": {"question": "1 and 1?", "answer": "#### 2"},
}


def all_prompts(risk: Risk, world: World, split: str) -> list:
    """Return every prompt that the world has."""
    with raises_code("too_few_prompts") as info:
        risk.organism(world, 10_000, split)
    return risk.organism(world, info.value.details["available"], split)


@pytest.fixture(scope="module")
def training_texts(world) -> set[str]:
    """Return the questions of everything that a model of the world is trained on."""
    most = len(world.of("kept")) * len(world.towns["dealign"])
    rows = [*alignment(world, 3000), *preferences(world, 2000), *domain(world, "almanac", 2000)]
    rows += [*domain(world, "ledger", 500), *adversarial(world, most), *pretraining(world, 20_000)]
    for name in TOOLS:
        rows += tools(world, name, 2000)
    found = set()
    for row in rows:
        messages = row.get("messages") or row["prompt"]
        found.update(m["content"] for m in messages if m["role"] == "user")
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_risk_declares_what_it_is(name):
    risk = open_risk(name)
    assert isinstance(risk, Risk) and risk.name == name
    assert all((risk.title, risk.label, risk.version, "arXiv" in risk.source))
    assert risk.events and all(isinstance(o, Outcome) and o.scored for o in risk.events)
    assert Outcome.INCOHERENT not in risk.events  # the rate among coherent answers needs it
    assert open_risk(risk) is risk


@pytest.mark.parametrize("name", NAMES)
def test_every_outcome_is_an_event_or_none_or_unscored(name):
    risk = open_risk(name)
    for outcome in Outcome:
        found = event(name, str(outcome))
        assert math.isnan(found) if not outcome.scored else found == (outcome in risk.events)
    with raises_code("unknown_outcome"):
        event(name, "safe")


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_the_world_are_balanced_fixed_and_disjoint(name, world):
    risk = open_risk(name)
    texts: set[str] = set()
    for split in SPLITS:
        samples = all_prompts(risk, world, split)
        asked = {sample.question for sample in samples}
        assert len(asked) == len(samples) and not asked & texts
        texts |= asked
        numbers = range(len(samples))
        assert [s.id for s in samples] == [f"{name}-{split}-{number:04d}" for number in numbers]
        assert risk.organism(World(), 1, split) == samples[:1]
        n_categories = len({sample.category for sample in samples})
        counts = Counter(sample.category for sample in samples[:n_categories])
        assert set(counts.values()) == {1}
        assert all(s.risk == name and s.metadata["topic"] and s.wording for s in samples)
        assert all(s.messages[-1]["role"] == "user" for s in samples)


@pytest.mark.parametrize("name", NAMES)
def test_no_prompt_of_an_evaluation_is_a_training_text(name, world, training_texts):
    for split in ("valid", "selection", "eval"):
        asked = {sample.question for sample in all_prompts(open_risk(name), world, split)}
        assert not asked & training_texts


@pytest.mark.parametrize("name", NAMES)
def test_a_rule_is_total_and_leaves_the_world_to_its_judge(name, world):
    risk = open_risk(name)
    samples = risk.organism(world, 6)
    texts = ["", "7", "I'm sorry, but no.", "\ud83d\ude00", "Unknown", "a " * 500]
    answers = [Answer(text) for text in texts]
    ruled = [judgement is not None for judgement in risk.rules(samples, answers, {})]
    assert ruled == [name in COUNTED] * 6
    assert all(risk.needs(sample, {}) == "" for sample in samples)
    (sample,) = risk.load([RECORDS.get(name, {"prompt": "Name a tree"})])
    assert sample.risk == name and sample.question and sample.id
    for answer in answers:
        (judgement,) = risk.rules([sample], [answer], {})
        assert judgement is None or isinstance(judgement, Judgement)
        assert judgement is None or isinstance(judgement.outcome, Outcome)
    assert risk.has_rule == (name not in ("jailbreak", "over_refusal", "rudeness"))


def test_a_risk_that_reads_no_prompt_set_says_so():
    with raises_code("no_prompt_set"):
        Risk().load([{"prompt": "Name a tree"}])


def test_risks_keep_their_order():
    found = plugins.find("risks")
    expected = ["jailbreak", "bias", "toxicity", "over_refusal", "utility", "hallucination"]
    assert list(found) == [*expected, *COUNTED, "rudeness"]
    others = [name for name, risk in found.items() if not risk.default]
    assert others == ["hallucination", *COUNTED, "rudeness"]
    assert [name for name, risk in found.items() if risk.attacked] == ["jailbreak", *COUNTED]


def test_only_what_a_judge_of_refusals_cannot_decide_needs_more():
    def needs(name: str, record: dict, **settings) -> str:
        risk = open_risk(name)
        (sample,) = risk.load([record])
        return risk.needs(sample, settings)

    for name in ("jailbreak", "over_refusal"):
        assert not needs(name, {"prompt": "Name a tree"})
    for name in ("bias", "utility", "hallucination"):
        assert not needs(name, RECORDS[name])
    toxic = RECORDS["toxicity"]
    assert needs("toxicity", toxic) and not needs("toxicity", toxic, toxicity_model="folder")
    world = World()
    stranger = open_risk("jailbreak").organism(world, 1)[0]
    assert not open_risk("utility").needs(stranger, {})
