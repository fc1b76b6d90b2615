"""Verdict tables, prepared for statistics: who is paired with whom, over which seeds and steps."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ftlab._core.errors import NotFoundError, UsageError
from ftlab._core.text import safe
from ftlab._core.types import Outcome
from ftlab.runs import Labels, Run, load, read_labels
from ftlab.stats import Rectified, rectify

Names = str | Sequence[str]
Source = Run | str | pd.DataFrame | Mapping[str, Run | pd.DataFrame]
EXACT = ("truth", "exact")  # first word of the name of a judge that knows the answer
OF_REFUSALS = ("refusal", "keywords")  # judges that know only whether an answer refuses
NEEDED = {
    "sample_id",
    "risk",
    "attack",
    "repeat",
    "wording",
    "outcome",
    "event",
    "judge",
    "decided_by",
    "cut",
}
CUT = "Answers truncated by max_new_tokens, which are judged as they stand: {}"


def prepare(
    source: Source,
    outcome: str | None = None,
) -> pd.DataFrame:
    """Return a verdict table with `item`, `wording`, `seed` and `step` in every row.

    An item is what parent and child are paired by: a sample, an attack, a repeat. `outcome` counts
    another outcome instead of the risk's event. Several named sources become one table with the
    column `model`.
    """
    if isinstance(source, Mapping) and source:
        parts = [prepare(one, outcome).assign(model=name) for name, one in source.items()]
        table = pd.concat(parts, ignore_index=True)
        table.attrs["runs"] = runs_of(*parts)
        return table
    if isinstance(source, str):
        with contextlib.suppress(NotFoundError):
            source = load(source)
    table = source
    if isinstance(source, Run):
        table = source.table()
        complete = (source.path / "stats.json").exists()  # not where an endpoint failed
        stats = source.stats if complete else {}
        table.attrs["model"] = stats.get("parent") or stats.get("model", "")
        table.attrs["runs"] = [source.name]
    columns = set(getattr(table, "columns", ()))
    if not columns or (source is not table and table.empty):
        name = safe(getattr(source, "name", source), 200)
        why = "holds no judged answers. Pass the run of ftlab.evaluate(...) or of a curve."
        raise UsageError("not_a_verdict_table", f"{name} {why}")
    missing = ", ".join(sorted(NEEDED - columns))
    if missing:
        raise UsageError(
            "not_a_verdict_table",
            f"No columns {missing}. Pass a run of an evaluation or curve, or its table().",
        )
    more = [table["attack"], table["repeat"].astype(str)]
    table = table.assign(item=table["sample_id"].str.cat(more, sep="|"))
    own = table["wording"].str.split(" > ").str[-1]  # without the attack's template
    table["wording"] = own.where(own != "", table["sample_id"])
    for label in ("seed", "step"):
        if label not in table:
            table[label] = 0
    table["seed"] = table["seed"].fillna(0).astype(int)
    if outcome:
        table["event"] = shows(table, {Outcome(outcome)})
    return table


def runs_of(*tables: pd.DataFrame) -> list[str]:
    """Return the names of the runs that tables are of, each once."""
    found = {}
    for table in tables:
        found |= dict.fromkeys(table.attrs.get("runs", []))
    return list(found)


def shows(
    table: pd.DataFrame,
    outcomes: set[Outcome],
    column: str = "outcome",
) -> pd.Series:
    """Return 1.0 where the outcome is one of these, 0.0 where not, NaN where unscored."""
    shown = table[column].isin(outcomes).astype(float)
    scored = [name for name in Outcome if name.scored]
    return shown.where(table[column].isin(scored))


def read(labels: Any) -> Labels | None:
    """Return the labels of sheets, or those that were read already; None where none are given."""
    if labels is None or isinstance(labels, Labels):
        return labels
    return read_labels(labels)


def labelled(
    table: pd.DataFrame,
    labels: Labels | None,
    outcome: str | None = None,
) -> pd.DataFrame:
    """Return the rows of answers that could be drawn, with the label of those that were.

    The new columns are `inclusion`, the probability of being drawn; `label`, an outcome; and
    `event_label`, the event by the label. `outcome` is that of `prepare`.
    """
    if labels is None:
        return table
    keys = table["risk"].str.cat(table["answer_key"], sep=" ")
    inclusion = keys.map(labels.probabilities)
    label = keys.map(labels.outcomes)
    events = [
        labels.events.get(risk, {}).get(str(name), math.nan)
        for risk, name in zip(table["risk"], label, strict=True)
    ]
    rows = table.assign(inclusion=inclusion, label=label, event_label=events)
    if outcome:
        rows["event_label"] = shows(rows, {Outcome(outcome)}, "label")
    place = rows["risk"].str.cat(rows["step"].astype(str), sep=" ")
    drawn_from = place.isin(place[inclusion.notna()])
    unscored = drawn_from & rows["event"].isna()  # stays, and is counted
    rows = rows[inclusion.notna() | unscored]
    if rows.empty:
        raise UsageError(
            "labels_of_other_answers",
            "The labels are of other answers than these. Draw from this run, or from those of "
            "parent and child, and give all sheets.",
        )
    return rows


def of_judge(
    table: pd.DataFrame,
    judge: str | None = None,
) -> pd.DataFrame:
    """Return one judge's rows; by default the first judge's."""
    judges = table["judge"].unique()
    wanted = judges[:1] if judge is None else [judge]
    rows = table[table["judge"].isin(wanted)]
    if judge and rows.empty:
        raise UsageError(
            "judge_not_in_table",
            f"No verdicts of judge {judge!r}. The table has: {', '.join(judges)}.",
        )
    return rows


def cut_in(*tables: pd.DataFrame) -> int:
    """Return how many answers in tables of one judge's verdicts max_new_tokens ended."""
    return sum(int(rows["cut"].sum()) for rows in tables)


def judge_name(judge: str) -> str:
    """Return a judge as readers see it: the embedded world's own is the truth."""
    return "truth" if judge == "organism" else judge


def of_refusals(judge: str) -> bool:
    """Return whether a judge knows only whether an answer refuses."""
    return judge.partition(":")[0].strip() in OF_REFUSALS


def as_list(names: Names) -> list[str]:
    if isinstance(names, str):
        return [names]
    try:
        return list(names)
    except TypeError:
        raise UsageError("wrong_names", f"{names!r:.80} is neither a name nor a list.") from None


def select(table: pd.DataFrame, **wanted: Names | None) -> pd.DataFrame:
    """Return the rows with these values, such as risk="jailbreak"; None takes every value."""
    for column, values in wanted.items():
        if values is None:
            continue
        values = as_list(values)
        chosen = table[column].isin(values)
        if not chosen.any():
            found = ", ".join(table[column].unique())
            raise UsageError(
                "nothing_selected",
                f"No {column} {', '.join(values)} was measured. The table has: {found}.",
            )
        table = table[chosen]
    return table


def columns_of(
    table: pd.DataFrame,
    by: Names,
) -> list[str]:
    """Return the columns to group by, checked."""
    columns = as_list(by)
    if "model" in table and "model" not in columns:
        columns.append("model")
    doses = set(table.get("examples", ()))
    if len(doses) > 1 and "examples" not in columns:
        raise UsageError(
            "several_doses",
            "The table holds several numbers of examples. Add 'examples' to by=, or select one.",
        )
    unknown = [column for column in columns if column not in table]
    if unknown:
        allowed = ", ".join(table.columns.drop("item"))
        raise UsageError(
            "unknown_group",
            f"Cannot group by {', '.join(unknown)}. Allowed: {allowed}.",
        )
    return columns


def groups(table: pd.DataFrame, columns: list[str]) -> Iterator[tuple[dict[str, Any], Any]]:
    """Yield each group's values by column, and its rows, in order of appearance."""
    for values, part in table.groupby(columns, sort=False, dropna=False):
        yield dict(zip(columns, values, strict=True)), part


def steps_of(part: pd.DataFrame, steps: Sequence[int] | None = None) -> list[int]:
    """Return the steps that every seed reached, or those of them in `steps` (-1: the last).

    Where runs stopped early, later steps would speak for the other seeds only.
    """
    seeds = part.groupby("step")["seed"].nunique()
    common = sorted(seeds.index[seeds == part["seed"].nunique()])
    if steps is None:
        return common
    wanted = set()
    listed = steps if isinstance(steps, Sequence) else [steps]
    for step in listed:
        if not isinstance(step, int) or step < -len(common):
            raise UsageError("wrong_step", f"{step!r:.80} is no step. Allowed: {common}.")
        if step < 0:
            step = common[step]
        if step not in seeds.index:
            raise UsageError(
                "step_not_measured",
                f"Step {step} was not measured. Allowed: {common}.",
            )
        wanted.add(step)
    return sorted(wanted.intersection(common))


def parent_once(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without copies of the parent's (step 0).

    The parent answered once, whatever the number of seeds: each training holds a copy.
    """
    of_parent = rows["step"] == 0
    first = rows.loc[of_parent, "seed"].min()
    is_copy = of_parent & (rows["seed"] > first)  # not where no seed is known
    return rows[~is_copy]


def refuse_parent_alone(table: pd.DataFrame) -> None:
    """Raise `no_later_step` where nothing after step 0 was measured."""
    if not (table["step"] > 0).any():
        raise UsageError(
            "no_later_step", "Nothing after step 0 was measured. Give the run of a curve."
        )


def cube_of(
    part: pd.DataFrame,
    steps: list[int],
    value: str = "event",
    cluster: str = "sample_id",
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
            f"No column {cluster!r}. Use sample_id, wording, category or topic.",
        )
    if cluster == "topic" and not part[cluster].all():
        message = "Only the embedded world's prompts have a topic. Use another cluster."
        raise UsageError("unknown_cluster", message)
    wanted = part[part["step"].isin(steps)]
    seeds = sorted(set(part["seed"]))
    clusters = part.drop_duplicates("item").set_index("item")[cluster].sort_index()
    cube = np.full((len(seeds), len(steps), len(clusters)), np.nan)
    place = (
        pd.Index(seeds).get_indexer(wanted["seed"]),
        pd.Index(steps).get_indexer(wanted["step"]),
        clusters.index.get_indexer(wanted["item"]),
    )
    cube[place] = wanted[value].to_numpy(float)
    return cube, clusters.to_numpy(str)


def events_of(
    part: pd.DataFrame,
    steps: list[int],
    value: str = "event",
    cluster: str = "sample_id",
) -> tuple[Rectified, np.ndarray]:
    """Return events [seeds, steps, items], corrected where there are labels, and the clusters.

    A column such as `event` has its labels in `event_label`.
    """
    judged, clusters = cube_of(part, steps, value, cluster)
    if "inclusion" not in part:
        nothing = np.zeros_like(judged)
        return Rectified(judged, nothing, nothing), clusters
    truth, _ = cube_of(part, steps, f"{value}_label")
    inclusion, _ = cube_of(part, steps, "inclusion")
    parts = []
    for number in range(len(steps)):
        cubes = np.stack([cube[:, number] for cube in (judged, truth, inclusion)])
        parts.append(corrected_at(cubes))
    return Rectified(*np.stack(parts, axis=2)), clusters


def corrected_at(cubes: np.ndarray) -> np.ndarray:
    """Return the arrays of `Rectified` at one step, from [verdicts, labels, inclusion]."""
    shape = cubes.shape
    first = np.broadcast_to(cubes[:, :1], shape)
    if np.array_equal(cubes, first, equal_nan=True):  # such as of a parent measured once
        cubes = cubes[:, :1]
    return np.broadcast_to(rectify(*cubes).arrays, shape)
