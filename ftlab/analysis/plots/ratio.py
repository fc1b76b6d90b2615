"""Risk ratios of child and parent with their intervals, as a forest plot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from ftlab.analysis.claims import Target

VALUES = ("ratio", "ratio_low", "ratio_high")
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
HEADING = 1.35  # rows that a risk's name takes


def draw(table: DataFrame, target: dict[str, Target] | None = None) -> Figure:
    """Draw a row per risk and step, and the first of the published ratios."""
    published = next((one.value for one in (target or {}).values()), None)
    risks = _axes.ordered(table["risk"])
    rows = len(table) + HEADING * len(risks)
    figure = _axes.new_figure(1.1 + 0.235 * rows)
    ax = figure.subplots()
    ax.set(xscale="log", ylim=(rows - 0.6, -0.8))
    ax.set_xlim(_limits(table, published))
    y = 0.0
    names = {}
    for risk in risks:
        look = _axes.look_of(risk, risks)
        names[y] = _axes.plain(_axes.risk_name(risk)).upper()
        own = table[table["risk"] == risk]
        for row in own.itertuples():
            y += 1
            names[y] = f"{row.step:,g} steps"
            _draw_interval(ax, y, row, look)
            _axes.write_beside(ax, _in_words(row), y)
        y += HEADING
    ax.set_yticks(
        list(names),
        list(names.values()),
    )
    low, high = ax.get_xlim()
    ticks = [tick for tick in TICKS if low <= tick <= high]
    ax.set_xticks(
        ticks,
        [f"{tick:,g}×" for tick in ticks],
    )
    ax.set_xticks([], minor=True)
    ax.set_xlabel("share of answers after ÷ before (log scale)")
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")
    _axes.write_beside(ax, "ratio [95 %]", -0.5)
    line = {"color": _axes.INK, "linewidth": 1.1, "zorder": 1.5}
    ax.axvline(1, **line)
    if published is not None:
        ax.axvline(published, linestyle="--", **line)
    return figure


def _limits(table: DataFrame, target: float | None) -> tuple[float, float]:
    """Return the ends of the axis; intervals beyond run out of it."""
    numbers = table[list(VALUES)].to_numpy()
    shown = numbers[(numbers > 0) & (numbers < math.inf)]
    low = min([0.6, *shown])
    high = max([3.3, *shown, target or 0])
    return max(low / 1.2, TICKS[0]), min(high * 1.2, TICKS[-1])


def _draw_interval(ax: Axes, y: float, row: Any, look: dict) -> None:
    if math.isnan(row.ratio):
        return
    low = min(row.ratio, row.ratio_low)  # the ratio where the bound is NaN
    high = max(row.ratio, row.ratio_high)
    if math.isinf(row.ratio):  # no event before, so there is only a lower bound
        low = max(0, row.ratio_low)
    else:
        ax.plot(row.ratio, y, **look)
    ax.plot(
        np.clip([low, high], 1e-9, 1e9),
        [y, y],
        "|-",
        color=look["color"],
        linewidth=1.7,
        markersize=7,
    )


def _in_words(row: Any) -> str:
    if math.isnan(row.ratio):
        if math.isnan(row.ratio_low):
            return "not measured"
        return "no event in either"
    if math.isinf(row.ratio):
        low = max(0, row.ratio_low)
        return f"≥ {low:.3g}"
    if math.isnan(row.ratio_low):
        return f"{row.ratio:.3g}"
    return f"{row.ratio:.3g} [{row.ratio_low:.3g}, {row.ratio_high:.3g}]"


KIND = Kind(
    name="ratio",
    keys=("step", "risk"),
    values=VALUES,
    about="Rate after fine-tuning divided by the rate before",
    draw=draw,
    extras={"target": None},
)
