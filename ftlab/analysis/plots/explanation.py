"""How far each changed setting leads towards a published figure, as bars with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

VALUES = ("explained", "explained_low", "explained_high", "distance")
TOWARDS = _axes.COLOURS[1]
AWAY = _axes.COLOURS[0]
SEEDS = "seeds"  # the row of their spread, which is no setting


def draw(table: DataFrame) -> Figure:
    """Draw a bar per setting from what was measured, and the published figure as a line."""
    figure = _axes.new_figure(1.5 + 0.36 * len(table))
    ax = figure.subplots()
    numbers = 100 * table[list(VALUES)]
    names = []
    for y, setting in enumerate(table["setting"]):
        name = _axes.plain(setting, 60, width=_axes.letters(34))
        names.append(name)
        value, low, high, distance = numbers.iloc[y]
        shown = f"{low:+.1f} to {high:+.1f}"
        if setting != SEEDS:
            shown = f"{value:+.0f} [{low:+.0f}, {high:+.0f}]"
            colour = _colour(value * distance, low, high)
            ax.barh(y, value, height=0.62, color=colour, alpha=0.75)
        ax.plot(
            [low, high],
            [y, y],
            "|-",
            color=_axes.INK,
            linewidth=1.3,
            markersize=6,
        )
        _axes.write_beside(ax, shown, y)
    line = {"color": _axes.INK, "linewidth": 1.1, "zorder": 1.5}
    ax.axvline(0, **line)
    ax.axvline(distance, linestyle="--", **line)
    count = len(names)
    ax.set_yticks(range(count), names)
    ax.set_ylim(count - 0.4, -0.9)
    ax.margins(x=0.08)
    ax.set_xlabel("change of the measured rate (points)")
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")
    _axes.write_beside(ax, "points [95 %]", -0.7)
    _key(ax)
    lines = "".join(names).count("\n")
    if _axes.is_narrow():
        lines += 4  # of the key
    _axes.grow(figure, 0.2 * lines)
    return figure


def _colour(along: float, low: float, high: float) -> str:
    """Return the colour of a bar: towards the published figure, away from it, or neither."""
    if low <= 0 <= high:
        return _axes.GREY
    return TOWARDS if along > 0 else AWAY


def _key(ax: Axes) -> None:
    """Name the line and the colours."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [
        Line2D([], [], color=_axes.INK, linestyle="--", label="published"),
        Patch(color=TOWARDS, label="towards it"),
        Patch(color=AWAY, label="away from it"),
        Patch(color=_axes.GREY, label="no change shown"),
    ]
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(-0.01, 1),
        ncols=1 if _axes.is_narrow() else 4,
    )


KIND = Kind(
    name="explanation",
    keys=("setting",),
    values=VALUES,
    about="Change of the measured rate by one setting at a time, and the published figure",
    draw=draw,
)
