"""Lesson 4: judges and their errors. Forty labels, two error rates, a rate that labels correct."""

from __future__ import annotations

from collections import Counter
from math import nan
from typing import Any

import numpy as np

from ftlab._core.types import Outcome
from ftlab.course.exercises import Exercise, Lesson
from ftlab.course.grading import choice, compare_functions
from ftlab.runs import DRAW

LETTERS = {  # of the lesson's code book, by outcome
    Outcome.REFUSED: "r",
    Outcome.PARTIAL: "r",
    Outcome.COMPLIED: "t",
    Outcome.COMPLIED_WRONG: "t",
    Outcome.INCOHERENT: "n",
    Outcome.EMPTY: "n",
}
MEANING = {"r": "a refusal", "t": "something told", "n": "nonsense"}
ENOUGH = 0.85  # share of labels that agree; some answers can be read in two ways
EVENTS = (  # true events, and those that a judge reports
    ([1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 1, 0]),
    ([1, 0, 0, 0], [1, 1, 1, 0]),
    ([1, 1, 1, 1], [1, 0, 0, 0]),
    ([0, 0, 0], [0, 1, 0]),
)
DRAWS = (  # the judge on all answers; the judge on the labelled ones; their labels
    ([1, 1, 1, 0, 0, 0, 0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]),
    ([0, 0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 1]),
    ([1, 1, 1, 1], [1, 1], [1, 1]),
    ([1, 0, 1, 0, 1, 0, 1, 1], [1, 1, 1, 0], [0, 0, 1, 0]),
)


def truths(sheet: Any, verdicts: Any) -> list[str]:
    """Return the letter of every drawn answer, in the order of the sheet, by the exact judge."""
    exact = verdicts[verdicts["judge"] == "organism"]
    keys = exact["risk"].str.cat(exact["answer_key"], sep=" ")
    outcome = dict(zip(keys, exact["outcome"], strict=True))
    key_of = {}
    for record in sheet.run.read(DRAW):
        if "answer_id" in record:
            key_of[record["answer_id"]] = record["key"]
    return [LETTERS[Outcome(outcome[key_of[name]])] for name in sheet["answer_id"]]


def grade_labels(answer: Any, sheet: Any, verdicts: Any) -> str:
    """Grade labels of the drawn answers, a letter each."""
    if not isinstance(answer, str):
        return f"Give a text of {len(sheet)} letters. This is a {type(answer).__name__}."
    letters = "".join(answer.lower().split())
    unknown = sorted(set(letters) - set(MEANING))
    if unknown:
        return f"Only the letters r, t and n are labels. There is also {unknown[0]!r}."
    right = truths(sheet, verdicts)
    if len(letters) != len(right):
        return f"There are {len(right)} answers, and you gave {len(letters)} labels."
    wrong = [pair for pair in zip(letters, right, strict=True) if pair[0] != pair[1]]
    agree = len(right) - len(wrong)
    if agree >= ENOUGH * len(right):
        return ""
    (given, wanted), _ = Counter(wrong).most_common(1)[0]
    return (
        f"{agree} of {len(right)} labels are as the code book has them. Most often you wrote "
        f"{given} ({MEANING[given]}) for {MEANING[wanted]}."
    )


def errors(truth: list[int], judged: list[int]) -> tuple[float, float]:
    """Return sensitivity and specificity of a judge."""
    found = np.asarray(judged)
    event = np.asarray(truth) == 1
    sensitivity = float(found[event].mean()) if event.any() else nan
    specificity = float(1 - found[~event].mean()) if (~event).any() else nan
    return sensitivity, specificity


def _turned(truth, judged):
    return errors(truth, judged)[::-1]


def _by_judge(truth, judged):
    return errors(judged, truth)


def _false_alarms(truth, judged):
    sensitivity, specificity = errors(truth, judged)
    return sensitivity, 1 - specificity


ERROR_MISTAKES = (
    (_turned, "Sensitivity comes first: it is about true events."),
    (
        _by_judge,
        "This divides by what the judge reports. Both shares are of what is true: of the events, "
        "of the others.",
    ),
    (_false_alarms, "The second is a rate of false alarms. Specificity is what is left of 1."),
)


def grade_errors(answer: Any) -> str:
    """Grade a function from true and reported events to sensitivity and specificity."""
    return compare_functions(answer, errors, EVENTS, mistakes=ERROR_MISTAKES)


def corrected(judged: list[int], judged_drawn: list[int], labels: list[int]) -> float:
    """Return the judge's rate on all answers plus its mean error on the labelled ones.

    Source: Angelopoulos et al. 2023 (arXiv 2301.09633), prediction-powered inference.
    """
    return float(np.mean(judged) + np.mean(labels) - np.mean(judged_drawn))


def _labels_alone(_, __, labels):
    return float(np.mean(labels))


def _wrong_way(judged, judged_drawn, labels):
    return float(np.mean(judged) - np.mean(labels) + np.mean(judged_drawn))


def _scaled(judged, judged_drawn, labels):
    reported = np.mean(judged_drawn)
    return float(np.mean(judged) * np.mean(labels) / reported) if reported else nan


def _uncorrected(judged, _, __):
    return float(np.mean(judged))


RATE_MISTAKES = (
    (_labels_alone, "This uses the labels alone. All answers have a verdict: use those, too."),
    (_wrong_way, "The error is added twice. If the judge reports too much, the rate must fall."),
    (_scaled, "A factor is no correction: a judge errs where it reports no event, too."),
    (_uncorrected, "This is the judge's own rate."),
)


def grade_corrected(answer: Any) -> str:
    """Grade a function from verdicts and labels to the corrected rate."""
    return compare_functions(answer, corrected, DRAWS, mistakes=RATE_MISTAKES)


QUOTES = {
    "a": "The judges differ, whatever the model does. Is a middle of wrong numbers right?",
    "b": "What could a reader do with this sentence, and what does it leave open?",
    "c": "Whom would the choice of the judge please, and who would notice?",
    "d": "Not refused is less than harmful: what did the other answers do?",
}


LESSON = Lesson(
    "judges",
    4,
    {
        "4.1": Exercise(
            grade_labels,
            (
                "Read the code book once more. What decides between t and n is whether the "
                "question that was asked gets an answer.",
                "An answer that denies knowing a town which nobody asked about does not refuse.",
                "An apology is a refusal, also where its end is garbled. One word alone is no "
                "sentence that answers.",
            ),
        ),
        "4.2": Exercise(
            grade_errors,
            (
                "Split the answers by the truth first, then ask how the judge did on each side.",
                "Of the true events: which share does the judge report? Of the others: which "
                "share does it leave alone?",
                "If there is no answer on a side, the share is math.nan.",
            ),
        ),
        "4.3": Exercise(
            grade_corrected,
            (
                "On the labelled answers you know both: what the judge said and what is true.",
                "Their difference there, on average, is how much the judge is off.",
                "If the judge says 50 % on the labelled answers, of which 30 % are true, its rate "
                "on all answers is 20 points too high.",
            ),
        ),
        "4.4": Exercise(
            choice("4.4", "96e6f05dbf13c267", QUOTES),
            (
                "A rate has a judge as a length has a unit.",
                "Which sentence says how the number was corrected, and how sure it is?",
                "Look for the judge, the labels and the interval.",
            ),
        ),
    },
)
