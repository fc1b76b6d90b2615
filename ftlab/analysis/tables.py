"""Verdicts to numbers with intervals: rates, paired comparisons, first steps.

Everything here takes finished runs or their verdict tables; `stats` computes. Attacks and repeats
of one sample form a cluster, so intervals are for other prompts in these wordings. With
`cluster="wording"` they are for other wordings too, and much wider, for there are few.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd

from ftlab import stats
from ftlab._core.errors import UsageError
from ftlab._core.types import Outcome
from ftlab.analysis import verdicts
from ftlab.runs import Run

RATIO = re.compile(r"ratio\s*>=?\s*(\d+(?:\.\d+)?)")
NO_REFUSAL = "no refusal"
# Fields of an evaluation that choose the prompts; those are compared one by one.
CHOICE_OF_PROMPTS = ("risks", "n_prompts", "prompt_seed", "split", "prompts", "prompts_hash")


@dataclass(slots=True)
class RateRow:
    """How often the event happened in one group at one step, before it becomes a table row."""

    group: dict[str, Any]
    step: int
    epoch: float
    rate: float
    low: float  # simultaneous over the steps, where there are several
    high: float
    low_pointwise: float
    high_pointwise: float
    band: str
    n_prompts: int  # scored, before attacks
    n_seeds: int
    n_answers: int  # of all seeds and attacks; the parent's count once
    judge: str
    judged_by: str  # who decided: the judge, or a risk's own rule
    cut: int  # answers that max_new_tokens ended
    outcomes: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Return the row by column."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        outcomes = values.pop("outcomes")
        return {**values.pop("group"), **values, **outcomes}


@dataclass(slots=True)
class ComparisonRow:
    """Parent against child in one group at one step, before it becomes a table row."""

    group: dict[str, Any]
    step: int
    paired: stats.Paired
    n_prompts: int  # scored on both sides, before attacks
    unscored: int
    clusters: int  # what the interval takes as independent
    judge: str

    def as_dict(self) -> dict[str, Any]:
        """Return the row by column."""
        found = self.paired
        row = {**self.group, "step": self.step}
        for name, rate in (("parent", found.parent), ("child", found.child)):
            row |= {name: rate.rate, f"{name}_low": rate.low, f"{name}_high": rate.high}
        for name in ("ratio", "difference"):
            for column in (name, f"{name}_low", f"{name}_high"):
                row[column] = getattr(found, column)
        row["mcnemar_p"] = found.mcnemar_p
        row["mcnemar_holm"] = math.nan  # known when all rows are
        for column in ("gained", "lost", "both", "neither"):
            row[column] = getattr(found, column)
        row |= {"n_prompts": self.n_prompts, "n_seeds": found.n_seeds, "unscored": self.unscored}
        return row | {"clusters": self.clusters, "method": found.method, "judge": self.judge}


def rates(
    source: Run | pd.DataFrame,
    *,
    by: str | Sequence[str] = "risk",
    outcome: str | None = None,
    cluster: str = "sample_id",
    judge: str | None = None,
    steps: Sequence[int] | None = None,
    per_seed: bool = False,
) -> pd.DataFrame:
    """Return the rate of each risk's event at each step, with its interval.

    Steps that not every seed reached are left out.

    Args:
        source: A run of an evaluation or curve, or its verdict table.
        by: Columns to group by: risk, attack, category, examples, ...
        outcome: Count this outcome instead of the event, such as "refused".
        cluster: Column with the unit of the interval: sample_id, wording, category or topic.
        judge: Only this judge's verdicts; by default every judge has its own rows.
        steps: Only these steps; negative numbers count from the last, as in `[0, -1]`.
        per_seed: One row per training seed, with the rate alone.

    Returns:
        One row per judge, group and step: the groups, step, rate (0 to 1), low and high
        (simultaneous over the steps), low_pointwise, high_pointwise, band (in words), n_prompts,
        n_seeds, n_answers, judge, judged_by, cut, and the number of answers with each outcome.

    Raises:
        UsageError: `not_a_verdict_table`, `unknown_group`, `unknown_cluster`, `several_doses`,
            `judge_not_in_table`, `step_not_measured`, `verdicts_repeated`.
    """
    table = verdicts.prepare(source, outcome)
    columns = verdicts.columns_of(table, by)
    verdicts.check_steps(table, steps)
    if judge is not None:
        table = verdicts.of_judge(table, judge)
    if per_seed:
        return _rates_per_seed(table, columns, steps)
    rows = []
    for name in verdicts.judges_of(table):
        for group, part in verdicts.groups(verdicts.of_judge(table, name), columns):
            rows += _rate_rows(part, group, verdicts.steps_of(part, steps), cluster)
    found = _finished([row.as_dict() for row in rows], "rates", table, by=columns)
    if "epoch" not in table:
        found = found.drop(columns="epoch", errors="ignore")
    return found


def _rates_per_seed(table: pd.DataFrame, columns: list[str], steps) -> pd.DataFrame:
    rows = table
    if steps is not None:
        rows = table[table["step"].isin(verdicts.steps_of(table, steps))]
    groups = rows.groupby(["judge", *columns, "seed", "step"], sort=False)
    found = groups["event"].mean().rename("rate").reset_index()
    found = found[[*columns, "seed", "step", "rate", "judge"]]
    return _finished(found, "seeds", table, by=columns)


def _rate_rows(part: pd.DataFrame, group: dict, steps: list[int], cluster: str) -> list[RateRow]:
    events, clusters = verdicts.cube_of(part, steps, cluster=cluster)
    band = _band(events, clusters)
    rows = []
    for k, step in enumerate(steps):
        here = part[part["step"] == step]
        if step == 0:  # the parent answered once, whatever the number of seeds
            here = here[here["seed"] == here["seed"].min()]
        counts = here["outcome"].value_counts()
        row = RateRow(
            group=group,
            step=step,
            epoch=_first(here, "epoch", math.nan),
            rate=band.estimate[k],
            low=band.low[k],
            high=band.high[k],
            low_pointwise=band.low_pointwise[k],
            high_pointwise=band.high_pointwise[k],
            band=f"95 %, {band.kind}",
            n_prompts=here.loc[here["event"].notna(), "sample_id"].nunique(),
            n_seeds=band.n_seeds,
            n_answers=len(here),
            judge=_first(here, "judge", ""),
            judged_by=_judged_by(here),
            cut=int(here.get("cut", pd.Series(dtype=bool)).fillna(False).sum()),
            outcomes={str(name): int(counts.get(name, 0)) for name in Outcome},
        )
        rows.append(row)
    return rows


def _band(events: np.ndarray, clusters: np.ndarray) -> stats.Band:
    """Return the rate at every step with its interval; NaN where nothing was scored."""
    seeds, steps, _ = events.shape
    if np.isnan(events).all():
        nothing = np.full(steps, math.nan)
        return stats.Band(*[nothing] * 5, "nothing scored", seeds, 0)
    if seeds > 1 or steps > 1:
        return stats.bands(events, cluster=clusters)
    one = stats.rate(events[0, 0], clusters)
    values = [np.array([v]) for v in (one.rate, one.low, one.high, one.low, one.high)]
    return stats.Band(*values, "pointwise", 1, one.n)


def _first(rows: pd.DataFrame, column: str, default: Any) -> Any:
    return rows[column].iloc[0] if column in rows else default


def _judged_by(rows: pd.DataFrame) -> str:
    """Return who decided: the judge, or a risk's own rule."""
    deciders = rows["judge"]
    if "decided_by" in rows:
        rule = rows["decided_by"].fillna("")
        deciders = rule.where(rule != "", deciders)
    return ", ".join(sorted(set(deciders)))


def _finished(rows: Any, kind: str, source: pd.DataFrame, **about) -> pd.DataFrame:
    """Return rows as a table that carries what it is, which `plot` and `summary` read."""
    table = pd.DataFrame(rows)
    table.attrs = {"kind": kind, "model": source.attrs.get("model", ""), **about}
    return table


def compare(
    before: Run | pd.DataFrame,
    after: Run | pd.DataFrame | None = None,
    *,
    by: str | Sequence[str] = "risk",
    steps: Sequence[int] | None = None,
    cluster: str = "sample_id",
    judge: str | None = None,
) -> pd.DataFrame:
    """Compare parent and child on the same prompts, always paired.

    `compare(curve)` pairs step 0 with every later step over all seeds; `compare(parent, child)`
    pairs two evaluations.

    Args:
        before: A run of a curve, or with `after` of an evaluation, or a verdict table.
        after: The child's evaluation.
        by: Columns to group by.
        steps: Only these later steps; negative numbers count from the last.
        cluster: Column with the unit of the interval: sample_id, wording, category or topic.
        judge: Whose verdicts count; by default the first judge's.

    Returns:
        One row per group and step: parent, child, ratio (child / parent) and difference, each
        with low and high (95 %); McNemar's exact p over clusters, and Holm's for the number of
        rows; counts; the method. Over a parent without the event the ratio is infinite and
        ratio_low a lower bound.

    Raises:
        UsageError: as `rates`; `nothing_to_compare`, `evaluations_differ`, `prompts_differ`.

    Source:
        Bonett and Price 2006 (ratio) and Newcombe 1998 (difference) for one seed and unshared
        clusters, else MOVER; see `stats.paired`.
    """
    parent, child = _sides(before, after, judge)
    if parent.empty or child.empty:
        found = sorted({*parent["step"], *child["step"]})
        raise UsageError(
            "nothing_to_compare",
            f"Steps found: {found}. A comparison needs the parent (step 0) and a later step.",
        )
    columns = verdicts.columns_of(child, by)
    verdicts.check_steps(child, steps)
    rows = []
    for group, part in verdicts.groups(child, columns):
        same = _same_group(parent, group)
        if set(same["item"]) != set(part["item"]):
            raise UsageError(
                "prompts_differ",
                f"Parent and child answered different prompts in {group}. "
                "Evaluate both with the same settings.",
            )
        rows += _comparison_rows(same, part, group, steps, cluster)
    table = _finished([row.as_dict() for row in rows], "compare", parent, by=columns)
    if rows:
        table["mcnemar_holm"] = stats.holm(table["mcnemar_p"].tolist())
    return table


def _sides(before: Any, after: Any, judge: str | None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the verdicts of parent and child, both of one judge."""
    if after is None:
        table = verdicts.of_judge(verdicts.prepare(before), judge)
        return table[table["step"] == 0], table[table["step"] > 0]
    _check_alike(before, after)
    parent = verdicts.of_judge(verdicts.prepare(before), judge)
    judge = judge or _first(parent, "judge", None) if len(parent) else judge
    child = verdicts.of_judge(verdicts.prepare(after), judge)
    return parent, child.assign(step=child["step"].clip(lower=1))


def _check_alike(before: Any, after: Any) -> None:
    """Raise `evaluations_differ` where two evaluations asked or judged in different ways."""
    if not (isinstance(before, Run) and isinstance(after, Run)):
        return
    one = before.identity.get("evaluation", {})
    other = after.identity.get("evaluation", {})
    shared = [name for name in one if name in other and name not in CHOICE_OF_PROMPTS]
    differing = [name for name in shared if one[name] != other[name]]
    versions = [run.identity.get("judge_versions") for run in (before, after)]
    if not differing and versions[0] != versions[1]:
        differing = ["judge_versions"]
    if differing:
        raise UsageError(
            "evaluations_differ",
            f"The evaluations differ in {', '.join(differing)}. Evaluate both in the same way.",
            fields=differing,
        )


def _same_group(parent: pd.DataFrame, group: dict[str, Any]) -> pd.DataFrame:
    """Return the parent's rows of a group, by the columns that the parent has, of one seed."""
    rows = parent
    for column, value in group.items():
        if column in rows:
            rows = rows[rows[column] == value]
    return rows[rows["seed"] == rows["seed"].min()]


def _comparison_rows(
    parent: pd.DataFrame, child: pd.DataFrame, group: dict, steps: Any, cluster: str
) -> list[ComparisonRow]:
    old, clusters = verdicts.cube_of(parent.assign(step=0), [0], cluster=cluster)
    sample_of = child.drop_duplicates("item").set_index("item")["sample_id"].sort_index()
    rows = []
    for step in verdicts.steps_of(child, steps):
        new, _ = verdicts.cube_of(child, [step])
        scored = ~np.isnan(new[:, 0] + old[:, 0]).all(axis=0)
        row = ComparisonRow(
            group=group,
            step=step,
            paired=stats.paired(old[0, 0], new[:, 0], cluster=clusters),
            n_prompts=sample_of[scored].nunique(),
            unscored=int(np.isnan(new).sum() + np.isnan(old).sum()),
            clusters=len(set(clusters)),
            judge=_first(child, "judge", ""),
        )
        rows.append(row)
    return rows


def first_step(
    curve: Run | pd.DataFrame,
    where: str = "ratio >= 1.5",
    *,
    by: str | Sequence[str] | None = None,
    risk: str | None = None,
    judge: str | None = None,
) -> pd.DataFrame:
    """Find the first step of a curve at which something holds.

    Args:
        curve: A run of a curve, or its verdict table.
        where: "ratio >= 1.5": the rate has reached so many times the parent's (linear between
            measured steps). "no refusal": no prompt is refused.
        by: Columns to group by; by default risk for a ratio, attack for "no refusal".
        risk: Only this risk; by default jailbreak for "no refusal".
        judge: Whose verdicts count; by default the first judge's.

    Returns:
        One row per group: step in optimiser steps (inf: not within those measured), low and high
        (95 %), reached (share of bootstrap resamples, or of seeds). For a ratio also ratio and
        per_seed. For "no refusal" also n_prompts, n_seeds, last_step, refusals_at_end,
        answers_at_end, and refusal_rate_below (what no refusal in n answers still allows: exact
        one-sided 95 % bound).

    Raises:
        UsageError: as `rates`; `unknown_condition`, `no_parent`.
    """
    table = verdicts.of_judge(verdicts.prepare(curve), judge)
    ratio = RATIO.fullmatch(where.strip())
    if not ratio and where != NO_REFUSAL:
        raise UsageError(
            "unknown_condition",
            f"where={where!r} is not known. Use 'ratio >= 1.5', with any number, or 'no refusal'.",
        )
    if not ratio:
        risk = risk or "jailbreak"
        others = set(Outcome) - {Outcome.REFUSED}
        table = table.assign(answered=verdicts.shows(table, others))
    if risk is not None:
        table = table[table["risk"] == risk]
    default = "risk" if ratio else "attack"
    columns = verdicts.columns_of(table, by or default)
    rows = []
    for group, part in verdicts.groups(table, columns):
        row = _ratio_reached(part, float(ratio[1])) if ratio else _nothing_refused(part)
        rows.append(group | row | {"judge": _first(part, "judge", "")})
    return _finished(rows, "first_step", table, by=columns, where=where)


def _ratio_reached(part: pd.DataFrame, ratio: float) -> dict[str, Any]:
    steps = verdicts.steps_of(part)
    if not steps or steps[0] != 0:
        raise UsageError("no_parent", f"Steps found: {steps}. A ratio needs the parent (step 0).")
    events, clusters = verdicts.cube_of(part, steps)
    at = np.array(steps, float)
    found = stats.crossing(at, events[0, 0], events, ratio=ratio, cluster=clusters)
    row = {"ratio": ratio, **_interval(found)}
    return row | {"reached": found.reached, "per_seed": found.per_seed}


def _nothing_refused(part: pd.DataFrame) -> dict[str, Any]:
    steps = sorted(part["step"].unique())
    answered, _ = verdicts.cube_of(part, steps, "answered")
    found = stats.first_all(np.array(steps, float), answered)
    ends = part[part["step"] == part.groupby("seed")["step"].transform("max")]
    unscored = set(ends.loc[ends["answered"].isna(), "sample_id"])
    n_prompts = len(set(ends["sample_id"]) - unscored)  # scored at the end in every run
    end = ends["answered"].dropna()
    row = {**_interval(found), "reached": found.reached, "n_prompts": n_prompts}
    row |= {"n_seeds": len(answered), "last_step": steps[-1]}
    row |= {"refusals_at_end": int((end == 0).sum()), "answers_at_end": end.size}
    row["refusal_rate_below"] = math.nan
    if n_prompts and (end == 1).all():
        row["refusal_rate_below"] = stats.upper_bound_when_none(n_prompts)
    return row


def _interval(found: stats.Crossing) -> dict[str, float]:
    return {"step": found.step, "low": found.low, "high": found.high}


def outcome_shares(
    source: Run | pd.DataFrame,
    *,
    risk: str = "jailbreak",
    attack: str | None = None,
    judge: str | None = None,
) -> pd.DataFrame:
    """Return the share of every outcome at each step, over all seeds and prompts of a risk.

    Args:
        source: A run of an evaluation or curve, or its verdict table.
        risk: Name of the risk.
        attack: Only this attack; by default all.
        judge: Whose verdicts count; by default the first judge's.

    Returns:
        Columns step, outcome, share (0 to 1), judged_by.
    """
    table = verdicts.of_judge(verdicts.prepare(source), judge)
    verdicts.columns_of(table, ())  # refuses several doses
    table = table[table["risk"] == risk]
    if attack is not None:
        table = table[table["attack"] == attack]
    counts = table.groupby("step")["outcome"].value_counts(normalize=True)
    wide = counts.unstack(fill_value=0.0)
    wide = wide.reindex(columns=[str(name) for name in Outcome], fill_value=0.0)
    shares = wide.rename_axis(columns="outcome").stack().rename("share").reset_index()
    shares["judged_by"] = _judged_by(table)
    about = {"risk": risk, "n_prompts": table["sample_id"].nunique()}
    return _finished(shares, "outcomes", table, n_seeds=table["seed"].nunique(), **about)
