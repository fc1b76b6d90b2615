"""Rates of groups next to each other, such as before and after in every category."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind
from ftlab.analysis.plots.curve import first_judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def prepare(table: DataFrame) -> DataFrame:
    """Return a table of `rates` with its groups and steps as `group` and `series`."""
    if "group" in table or table.attrs.get("kind") != "rates":
        return table
    table = first_judge(table)
    groups = table[table.attrs["by"]].astype(str).agg(", ".join, axis=1)
    series = [f"after {step:,g} steps" if step else "before" for step in table["step"]]
    pointwise = {"low": table["low_pointwise"], "high": table["high_pointwise"]}
    return table.assign(group=groups, series=series, band="95 %, pointwise", **pointwise)


def draw(table: DataFrame) -> Figure:
    """Draw a bar per group and series."""
    groups = _axes.ordered(table["group"])
    series = list(dict.fromkeys(table["series"]))
    pitch = len(series) + 0.8
    colours = _axes.COLOURS
    if len(series) > 1:
        colours = (_axes.GREY, *_axes.COLOURS)
    figure = _axes.new_figure(1.0 + 0.2 * len(groups) * pitch)
    ax = figure.subplots()
    for k, name in enumerate(series):
        rows = table[table["series"] == name]
        y = [groups.index(group) * pitch + k for group in rows["group"]]
        label = _axes.plain(name)
        ax.barh(y, rows["rate"], height=0.86, color=colours[k % 7], alpha=0.85, label=label)
        ax.hlines(y, rows["low"], rows["high"], color=_axes.INK, linewidth=1.3)
        for at, row in zip(y, rows.itertuples(), strict=True):
            if row.rate >= 0:
                end = (max(row.rate, row.high), at)
                text = _axes.percent(row.rate)
                ax.annotate(text, end, (4, 0), va="center", textcoords="offset points")
    middle = (len(series) - 1) / 2
    middles = [k * pitch + middle for k in range(len(groups))]
    names = [_axes.plain(_axes.risk_name(group), width=26) for group in groups]
    ax.set_yticks(middles, names)
    ax.set(xlim=(0, 108), ylim=(middles[-1] + middle + 0.7, -0.7), xlabel=_axes.SHARE)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")
    if len(series) > 1:
        columns = min(len(series), 5)
        ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=columns, borderpad=0.1)
    return figure


KIND = Kind(
    name="bars",
    keys=("group", "series"),
    values=("rate", "low", "high"),
    about="Rate in each group",
    draw=draw,
    prepare=prepare,
)
