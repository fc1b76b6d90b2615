"""Risk ratios of child and parent with their intervals, as a forest plot."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

VALUES = ("ratio", "ratio_low", "ratio_high")
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)  # ratios beyond are arrows
HEADING = 1.35  # rows that a risk's name takes
MARGIN = 1.02  # where the numbers stand, in widths of the axes


def draw(table: DataFrame, target: float | None = None) -> Figure:
    """Draw a row per risk and step; `target` is a published ratio."""
    risks = _axes.ordered(table["risk"])
    figure = _axes.new_figure(1.1 + 0.235 * (len(table) + HEADING * len(risks)))
    ax = figure.subplots()
    limits = _limits(table, target)
    y = 0.0
    names = {}
    for risk in risks:
        names[y] = _axes.plain(_axes.risk_name(risk)).upper()
        look = _axes.look_of(risk, risks)
        for row in table[table["risk"] == risk].itertuples():
            y += 1
            names[y] = f"{row.step:,g} steps"
            if not math.isnan(row.ratio):
                _draw_interval(ax, y, row, limits, look)
            place = {"xycoords": ("axes fraction", "data"), "va": "center"}
            ax.annotate(_in_words(row), (MARGIN, y), **place)
        y += HEADING
    ax.set_yticks(list(names), list(names.values()))
    ax.set(xscale="log", xlim=limits, ylim=(y - 0.6, -0.8))
    ax.set_xlabel("share of answers after ÷ before (log scale)")
    ticks = [tick for tick in TICKS if limits[0] <= tick <= limits[1]]
    ax.set_xticks(ticks, [f"{tick:,g}×" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.tick_params(axis="y", pad=9)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")
    _mark(ax, 1, "no change ", ha="right", linestyle="-")
    if target is not None:
        _mark(ax, target, f" published {target:g}×", ha="left", linestyle="--")
    ax.set_title("ratio [95 %]", loc="right", x=1.16)
    return figure


def _limits(table: DataFrame, target: float | None) -> tuple[float, float]:
    numbers = table[list(VALUES)].to_numpy().ravel()
    values = [value for value in numbers if 0 < value < math.inf]
    low = min([0.6, *values])
    high = max([3.3, target or 0, *values])
    return max(low / 1.2, TICKS[0]), min(high * 1.2, TICKS[-1])


def _draw_interval(ax: Axes, y: float, row: Any, limits: tuple, look: dict) -> None:
    """Draw a ratio and its interval; an arrow where a bound lies outside the axes."""
    low = min(row.ratio, row.ratio_low)  # the ratio where the bound is NaN
    high = max(row.ratio, row.ratio_high)
    if math.isinf(row.ratio):  # no event before, so a lower bound
        low = max(0, row.ratio_low)
    for bound, beyond in ((low, "<"), (high, ">")):
        end = min(max(bound, limits[0]), limits[1])
        mark = "|" if end == bound else beyond
        ax.plot(end, y, mark, color=look["color"], markersize=7, clip_on=False)
    ax.hlines(y, max(low, limits[0]), min(high, limits[1]), color=look["color"], linewidth=1.7)
    if limits[0] <= row.ratio <= limits[1]:
        ax.plot(row.ratio, y, **look)


def _in_words(row: Any) -> str:
    if math.isnan(row.ratio):
        return "not measured" if math.isnan(row.ratio_low) else "no event in either"
    if math.isinf(row.ratio):
        return f"≥ {max(0, row.ratio_low):.3g}"
    if math.isnan(row.ratio_low + row.ratio_high):
        return f"{row.ratio:.3g}"
    return f"{row.ratio:.3g} [{row.ratio_low:.3g}, {row.ratio_high:.3g}]"


def _mark(ax: Axes, at: float, text: str, ha: str, linestyle: str) -> None:
    ax.axvline(at, color="#444444", linewidth=1.1, linestyle=linestyle, zorder=1.5)
    ax.annotate(text, (at, 1), xycoords=("data", "axes fraction"), ha=ha, va="bottom")


KIND = Kind(
    name="ratio",
    keys=("step", "risk"),
    values=VALUES,
    about="Rate after fine-tuning divided by the rate before",
    draw=draw,
    extras={"target": None},
)
