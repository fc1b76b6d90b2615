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

WIDEST = (0.05, 200)  # ratios beyond are drawn as arrows
TICKS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200)
HEADING = 1.35  # rows that a risk's name takes


def draw(table: DataFrame, target: float | None = None) -> Figure:
    """Draw a row per risk and step; `target` is a published ratio."""
    risks = _axes.ordered(table["risk"])
    limits = _limits(table, target)
    figure = _axes.new_figure(1.1 + 0.235 * (len(table) + HEADING * len(risks)))
    ax = figure.subplots()
    y = 0.0
    places = {}
    for risk in risks:
        places[y] = _axes.plain(_axes.risk_name(risk))
        for row in table[table["risk"] == risk].itertuples():
            y += 1
            places[y] = f"{row.step:,g} steps"
            _draw_interval(ax, y, row, limits, _axes.look_of(risk, risks))
            note = (1.02, y)
            ax.annotate(_in_words(row), note, xycoords=("axes fraction", "data"), va="center")
        y += HEADING
    ax.set_yticks(list(places), list(places.values()))
    for text in ax.get_yticklabels():
        if not text.get_text().endswith(" steps"):
            text.set_fontweight("bold")
    ax.set(xscale="log", xlim=limits, ylim=(y - 0.6, -0.8))
    ax.set_xlabel("share of answers after ÷ before (log scale)")
    ticks = [tick for tick in TICKS if limits[0] <= tick <= limits[1]]
    ax.set_xticks(ticks, [f"{tick:,g}×" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.tick_params(axis="y", pad=9)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")
    _mark(ax, 1, "no change ", "right", "-")
    if target is not None:
        _mark(ax, target, f" published {target:g}×", "left", "--")
    heading = (1.02, 1)
    ax.annotate("ratio [95 %]", heading, xycoords="axes fraction", va="bottom", weight="bold")
    return figure


def _limits(table: DataFrame, target: float | None) -> tuple[float, float]:
    columns = table[["ratio", "ratio_low", "ratio_high"]].to_numpy().ravel()
    values = [value for value in columns if 0 < value < math.inf]
    low = min([0.6, *values]) / 1.2
    high = max([3.3, target or 0, *values]) * 1.2
    return max(low, WIDEST[0]), min(high, WIDEST[1])


def _draw_interval(ax: Axes, y: float, row: Any, limits: tuple, look: dict) -> None:
    """Draw the ratio and its interval; a bound without a number is drawn as an arrow."""
    if math.isnan(row.ratio):
        return
    low = min(row.ratio, row.ratio_low)  # the ratio where the bound is NaN
    high = max(row.ratio, row.ratio_high)
    if row.ratio == math.inf:
        low = max(0, row.ratio_low)
    ends = [min(max(value, limits[0]), limits[1]) for value in (low, high)]
    ax.hlines(y, *ends, color=look["color"], linewidth=1.7)
    if limits[0] <= row.ratio <= limits[1]:
        ax.plot(row.ratio, y, **look)
    marks = ["<" if low < limits[0] else "|", ">" if high > limits[1] else "|"]
    for end, mark in zip(ends, marks, strict=True):
        ax.plot(end, y, mark, color=look["color"], markersize=7, clip_on=False)


def _in_words(row: Any) -> str:
    """Return a ratio with its interval; infinite over a parent without events, so a bound."""
    if math.isnan(row.ratio):
        return "not measured" if math.isnan(row.ratio_low) else "no event in either"
    if row.ratio == math.inf:
        return f"≥ {number(max(0, row.ratio_low))}"
    if math.isnan(row.ratio_low + row.ratio_high):
        return number(row.ratio)
    return f"{number(row.ratio)} [{number(row.ratio_low)}, {number(row.ratio_high)}]"


def number(value: float) -> str:
    """Return a ratio with about three digits."""
    if value == math.inf:
        return "∞"
    if value < 0.01:
        return f"{value:.1g}"
    decimals = max(0, 2 - int(math.log10(max(value, 1))))
    return f"{value:,.{decimals}f}"


def _mark(ax: Axes, at: float, text: str, side: str, line: str) -> None:
    ax.axvline(at, color="#444444", linewidth=1.1, linestyle=line, zorder=1.5)
    ax.annotate(text, (at, 1), xycoords=("data", "axes fraction"), ha=side, va="bottom")


KIND = Kind(
    name="ratio",
    keys=("step", "risk"),
    values=("ratio", "ratio_low", "ratio_high"),
    about="Rate after fine-tuning divided by the rate before",
    draw=draw,
    extras={"target": None},
)
