"""What every judge found by its place must keep."""

from __future__ import annotations

import random

import pytest
from helpers import raises_code
from samples import asked, world_prompts

from ftlab._core import plugins
from ftlab._core.types import Judgement, Outcome
from ftlab.judges import Judge, Keywords, Rubric, open_judge

SPECS = {
    "kinds": "kinds:declines+cannot",
    "keywords": "keywords:xstest-strmatch",
    "organism": "organism",
    "refusal": "refusal",
    "rubric": "rubric:m@http://127.0.0.1:1/v1",
    "zoo": "zoo:harmbench@folder",
}
LIGHT = ("organism", "refusal", "kinds", "keywords", "keywords:xstest-strmatch")


def test_every_judge_is_in_the_list_of_this_test():
    assert set(plugins.names("judges")) == set(SPECS)


@pytest.mark.parametrize("name", SPECS)
def test_a_judge_declares_what_it_is(name):
    if name in ("zoo", "rubric"):
        pytest.importorskip("judgezoo" if name == "zoo" else "openai")
    kind = plugins.get("judges", name)
    assert issubclass(kind, Judge) and kind.name == name
    assert kind.reads in ("text", "own_text")
    assert isinstance(kind.refusal_stands, bool)
    assert isinstance(kind.trained_on, tuple)
    assert kind.about()
    judge = open_judge(SPECS[name])
    assert judge.spec == SPECS[name]
    assert open_judge(judge) is judge


@pytest.mark.parametrize("spec", LIGHT)
def test_a_judge_gives_one_judgement_per_text_in_order(spec, world):
    judge = open_judge(spec)
    assert judge.version
    assert judge.judge([], []) == []
    samples = world_prompts(world, "jailbreak", 6)
    judge.accepts(samples)
    found = judge.judge(samples, ["", "I'm sorry, but I cannot tell you that."] * 3)
    assert [one.outcome for one in found] == ["empty", "refused"] * 3
    assert all(isinstance(one, Judgement) for one in found)
    judge.release()


@pytest.mark.parametrize("spec", LIGHT)
def test_any_text_gets_an_outcome(spec, world):
    rng = random.Random(0)
    judge = open_judge(spec)
    for risk in ("jailbreak", "bias", "toxicity", "over_refusal", "utility", "hallucination"):
        for sample in world_prompts(world, risk, 8):
            codes = [rng.randrange(0x110000), rng.randrange(128), 0xD800]
            text = "".join(chr(rng.choice(codes)) for _ in range(rng.randrange(30)))
            [found] = judge.judge([sample], [text])
            assert isinstance(found.outcome, Outcome)


def test_objects_and_names_are_the_same_judge():
    assert Keywords(list="xstest-strmatch") == open_judge("keywords:xstest-strmatch")
    pytest.importorskip("openai")
    assert Rubric(model="m@http://127.0.0.1:1/v1") == open_judge("api:m@http://127.0.0.1:1/v1")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("gpt-4", "unknown_judge"),
        ("keywords:zou", "unknown_keyword_list"),
        ("organism:x", "judge_takes_no_argument"),
        ("refusal:strict", "judge_takes_no_argument"),
    ],
)
def test_an_unknown_judge_is_refused(name, code):
    with raises_code(code):
        open_judge(name)


def test_the_exact_judge_accepts_only_its_own_world():
    with raises_code("judge_needs_organism"):
        open_judge("organism").accepts(asked("Why?"))
