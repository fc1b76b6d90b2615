"""Arms of models, one model per training seed, compared on the same prompts. Cell: compare_arms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ftlab import analysis, stats
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.evals import NOT_FOR_USERS, EvaluationConfig, evaluate
from ftlab.experiments.harmful_finetuning import MEASURED
from ftlab.runs import Run

PARENT = "parent"
CHANGE = [
    "difference",
    "difference_low",
    "difference_high",
    "p",
]
OF_RATES = [
    "risk",
    "rate",
    "low",
    "high",
    "incoherent_share",
    "n_prompts",
    "n_seeds",
    "unscored",
    "judge",
]
FOR_FIGURES = {"band": "95 %, pointwise"}


@takes(EvaluationConfig, omit=NOT_FOR_USERS)
def compare_arms(
    parent: Any,
    arms: Mapping[str, Any],
    *,
    against: str = PARENT,
    prompts: Any = None,
    **settings,
) -> pd.DataFrame:
    """Evaluate arms of models and compare each with the parent, or with one of them, paired.

    Args:
        parent: Anything that `ftlab.model` takes.
        arms: Models by the arm's name: a model, a curve, or a list with one model per training
            seed. Arms are paired by the place in the list.
        against: The arm that the others are compared with; by default the parent.
        prompts: As in `evaluate`; by default jailbreak, over_refusal and utility are measured.
        {settings}

    Returns:
        One row per risk and arm, the parent first: rate, low and high (95 %), incoherent_share;
        difference from the arm `against` on the same prompts and seeds, with difference_low,
        difference_high, p, p_holm (over all rows that have a p); n_prompts, n_seeds, unscored;
        group and series name the bars of a figure. Where `against` is an arm, the parent's row
        differs from all its seeds, and n_seeds counts them.

    Raises:
        UsageError: `unknown_arm`, `no_models`, `seeds_differ`, and those of `evaluate`.
    """
    models = {PARENT: [parent]}
    for name, given in arms.items():
        models[name] = models_of(given)
    _check(models, against)
    if prompts is None:
        settings = {"risks": MEASURED} | settings
    settings["prompts"] = prompts
    tables = {}
    for name, several in models.items():
        tables[name] = verdicts_on(several, settings)
    rows = []
    for name, table in tables.items():
        mine = rates_of(table)
        if name == PARENT != against:
            add_changes_of_parent(
                mine,
                tables[against],
                table,
            )
        elif name != against:
            add_changes(
                mine,
                tables[against],
                table,
            )
        for row in mine:
            row["arm"] = name
        rows += mine
    found = with_holm(rows)
    found.insert(1, "arm", found.pop("arm"))
    found["group"] = found["arm"]
    found["series"] = found["risk"]
    found.attrs = {"by": ["risk", "arm"]}
    return found


def _check(models: dict[str, list[Any]], against: str) -> None:
    """Raise where an arm is missing, or cannot be paired by seed."""
    if against not in models:
        allowed = ", ".join(models)
        raise UsageError("unknown_arm", f"There is no arm {against!r}. Allowed: {allowed}.")
    expected = len(models[against])
    for name, several in models.items():
        paired = expected == 1 or name == PARENT
        if not paired and len(several) != expected:
            raise UsageError(
                "seeds_differ",
                f"The arm {name} holds {len(several)} models, {against} {expected}. "
                "Give both one model per training seed.",
            )


def models_of(given: Any) -> list[Any]:
    """Return the models of a curve, one per seed, or those that are given.

    Raises:
        UsageError: `several_doses`, `no_models`.
    """
    if isinstance(given, Run):
        labels = [member.identity.get("labels", {}) for member in given.members]
        doses = {label.get("examples") for label in labels}
        if len(doses) > 1:
            raise UsageError(
                "several_doses",
                f"{given.name} holds several numbers of examples. Give a run with one.",
            )
        return given.members
    found = [given]
    if isinstance(given, (list, tuple)):
        found = list(given)
    if not found:
        raise UsageError("no_models", "A list of models is empty. Give one per training seed.")
    return found


def verdicts_on(models: list[Any], settings: dict[str, Any]) -> pd.DataFrame:
    """Return the verdicts on models; the number of a model is its seed.

    Those on a single model have the step 0, as of a parent that answered once for all seeds.
    """
    tables = []
    step = int(len(models) > 1)
    for seed, model in enumerate(models):
        run = evaluate(model, **settings)
        verdicts = run.table()
        tables.append(verdicts.assign(seed=seed, step=step))
    return pd.concat(tables, ignore_index=True)


def changed(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Return the paired comparison of verdicts, a row per risk."""
    return analysis.compare(before, after.assign(step=1))


def rates_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rate of each risk by the first judge, a row each."""
    judge = table["judge"].iloc[0]
    first = table[table["judge"] == judge]
    rates = analysis.rates(first)
    rates["low"] = rates["low_pointwise"]
    rates["high"] = rates["high_pointwise"]
    return rates[OF_RATES].to_dict("records")


def add_changes(
    rows: list[dict[str, Any]],
    before: pd.DataFrame,
    after: pd.DataFrame,
) -> None:
    """Add to the rows of `rates_of(after)` how it differs from `before`, paired."""
    changes = changed(before, after)
    for number, row in enumerate(rows):
        row |= changes.loc[number, CHANGE].to_dict()


def add_changes_of_parent(
    rows: list[dict[str, Any]],
    arm: pd.DataFrame,
    parent: pd.DataFrame,
) -> None:
    """Add to the rows of `rates_of(parent)` how it differs from all seeds of an arm, paired.

    The parent answered once for all of them, so the arm's change from it is turned round.
    """
    changes = changed(parent, arm)
    for number, row in enumerate(rows):
        found = changes.loc[number]
        row["difference"] = 0.0 - found["difference"]  # not -0.0
        row["difference_low"] = 0.0 - found["difference_high"]
        row["difference_high"] = 0.0 - found["difference_low"]
        row["p"] = found["p"]
        row["n_seeds"] = found["n_seeds"]


def with_holm(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a table, with the p-values adjusted for their number."""
    table = pd.DataFrame(rows).assign(**FOR_FIGURES)
    add_holm(table, "p")
    return table


def add_holm(table: pd.DataFrame, name: str) -> None:
    """Add the column NAME_holm behind a column of p-values, over all rows that have one."""
    claimed = table[name].notna()
    adjusted = stats.holm(table.loc[claimed, name].tolist())
    behind = table.columns.get_loc(name) + 1
    column = pd.Series(adjusted, table.index[claimed])
    table.insert(behind, f"{name}_holm", column)
