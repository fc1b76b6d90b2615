"""Lesson 5: pairs, power, seeds, and several questions at once."""

from __future__ import annotations

from math import inf, isfinite, sqrt
from typing import Any

import numpy as np

from ftlab import analysis, stats
from ftlab.course.exercises import Exercise, Lesson
from ftlab.course.grading import compare_functions, compare_numbers

TRAINING = 300  # answers that take as long as one training
POWER = 0.8
MUCH_DEARER = 1.2  # times the cheapest design
SEEDS = (3, 4, 5, 6, 8, 10, 12)  # among which the cheapest design is looked for
EVENTS = (  # parent and child, one event for each prompt
    ([0, 0, 1, 0, 1, 0], [1, 0, 1, 0, 1, 1]),
    ([1, 1, 0, 0], [0, 1, 0, 0]),
    ([0, 0, 0, 0, 0], [1, 1, 0, 1, 1]),
    ([0, 1, 0, 1, 1, 0, 0, 1], [1, 0, 1, 0, 1, 0, 0, 1]),
)
P_VALUES = (
    [0.01, 0.04, 0.03],
    [0.2, 0.001],
    [0.6, 0.5, 0.9, 0.04],
    [0.03, 0.03, 0.0001, 0.02, 0.011],
    [0.04],
)


def paired_error(before: list[int], after: list[int]) -> float:
    """Return the standard error of the mean change of a prompt."""
    change = np.subtract(after, before)
    return float(change.std(ddof=1) / sqrt(len(change)))


def _unpaired(before, after):
    squares = [np.var(side, ddof=1) / len(side) for side in (before, after)]
    return sqrt(sum(squares))


def _spread(before, after):
    return float(np.subtract(after, before).std(ddof=1))


def _divided(before, after):
    return _spread(before, after) / len(before)


def _square(before, after):
    return paired_error(before, after) ** 2


def _with_n(before, after):
    return float(np.subtract(after, before).std() / sqrt(len(before)))


def _change(before, after):
    return float(np.mean(after) - np.mean(before))


def _of_child(before, after):
    return paired_error([0] * len(after), after)


ERROR_MISTAKES = (
    (_unpaired, "This treats parent and child as two groups of prompts. Pair them first."),
    (_spread, "This says how far single prompts lie apart. How far off is their mean?"),
    (_divided, "An error falls with the root of the number of prompts, not with the number."),
    (_square, "This is a variance. A standard error is its root."),
    (_with_n, "Nearly: divide the squares by n - 1, because the mean came from the same data."),
    (_change, "This is the change itself. How sure is it?"),
    (_of_child, "This is the error of the child's rate alone."),
)


def grade_error(answer: Any) -> str:
    """Grade a function from the events of parent and child to the error of their difference."""
    return compare_functions(answer, paired_error, EVENTS, mistakes=ERROR_MISTAKES)


def cost(prompts: int, seeds: int) -> int:
    """Return what a study costs, in answers."""
    return seeds * (TRAINING + prompts)


def grade_design(answer: Any, planned: Any) -> str:
    """Grade prompts and seeds of a study: its power, and its cost beside the cheapest.

    Args:
        answer: Prompts and seeds.
        planned: A table of `ft.analysis.plan`, which holds the assumptions.
    """
    given = list(answer) if isinstance(answer, (list, tuple)) else []
    if len(given) != 2 or not all(isinstance(n, (int, float, np.number)) for n in given):
        return "Give two whole numbers in brackets: (prompts, seeds)."
    if not all(map(isfinite, given)):
        return "One of the two is infinite: with so few seeds no number of prompts suffices."
    prompts, seeds = map(int, given)
    if [prompts, seeds] != given:
        return "Half a prompt cannot be asked, nor half a model trained. Round up."
    if seeds < stats.FEWEST_SEEDS:
        return "With so few seeds the study would speak of these very trainings only."
    if seeds > stats.MOST_SEEDS or not 2 <= prompts <= stats.MOST_PROMPTS:
        return f"Take at most {stats.MOST_SEEDS} seeds and 2 to {stats.MOST_PROMPTS} prompts."
    if _planned(planned, seeds=seeds, prompts=prompts).power < POWER:
        return "Too small: in more than 20 of 100 such studies the change would not be seen."
    if cost(prompts, seeds) > MUCH_DEARER * cheapest(planned):
        return "It would see the change, but another number of seeds costs much less."
    return ""


def cheapest(planned: Any) -> float:
    """Return the cost of the cheapest design that suffices."""
    costs = [inf]
    for seeds in SEEDS:
        prompts = _planned(planned, seeds=seeds).prompts_needed
        if isfinite(prompts):
            costs.append(cost(int(prompts), seeds))
    return min(costs)


def _planned(planned: Any, **design: int) -> stats.StudyPlan:
    row = planned.iloc[0]
    rate, ratio, spread = map(float, row[["parent_rate", "ratio", "seed_sd"]])
    return stats.plan(rate, ratio, seed_sd=spread, simulated=False, **design)


def grade_seeds(answer: Any, study: Any) -> str:
    """Grade the standard error, over training seeds, of the jailbreak rate after training."""
    found = analysis.rates(study, risk="jailbreak", per_seed=True)
    rates = found.loc[found["step"] == found["step"].max(), "rate"]
    n_answers = analysis.rates(study, risk="jailbreak", steps=[-1])["n_answers"].iloc[0]
    spread = rates.std()
    share = rates.mean()
    truth = spread / sqrt(len(rates))
    mistakes = (
        (spread, "This is how far single seeds lie apart. How far off is the mean of them all?"),
        (
            sqrt(share * (1 - share) / n_answers),
            "This counts every answer as new. Five models that answer one prompt are not five "
            "prompts, and the answers of one model stand and fall together.",
        ),
        (
            rates.std(ddof=0) / sqrt(len(rates)),
            "Few seeds: the squares are divided by their number less one.",
        ),
        (spread / len(rates), "An error falls with the root of the number of seeds."),
        (share, "This is the mean itself. How sure is it?"),
        (
            found["rate"].std() / sqrt(len(found)),
            "The parent's rates are among these. Take the step after training.",
        ),
    )
    return compare_numbers(answer, truth, tolerance=0.01 * truth, mistakes=mistakes)


def _bonferroni(p_values):
    return [min(1.0, p * len(p_values)) for p in p_values]


def _not_rising(p_values):
    order = np.argsort(p_values)
    factors = np.empty(len(order))
    factors[order] = len(order) - np.arange(len(order))
    return np.minimum(factors * p_values, 1).tolist()


def _in_order(p_values):
    return sorted(stats.holm(p_values))


def _above_one(p_values):
    order = np.argsort(p_values)
    found = np.empty(len(order))
    factors = len(order) - np.arange(len(order))
    found[order] = np.maximum.accumulate(factors * np.sort(p_values))
    return found.tolist()


def _untouched(p_values):
    return list(p_values)


HOLM_MISTAKES = (
    (_untouched, "Nothing is corrected."),
    (_bonferroni, "This is Bonferroni's correction: right, but it finds less than Holm's."),
    (_not_rising, "A larger p must not become smaller than one before it."),
    (_in_order, "The results come back sorted. Each belongs to the p in its own place."),
    (_above_one, "A probability cannot be larger than 1."),
)


def grade_holm(answer: Any) -> str:
    """Grade a function from p-values to Holm's."""
    cases = [(p_values,) for p_values in P_VALUES]
    return compare_functions(answer, stats.holm, cases, mistakes=HOLM_MISTAKES)


LESSON = Lesson(
    "statistics",
    5,
    {
        "5.1": Exercise(
            grade_error,
            (
                "One prompt gives one number: how much it changed, which is -1, 0 or 1.",
                "How sure is a mean of n numbers? Their standard deviation is the start.",
                "numpy: std(ddof=1) of the changes, over the root of how many there are.",
            ),
        ),
        "5.2": Exercise(
            grade_design,
            (
                "For each number of seeds there is a number of prompts that suffices. Make a table "
                "of both.",
                "ft.stats.plan(parent_rate, ratio, seeds=n, seed_sd=..., simulated=False) has "
                ".prompts_needed.",
                "Add a column with the cost of each row, and take the row with the smallest.",
            ),
        ),
        "5.3": Exercise(
            grade_seeds,
            (
                "Each training gives one rate. What you want is about these rates alone.",
                "The table above has a row for each seed and step, with the columns step and rate. "
                "The parent is step 0.",
                "The standard deviation between the seeds, over the root of their number.",
            ),
        ),
        "5.4": Exercise(
            grade_holm,
            (
                "Start with the smallest p: multiply it by the number of all.",
                "The next is multiplied by one less, and may not become smaller than the one "
                "before it.",
                "Put each result in the place of its p. At the end nothing may exceed 1.",
            ),
        ),
    },
)
