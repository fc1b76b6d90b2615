"""The small figure that is shown while a training runs."""

from __future__ import annotations

import math

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._drawing import Drawing, style


def live_chart(title: str, points: list[dict], losses: list[tuple[int, float]]) -> Drawing:
    """Draw the loss of a training so far, and the rates measured on the way.

    Args:
        title: Name of the run.
        points: Measured rates: dictionaries with step, metric and rate (0 to 1).
        losses: Optimiser step and training loss.

    Returns:
        A drawing that shows itself in Jupyter.
    """
    with style():
        figure = _axes.new_figure(2.6, dpi=100)
        figure.suptitle(_axes.plain(title, 80), x=0.012, ha="left", fontsize=10)
        left, right = figure.subplots(1, 2)
        finite = [(step, loss) for step, loss in losses if math.isfinite(loss)]
        left.plot([step for step, _ in finite], [loss for _, loss in finite], linewidth=1.2)
        left.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
        metrics = list(dict.fromkeys(point["metric"] for point in points))
        for metric in metrics:
            one = [point for point in points if point["metric"] == metric]
            steps = [point["step"] for point in one]
            rates = [100 * point["rate"] for point in one]
            name = _axes.plain(_axes.risk_name(metric), 26)
            right.plot(steps, rates, label=name, **_axes.look_of(metric, metrics))
        right.set(xlabel="step", ylabel=_axes.SHARE, ylim=(-4, 104))
        if metrics:
            _axes.legend(right)
    return Drawing(figure, f"Loss and measured rates of {_axes.clean(title)}")
