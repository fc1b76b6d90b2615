"""What became of all answers over fine-tuning steps, as stacked areas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftlab._core.errors import UsageError
from ftlab._core.types import Outcome
from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame


def draw(table: DataFrame, lines: DataFrame | None = None) -> Figure:
    """Draw the areas; `lines` are rates in a panel below."""
    shares = _shares(table)
    rows = 1 if lines is None else 2
    figure = _axes.new_figure(1.0 + 2.3 * rows)
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    _stack(axes[0], shares)
    if lines is not None:
        for label in _axes.ordered(lines["label"]):
            one = lines[lines["label"] == label]
            look = _axes.look_of(label, lines["label"])
            name = _axes.plain(_axes.risk_name(label, with_title=True), 60, 26)
            _axes.draw_line(axes[1], "step", one, look, name)
        _axes.step_axis(axes[1], {*shares.index, *lines["step"]})
        _axes.share_axis(axes[1], lines)
        axes[1].set_ylabel(_axes.SHARE)
        _axes.legend(axes[1])
    return figure


def _shares(table: DataFrame) -> DataFrame:
    """Return shares in percent by step and outcome, checked."""
    shares = table.pivot(index="step", columns="outcome", values="share").fillna(0)
    unknown = [name for name in shares if name not in list(Outcome)]
    if unknown:
        allowed = ", ".join(Outcome)
        raise UsageError("unknown_outcome", f"Unknown outcome {unknown}. Allowed: {allowed}.")
    total = shares.sum(axis=1)
    wrong = total[(total - 100).abs() > 0.1]
    if wrong.size:
        raise UsageError(
            "shares_not_whole",
            f"The shares at step {wrong.index[0]:g} add up to {wrong.iloc[0] / 100:.3f} instead of"
            " 1. Give every outcome, as a fraction of the same answers.",
        )
    return shares[[name for name in Outcome if name in shares and shares[name].any()]]


def _stack(ax: Axes, shares: DataFrame) -> None:
    names = [Outcome(name) for name in shares]
    last = shares.iloc[-1]
    labels = [f"{name.label} {_axes.percent(last[name])}" for name in names]
    colours = [name.colour for name in names]
    edge = {"edgecolor": "white", "linewidth": 0.6}
    if len(shares) > 1:
        ax.stackplot(shares.index, shares.to_numpy().T, labels=labels, colors=colours, **edge)
    else:
        below = 0.0
        for k, name in enumerate(names):
            bar = {"bottom": below, "color": colours[k], "label": labels[k]}
            ax.bar(shares.index, shares[name], **bar, **edge)
            below += last[name]
    _axes.step_axis(ax, shares.index)
    ax.margins(x=0.01)
    ax.set(ylim=(0, 100), ylabel=_axes.SHARE)
    _axes.legend(ax, reverse=True, title=f"at step {shares.index[-1]:,g}", alignment="left")


KIND = Kind(
    name="outcomes",
    keys=("step", "outcome"),
    values=("share",),
    about="What became of all answers, by fine-tuning steps",
    draw=draw,
    extras={"lines": (("step", "label"), ("rate", "low", "high"))},
)
