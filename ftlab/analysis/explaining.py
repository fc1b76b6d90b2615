"""How much of the distance to a published figure each setting explains. Cell: explained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

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
AWAY = "away from the paper"
SPREAD = "spread between seeds, no setting"
SMALL = 0.0005  # a distance, as a share, that leaves nothing to explain
SAME = ["sample_id", "attack", "answer_key", "event"]  # columns: one answer, judged alike


class Explanation(Table):
    """A table of `explained`, which shows its sentence first."""

    def _repr_html_(self) -> str:
        from html import escape

        return f"<p>{escape(self.attrs.get('sentence', ''))}</p>{super()._repr_html_()}"


@takes()
def explained(
    claim: str, base: Run | pd.DataFrame, changed: Mapping[str, Run | pd.DataFrame]
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
        reading ("no change shown" where the interval holds 0), changed_to (rate), distance. The
        last row, seeds, holds instead how far the base's single seeds lie from their mean.
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
    times = 0.0 if target.unit == "rate" else target.value
    ends = _ends(base, target.risk)
    before_after = tables.compare(ends).iloc[0]
    published = target.value
    if times:
        published *= before_after["parent"]
    distance = published - before_after["child"]
    rows = []
    for setting, source in changed.items():
        change = _change(ends, _ends(source, target.risk), times)
        rows.append({"setting": setting, **change})
    rows.sort(key=lambda row: -abs(row["explained"]))
    rows.append(_spread(ends))
    about = {"distance": distance, "band": "95 %, pointwise", "judge": _judge(base)}
    found = Explanation([{**row, **_shares(row, distance), **about} for row in rows])
    found.attrs = {"kind": "explanation", "by": ["setting", "reading"], "risk": target.risk}
    found.attrs |= {"model": _model(base), "claim": claim, "published": published}
    found.attrs["measured"] = before_after["child"]
    found.attrs["sentence"] = _sentence(target, before_after, found)
    return found


def _ends(source: Run | pd.DataFrame, risk: str) -> pd.DataFrame:
    """Return the first judge's verdicts on a curve's parent (step 0) and last models (step 1)."""
    table = source.table() if isinstance(source, Run) else source
    table = verdicts.select(verdicts.of_judge(table), risk=risk)
    last = table.groupby("seed")["step"].transform("max")
    ends = table[(table["step"] == 0) | (table["step"] == last)]
    # One name, for another judge may be what was changed; one step, for so may be their number.
    return ends.assign(step=(ends["step"] > 0).astype(int), judge="first")


def _change(base: pd.DataFrame, other: pd.DataFrame, times: float) -> dict[str, Any]:
    """Return by how much a setting changes the rate of the last models, less `times` the parent's.

    A parent that answered alike has not changed; otherwise its change has an interval too.
    """
    child = tables.compare(base, other, steps=[1]).iloc[0]
    low = child["difference_low"] - child["difference"]
    high = child["difference_high"] - child["difference"]
    value = child["difference"]
    parents = [_parent(base), _parent(other)]
    if times and not parents[0][SAME].equals(parents[1][SAME]):
        parent = tables.compare(*parents).iloc[0]
        value -= times * parent["difference"]
        least = times * (parent["difference_high"] - parent["difference"])
        most = times * (parent["difference"] - parent["difference_low"])
        low = -math.hypot(low, least)
        high = math.hypot(high, most)
    return {
        "explained": value,
        "explained_low": value + low,
        "explained_high": value + high,
        "changed_to": child["child"],
        "n_prompts": child["n_prompts"],
        "n_seeds": child["n_seeds"],
    }


def _parent(ends: pd.DataFrame) -> pd.DataFrame:
    """Return the verdicts on the parent, which answered once for all seeds."""
    rows = ends[ends["step"] == 0]
    return rows[rows["seed"] == rows["seed"].min()].reset_index(drop=True)


def _spread(base: pd.DataFrame) -> dict[str, Any]:
    """Return how far the single seeds lie from their mean."""
    seeds = seed_table(base, steps=[1]).iloc[0]
    return {
        "setting": "seeds",
        "explained": 0.0,
        "explained_low": seeds["least"] - seeds["rate"],
        "explained_high": seeds["most"] - seeds["rate"],
        "changed_to": seeds["rate"],
        "n_prompts": base["sample_id"].nunique(),
        "n_seeds": seeds["n_seeds"],
        "reading": SPREAD,
    }


def _shares(row: dict[str, Any], distance: float) -> dict[str, Any]:
    """Return a row's shares of the distance, and which way its setting leads."""
    shares = dict.fromkeys(("share", "share_low", "share_high"), math.nan)
    if abs(distance) >= SMALL:
        ends = [row["explained_low"] / distance, row["explained_high"] / distance]
        shares = {"share": row["explained"] / distance + 0.0}  # no -0
        shares |= {"share_low": min(ends), "share_high": max(ends)}
    reading = TOWARDS if row["explained"] * distance > 0 else AWAY
    if row["explained_low"] <= 0 <= row["explained_high"]:
        reading = NO_CHANGE
    return {"reading": row.get("reading", reading), **shares}


def _judge(source: Run | pd.DataFrame) -> str:
    table = source.table() if isinstance(source, Run) else source
    return str(table["judge"].iloc[0])


def _model(source: Run | pd.DataFrame) -> str:
    known = source.stats if isinstance(source, Run) else source.attrs
    return known.get("parent") or known.get("model", "")


def _sentence(target: Target, measured: pd.Series, found: pd.DataFrame) -> str:
    """Return in words how far the measurement is from the paper, and what explains it."""
    distance = found["distance"].iloc[0]
    value = target.value_shown()
    if target.unit == "ratio":
        value += f" the parent's {measured['parent']:.1%}, which is {found.attrs['published']:.1%}"
    side = "below" if distance > 0 else "above"
    ends = [measured["child_low"], measured["child_high"]]
    text = (
        f"{target.id}: published {value}; measured {measured['child']:.1%} "
        f"[{ends[0]:.1%}, {ends[1]:.1%}], {100 * abs(distance):.1f} points {side} it."
    )
    if lies(found.attrs["published"], *ends) == INSIDE:
        text += " The published value lies within that interval: there may be nothing to explain."
    short = summary(found)
    for reading in (TOWARDS, AWAY, NO_CHANGE):
        rows = short[found["reading"] == reading]
        parts = rows["setting"]
        if reading != NO_CHANGE:
            parts = parts + " (" + rows["of the distance"] + ")"
        if len(rows):
            text += f" {reading.capitalize()}: {'; '.join(parts)}."
    seeds = found.iloc[-1]
    least, most = (seeds["changed_to"] + seeds[f"explained_{end}"] for end in ("low", "high"))
    text += f" The {seeds['n_seeds']} seeds alone lie between {least:.1%} and {most:.1%}."
    return safe(text, 5000)
