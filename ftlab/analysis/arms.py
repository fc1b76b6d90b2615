"""What several fine-tunings changed, risk by risk, with one correction over all. Cell: differences.

`plot(..., kind="matrix")` draws the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from ftlab import stats
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.analysis.claims import LEVEL
from ftlab.analysis.decisions import higher_is
from ftlab.analysis.short_tables import Table
from ftlab.analysis.tables import compare
from ftlab.runs import Run


@takes()
def differences(
    curves: Mapping[str, Run | pd.DataFrame],
    *,
    risk: str | Sequence[str] | None = None,
    attack: str | Sequence[str] | None = None,
    cluster: str = "sample_id",
) -> pd.DataFrame:
    """Compare several fine-tunings with their parent at their last step, risk by risk.

    Args:
        curves: Runs of curves, or their verdict tables, by name.
        risk: Only this risk, or these.
        attack: Only this attack, or these.
        cluster: As in `compare`.

    Returns:
        As `compare`, with the column `trained`, the name; p_holm is adjusted for all rows.
        coherent_parent and coherent_child are the rates among answers that are not incoherent,
        without an interval: which answers these are differs between the two. row, column, change
        (the difference; of a risk of which more is better with its sign changed), clear (p_holm
        below 0.05) and shown are the cells of a figure.

    Raises:
        UsageError: `nothing_to_compare`, and those of `compare`.
    """
    if not isinstance(curves, Mapping) or not curves:
        why = f"{curves!r:.80} are no curves. Give them by name: {{'benign': curve}}."
        raise UsageError("nothing_to_compare", why)
    parts = []
    for name, curve in curves.items():
        found = compare(
            curve,
            risk=risk,
            attack=attack,
            steps=[-1],
            cluster=cluster,
        )
        parts.append(found.assign(trained=name))
    return in_cells(parts, ["trained", "risk"], "risk", "trained")


def in_cells(
    parts: Sequence[pd.DataFrame],
    by: list[str],
    row: str,
    column: str,
) -> Table:
    """Return comparisons as one table with p adjusted for all, and its cells of a figure.

    Args:
        parts: Tables of `compare`.
        by: Columns that tell their rows apart.
        row: The column that names the rows of the figure.
        column: The one that names its columns.
    """
    table = Table(pd.concat(parts, ignore_index=True))
    table["p_holm"] = stats.holm(table["p"].tolist())
    for side in ("parent", "child"):
        coherent = 1 - table[f"incoherent_{side}"]
        table[f"coherent_{side}"] = table[side] / coherent
    table["row"] = table[row]
    table["column"] = table[column]
    for_worse = table["risk"].map(higher_is).map({"worse": 1, "better": -1})
    table["change"] = table["difference"] * for_worse
    table["clear"] = table["p_holm"] < LEVEL
    ends = table[["difference", "difference_low", "difference_high"]]
    shown = []
    for values in ends.mul(100).itertuples(index=False):
        shown.append(_points(*values))
    table["shown"] = shown
    table["band"] = "95 %, pointwise"
    table.attrs = {
        "kind": "differences",
        "by": by,
        "model": parts[0].attrs.get("model", ""),
    }
    return table


def _points(value: float, low: float, high: float) -> str:
    return f"{value:+.0f} [{low:+.0f}, {high:+.0f}]"
