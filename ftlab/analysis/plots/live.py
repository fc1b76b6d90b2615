"""The small figure that is shown while a training runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._drawing import Drawing, style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

LOSS = {
    "color": _axes.COLOURS[1],
    "linewidth": 1.2,
    "marker": ".",  # a single loss is no line
    "markersize": 3,
}
EARLIER = {"alpha": 0.35, "label": ""}  # look of all trainings but the last


def live_chart(
    title: str,
    points: list[dict],
    losses: list[tuple[int, float]],
) -> Drawing:
    """Draw the loss of a training so far, and the rates measured on the way.

    What there is none of has no panel. A step that is not larger than the one before begins the
    next training; the last one is drawn strongest.

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
        _draw(figure, points, losses)
    return Drawing(figure, f"Loss and measured rates of {_axes.clean(title)}")


def _draw(
    figure: Figure,
    points: list[dict],
    losses: list[tuple[int, float]],
) -> None:
    from pandas import DataFrame

    columns = 2 if points and losses else 1
    panels = list(figure.subplots(1, columns, squeeze=False)[0])
    for ax in panels:
        ax.set_xlabel("step")
        ax.xaxis.get_major_locator().set_params(integer=True)  # of one step: no 0.98 and 1.02
    if losses:
        ax = panels.pop(0)
        ax.set_ylabel("loss (nats per token)")
        table = DataFrame(losses, columns=["step", "value"])
        _draw_trainings(ax, table, LOSS)
    if points:
        _draw_points(panels[0], DataFrame(points))


def _draw_points(ax: Axes, table: DataFrame) -> None:
    """Draw a line per metric and training."""
    ax.set_ylabel(_axes.SHARE)
    ax.set_ylim(-4, 104)
    table["value"] = 100 * table["rate"]
    metrics = list(table["metric"])
    for metric, rows in table.groupby("metric", sort=False):
        look = _axes.look_of(metric, metrics)
        look["label"] = _axes.plain(_axes.risk_name(metric), 26)
        _draw_trainings(ax, rows, look)
    _axes.legend(ax, handlelength=0)


def _draw_trainings(ax: Axes, rows: DataFrame, look: dict[str, Any]) -> None:
    """Draw a line per training."""
    training = rows["step"].diff().le(0).cumsum()
    for number, part in rows.groupby(training):
        shown = dict(look)
        if number < training.max():
            shown |= EARLIER
        ax.plot(part["step"], part["value"], **shown)
