"""The rate that each judge reports of the same answers, over fine-tuning steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

EXACT = ("truth", "exact", "organism")  # first word of a judge that knows the answer


def draw(table: DataFrame) -> Figure:
    """Draw a line per judge, solid for one that knows the right answer."""
    figure, (ax,) = _axes.new_panels([""], _axes.SHARE)
    judges = list(dict.fromkeys(table["judge"]))
    for k, judge in enumerate(judges):
        look = _axes.look(k) | {"linestyle": "--"}
        if judge.split(" ")[0] in EXACT:
            look |= {"color": _axes.INK, "linewidth": 2.6, "linestyle": "-"}
        rows = table[table["judge"] == judge]
        _axes.draw_line(ax, "step", rows, look, _axes.plain(judge, 60, 26))
    _axes.step_axis(ax, table["step"])
    _axes.share_axis(ax, table)
    _axes.legend(ax)
    return figure


KIND = Kind(
    name="judges",
    keys=("step", "judge"),
    values=("rate", "low", "high"),
    about="Rate that each judge reports of the same answers",
    draw=draw,
    optional=("low", "high"),
    order=9,
)
