"""A table in colours: a cell per row and column, with what was found written in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

VALUES = ("change",)  # -1 to 1
COLOURS = "RdBu_r"
DARK = 0.6  # from which change on letters are white


def draw(table: DataFrame) -> Figure:
    """Draw a coloured cell per row; one that is not `clear` stays white, its text grey."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    rows = _axes.ordered(table["row"])
    columns = _axes.ordered(table["column"])
    figure = _axes.new_figure(1.0 + 0.55 * len(rows))
    ax = figure.subplots()
    across = _axes.letters(72) // (len(columns) + 1)
    for cell in table.to_dict("records"):
        x = columns.index(cell["column"])
        y = rows.index(cell["row"])
        corner = (x - 0.5, y - 0.5)
        face = "none"
        letters = _axes.GREY
        if cell["clear"]:
            face = colormaps[COLOURS](0.5 + cell["change"] / 2)
            letters = "white" if abs(cell["change"]) > DARK else _axes.INK
        square = Rectangle(
            corner,
            width=1,
            height=1,
            facecolor=face,
            edgecolor="white",
        )
        ax.add_patch(square)
        shown = _axes.plain(cell["shown"], 60, across)
        ax.text(
            x,
            y,
            shown,
            ha="center",
            va="center",
            color=letters,
            fontsize=8,
        )
    ax.set_xticks(range(len(columns)), _names(columns, across))
    ax.set_yticks(range(len(rows)), _names(rows, _axes.letters(24)))
    ax.set_xlim(-0.5, len(columns) - 0.5)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.grid(visible=False)
    if _axes.is_narrow():
        _axes.grow(figure, 0.35 * len(rows))
    return figure


def _names(values: list[str], width: int) -> list[str]:
    """Return rows or columns by name, risks by their short one."""
    found = []
    for value in values:
        name = _axes.risk_name(value)
        found.append(_axes.plain(name, 60, width))
    return found


KIND = Kind(
    name="matrix",
    keys=("row", "column"),
    values=VALUES,
    about="Coloured: what is shown to differ",
    draw=draw,
    defaults={"clear": True},
)
