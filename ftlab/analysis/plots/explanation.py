"""How far each changed setting leads towards a published figure, as bars with intervals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
MARGIN = 1.02  # where the numbers stand, in widths of the axes


def draw(table: DataFrame) -> Figure:
    """Draw a bar per setting from what was measured, and the published figure as a line."""
    figure = _axes.new_figure(1.5 + 0.36 * len(table))
    ax = figure.subplots()
    distance = 100 * table["distance"].iloc[0]
    names = []
    for y, row in enumerate(table.itertuples()):
        names.append(_axes.plain(row.setting, 60, width=_axes.letters(34)))
        value, low, high = (100 * number for number in _numbers(row))
        colour = _colour(row.setting, value * distance, low, high)
        if row.setting != SEEDS:
            ax.barh(y, value, height=0.62, color=colour, alpha=0.75)
        ax.plot([low, high], [y, y], "|-", color=_axes.INK, linewidth=1.3, markersize=6)
        _write(ax, _in_words(row.setting, value, low, high), y)
    line = {"color": _axes.INK, "linewidth": 1.1, "zorder": 1.5}
    ax.axvline(0, **line)
    ax.axvline(distance, linestyle="--", **line)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.9)
    ax.margins(x=0.08)
    ax.set_xlabel("change of the measured rate (points)")
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")
    _write(ax, "points [95 %]", -0.7)
    _key(ax)
    return figure


def _numbers(row: Any) -> tuple[float, float, float]:
    return row.explained, row.explained_low, row.explained_high


def _colour(setting: str, along: float, low: float, high: float) -> str:
    """Return the colour of a bar: towards the published figure, away from it, or neither."""
    if setting == SEEDS or low <= 0 <= high:
        return _axes.GREY
    return TOWARDS if along > 0 else AWAY


def _in_words(setting: str, value: float, low: float, high: float) -> str:
    if setting == SEEDS:
        return f"{low:+.1f} to {high:+.1f}"
    return f"{value:+.0f} [{low:+.0f}, {high:+.0f}]"


def _write(ax: Axes, text: str, y: float) -> None:
    ax.annotate(text, (MARGIN, y), xycoords=("axes fraction", "data"), va="center")


def _key(ax: Axes) -> None:
    """Name the colours and the lines."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colours = {"towards it": TOWARDS, "away from it": AWAY, "no change shown": _axes.GREY}
    handles: list[Any] = [Line2D([], [], color=_axes.INK, linestyle="--", label="published")]
    handles += [Patch(color=colour, label=name) for name, colour in colours.items()]
    columns = 2 if _axes.is_narrow() else 4
    ax.legend(handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=columns)


KIND = Kind(
    name="explanation",
    keys=("setting",),
    values=VALUES,
    about="Change of the measured rate by one setting at a time, and the published figure",
    draw=draw,
)
