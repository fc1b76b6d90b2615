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
    """Draw a point per defence in a panel per attack; hollow where utility is lost."""
    attacks = list(dict.fromkeys(table["attack"]))
    figure, panels = _axes.new_panels([f"fine-tuned on: {name}" for name in attacks])
    looks = _looks(table)
    for ax, attack in zip(panels, attacks, strict=True):
        rows = table[table["attack"] == attack]
        _panel(ax, rows, looks)
        ax.set_xlabel("utility kept: right answers (%)")
        ax.set_ylabel("")
        ax.set_ylim(-4, 104)
        ax.grid(axis="both")
    for ax in panels:
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel("safety kept: 100 − harm (%)")
    _name_points(figure, panels[0], looks)
    return figure


def _looks(table: DataFrame) -> dict[str, dict[str, Any]]:
    """Return colour and marker by defence; no defence is a black cross."""
    looks = {}
    number = 0
    for name, rows in by_column(table):
        if rows["defence"].iloc[0] == NO_DEFENCE:
            looks[name] = {"color": _axes.INK, "marker": "X" if name == NO_DEFENCE else "P"}
            continue
        colours = len(_axes.COLOURS)
        marker = number + number // colours  # so that no pair comes twice
        looks[name] = {
            "color": _axes.COLOURS[number % colours],
            "marker": _axes.MARKERS[marker % len(_axes.MARKERS)],
        }
        number += 1
    return looks


def _panel(ax: Axes, table: DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    for name, rows in by_column(table):
        by_axis = rows.set_index("axis")
        harm = by_axis.loc["harm"]
        utility = by_axis.loc["utility"]
        look = looks[name]
        lost = utility.get("utility_lost") == LOST
        below, above = _ends(utility)
        under, over = _ends(harm)
        ax.errorbar(
            utility["rate"],
            100 - harm["rate"],
            xerr=[[below], [above]],
            yerr=[[over], [under]],  # the other way round: safety is 100 - harm
            markersize=7,
            markerfacecolor="white" if lost else look["color"],
            elinewidth=0.9,
            linestyle="none",
            label=name,
            **look,
        )


def _ends(row: Any) -> tuple[float, float]:
    """Return how far an interval reaches below and above the rate."""
    below = max(row["rate"] - row["low"], 0.0)
    above = max(row["high"] - row["rate"], 0.0)
    return below, above


def _name_points(figure: Figure, ax: Axes, looks: dict[str, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    handles = []
    for name, look in looks.items():
        shown = _axes.plain(name, 40, width=_axes.letters(24))
        handles.append(Line2D([], [], linestyle="none", markersize=7, label=shown, **look))
    handles.append(
        Line2D(
            [],
            [],
            linestyle="none",
            marker="o",
            color=_axes.GREY,
            markerfacecolor="white",
            label="hollow: utility lost",
        )
    )
    if _axes.is_narrow():
        figure.legend(handles=handles, loc="outside lower left", ncols=1)
        _axes.grow(figure, 0.22 * len(handles))
        return
    figure.legend(handles=handles, loc="outside right upper")


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
    ax.set_xticks(range(len(attacks)), [_axes.plain(name, width=12) for name in attacks])
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
    lost = row.get("utility_lost") == LOST
    ax.add_patch(
        Rectangle(
            (x - 0.48, y - 0.45),
            0.96,
            0.9,
            facecolor=_axes.COLOURS[0],
            alpha=0.08 + 0.8 * share,
            hatch="///" if lost else "",
            edgecolor="white",
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
    about="Safety kept against utility kept, a point per defence and a panel per attack",
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
