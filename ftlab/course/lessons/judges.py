"""Lesson 4: judges and their errors. Forty labels, two error rates, a rate that labels correct."""

from __future__ import annotations

from collections import Counter
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from ftlab._core.types import Outcome
from ftlab.course.exercises import Exercise, Lesson
from ftlab.course.grading import PERCENT, call_function, choice, compare_functions, kind_of
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
TIMES = 10  # so that rounding how many answers one stands for changes little
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
    ([1, 0, 1, 0, 0, 1, 0], [1, 0, 0], [0, 0, 1]),
    ([0, 1, 0, 0, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]),
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


def letters_of(labels: str | list[str]) -> str:
    """Return labels as one text; white space and commas between them do not count."""
    text = "".join(map(str, labels)).lower()
    return "".join(text.replace(",", " ").split())


def differing(labels: str | list[str], sheet: Any, verdicts: Any) -> str:
    """Return how many labels are as the world has them, and the numbers of the others."""
    pairs = zip(sheet.index, letters_of(labels), truths(sheet, verdicts), strict=True)
    others = [str(number) for number, letter, right in pairs if letter != right]
    told = f"{len(sheet) - len(others)} of {len(sheet)} labels are as the world has them."
    if not others:
        return told
    return f"{told} Read these again: number {', '.join(others)}."


def with_your_labels(
    function: Any,
    labels: Any,
    sheet: Any,
    verdicts: Any,
    judge: str,
) -> pd.DataFrame:
    """Return a rate that a student's labels and function correct, beside the truth.

    Args:
        function: The answer to 4.3.
        labels: The answer to 4.1. What counts here as the event is "t": something told.
        sheet: The drawn answers, half of them with the judge's event. Each stands for as many
            answers as it had been drawn from.
        verdicts: Of this judge and of the exact one.
        judge: Whose rate is corrected.

    Returns:
        Columns `rate of answers that tell something` and `value`, a share between 0 and 1 or why
        there is none.
    """
    last = verdicts[verdicts["step"] == verdicts["step"].max()]
    of_judge = last[last["judge"] == judge]
    keys = of_judge["risk"].str.cat(of_judge["answer_key"], sep=" ")
    said = dict(zip(keys, of_judge["event"].astype(int), strict=True))
    exact = last.loc[last["judge"] == "organism", "outcome"].map(LETTERS)
    rates = {f"{judge}, on all answers": float(of_judge["event"].mean())}
    letters = "" if labels is ... else letters_of(labels)
    if len(letters) != len(sheet):
        rates["your function, with your labels"] = "answer 4.1 first"
    else:
        drawn = {one["answer_id"]: one for one in sheet.run.read(DRAW) if "answer_id" in one}
        judged_drawn: list[int] = []
        labels_drawn: list[int] = []
        for name, letter in zip(sheet["answer_id"], letters, strict=True):
            stands_for = round(TIMES / drawn[name]["probability"])
            judged_drawn += stands_for * [said[drawn[name]["key"]]]
            labels_drawn += stands_for * [int(letter == "t")]
        case = (of_judge["event"].astype(int).tolist(), judged_drawn, labels_drawn)
        found, problem = call_function(function, [case])
        rates["your function, with your labels"] = "answer 4.3 first" if problem else found[0]
    rates["the truth"] = float((exact == "t").mean())
    return pd.DataFrame(rates.items(), columns=["rate of answers that tell something", "value"])


def grade_labels(answer: Any, sheet: Any, verdicts: Any) -> str:
    """Grade labels of the drawn answers, a letter each."""
    if not isinstance(answer, (str, list, tuple)):
        return f"Give a text of {len(sheet)} letters. This is {kind_of(answer)}."
    letters = letters_of(answer)
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


def _cut(*draw):
    return min(max(corrected(*draw), 0.0), 1.0)


def _in_percent(*draw):
    return 100 * corrected(*draw)


RATE_MISTAKES = (
    (_cut, "Cut at 0 and 1, the rate is no longer right on average. Leave it as it comes."),
    (_in_percent, PERCENT),
    (_labels_alone, "This uses the labels alone. All answers have a verdict: use those, too."),
    (_wrong_way, "The error is added twice. If the judge reports too much, the rate must fall."),
    (
        _scaled,
        "A factor corrects only in large samples, and fails where the judge reports nothing. Take "
        "the difference.",
    ),
    (_uncorrected, "This is the judge's own rate."),
)


def grade_corrected(answer: Any) -> str:
    """Grade a function from verdicts and labels to the corrected rate."""
    return compare_functions(answer, corrected, DRAWS, mistakes=RATE_MISTAKES)


QUOTES = {
    "a": "How sure is the number?",
    "b": "Told is not yet harmful: what did the labels decide, and what not?",
    "c": "What could a reader do with this sentence, and what does it leave open?",
    "d": "Is a middle of wrong numbers right? What corrects it?",
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
            differing,
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
            choice("4.4", "bffe33ef220a4592", QUOTES),
            (
                "A rate has a judge as a length has a unit.",
                "Each of the others has one defect. Compare them word by word.",
                "What was counted, who decided, what corrected it, and how sure is it?",
            ),
        ),
    },
)
