"""The loss of a training over its optimiser steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def draw(table: DataFrame) -> Figure:
    """Draw one line, with its first and last value."""
    figure = _axes.new_figure(2.6)
    ax = figure.subplots()
    ax.plot(table["step"], table["loss"], color=_axes.COLOURS[1], linewidth=1.3)
    for row in (table.iloc[0], table.iloc[-1]):
        place = {"xytext": (4, 4), "textcoords": "offset points"}
        ax.annotate(f"{row['loss']:.3g}", (row["step"], row["loss"]), **place)
    ax.set(xlabel="optimiser steps", ylabel="training loss (nats)")
    ax.set_ylim(0, 1.15 * table["loss"].max())
    ax.margins(x=0.06)
    return figure


KIND = Kind(
    name="loss",
    keys=("step",),
    values=("loss",),
    about="Training loss by optimiser steps",
    draw=draw,
)
