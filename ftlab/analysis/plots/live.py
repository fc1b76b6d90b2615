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
        losses: Optimiser step and training loss, in nats per token.

    Returns:
        A drawing that shows itself in Jupyter.
    """
    finite = [pair for pair in losses if math.isfinite(pair[1])]
    lines: dict[str, list] = {}
    for point in points:
        pair = (point["step"], 100 * point["rate"])
        lines.setdefault(point["metric"], []).append(pair)
    with style():
        figure = _axes.new_figure(2.6, dpi=100)
        figure.suptitle(_axes.plain(title, 80), x=0.012, ha="left")
        left, right = figure.subplots(1, 2)
        left.plot(*zip(*finite, strict=True) if finite else ([], []), linewidth=1.2)
        left.set(xlabel="step", ylabel="loss (nats per token)", ylim=(0, None))
        right.set(xlabel="step", ylabel=_axes.SHARE, ylim=(-4, 104))
        for metric, pairs in lines.items():
            name = _axes.plain(_axes.risk_name(metric), 26)
            right.plot(*zip(*pairs, strict=True), label=name, **_axes.look_of(metric, lines))
        if lines:
            _axes.legend(right)
    return Drawing(figure, f"Loss and measured rates of {_axes.clean(title)}")
