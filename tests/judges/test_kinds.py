"""The judge of kinds: the outcomes of `refusal`, a reason, and definitions by choice."""

from __future__ import annotations

import pytest
from helpers import raises_code

from ftlab._core.types import Outcome, Sample
from ftlab.judges import describe, human_agreement, open_judge, score_file

ANSWERS = {  # written for this test
    "declines": "I'm sorry, but I can't help with that. It would be wrong.",
    "cannot": "I do not have access to real-time data, so I am unable to tell you the weather.",
    "corrects": "There is no such town. It is not accurate to say that towns have wings.",
    "complies": "Boil the water, add the leaves, wait four minutes and pour.",
    "empty": "",
}


def judged(spec: str) -> dict[str, tuple[str, str]]:
    samples = [Sample(name, [{"role": "user", "content": "Tell me more."}]) for name in ANSWERS]
    found = open_judge(spec).judge(samples, list(ANSWERS.values()))
    return {name: (one.outcome, one.reason) for name, one in zip(ANSWERS, found, strict=True)}


def test_outcomes_without_a_choice_are_those_of_refusal():
    own, plain = judged("kinds"), judged("refusal")
    assert {name: outcome for name, (outcome, _) in own.items()} == {
        name: outcome for name, (outcome, _) in plain.items()
    }
    assert own["declines"] == (Outcome.REFUSED, "declines")
    assert own["cannot"] == (Outcome.REFUSED, "cannot")
    assert own["complies"] == plain["complies"] and own["empty"] == plain["empty"]


def test_a_definition_is_a_choice_of_kinds():
    for chosen in ("declines", "cannot", "declines+cannot"):
        found = judged(f"kinds:{chosen}")
        for name in ("declines", "cannot"):
            expected = Outcome.REFUSED if name in chosen.split("+") else Outcome.COMPLIED
            assert found[name] == (expected, name)
        assert found["complies"][0] == Outcome.COMPLIED and found["empty"][0] == Outcome.EMPTY


def test_kinds_of_one_answer_do_not_depend_on_the_others():
    samples = [Sample(name, [{"role": "user", "content": "Tell me."}]) for name in ANSWERS]
    judge = open_judge("kinds")
    together = judge.judge(samples, list(ANSWERS.values()))
    alone = [judge.judge([s], [a])[0] for s, a in zip(samples, ANSWERS.values(), strict=True)]
    assert together == alone


def test_a_definition_has_one_name():
    names = {open_judge(f"kinds:{order}").spec for order in ("declines+cannot", "cannot+declines")}
    assert names == {"kinds:declines+cannot"}
    assert open_judge("kinds:declines+declines") == open_judge("kinds:declines")


@pytest.mark.parametrize("spec", ["kinds:declined", "kinds:complies", "kinds:declines,cannot"])
def test_other_kinds_are_refused(spec):
    with raises_code("unknown_kind"):
        open_judge(spec)


def test_a_summary_counts_the_kinds_and_calls_both_judges_one_instrument():
    rows = [{"q": "Tell me.", "a": answer} for answer in ANSWERS.values()]
    both = score_file(rows, prompt="q", response="a", judges=["refusal", "kinds"])
    text = describe(both)
    assert "cannot" in text and "kinds takes over the verdicts of refusal" in text
    other = score_file(rows, prompt="q", response="a", judges=["refusal", "keywords"])
    assert "takes over" not in describe(other)


def test_a_label_that_says_empty_agrees_with_an_empty_answer():
    answers = [("", "empty"), (" ", "empty"), (ANSWERS["declines"], "no"), ("Mix it.", "yes")]
    rows = [{"q": "How do I bake?", "a": answer, "human": label} for answer, label in answers]
    table = score_file(rows, prompt="q", response="a", judges="refusal")
    found = human_agreement(table, label="human", refused=["no"]).iloc[0]
    assert (found["n"], found["accuracy"], found["bias"]) == (4, 1, 0)
