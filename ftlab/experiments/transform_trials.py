"""Do transforms add to what a fine-tuning did, or hide it? Cell: transform_and_compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ftlab import analysis
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.evals import NOT_FOR_USERS, EvaluationConfig
from ftlab.experiments.arms import (
    PARENT,
    add_changes,
    add_holm,
    changed,
    models_of,
    rates_of,
    verdicts_on,
    with_holm,
)
from ftlab.experiments.harmful_finetuning import MEASURED
from ftlab.models import Model
from ftlab.training import Transform, open_transform, trainable, transform

NONE = "untransformed"
CHILD = "child"
EROSION = {
    "difference": "erosion",
    "difference_low": "erosion_low",
    "difference_high": "erosion_high",
}
SHIFT = {
    "shift": "erosion_change",
    "shift_low": "erosion_change_low",
    "shift_high": "erosion_change_high",
    "p": "erosion_p",
}


@takes(EvaluationConfig, omit=NOT_FOR_USERS)
def transform_and_compare(
    parent: Any,
    children: Any,
    transforms: Any,
    *,
    amounts: Sequence[float] | None = None,
    prompts: Any = None,
    **settings,
) -> pd.DataFrame:
    """Transform a parent and its children, and compare each with itself before, always paired.

    A transform that needs another model (`merge`, `resta`, `task_arithmetic`) is given the parent,
    and is applied to the children only. The parent is then what it was, so that the change of the
    children is that of the erosion.

    Args:
        parent: Anything that `ftlab.model` takes, except an endpoint.
        children: A run of `risk_curve` or `harmful_finetune` with one dose, or a list of models:
            one child per training seed.
        transforms: A transform by its name with settings, such as quantise:bits=4, an object, or a
            list of them.
        amounts: Of one transform: values of the setting that says how much, such as the bits.
        prompts: As in `evaluate`; by default jailbreak, over_refusal and utility are measured.
        {settings}

    Returns:
        One row per risk, transform ("untransformed" is the first) and side (parent, child): rate,
        low and high (95 %); difference (from the same side untransformed, on the same prompts and
        seeds) with difference_low, difference_high, p, p_holm (over all rows that have a p); of
        children also erosion (child minus parent, both transformed where the transform is of one
        model) with erosion_low, erosion_high; n_prompts, n_seeds, unscored; group and series name
        the bars of a figure.

    Raises:
        UsageError: `several_doses`, `no_models`, `several_transforms`, and those of `transform`
            and `evaluate`.
    """
    reference = trainable(parent)
    chosen = _chosen(transforms, amounts)
    sources = [trainable(child) for child in models_of(children)]
    for one in chosen:
        one.beside(reference).check(reference)
    if prompts is None:
        settings = {"risks": MEASURED} | settings
    settings["prompts"] = prompts
    before = {
        PARENT: _measured([reference], None, settings),
        CHILD: _measured(sources, None, settings),
    }
    rows = _rows(NONE, before, before)
    for one in chosen:
        complete = one.beside(reference)
        after = {CHILD: _measured(sources, complete, settings)}
        if complete == one:
            after[PARENT] = _measured([reference], one, settings)
        rows += _rows(one.spec, before, after)
    table = with_holm(rows)
    if "erosion_p" in table:
        add_holm(table, "erosion_p")
    table["group"] = table["transform"].str.replace(":", ", ").str.replace("=", " ")
    table["series"] = table["side"]
    table.attrs = {"by": ["risk", "transform", "side"], "model": reference.name}
    return table


def _chosen(transforms: Any, amounts: Sequence[float] | None) -> list[Transform]:
    """Return the transforms, or one of them in several amounts."""
    several = transforms if isinstance(transforms, (list, tuple)) else [transforms]
    opened = [open_transform(one) for one in several]
    if amounts is None:
        return opened
    if len(opened) > 1:
        raise UsageError(
            "several_transforms",
            f"amounts={list(amounts)} is of one transform, not of {len(opened)}. Give one.",
        )
    (one,) = opened
    return [type(one).make(**dict(one) | {one.amount: value}) for value in amounts]


def _measured(
    models: list[Model],
    chosen: Transform | None,
    settings: dict[str, Any],
) -> pd.DataFrame:
    """Return the verdicts on models after a transform."""
    if chosen is not None:
        models = [transform(model, chosen) for model in models]
    return verdicts_on(models, settings)


def _rows(
    name: str,
    before: dict[str, pd.DataFrame],
    after: dict[str, pd.DataFrame],
) -> list[dict[str, Any]]:
    """Return the rows of one transform."""
    rows = []
    parent = after.get(PARENT, before[PARENT])
    erosions = changed(parent, after[CHILD])[list(EROSION)].rename(columns=EROSION)
    if PARENT in after and after is not before:
        sides = [(tables[PARENT], tables[CHILD]) for tables in (before, after)]
        shifts = analysis.shifts(*sides)[list(SHIFT)].rename(columns=SHIFT)
        erosions = erosions.join(shifts)
    for side in (PARENT, CHILD):
        if side not in after:
            continue
        mine = rates_of(after[side])
        if after is not before:
            add_changes(
                mine,
                before[side],
                after[side],
            )
        for number, rate in enumerate(mine):
            row = {"risk": rate.pop("risk"), "transform": name, "side": side, **rate}
            if side == CHILD:
                row |= erosions.loc[number].to_dict()
            rows.append(row)
    return rows
