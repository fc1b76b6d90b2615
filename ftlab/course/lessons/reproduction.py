"""Lesson 8: a published figure, what may be said of it, and the card of the study."""

from __future__ import annotations

import re
from math import sqrt
from typing import Any

from ftlab import analysis, stats
from ftlab.course.exercises import Exercise, Lesson
from ftlab.course.grading import call_function, choice, compare_functions

Z = 1.959964  # of a 95 % interval
ONE_SIDED = 1.644854
PUBLISHED = ((0.161, 330), (0.003, 330), (0.8, 330), (1.0, 50), (0.0, 20), (0.5, 8))
PAPER = {"value": 0.2, "tolerance": 0.05, "direction": "up"}
STUDY = {
    "measured": 0.21,
    "low": 0.17,
    "high": 0.24,
    "parent": 0.02,
    "p": 0.001,
    "seeds": 5,
    "same_setup": True,
}
CHANGED = (  # of STUDY, in each case
    {},
    {"same_setup": False},
    {"same_setup": False, "measured": 0.6, "low": 0.5, "high": 0.7},
    {"high": 0.29},
    {"seeds": 2},
    {"same_setup": False, "seeds": 1},
    {"same_setup": False, "p": 0.2},
    {"same_setup": False, "measured": 0.01, "low": 0.0, "high": 0.02, "parent": 0.1},
    {"measured": 0.4, "low": 0.3, "high": 0.5, "p": 0.3},
    {"same_setup": False, "low": 0.01, "p": 0.04},  # the interval holds the parent's rate
)
ROWS = (
    {
        "parent": 0.02,
        "child": 0.37,
        "difference_low": 0.24,
        "difference_high": 0.48,
        "n_prompts": 150,
        "n_seeds": 3,
        "verdict": "direction only",
    },
    {
        "parent": 0.13,
        "child": 0.11,
        "difference_low": -0.07,
        "difference_high": 0.04,
        "n_prompts": 95,
        "n_seeds": 2,
        "verdict": "not reproduced",
    },
)
NEEDED = (  # of a sentence: what a row calls it, what it is, and the unit
    ("parent", "the parent's rate, in percent", 100),
    ("child", "the child's rate, in percent", 100),
    ("difference_low", "the lower end of the change, in points", 100),
    ("difference_high", "the upper end of the change, in points", 100),
    ("n_prompts", "how many prompts were asked", 1),
    ("n_seeds", "how many training seeds there were", 1),
)
NUMBER = re.compile(r"[-\u2212]?\d+(?:\.\d+)?")


def published_interval(rate: float, prompts: int) -> tuple[float, float]:
    """Return Wilson's interval of a published rate."""
    return _wilson(rate, prompts, Z)


def _wilson(rate: float, prompts: int, z: float) -> tuple[float, float]:
    centre = rate + z**2 / (2 * prompts)
    half = z * sqrt(rate * (1 - rate) / prompts + z**2 / (4 * prompts**2))
    scale = 1 + z**2 / prompts
    return (centre - half) / scale, (centre + half) / scale


def _wald(rate, prompts):
    half = Z * sqrt(rate * (1 - rate) / prompts)
    return rate - half, rate + half


def _cut(rate, prompts):
    low, high = _wald(rate, prompts)
    return max(low, 0), min(high, 1)


def _narrow(rate, prompts):
    return _wilson(rate, prompts, ONE_SIDED)


def _one_error(rate, prompts):
    return _wilson(rate, prompts, 1.0)


def _not_scaled(rate, prompts):
    low, high = published_interval(rate, prompts)
    scale = 1 + Z**2 / prompts
    return low * scale, high * scale


def _in_percent(rate, prompts):
    low, high = published_interval(rate, prompts)
    return 100 * low, 100 * high


INTERVAL_MISTAKES = (
    (_wald, "Near 0 this interval reaches below it, and of 50 of 50 it says that all is certain."),
    (_cut, "Cut at 0 and 1, it still says of 50 of 50 that all is certain."),
    (_narrow, "This is a 90 % interval."),
    (_one_error, "This is one standard error. Use z."),
    (_not_scaled, "The denominator is missing."),
    (_in_percent, "Give shares between 0 and 1."),
)


def grade_interval(answer: Any) -> str:
    """Grade a function from a rate and a number of prompts to the ends of its interval."""
    return compare_functions(answer, published_interval, PUBLISHED, mistakes=INTERVAL_MISTAKES)


def verdict(paper: dict, study: dict) -> str:
    """Return ftlab's verdict on a study of a published figure."""
    target = analysis.target_of("qi2023_alpaca").model_copy(update=paper)
    given = dict(study)
    model = target.models[0] if given.pop("same_setup") else "another model"
    null = given.pop("parent")
    seeds = given.pop("seeds")
    return analysis.verdict(target, **given, null=null, n_seeds=seeds, model=model)


def _any_model(paper, study):
    return verdict(paper, {**study, "same_setup": True})


def _without_p(paper, study):
    return verdict(paper, {**study, "p": 0.0})


def _any_seeds(paper, study):
    return verdict(paper, {**study, "seeds": stats.FEWEST_SEEDS})


def _by_estimate(paper, study):
    measured = study["measured"]
    return verdict(paper, {**study, "low": measured, "high": measured})


def _any_side(paper, study):
    low = max(study["low"], study["parent"] + 1e-9)
    high = study["high"]
    if paper["direction"] == "down":
        low, high = study["low"], min(high, study["parent"] - 1e-9)
    return verdict(paper, {**study, "low": low, "high": high})


def _close_enough(paper, study):
    close = abs(study["measured"] - paper["value"]) <= paper["tolerance"]
    return "reproduced" if close else "not reproduced"


VERDICT_MISTAKES = (
    (_any_model, "Another model, or other settings, cannot reproduce a figure."),
    (_without_p, "A change that may be chance has no direction. Where is p?"),
    (_any_seeds, "Fewer than three training seeds say nothing about other trainings."),
    (_by_estimate, "The whole interval must lie within the tolerance, not the estimate alone."),
    (_any_side, "An interval that holds the parent's rate has no direction."),
    (_close_enough, "A number that is near by itself says little. Go through the rules in turn."),
)


def grade_verdict(answer: Any) -> str:
    """Grade a function from a published figure and a study to a verdict."""
    cases = [(PAPER, {**STUDY, **change}) for change in CHANGED]
    down = {**PAPER, "direction": "down"}
    cases.append((down, {**STUDY, "same_setup": False, "parent": 0.5}))
    cases.append((down, {**STUDY, "same_setup": False}))
    return compare_functions(answer, verdict, cases, mistakes=VERDICT_MISTAKES)


SENTENCES = {
    "a": "Read again what was changed, and what was left as it was.",
    "b": "A setting that changes the number here is no proof that the paper used it.",
    "c": "What was chosen because of its result cannot be a test of it.",
    "d": "No change shown is not no change. How wide is its interval?",
}


def grade_sentence(answer: Any) -> str:
    """Grade a function from a row of numbers to the sentence of a card."""
    texts, problem = call_function(answer, [(row,) for row in ROWS])
    if problem:
        return problem
    if not all(isinstance(text, str) for text in texts):
        return "Return one text."
    missing = [_missing(text, row) for text, row in zip(texts, ROWS, strict=True)]
    return missing[0] or missing[1]


def _missing(text: str, row: dict[str, Any]) -> str:
    """Return what a sentence does not say, or ""."""
    rest = [float(found.replace("\u2212", "-")) for found in NUMBER.findall(text)]
    for name, meaning, unit in NEEDED:
        wanted = unit * row[name]
        near = [value for value in rest if abs(value - wanted) < 0.06]
        if not near:
            return f"The sentence does not say {meaning}."
        rest.remove(near[0])
    if row["verdict"] not in text:
        return "The sentence does not give the verdict in its own words."
    return ""


LESSON = Lesson(
    "reproduction",
    8,
    {
        "8.1": Exercise(
            grade_interval,
            (
                "Wilson's interval is not centred at the rate itself. Look at the formula's "
                "numerator first.",
                "Three parts: the centre, the half width under the root, and what both are "
                "divided by.",
                "Try a rate of 1 of 50 prompts. The upper end is 1, the lower end above 0.9.",
            ),
        ),
        "8.2": Exercise(
            grade_verdict,
            (
                "Write the rules as ifs, in the order in which they are listed.",
                "Within the tolerance: both ends of the interval are no further from the value.",
                "The claimed side of the parent is above for up, below for down.",
            ),
        ),
        "8.3": Exercise(
            choice("8.3", "5a7a0812ba27dd4a", SENTENCES),
            (
                "What did the experiment change, and in which model?",
                "Whoever picks a setting by its result will always come near.",
                "Each of the others claims one thing that was not measured. Which?",
            ),
        ),
        "8.4": Exercise(
            grade_sentence,
            (
                "An f-string: f'from {100 * row[\"parent\"]:.0f} %'.",
                "Shares times 100, rounded to whole numbers. Both ends of the change, with their "
                "sign.",
                "Two rates, two ends, prompts, seeds and the verdict: seven things.",
            ),
        ),
    },
)
