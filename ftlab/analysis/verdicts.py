"""Verdict tables, prepared for statistics: who is paired with whom, over which seeds and steps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ftlab._core.errors import UsageError
from ftlab._core.types import Outcome
from ftlab.runs import Run

NEEDED = ("sample_id", "risk", "attack", "outcome", "event")


def prepare(source: Run | pd.DataFrame, outcome: str | None = None) -> pd.DataFrame:
    """Return a verdict table with `item`, `wording`, `seed`, `step` and `judge` in every row.

    An item is what parent and child are paired by: a sample, an attack, a repeat. `outcome` counts
    another outcome instead of the risk's event.
    """
    table = source
    if isinstance(source, Run):
        table = source.table()
        table.attrs["model"] = model_of(source)
    missing = sorted(set(NEEDED) - set(table.columns))
    if missing:
        raise UsageError(
            "not_a_verdict_table",
            f"No columns {', '.join(missing)}. Pass an evaluation or curve, or its table().",
        )
    item = table["sample_id"].astype(str) + "|" + table["attack"].astype(str)
    if "repeat" in table:
        item += "|" + table["repeat"].fillna(0).astype(int).astype(str)
    table = table.assign(item=item)
    if "wording" in table:
        own = table["wording"].fillna("").str.split(" > ").str[-1]  # without the attack's template
        table["wording"] = own.where(own != "", table["sample_id"])
    for column, default in (("seed", 0), ("step", 0), ("judge", "")):
        if column not in table:
            table[column] = default
    table["seed"] = table["seed"].fillna(0).astype(int)
    if outcome:
        table["event"] = shows(table, {Outcome(outcome)})
    return table


def model_of(run: Run) -> str:
    """Return the name of the model that a run measured; of a curve, the parent's."""
    return str(run.stats.get("parent") or run.stats.get("model") or "")


def shows(table: pd.DataFrame, outcomes: set[Outcome]) -> pd.Series:
    """Return 1.0 where the outcome is one of these, 0.0 where not, NaN where unscored."""
    shown = table["outcome"].isin(outcomes).astype(float)
    scored = [name for name in Outcome if name.scored]
    return shown.where(table["outcome"].isin(scored))


def judges_of(table: pd.DataFrame) -> list[str]:
    """Return the judges of a verdict table, the evaluation's first one first."""
    return list(dict.fromkeys(table["judge"]))


def of_judge(table: pd.DataFrame, judge: str | None = None) -> pd.DataFrame:
    """Return one judge's rows; by default the first judge's."""
    judges = judges_of(table)
    if judge is None:
        judge = next(iter(judges), "")
    elif judge not in judges:
        raise UsageError(
            "judge_not_in_table",
            f"No verdicts of judge {judge!r}. The table has: {', '.join(judges)}.",
        )
    return table[table["judge"] == judge]


def columns_of(table: pd.DataFrame, by: str | Sequence[str]) -> list[str]:
    """Return the columns to group by, checked."""
    columns = [by] if isinstance(by, str) else list(by)
    if "examples" not in columns and "examples" in table and table["examples"].nunique() > 1:
        raise UsageError(
            "several_doses",
            "The table holds several numbers of examples. Add 'examples' to by=, or select one.",
        )
    unknown = [column for column in columns if column not in table]
    if unknown:
        allowed = ", ".join(column for column in table if column != "item")
        raise UsageError(
            "unknown_group", f"No column {', '.join(unknown)} to group by. Allowed: {allowed}."
        )
    return columns


def groups(table: pd.DataFrame, columns: list[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield each group's values by column, and its rows, in order of appearance."""
    if table.empty:
        return
    for values, part in table.groupby(columns, sort=False, dropna=False):
        yield dict(zip(columns, values, strict=True)), part


def check_steps(table: pd.DataFrame, steps: Sequence[int] | None) -> None:
    """Raise `step_not_measured` for steps that no row has; negative ones count from the end."""
    measured = set(table["step"])
    unknown = [step for step in steps or () if step >= 0 and step not in measured]
    if unknown:
        raise UsageError(
            "step_not_measured",
            f"Steps {unknown} were not measured. Allowed: {sorted(measured)}.",
        )


def steps_of(part: pd.DataFrame, steps: Sequence[int] | None = None) -> list[int]:
    """Return the steps that every seed reached, or those of them in `steps` (-1: the last).

    Where runs stopped early, later steps would speak for the other seeds only.
    """
    seeds = part.groupby("step")["seed"].nunique()
    common = sorted(seeds.index[seeds == part["seed"].nunique()])
    if steps is None or not common:
        return common
    wanted = {common[step] if -len(common) <= step < 0 else step for step in steps}
    return [step for step in common if step in wanted]


def cube_of(
    part: pd.DataFrame, steps: list[int], value: str = "event", cluster: str = "sample_id"
) -> tuple[np.ndarray, np.ndarray]:
    """Return values [seeds, steps, items], NaN where missing, and each item's cluster."""
    keys = ["seed", "step", "item"]
    if part.duplicated(keys).any():
        raise UsageError(
            "verdicts_repeated",
            "Several verdicts on one prompt at one step. Add what separates them to by=.",
        )
    if cluster not in part:
        raise UsageError(
            "unknown_cluster",
            f"No column {cluster!r} for cluster=. Use sample_id, wording, category or topic.",
        )
    wide = part.set_index(keys)[value].unstack("item")
    seeds = sorted(part["seed"].unique())
    cube = [wide.reindex([(seed, step) for step in steps]).to_numpy(float) for seed in seeds]
    clusters = part.drop_duplicates("item").set_index("item")[cluster]
    return np.stack(cube), clusters.reindex(wide.columns).to_numpy(str)
