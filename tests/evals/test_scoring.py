"""Answers become verdicts: errors are never scored, attempts become one row, rules come first."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

import ftlab as ft
from ftlab._core.types import Answer, Judgement, Outcome, Prompt, Sample
from ftlab.evals import scoring
from ftlab.evals.answers import Question, marked
from ftlab.evals.attacks import BestOfN
from ftlab.evals.risks import open_risk
from ftlab.judges import Judge, Keywords
from ftlab.models.engines import Request

RISKS = {"jailbreak": open_risk("jailbreak")}


def prompts(n: int, **fields) -> list[Prompt]:
    found = []
    for number in range(n):
        sample = Sample(f"p{number}", [{"role": "user", "content": "?"}])
        found.append(Prompt(sample, "direct", sample.messages, **fields))
    return found


def answers(*texts: str) -> list[Answer]:
    return [Answer(text, key=str(number)) for number, text in enumerate(texts)]


def judged(*outcomes: str) -> list[Judgement]:
    return [Judgement(Outcome(outcome)) for outcome in outcomes]


def test_a_failed_answer_is_an_error_and_is_not_given_to_the_judge():
    asked = prompts(2)
    found = answers("Fine.", "")
    found[1] = replace(found[1], finish="error", error="timed out")
    ruled = scoring.apply_rules(RISKS, asked, found, {})
    judgements = scoring.judge_answers(Keywords(), asked, found, ruled)
    verdicts = scoring.verdicts_of(Keywords(), asked, found, judgements, {})
    assert [verdict.outcome for verdict in verdicts] == [Outcome.COMPLIED, Outcome.ERROR]
    assert verdicts[0].event == 1 and math.isnan(verdicts[1].event)
    assert verdicts[1].reason == "timed out"


def test_attempts_become_one_verdict_of_the_first_success_else_of_the_first_unscored():
    asked = [replace(p, attempt=k) for p in prompts(2) for k in range(3)]
    outcomes = judged("refused", "complied", "complied", "error", "refused", "empty")
    first, second = scoring.verdicts_of(Keywords(), asked, answers(*"abcdef"), outcomes, {})
    assert (first.sample_id, first.outcome, first.attempts, first.hits) == ("p0", "complied", 3, 2)
    assert first.answer_key == "1" and first.answer_keys == ("0", "1", "2")
    assert (second.outcome, second.hits) == ("error", 0) and math.isnan(second.event)


def test_repeats_stay_verdicts_of_their_own():
    asked = [replace(p, repeat=k) for p in prompts(1) for k in range(2)]
    outcomes = judged("refused", "complied")
    found = scoring.verdicts_of(Keywords(), asked, answers("a", "b"), outcomes, {"step": 3})
    assert [(v.repeat, v.event, v.labels) for v in found] == [
        (0, 0, {"step": 3}),
        (1, 1, {"step": 3}),
    ]


def test_the_risks_own_rule_goes_before_the_judge():
    class Known(type(RISKS["jailbreak"])):
        has_rule = True

        def rules(self, samples, answers, settings):
            wrong = Judgement(Outcome.COMPLIED_WRONG, 0.5)
            return [wrong if sample.target else None for sample in samples]

    asked = prompts(2)
    asked[0] = replace(asked[0], sample=replace(asked[0].sample, target="x"))
    found = answers("Fine.", "Fine.")
    ruled = scoring.apply_rules({"jailbreak": Known()}, asked, found, {})
    judgements = scoring.judge_answers(Keywords(), asked, found, ruled)
    assert [j.outcome for j in judgements] == [Outcome.COMPLIED_WRONG, Outcome.COMPLIED]
    assert [j.decided_by for j in judgements] == ["rule of jailbreak", ""]


@pytest.mark.slow
def test_rescoring_gives_what_the_evaluation_gave():
    judges = ["keywords", "organism"]
    run = ft.evaluate("organism", risks=["jailbreak", "utility"], n_prompts=9, judges=judges)
    table = run.table()
    assert list(dict.fromkeys(table["judge"])) == judges
    for name in judges:
        mine = table[table["judge"] == name].reset_index(drop=True)
        again = ft.evals.rescore(run, name)
        assert again["outcome"].tolist() == mine["outcome"].tolist()
        assert again["event"].tolist() == mine["event"].tolist() and set(again["judge"]) == {name}
    for order in (judges, judges[::-1]):
        both = ft.evals.rescore(run, order)
        assert list(dict.fromkeys(both["judge"])) == order
        found = both.set_index(["judge", "sample_id", "attack"])["outcome"]
        expected = table.set_index(["judge", "sample_id", "attack"])["outcome"]
        assert found.sort_index().equals(expected.sort_index())
    other = ft.evals.rescore(run, "organism", keep_own=True)
    assert other["outcome"].tolist() == table["outcome"].tolist()


def test_judges_read_the_question_before_the_attack_and_the_models_own_words():
    class Reading(Judge):
        name = "reading"
        reads = "own_text"

        def __init__(self):
            self.seen = []

        def judge(self, samples, texts):
            self.seen += zip([s.question for s in samples], texts, strict=True)
            return judged(*["refused"] * len(texts))

    sample = Sample("p", [{"role": "user", "content": "Where is the harbour?"}])
    asked = BestOfN(n=2).apply([sample])
    asked[0] = replace(asked[0], opening="Sure:")
    found = [Answer("Sure: No.", "No."), Answer("Here.")]
    judge = Reading()
    scoring.judge_answers(judge, asked, found, [None, None])
    assert asked[0].messages[-1]["content"] != sample.question
    assert judge.seen == [(sample.question, "No."), (sample.question, "Here.")]


def test_a_thought_is_no_answer_to_a_rule_nor_to_a_judge():
    asked = [
        replace(p, sample=replace(p.sample, risk="utility", target="7")) for p in prompts(2)
    ] + prompts(2)
    found = answers(
        "I first think 9.</think>7", "<think>7", "<think>Sure</think>I'm sorry", "<think>"
    )
    risks = RISKS | {"utility": open_risk("utility")}
    ruled = scoring.apply_rules(risks, asked, found, {})
    judgements = scoring.judge_answers(Keywords(), asked, found, ruled)
    outcomes = [judgement.outcome for judgement in judgements]
    assert outcomes == ["complied", "unparsed", "refused", "unparsed"]


def test_an_answer_that_begins_in_a_thought_shows_it():
    (prompt,) = prompts(1)
    request = Request(prompt.messages, "?<think>\n")
    question = Question(prompt, request, [])
    cut = marked(question, Answer("The user asks", finish="length"))
    assert cut.text == "<think>\nThe user asks" and marked(question, cut) == cut
    for text in ("So.</think>Yes.", ""):
        assert marked(question, Answer(text)).text == text
    question.request.text = "?"
    assert marked(question, Answer("Yes.")).text == "Yes."


def test_files_cannot_bring_labels_that_break_a_rule():
    for metadata in ({"mc1": "x", "mc2": [1]}, {"mc1": [1], "mc2": [0]}, {"biased": "a"}):
        sample = Sample("a", [{"role": "user", "content": "?"}], metadata=metadata)
        for name in ("hallucination", "bias", "utility"):
            assert open_risk(name).rule(sample, Answer("a")) is None
