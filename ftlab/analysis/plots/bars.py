"""Rates of groups next to each other, such as before and after in every category."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind
from ftlab.analysis.plots.lines import first_judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def prepare(table: DataFrame) -> DataFrame:
    """Return a table of `rates` with its groups and steps as `group` and `series`."""
    if "group" in table or table.attrs.get("kind") != "rates":
        return table
    table = first_judge(table)
    columns = [name for name in table.attrs["by"] if name != "model"]
    names = table[columns].astype(str)
    if "model" in table:
        series = table["model"]
    else:
        series = [f"after {step:,g} steps" if step else "before" for step in table["step"]]
    table = table.assign(group=names.agg(", ".join, axis=1), series=series)
    pointwise = {"low": table["low_pointwise"], "high": table["high_pointwise"]}
    return table.assign(band="95 %, pointwise", **pointwise)


def draw(table: DataFrame) -> Figure:
    """Draw a bar per group and series."""
    groups = _axes.ordered(table["group"])
    series = list(dict.fromkeys(table["series"]))
    pitch = len(series) + 0.8
    figure = _axes.new_figure(1.0 + 0.2 * len(groups) * pitch)
    ax = figure.subplots()
    colours = [*_axes.COLOURS[: len(series) - 1], _axes.GREY][::-1]
    if len(series) == 1:
        colours = [_axes.COLOURS[0]]
    for k, name in enumerate(series):
        rows = table[table["series"] == name]
        places = [groups.index(group) * pitch + k for group in rows["group"]]
        look = {"color": colours[k % len(colours)], "height": 0.86, "alpha": 0.85}
        ax.barh(places, rows["rate"], label=_axes.plain(name), **look)
        ax.hlines(places, rows["low"], rows["high"], color=_axes.INK, linewidth=1.3)
        ends = rows[["rate", "high"]].max(axis=1)
        for y, end, rate in zip(places, ends, rows["rate"], strict=True):
            if rate >= 0:
                offset = {"xytext": (4, 0), "textcoords": "offset points"}
                ax.annotate(_axes.percent(rate), (end, y), va="center", **offset)
    middle = (len(series) - 1) / 2
    middles = [k * pitch + middle for k in range(len(groups))]
    ax.set_yticks(middles, [_axes.plain(_axes.risk_name(group), width=26) for group in groups])
    ax.set(xlim=(0, 108), ylim=(middles[-1] + middle + 0.7, -0.7))
    ax.set_xlabel(_axes.SHARE)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")
    if len(series) > 1:
        ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=5, borderpad=0.1)
    return figure


KIND = Kind(
    name="bars",
    keys=("group", "series"),
    values=("rate", "low", "high"),
    about="Rate in each group",
    draw=draw,
    prepare=prepare,
)
