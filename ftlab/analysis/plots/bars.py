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
    if "risk" in columns:
        names["risk"] = names["risk"].map(_axes.risk_name)
    if "model" in table:
        series = table["model"]
    else:
        series = [f"after {step:,g} steps" if step else "before" for step in table["step"]]
    return table.assign(
        group=names.agg(", ".join, axis=1),
        series=series,
        low=table["low_pointwise"],
        high=table["high_pointwise"],
        band="95 %, pointwise",
    )


def draw(table: DataFrame) -> Figure:
    """Draw a bar per group and series."""
    groups = _axes.ordered(table["group"])
    series = list(dict.fromkeys(table["series"]))
    pitch = len(series) + 0.8
    figure = _axes.new_figure(1.0 + 0.2 * len(groups) * pitch)
    ax = figure.subplots()
    colours = [_axes.GREY, *_axes.COLOURS]
    if len(series) == 1:
        colours = _axes.COLOURS
    for k, name in enumerate(series):
        rows = table[table["series"] == name]
        ends = [rows["rate"] - rows["low"], rows["high"] - rows["rate"]]
        bars = ax.barh(
            [groups.index(group) * pitch + k for group in rows["group"]],
            rows["rate"],
            xerr=[end.fillna(0).clip(lower=0) for end in ends],
            height=0.86,
            color=colours[k % len(colours)],
            alpha=0.85,
            label=_axes.plain(_axes.risk_name(name)),
            ecolor=_axes.INK,
        )
        ax.bar_label(bars, [_axes.percent(rate) for rate in rows["rate"]], padding=4)
        if "chance" in table:
            middles = [bar.get_center()[1] for bar in bars]
            ax.plot(
                100 * rows["chance"],
                middles,
                "|",
                color=_axes.INK,
                markersize=9,
            )
    middle = (len(series) - 1) / 2
    ax.set_yticks(
        [k * pitch + middle for k in range(len(groups))],
        [_axes.plain(_axes.risk_name(group), width=26) for group in groups],
    )
    ax.set_xlabel(table.attrs.get("axis", _axes.SHARE))
    ax.set_xlim(0, 108)
    ax.set_ylim(len(groups) * pitch - 1.1, -0.7)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")
    if len(series) > 1:
        columns = 1 if _axes.is_narrow() else 5
        ax.legend(
            loc="lower left",
            bbox_to_anchor=(-0.01, 1),
            ncols=columns,
        )
        if _axes.is_narrow():
            _axes.grow(figure, 0.2 * len(series))
    return figure


KIND = Kind(
    name="bars",
    keys=("group", "series"),
    values=("rate", "low", "high"),
    about="Rate in each group",
    draw=draw,
    prepare=prepare,
)
