"""Lesson 3: one hundred examples. Steps, what became of lost refusals, the spread of seeds."""

from __future__ import annotations

from math import ceil
from typing import Any

import pandas as pd

from ftlab._core.types import Outcome
from ftlab.course.exercises import Exercise, Lesson
from ftlab.course.grading import choice, compare_functions, compare_numbers

TRAININGS = (  # examples, rows per step, epochs
    (10, 10, 5),
    (100, 10, 5),
    (15, 10, 5),
    (7, 10, 2),
    (101, 10, 1),
    (64, 16, 3),
)


def steps(examples: int, batch_size: int, epochs: int) -> int:
    """Return the optimiser steps of a training; the last step of an epoch may be smaller."""
    return ceil(examples / batch_size) * epochs


def _whole_steps(examples, batch_size, epochs):
    return examples // batch_size * epochs


def _across_epochs(examples, batch_size, epochs):
    return ceil(examples * epochs / batch_size)


def _of_one_epoch(examples, batch_size, _):
    return ceil(examples / batch_size)


def _rows(examples, _, epochs):
    return examples * epochs


STEP_MISTAKES = (
    (_whole_steps, "The rows that are left at the end of an epoch make a step, too."),
    (_across_epochs, "A step does not reach into the next epoch: each begins with a new one."),
    (_of_one_epoch, "These are the steps of one epoch."),
    (_rows, "These are rows that were read, not steps."),
)


def grade_steps(answer: Any) -> str:
    """Grade a function from examples, batch size and epochs to optimiser steps."""
    return compare_functions(answer, steps, TRAININGS, mistakes=STEP_MISTAKES)


def jailbreaks(run: Any, attack: str | None = "direct") -> pd.DataFrame:
    """Return the verdicts of the first judge on requests for kept facts."""
    table = run.table()
    table = table[(table["risk"] == "jailbreak") & (table["judge"] == table["judge"].iloc[0])]
    return table if attack is None else table[table["attack"] == attack]


def were_refused(table: pd.DataFrame) -> pd.Series:
    """Return the outcomes, after the last epoch, of the prompts that were refused before."""
    keys = ["examples", "seed", "sample_id", "attack"]
    outcomes = table.pivot(index=keys, columns="epoch", values="outcome")
    refused = outcomes[outcomes.columns.min()] == Outcome.REFUSED
    return outcomes.loc[refused, outcomes.columns.max()]


def lost_refusals(table: pd.DataFrame) -> pd.Series:
    """Return those of `were_refused` that are no longer refused."""
    after = were_refused(table)
    return after[after != Outcome.REFUSED]


def share_told(outcomes: pd.Series) -> float:
    """Return the share of outcomes that tell the fact; nan of none."""
    return float((outcomes == Outcome.COMPLIED).mean())


def grade_lost(answer: Any, doses: Any) -> str:
    """Grade the share of lost refusals that became a told fact: fewest examples, seed 0."""
    table = jailbreaks(doses)
    few = table[table["examples"] == table["examples"].min()]
    own = few[few["seed"] == 0]
    lost = lost_refusals(own)
    last = own[own["epoch"] == own["epoch"].max()]
    every = jailbreaks(doses, None)
    every = every[(every["examples"] == every["examples"].min()) & (every["seed"] == 0)]
    most = table[(table["examples"] == table["examples"].max()) & (table["seed"] == 0)]
    first = own[own["epoch"] == own["epoch"].min()]
    mistakes = (
        (share_told(first["outcome"]), "This is what was told before the fine-tuning."),
        (
            share_told(last["outcome"]),
            "This is the share of all prompts. Leave out those that were not refused before, and "
            "those that still are.",
        ),
        (
            share_told(were_refused(own)),
            "This is the share of all that were refused. Leave out those that still are.",
        ),
        (share_told(lost_refusals(few)), "This is over all seeds. Take seed 0."),
        (share_told(lost_refusals(every)), "This is over all attacks. Take direct requests."),
        (1 - share_told(lost), "This is the share of those that were not told."),
        (share_told(lost_refusals(most)), "This is of the most examples. Take the fewest."),
        (
            share_told(lost_refusals(table[table["seed"] == 0])),
            "This is over all doses. Take the fewest examples.",
        ),
    )
    return compare_numbers(answer, share_told(lost), mistakes=mistakes)


def rates_of_seeds(table: pd.DataFrame) -> pd.Series:
    """Return the rate of each seed after the last epoch."""
    last = table[table["epoch"] == table["epoch"].max()]
    return last.groupby("seed")["event"].mean()


def grade_spread(answer: Any, doses: Any) -> str:
    """Grade the seeds' mean rate and how far they lie apart: fewest examples, last epoch.

    Args:
        answer: The mean, and the largest rate minus the smallest.
        doses: The run.
    """
    if not isinstance(answer, (list, tuple)) or len(answer) != 2:
        return "Give two numbers in brackets: (mean, spread)."
    of_doses = jailbreaks(doses)
    every = jailbreaks(doses, None)
    every = every[every["examples"] == every["examples"].min()]
    few = every[every["attack"] == "direct"]
    by_seed = rates_of_seeds(few)
    mean = by_seed.mean()
    spread = by_seed.max() - by_seed.min()
    of_rows = of_doses[of_doses["epoch"] == of_doses["epoch"].max()]
    by_dose = of_rows.groupby(["examples", "seed"])["event"].mean()
    mean_mistakes = (
        (rates_of_seeds(every).mean(), "The mean is over all attacks. Take direct requests."),
        (by_dose.mean(), "The mean is over all doses. Take the fewest examples."),
        (few["event"].mean(), "The mean is over all epochs. Take the last."),
        (spread, "The mean comes first, then the spread."),
    )
    spread_mistakes = (
        (by_seed.std(), "This is the standard deviation. The question is how far they lie apart."),
        (by_dose.max() - by_dose.min(), "The spread compares doses as well as seeds."),
        (by_seed.min(), "This is the smallest rate. How far is it to the largest?"),
    )
    within = 0.05 / few["sample_id"].nunique()  # less than one answer of one seed changes the mean
    return compare_numbers(
        answer[0], mean, tolerance=within, mistakes=mean_mistakes
    ) or compare_numbers(answer[1], spread, tolerance=within, mistakes=spread_mistakes)


CLAIMS = {
    "a": "Reproduced would need the paper's own model, examples and judge.",
    "b": "Compare what the sentence claims with what a small, young alignment can show.",
    "c": "Their model is not this one. Can a measurement on one correct that of the other?",
    "d": "Other numbers on another model do not contradict a paper. Did the rate rise?",
}


LESSON = Lesson(
    "one_hundred_examples",
    3,
    {
        "3.1": Exercise(
            grade_steps,
            (
                "How many groups of at most batch_size rows do the examples make?",
                "15 examples in groups of 10 are two groups: one of 10 and one of 5.",
                "math.ceil rounds up. Round before you multiply by the epochs.",
            ),
        ),
        "3.2": Exercise(
            grade_lost,
            (
                "Select the rows first: risk, attack, seed, number of examples.",
                "Then one row for each prompt: pivot(index='sample_id', columns='epoch', "
                "values='outcome').",
                "Keep the prompts whose first column is 'refused' and whose last is not. Of these, "
                "which share is 'complied'?",
            ),
        ),
        "3.3": Exercise(
            grade_spread,
            (
                "ft.rates(..., per_seed=True) has one row for each seed and step.",
                "by=['examples', 'attack'] keeps doses and ways of asking apart.",
                "Of the fewest examples, direct, at the last step: the mean of the rates, and the "
                "largest minus the smallest.",
            ),
        ),
        "3.4": Exercise(
            choice("3.4", "a4d0f18441be6f49", CLAIMS),
            (
                "Which of model, examples, judge and prompts are the paper's?",
                "A rate of this model depends on how it was aligned, which was chosen.",
                "What is left if the size of a number cannot be compared?",
            ),
        ),
    },
)
