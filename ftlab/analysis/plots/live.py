"""The small figure that is shown while a training runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._drawing import Drawing, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def live_chart(title: str, points: list[dict], losses: list[tuple[int, float]]) -> Drawing:
    """Draw the loss of a training so far, and the rates measured on the way.

    Args:
        title: Name of the run.
        points: Measured rates: dictionaries with step, metric and rate (0 to 1).
        losses: Optimiser step and training loss, in nats per token.

    Returns:
        A drawing that shows itself in Jupyter.
    """
    with style():
        figure = _axes.new_figure(2.6, dpi=100)
        figure.suptitle(_axes.plain(title, 80), x=0.012, ha="left")
        left, right = figure.subplots(1, 2)
        left.plot(
            [step for step, _ in losses],
            [loss for _, loss in losses],
            linewidth=1.2,
        )
        left.set_xlabel("step")
        left.set_ylabel("loss (nats per token)")
        right.set_xlabel("step")
        right.set_ylabel(_axes.SHARE)
        right.set_ylim(-4, 104)
        _draw_points(right, points)
    return Drawing(figure, f"Loss and measured rates of {_axes.clean(title)}")


def _draw_points(ax: Axes, points: list[dict]) -> None:
    """Draw a line per metric."""
    metrics = [point["metric"] for point in points]
    for metric in dict.fromkeys(metrics):
        own = [point for point in points if point["metric"] == metric]
        look = _axes.look_of(metric, metrics)
        ax.plot(
            [point["step"] for point in own],
            [100 * point["rate"] for point in own],
            label=_axes.plain(_axes.risk_name(metric), 26),
            **look,
        )
    if metrics:
        _axes.legend(ax)
