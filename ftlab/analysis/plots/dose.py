"""Rates by epochs of training and number of examples: one panel per attack."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind
from ftlab.analysis.plots.curve import first_judge

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def draw(table: DataFrame) -> Figure:
    """Draw a line per number of examples."""
    from matplotlib import colormaps

    attacks = list(dict.fromkeys(table["attack"]))
    figure, panels = _axes.new_panels([attack or "all attacks" for attack in attacks], _axes.SHARE)
    doses = sorted(set(table["examples"]))
    for attack, ax in zip(attacks, panels, strict=True):
        for k, dose in enumerate(doses):
            rows = table[(table["attack"] == attack) & (table["examples"] == dose)]
            shade = colormaps["viridis"](0.85 - 0.75 * k / max(len(doses) - 1, 1))
            look = _axes.look(k) | {"color": shade}
            _axes.draw_line(ax, "epoch", rows, look, f"{dose:,g} examples")
        _axes.step_axis(ax, table["epoch"], "epochs")
        _axes.share_axis(ax, table)
    _axes.legend(panels[-1])
    return figure


KIND = Kind(
    name="dose",
    keys=("examples", "epoch", "attack"),
    values=("rate", "low", "high"),
    about="Rate by epochs of training and number of examples",
    draw=draw,
    optional=("attack",),
    prepare=first_judge,
    order=0,
)
