"""Defences on one grid: safety against utility, a panel per attack, and harm as a heat map."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftlab.analysis.grid_tables import NO_DEFENCE, by_column
from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

KEYS = ("defence", "adapter", "attack", "axis")
VALUES = ("rate", "low", "high")
LOST = "yes"


def draw(table: DataFrame) -> Figure:
    """Draw a point per defence in a panel per attack, named in the order of safety."""
    attacks = list(dict.fromkeys(table["attack"]))
    figure, panels = _axes.new_panels([_attack(name) for name in attacks])
    looks = _looks(table)
    rows = len({ax.get_subplotspec().rowspan.start for ax in panels})
    _axes.grow(figure, rows * max(0.16 * len(looks) - 1.7, 0))  # inches, for the names
    for ax, attack in zip(panels, attacks, strict=True):
        own = table[table["attack"] == attack]
        _panel(ax, own, looks)
        ax.set_xlabel("utility kept: right answers (%)")
        ax.set_xlim(-4, 104)
        ax.set_ylim(-4, 104)
        ax.set_ylabel("")
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("safety kept: 100 − harm (%)")
    return figure


def _attack(name: str) -> str:
    """Return a fine-tuning attack in words."""
    return name.replace("_", " ")


def _looks(table: DataFrame) -> dict[str, dict[str, Any]]:
    """Return colour and marker by defence; no defence is black."""
    looks = {}
    number = 0
    for name, rows in by_column(table):
        if rows["defence"].iloc[0] == NO_DEFENCE:
            looks[name] = {"color": _axes.INK, "marker": "s"}
            continue
        colour = _axes.COLOURS[number % len(_axes.COLOURS)]
        looks[name] = {"color": colour, "marker": "o"}
        number += 1
    return looks


def _panel(ax: Axes, table: DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    """Draw the points of one attack, and their names beside them, the safest first."""
    points = []
    for name, rows in by_column(table):
        by_axis = rows.set_index("axis")
        harm = by_axis.loc["harm"]
        utility = by_axis.loc["utility"]
        below, above = _ends(utility)
        under, over = _ends(harm)
        x = utility["rate"]
        y = 100 - harm["rate"]
        look = looks[name]
        lost = utility.get("utility_lost") == LOST
        inside = "white" if lost else look["color"]
        ax.errorbar(
            x,
            y,
            xerr=[[below], [above]],
            yerr=[[over], [under]],  # the other way round: safety is 100 - harm
            markersize=5.5,
            markerfacecolor=inside,
            elinewidth=0.9,
            linestyle="none",
            **look,
        )
        shown = f"{name}: lost" if lost else name
        points.append((y, x, shown, look["color"]))
    if "parent" in table:
        harm = table[table["axis"] == "harm"]
        before = 100 * (1 - harm["parent"].iloc[0])
        ax.axhline(
            before,
            linestyle="--",
            linewidth=1.1,
            color=_axes.GREY,
            zorder=1,
        )
    _name(ax, points)


def _name(ax: Axes, points: list[tuple[float, float, str, str]]) -> None:
    """Write the names of points to the right of the axes, in their order from the top."""
    points = sorted(points, key=lambda point: point[0], reverse=True)
    top = 103
    for place, (y, x, name, colour) in enumerate(points):
        height = top - place * top / max(len(points) - 1, 1)
        line = {
            "arrowstyle": "-",
            "color": colour,
            "linewidth": 0.5,
            "alpha": 0.6,
        }
        beside = ax.get_yaxis_transform()  # in widths of the axes, and in percent
        shown = _axes.plain(name, 32)
        ax.annotate(
            "",
            (x, y),
            (1.05, height),
            textcoords=beside,
            arrowprops=line,
        )
        ax.text(
            1.06,
            height,
            shown,
            transform=beside,
            va="center",
            color=colour,
        )


def _ends(row: Any) -> tuple[float, float]:
    """Return how far an interval reaches below and above the rate."""
    below = max(row["rate"] - row["low"], 0.0)
    above = max(row["high"] - row["rate"], 0.0)
    return below, above


def draw_heat(table: DataFrame) -> Figure:
    """Draw harm as a coloured cell per defence and attack, with its interval."""
    harm = table[table["axis"] == "harm"]
    attacks = list(dict.fromkeys(harm["attack"]))
    columns = list(by_column(harm))
    figure = _axes.new_figure(1.2 + 0.42 * len(columns))
    ax = figure.subplots()
    names = []
    for y, (name, rows) in enumerate(columns):
        names.append(_axes.plain(name, 60, width=_axes.letters(24)))
        for row in rows.to_dict("records"):
            _cell(ax, attacks.index(row["attack"]), y, row)
    ax.set_yticks(range(len(names)), names)
    titles = [_axes.plain(_attack(name), width=_axes.letters(18)) for name in attacks]
    ax.set_xticks(range(len(attacks)), titles)
    ax.set_xlim(-0.5, len(attacks) - 0.5)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.xaxis.tick_top()
    ax.grid(visible=False)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    return figure


def _cell(ax: Axes, x: int, y: int, row: dict[str, Any]) -> None:
    from matplotlib.patches import Rectangle

    share = row["rate"] / 100
    hatch = ""
    if row.get("utility_lost") == LOST:
        hatch = "///"
    ax.add_patch(
        Rectangle(
            (x - 0.48, y - 0.45),
            0.96,
            0.9,
            facecolor=_axes.COLOURS[0],
            alpha=0.08 + 0.8 * share,
            hatch=hatch,
            edgecolor=_axes.GREY,
            linewidth=0,
        )
    )
    text = f"{row['rate']:.0f} %"
    if not _axes.is_narrow():
        text += f"  [{row['low']:.0f}, {row['high']:.0f}]"
    weight = "bold" if row.get("verdict") == "safer" else "normal"
    ax.text(x, y, text, ha="center", va="center", color=_axes.INK, fontweight=weight)


KIND = Kind(
    name="grid",
    keys=KEYS,
    values=VALUES,
    about="Safety kept against utility kept, a point per defence and a panel per attack, with 95 % "
    'intervals; names from the safest down; hollow and "lost": utility or coherence lost; dashed: '
    "before the fine-tuning",
    draw=draw,
)
HEAT = Kind(
    name="heat",
    keys=KEYS,
    values=VALUES,
    about="Harm of every defence under every attack with its 95 % interval; bold: safer than no "
    "defence with utility kept; hatched: utility lost",
    draw=draw_heat,
)
