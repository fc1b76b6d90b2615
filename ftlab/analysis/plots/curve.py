"""Rates over fine-tuning steps: one panel per risk, with the single seeds as thin lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def first_judge(table: DataFrame) -> DataFrame:
    """Return the rows of a table's first judge."""
    if "judge" not in table or table.empty:
        return table
    return table[table["judge"] == table["judge"].iloc[0]]


def draw(table: DataFrame, seeds: DataFrame | None = None) -> Figure:
    """Draw a panel per risk."""
    risks = _axes.ordered(table["risk"])
    titles = [_axes.risk_name(risk, with_title=True) for risk in risks]
    figure, panels = _axes.new_panels(titles, _axes.SHARE)
    for risk, ax in zip(risks, panels, strict=True):
        rows = table[table["risk"] == risk]
        look = _axes.look_of(risk, risks)
        if seeds is not None:
            for _, one in seeds[seeds["risk"] == risk].groupby("seed"):
                ax.plot(one["step"], one["rate"], color=look["color"], linewidth=0.8, alpha=0.5)
        _axes.draw_line(ax, "step", rows, look)
        _axes.step_axis(ax, table["step"])
        _axes.share_axis(ax, table, seeds)
        measured = rows[rows["rate"].notna()]
        for row in measured.tail(1).itertuples():
            _name(ax, row, 7, "left")
        for row in measured.head(len(measured) > 1).itertuples():
            _name(ax, row, -7, "right")
    return figure


def _name(ax, row, points: int, side: str) -> None:
    """Write a rate next to its point."""
    place = (row.step, row.rate)
    text = _axes.percent(row.rate)
    ax.annotate(text, place, (points, 0), textcoords="offset points", va="center", ha=side)


KIND = Kind(
    name="curve",
    keys=("step", "risk"),
    values=("rate", "low", "high"),
    about="Rate of each risk by fine-tuning steps",
    draw=draw,
    extras={"seeds": (("step", "risk", "seed"), ("rate",))},
    prepare=first_judge,
    order=1,
)
