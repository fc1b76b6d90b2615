"""Lesson 7: defences on one grid, and an attacker who tries."""

from __future__ import annotations

from typing import Any

import numpy as np

from ftlab.course.exercises import Exercise, Lesson
from ftlab.course.grading import choice, compare_functions, compare_numbers

MARGIN = 0.05
SAFER = "safer"
LOST = "less harm, utility lost"
UNKNOWN = "less harm, utility not known"
NO_CHANGE = "no change shown"
MORE = "more harm"
INTERVALS = (  # change of harm and of utility against no defence, and the margin
    ((-0.4, -0.2), (-0.03, 0.02), MARGIN),
    ((-0.9, -0.7), (-0.8, -0.6), MARGIN),
    ((-0.3, -0.1), (-0.1, 0.04), MARGIN),
    ((-0.3, 0.1), (-0.01, 0.01), MARGIN),
    ((-0.25, 0.02), (-0.4, -0.2), MARGIN),
    ((0.05, 0.2), (-0.02, 0.01), MARGIN),
    ((-0.3, -0.1), (-0.04, -0.01), MARGIN),
    ((-0.3, -0.1), (-0.04, -0.01), 0.02),
)
SEARCHES = ((0.1, 50, 1), (0.1, 50, 15), (0.1, 400, 15), (0.5, 20, 50), (0.02, 36, 100))


def verdict(harm: tuple, utility: tuple, margin: float) -> str:
    """Return what two intervals say of a defence."""
    harm_low, harm_high = harm
    utility_low, utility_high = utility
    if harm_low > 0:
        return MORE
    if harm_high >= 0:
        return NO_CHANGE
    if utility_low >= -margin:
        return SAFER
    return LOST if utility_high < 0 else UNKNOWN


def _by_middle(harm, utility, margin):
    middles = [sum(ends) / 2 for ends in (harm, utility)]
    if middles[0] > 0:
        return MORE
    return SAFER if middles[1] >= -margin else LOST


def _harm_alone(harm, utility, margin):
    found = verdict(harm, utility, margin)
    return SAFER if found.startswith("less harm") else found


def _not_shown_is_kept(harm, utility, margin):
    found = verdict(harm, utility, margin)
    return SAFER if found == UNKNOWN else found


def _not_kept_is_lost(harm, utility, margin):
    found = verdict(harm, utility, margin)
    return LOST if found == UNKNOWN else found


def _any_fall(harm, utility, margin):
    found = verdict(harm, utility, margin)
    return LOST if found == SAFER and utility[1] < 0 else found


VERDICT_MISTAKES = (
    (_by_middle, "The middle of an interval shows nothing. Look at its ends."),
    (_harm_alone, "A model that answers nothing does no harm either. Look at utility."),
    (_not_shown_is_kept, "That no loss of utility was shown does not show that there is none."),
    (_not_kept_is_lost, "That utility was not shown to be kept does not show that it is lost."),
    (_any_fall, "A loss that is surely smaller than the margin does not matter here."),
)


def grade_verdict(answer: Any) -> str:
    """Grade a function from two intervals and a margin to a verdict."""
    return compare_functions(answer, verdict, INTERVALS, mistakes=VERDICT_MISTAKES)


def grade_prevented(answer: Any, grid: Any) -> str:
    """Grade the share of the rise of harm, by the last attack, that the first defence prevented."""
    attack = list(dict.fromkeys(grid["attack"]))[-1]
    harm = grid[(grid["axis"] == "harm") & (grid["attack"] == attack)].set_index("defence")
    defended = [name for name in harm.index if name != "none"][0]
    without = float(harm.loc["none", "rate"])
    after = float(harm.loc[defended, "rate"])
    parent = float(harm.loc["none", "parent"])
    truth = _share(without - after, without - parent)
    mistakes = (
        (without - after, "This is the difference. What share is it of what could be prevented?"),
        (
            _share(without - after, without),
            "The parent's own rate was there before. No defence could have prevented it.",
        ),
        (1 - truth, "This is the share that was not prevented."),
        (_share(after, without), "This is what is left, not what was prevented."),
    )
    return compare_numbers(answer, truth, tolerance=0.005, mistakes=mistakes)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else np.nan


def luckiest(rate: float, prompts: int, trials: int) -> float:
    """Return the mean of the highest of several measured rates that are in truth the same."""
    return _of_highest(rate, prompts, trials, trials)


def _of_highest(rate: float, prompts: int, power: float, trials: int) -> float:
    from scipy.stats import binom

    at_most = binom.cdf(np.arange(prompts), prompts, rate) ** power
    return float((1 - at_most).sum() / prompts)


def _alone(rate, prompts, trials):
    return rate


def _lowest(rate, prompts, trials):
    return 1 - luckiest(1 - rate, prompts, trials)


def _counted(rate, prompts, trials):
    return prompts * luckiest(rate, prompts, trials)


def _one_too_many(rate, prompts, trials):
    return luckiest(rate, prompts, trials) + 1 / prompts


def _below_all(rate, prompts, trials):
    return 1 - luckiest(rate, prompts, trials)


LUCK_MISTAKES = (
    (_alone, "This is the rate of any trial. The attacker shows you the highest."),
    (_lowest, "This is the lowest of them."),
    (_counted, "These are prompts. Divide by their number for a rate."),
    (_one_too_many, "The sum runs over 0 to n - 1: at n the chance of no more is 1."),
    (_below_all, "1 less the chance of x or fewer is added up, not that chance."),
)


def grade_luck(answer: Any) -> str:
    """Grade a function from rate, prompts and trials to the mean of the highest rate."""
    return compare_functions(answer, luckiest, SEARCHES, mistakes=LUCK_MISTAKES)


SENTENCES = {
    "a": "The search stopped after so many trials. Is there no other setting?",
    "b": "Who had the weights would train without the defence. Was that tried?",
    "c": "The worst of a search is the luckiest, too. Which numbers decide?",
    "d": "Read again who attacked, with what, and what was measured.",
}


LESSON = Lesson(
    "defences",
    7,
    {
        "7.1": Exercise(
            grade_verdict,
            (
                "Begin with harm. What do the ends of its interval say if both lie below 0, both "
                "above, or one on each side?",
                "Only if harm is shown to be less does utility matter. Kept means: even the low "
                "end is no further down than the margin.",
                "Lost means: the whole interval lies below 0, and it is not kept. What remains is "
                "not known.",
            ),
        ),
        "7.2": Exercise(
            grade_prevented,
            (
                "Three rates are needed: before the attack, after it without a defence, and after "
                "it with one.",
                "grid.raw has them in the columns rate and parent, in rows with axis 'harm'.",
                "What the defence took away, over what the attack had added.",
            ),
        ),
        "7.3": Exercise(
            grade_luck,
            (
                "The highest of several is at most x if each of them is. What is the chance of "
                "that?",
                "scipy.stats.binom.cdf(x, n, p) is the chance that one trial counts x or fewer. "
                "Independent chances multiply.",
                "The mean of a count from 0 to n is the sum, over x from 0 to n - 1, of the chance "
                "that it exceeds x.",
            ),
        ),
        "7.4": Exercise(
            choice("7.4", "47c8664c2b9162ff", SENTENCES),
            (
                "What would somebody need to know to repeat the result?",
                "A search shows what it found. It shows nothing of what it did not try.",
                "Each of the others has one defect. Compare them word by word.",
            ),
        ),
    },
)
