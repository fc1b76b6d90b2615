"""Rates as lines with intervals: over steps by risk or judge, over epochs by number of examples."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind
from ftlab.analysis.verdicts import EXACT, judge_name, of_judge

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from ftlab.analysis.claims import Target


ALL_ATTACKS = "all attacks"
CLAIMED = ("direct", ALL_ATTACKS)  # panels that published doses are about


def first_judge(table: DataFrame) -> DataFrame:
    """Return the rows of a table's first judge; all of them where there is no such column."""
    return of_judge(table) if "judge" in table else table


def draw_curve(
    table: DataFrame,
    seeds: DataFrame | None = None,
    target: dict[str, Target] | None = None,
) -> Figure:
    """Draw a panel per risk: a line per model, thin lines per seed, and what is published."""
    risks = _axes.ordered(table["risk"])
    titles = [_axes.panel_name(risk, table[table["risk"] == risk]) for risk in risks]
    figure, panels = _axes.new_panels(titles)
    models = list(dict.fromkeys(table["model"]))
    for risk, ax in zip(risks, panels, strict=True):
        look = _axes.look_of(risk, risks)
        rows = table[table["risk"] == risk]
        for k, model in enumerate(models):
            if len(models) > 1:
                look = _axes.look(k)
            own = rows[rows["model"] == model]
            label = _axes.plain(model, 60, 26)
            _axes.draw_line(ax, "step", own, look, label)
        _axes.step_axis(ax, table["step"], table.attrs.get("steps", _axes.STEPS))
        measured = rows[rows["rate"].notna()]
        before = measured["rate"].head(1).sum()
        published = (target or {}).get(risk)
        most = _axes.draw_published(ax, published, before)
        _axes.share_axis(ax, table, most=most)
        ax.margins(x=0.05 + 0.1 * min(len(risks), 3))  # room for the rates
        if seeds is not None:
            own = seeds[seeds["risk"] == risk]
            for _, one in own.groupby("seed"):
                ax.plot(
                    one["step"],
                    one["rate"],
                    color=look["color"],
                    linewidth=0.8,
                    alpha=0.5,
                )
            _axes.share_axis(ax, table, seeds, most=most)
        if len(models) == 1:
            _write_rate(ax, measured.tail(1), 7, "left")
            _write_rate(ax, measured[:-1].head(1), -7, "right")
    if len(models) > 1:
        _axes.legend(panels[-1])
    return figure


def _write_rate(ax: Axes, rows: DataFrame, points: int, side: str) -> None:
    """Write rates next to their points, readable over a line."""
    behind = {"facecolor": ax.get_facecolor(), "edgecolor": "none", "alpha": 0.8, "pad": 0}
    for row in rows.itertuples():
        ax.annotate(
            _axes.percent(row.rate),
            (row.step, row.rate),
            (points, 0),
            textcoords="offset points",
            ha=side,
            va="center",
            bbox=behind,
        )


def draw_dose(table: DataFrame, target: dict[str, Target] | None = None) -> Figure:
    """Draw a panel per attack, with a line per number of examples.

    What is published of a number of examples is dashed in the same colour, where prompts are
    asked directly, as in the papers, or attacks are not told apart.
    """
    from matplotlib import colormaps

    attacks = list(dict.fromkeys(table["attack"]))
    figure, panels = _axes.new_panels(attacks)
    doses = sorted(set(table["examples"]))
    published = target or {}
    for attack, ax in zip(attacks, panels, strict=True):
        heights = [0.0]
        for k, dose in enumerate(doses):
            rows = table[(table["attack"] == attack) & (table["examples"] == dose)]
            look = _axes.look(k)
            look["color"] = colormaps["viridis"](0.85 - 0.75 * k / len(doses))
            name = f"{dose:,g} examples"
            _axes.draw_line(ax, "epoch", rows, look, name)
            if attack in CLAIMED and len(rows):
                one = published.get(name)
                before = rows["rate"].iloc[0]
                height = _axes.draw_published(
                    ax,
                    one,
                    before,
                    look["color"],
                )
                heights.append(height)
        _axes.step_axis(ax, table["epoch"], "epochs")
        _axes.share_axis(ax, table, most=max(heights))
    _axes.legend(panels[-1])
    return figure


def draw_judges(table: DataFrame) -> Figure:
    """Draw a line per judge, solid for one that knows the right answer."""
    figure, (ax,) = _axes.new_panels([""])
    for k, judge in enumerate(dict.fromkeys(table["judge"])):
        look = {**_axes.look(k), "linestyle": "--"}
        name = judge_name(judge)
        if name.split(" ")[0] in EXACT:
            look |= {"color": _axes.INK, "linewidth": 2.6, "linestyle": "-"}
        rows = table[table["judge"] == judge]
        _axes.draw_line(ax, "step", rows, look, _axes.plain(name, 60, 26))
    _axes.step_axis(ax, table["step"])
    _axes.share_axis(ax, table)
    _axes.legend(ax)
    return figure


VALUES = ("rate", "low", "high")
CURVE = Kind(
    name="curve",
    keys=("step", "risk", "model"),
    values=VALUES,
    about="Rate of each risk by fine-tuning steps",
    draw=draw_curve,
    defaults={"model": ""},
    extras={"seeds": (("step", "risk", "seed"), ("rate",)), "target": None},
    prepare=first_judge,
)
DOSE = Kind(
    name="dose",
    keys=("examples", "epoch", "attack"),
    values=VALUES,
    about="Rate by epochs of training and number of examples",
    draw=draw_dose,
    defaults={"attack": ALL_ATTACKS},
    extras={"target": None},
    prepare=first_judge,
)
JUDGES = Kind(
    name="judges",
    keys=("step", "judge"),
    values=VALUES,
    about="Rate that each judge reports of the same answers",
    draw=draw_judges,
    defaults={"low": math.nan, "high": math.nan},
)
