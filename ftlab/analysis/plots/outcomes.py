"""What became of all answers over fine-tuning steps, as stacked areas."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ftlab._core.errors import UsageError
from ftlab._core.types import Outcome
from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from ftlab.analysis.claims import Target


def draw(
    table: DataFrame,
    lines: DataFrame | None = None,
    target: dict[str, Target] | None = None,
) -> Figure:
    """Draw the areas, and a published rate across; `lines` are rates in a panel below."""
    rows = 1 if lines is None else 2
    figure = _axes.new_figure(1.0 + 2.3 * rows)
    panels = figure.subplots(rows, 1, squeeze=False)[:, 0]
    shares = table.pivot(index="step", columns="outcome", values="share").fillna(0)
    _stack(panels[0], shares)
    _axes.draw_published(panels[0], next(iter((target or {}).values()), None), math.nan)
    if lines is not None:
        ax = panels[1]
        for risk in _axes.ordered(lines["risk"]):
            one = lines[lines["risk"] == risk]
            look = _axes.look_of(risk, lines["risk"])
            name = _axes.plain(_axes.panel_name(risk, one), 60, 26)
            _axes.draw_line(ax, "step", one, look, name)
        _axes.step_axis(ax, lines["step"])
        _axes.share_axis(ax, lines)
        ax.set_ylabel(_axes.SHARE)
        _axes.legend(ax)
    return figure


def _stack(ax: Axes, shares: DataFrame) -> None:
    """Stack the outcomes in their own order, with the last shares in the legend."""
    unknown = set(shares) - set(Outcome)
    total = shares.sum(axis=1)
    if unknown or (total - 100).abs().max() > 0.1:
        raise UsageError(
            "wrong_outcomes",
            f"Shares need to add up to 1 at every step, over these outcomes: {', '.join(Outcome)}.",
        )
    steps = list(shares.index)
    if len(steps) == 1:  # one step has no area
        shares = shares.loc[steps * 2]
        steps = [steps[0] - 0.4, steps[0] + 0.4]
    names = [name for name in Outcome if name in shares and shares[name].any()]
    last = shares.iloc[-1]
    shown = {name: name.label for name in names}
    if Outcome.COMPLIED_WRONG in shown and Outcome.COMPLIED in shown:  # the judge knows the truth
        shown[Outcome.COMPLIED] = "told, right"
    ax.stackplot(
        steps,
        shares[names].to_numpy().T,
        colors=[name.colour for name in names],
        labels=[f"{shown[name]} {_axes.percent(last[name])}" for name in names],
        edgecolor="white",
        linewidth=0.6,
    )
    _axes.step_axis(ax, set(shares.index))
    ax.margins(x=0.01)
    ax.set(ylim=(0, 100), ylabel=_axes.SHARE)
    _axes.legend(
        ax,
        reverse=True,
        title=f"at step {last.name:,g}",
        alignment="left",
    )


KIND = Kind(
    name="outcomes",
    keys=("step", "outcome"),
    values=("share",),
    about="What became of all answers, by fine-tuning steps",
    draw=draw,
    extras={"lines": (("step", "risk"), ("rate", "low", "high")), "target": None},
)
