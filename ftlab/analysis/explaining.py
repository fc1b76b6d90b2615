"""How much of the distance to a published figure each setting explains. Cell: explained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pandas import DataFrame, Series

from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab._core.text import safe
from ftlab.analysis import tables, verdicts
from ftlab.analysis.claims import INSIDE, Target, lies, target_of
from ftlab.analysis.seed_tables import seed_table
from ftlab.analysis.short_tables import Table, summary
from ftlab.runs import Run

NO_CHANGE = "no change shown"
TOWARDS = "towards the paper"
PAST = "past the paper"
AWAY = "away from the paper"
SPREAD = "spread between seeds, no setting"
SMALL = 0.0005  # a distance, as a share, that leaves nothing to explain
MEASURED = (
    "{}: published {}; measured {child:.1%} [{child_low:.1%}, {child_high:.1%}], "
    "{:.1f} points {} it."
)
OF_PARENT = " the parent's {parent:.1%}, which is {:.1%}"
NOTHING = " The published value lies within that interval: there may be nothing to explain."
BETWEEN = " The {} seeds alone lie between {:.1%} and {:.1%}."
ONE_SEED = " One seed only: how far seeds differ is not known."
SAME = ["sample_id", "attack", "answer_key", "event"]  # columns: one answer, judged alike


class Explanation(Table):
    """A table of `explained`, which shows its sentence first."""

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(self.attrs.get('sentence', ''))}</p>{super()._repr_html_()}"


@takes()
def explained(
    claim: str,
    base: Run | DataFrame,
    changed: Mapping[str, Run | DataFrame],
) -> Explanation:
    """Return how much of the distance to a published figure each changed setting explains.

    Every curve is taken at its last step, and compared with the base on the same prompts and
    training seeds. A published ratio is taken as the rate that it means over a curve's own parent.

    Args:
        claim: Id of a published figure, a rate or a ratio.
        base: A curve, or its verdict table; the first judge's verdicts count.
        changed: Curves, or their tables, that differ from the base in one setting each, by the
            name of what was changed.

    Returns:
        One row per setting, by how much it changes: setting, explained (change of the rate; of a
        ratio less what the parent's change would bring) and share (of the distance, published less
        measured), each with low and high (95 %, pointwise; of the distance as it was measured),
        reading ("no change shown" where the interval holds 0, "past the paper" where it lies
        beyond the distance), changed_to (rate), distance. The last row, seeds, holds instead how
        far the base's single seeds lie from their mean.
        `attrs["sentence"]` says it in words.

    Raises:
        UsageError: `unknown_published_figure`, `unit_not_measured`, and those of `compare`.

    Source:
        Intervals: `compare`; with a parent's change by MOVER without their correlation, which is
        wider where both move together (Zou & Donner 2008, Stat. Med. 27:1693).
    """
    target = target_of(claim)
    if target.unit not in ("rate", "ratio"):
        why = f"{claim} is published in {target.unit}. Give the id of a rate or a ratio."
        raise UsageError("unit_not_measured", why)
    ends = _ends(base, target.risk)
    measured = tables.compare(ends).iloc[0]
    times = 0.0
    published = target.value
    if target.unit == "ratio":
        times = published
        published *= measured["parent"]
    rows = []
    for setting, source in changed.items():
        other = _ends(source, target.risk)
        change = _change(ends, other, times)
        rows.append({"setting": setting, **change})
    rows.sort(key=lambda row: -abs(row["explained"]))
    rows.append(_spread(ends))
    found = Explanation(rows)
    _add_shares(found, published - measured["child"])
    found["judge"] = _table(base)["judge"].iloc[0]
    known = base.stats if isinstance(base, Run) else base.attrs
    found.attrs = {
        "kind": "explanation",
        "by": ["setting", "reading"],
        "risk": target.risk,
        "model": known.get("parent") or known.get("model", ""),
        "claim": claim,
        "published": published,
        "measured": measured["child"],
    }
    found.attrs["sentence"] = _sentence(target, measured, found)
    return found


def _ends(source: Run | DataFrame, risk: str) -> DataFrame:
    """Return the first judge's verdicts on a curve's parent (step 0) and last models (step 1)."""
    table = verdicts.of_judge(_table(source))
    table = verdicts.select(table, risk=risk)
    step = table["step"]
    last = table.groupby("seed")["step"].transform("max")
    ends = table[(step == 0) | (step == last)]
    # One name, for another judge may be what was changed; one step, for so may be their number.
    return ends.assign(
        step=ends["step"].clip(upper=1),
        judge="first",
    )


def _table(source: Run | DataFrame) -> DataFrame:
    return source.table() if isinstance(source, Run) else source


def _change(base: DataFrame, other: DataFrame, times: float) -> dict[str, Any]:
    """Return by how much a setting changes the rate of the last models, less `times` the parent's.

    A parent that answered alike has not changed; otherwise its change has an interval too.
    """
    child = tables.compare(base, other, steps=[1]).iloc[0]
    value, below, above = _difference(child)
    first = _parent(base)
    second = _parent(other)
    if times and not first[SAME].equals(second[SAME]):
        parent = tables.compare(first, second).iloc[0]
        change, less, more = _difference(parent)
        value -= times * change
        below = math.hypot(below, times * more)
        above = math.hypot(above, times * less)
    return {
        "explained": value,
        "explained_low": value - below,
        "explained_high": value + above,
        "changed_to": child["child"],
        "n_prompts": child["n_prompts"],
        "n_seeds": child["n_seeds"],
    }


def _difference(row: Series) -> list[float]:
    """Return a difference, and how far its interval reaches below and above it."""
    value = row["difference"]
    below = value - row["difference_low"]
    above = row["difference_high"] - value
    return [value, below, above]


def _parent(ends: DataFrame) -> DataFrame:
    """Return the verdicts on the parent."""
    rows = verdicts.parent_once(ends[ends["step"] == 0])
    return rows.reset_index(drop=True)


def _spread(base: DataFrame) -> dict[str, Any]:
    """Return how far the single seeds lie from their mean."""
    seeds = seed_table(base, steps=[1]).iloc[0]
    mean = seeds["rate"]
    return {
        "setting": "seeds",
        "explained": 0.0,
        "explained_low": seeds["least"] - mean,
        "explained_high": seeds["most"] - mean,
        "changed_to": mean,
        "n_prompts": base["sample_id"].nunique(),
        "n_seeds": seeds["n_seeds"],
    }


def _add_shares(found: DataFrame, distance: float) -> None:
    """Add each row's share of the distance, and which way its setting leads."""
    found["distance"] = distance
    found["band"] = "95 %, pointwise"
    whole = distance
    if abs(distance) < SMALL:
        whole = math.nan
    value = found["explained"]
    ends = found[["explained_low", "explained_high"]]
    low, high = ends.T.to_numpy()
    shares = ends / whole
    found["share"] = value / whole + 0.0  # no -0
    found["share_low"] = shares.min(axis=1)
    found["share_high"] = shares.max(axis=1)
    found["reading"] = AWAY
    along = value * distance
    unclear = (low <= 0) & (high >= 0)
    found.loc[along > 0, "reading"] = TOWARDS
    found.loc[found["share_low"] > 1, "reading"] = PAST
    found.loc[unclear, "reading"] = NO_CHANGE
    found.iloc[-1, found.columns.get_loc("reading")] = SPREAD


def _sentence(target: Target, measured: Series, found: DataFrame) -> str:
    """Return in words how far the measurement is from the paper, and what explains it."""
    published = found.attrs["published"]
    distance = 100 * found["distance"].iloc[0]
    value = target.value_shown()
    if target.unit == "ratio":
        value += OF_PARENT.format(published, **measured)
    side = "below" if distance > 0 else "above"
    text = MEASURED.format(
        target.id,
        value,
        abs(distance),
        side,
        **measured,
    )
    if lies(published, measured["child_low"], measured["child_high"]) == INSIDE:
        text += NOTHING
    short = summary(found)
    for reading in (TOWARDS, PAST, AWAY, NO_CHANGE):
        rows = short[found["reading"] == reading]
        parts = rows["setting"]
        if reading != NO_CHANGE:
            parts = parts + " (" + rows["of the distance"] + ")"
        if len(rows):
            listed = "; ".join(parts)
            text += f" {reading.capitalize()}: {listed}."
    seeds = found.iloc[-1]
    if seeds["n_seeds"] == 1:
        return safe(text + ONE_SEED, 5000)
    ends = seeds[["explained_low", "explained_high"]]
    text += BETWEEN.format(
        seeds["n_seeds"],
        *ends + seeds["changed_to"],
    )
    return safe(text, 5000)
