"""Do transforms add to what a fine-tuning did, or hide it? Cell: transform_and_compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from ftlab import analysis, stats
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.evals import NOT_FOR_USERS, EvaluationConfig, evaluate
from ftlab.experiments.harmful_finetuning import MEASURED
from ftlab.models import Model
from ftlab.runs import Run
from ftlab.training import Transform, open_transform, trainable, transform

NONE = "untransformed"
PARENT = "parent"
CHILD = "child"
CHANGE = ["difference", "difference_low", "difference_high", "p"]
EROSION = {
    "difference": "erosion",
    "difference_low": "erosion_low",
    "difference_high": "erosion_high",
}


@takes(EvaluationConfig, omit=NOT_FOR_USERS)
def transform_and_compare(
    parent: Any,
    children: Any,
    transforms: Sequence[Any],
    *,
    prompts: Any = None,
    **settings,
) -> pd.DataFrame:
    """Transform a parent and its children, and compare each with itself before, always paired.

    A transform that needs another model (`merge`, `task_arithmetic`) is given the parent, and is
    applied to the children only.

    Args:
        parent: Anything that `ftlab.model` takes, except an endpoint.
        children: A run of `risk_curve` or `harmful_finetune` with one dose, or a list of models:
            one child per training seed.
        transforms: Names of transforms with their settings, such as quantise:bits=4, or objects.
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
        UsageError: `several_doses`, `no_children`, and those of `transform` and `evaluate`.
    """
    reference = trainable(parent)
    chosen = [open_transform(one) for one in transforms]
    sources = [trainable(child) for child in _children(children)]
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
    table = pd.DataFrame(rows).assign(band="95 %, pointwise")
    claimed = table["p"].notna()
    table.loc[claimed, "p_holm"] = stats.holm(table.loc[claimed, "p"].tolist())
    table["group"] = table["transform"]
    table["series"] = table["side"]
    table.attrs = {"by": ["risk", "transform", "side"], "model": reference.name}
    return table


def _children(children: Any) -> list[Any]:
    """Return the models of a curve, one per seed, or those that are given."""
    if not isinstance(children, Run):
        found = list(children)
        if not found:
            raise UsageError("no_children", "children holds no model. Give one per training seed.")
        return found
    doses = {member.identity.get("labels", {}).get("examples") for member in children.members}
    if len(doses) > 1:
        raise UsageError(
            "several_doses",
            f"{children.name} holds several numbers of examples. Give a run with one.",
        )
    return children.members


def _measured(
    models: list[Model],
    chosen: Transform | None,
    settings: dict[str, Any],
) -> pd.DataFrame:
    """Return the verdicts on models after a transform; the number of a model is its seed."""
    tables = []
    for seed, model in enumerate(models):
        asked = model if chosen is None else transform(model, chosen)
        verdicts = evaluate(asked, **settings).table()
        tables.append(verdicts.assign(seed=seed, step=1))
    return pd.concat(tables, ignore_index=True)


def _rows(
    name: str,
    before: dict[str, pd.DataFrame],
    after: dict[str, pd.DataFrame],
) -> list[dict[str, Any]]:
    """Return the rows of one transform."""
    rows = []
    for side in (PARENT, CHILD):
        if side not in after:
            continue
        rates = analysis.rates(_first_judge(after[side]))
        changes = analysis.compare(before[side], after[side])
        erosions = _erosions(after.get(PARENT, before[PARENT]), after[CHILD])
        for number, rate in enumerate(rates.to_dict("records")):
            row = {
                "risk": rate["risk"],
                "transform": name,
                "side": side,
                "rate": rate["rate"],
                "low": rate["low_pointwise"],
                "high": rate["high_pointwise"],
            }
            if after is not before:
                row |= changes.loc[number, CHANGE].to_dict()
            if side == CHILD:
                row |= erosions.loc[number].to_dict()
            for column in ("n_prompts", "n_seeds", "unscored", "incoherent_share", "judge"):
                row[column] = rate[column]
            rows.append(row)
    return rows


def _first_judge(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["judge"] == table["judge"].iloc[0]]


def _erosions(
    parent: pd.DataFrame,
    child: pd.DataFrame,
) -> pd.DataFrame:
    """Return by how much the children's rates are above the parent's, a row per risk."""
    once = parent.assign(step=0)  # the parent answered once, whatever the number of seeds
    found = analysis.compare(once, child)
    return found[list(EROSION)].rename(columns=EROSION)
