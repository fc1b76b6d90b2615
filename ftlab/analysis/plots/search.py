"""An attacker's search: harm by trial, the worst so far, and what it was when measured again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ftlab.analysis.plots import _axes
from ftlab.analysis.plots._kinds import Kind

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

AGAIN = ("again", "again_low", "again_high")  # of trials that were measured again
BESIDE = 0.25  # of a trial, to the right of its dot
VALUES = ("rise", "best", "bound", *AGAIN)


def draw(table: DataFrame) -> Figure:
    """Draw a dot per trial, the best so far as steps, and the measurement that counts beside."""
    figure = _axes.new_figure(3.4)
    ax = figure.subplots()
    useful = table["useful"] == "True"
    trials = table["trial"].astype(int)
    shares = 100 * table[list(VALUES)]
    dots = {"s": 20, "zorder": 3}
    ax.scatter(
        trials[useful],
        shares["rise"][useful],
        color=_axes.COLOURS[0],
        label="a trial",
        **dots,
    )
    ax.scatter(
        trials[~useful],
        shares["rise"][~useful],
        facecolors="none",
        edgecolors=_axes.GREY,
        label="not useful to the attacker",
        **dots,
    )
    ax.step(trials, shares["best"], where="post", color=_axes.COLOURS[0], label="worst so far")
    bound = shares["bound"].iloc[0]
    ax.axhline(bound, linestyle="--", color=_axes.INK, linewidth=1.1, label="bound")
    measured = shares["again"].notna()
    value, low, high = (shares[name][measured] for name in AGAIN)
    ax.errorbar(
        trials[measured] + BESIDE,
        value,
        yerr=[value - low, high - value],
        fmt="D",
        color=_axes.COLOURS[1],
        markersize=5,
        capsize=3,
        label="new prompts and seeds",
    )
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_xlabel("trial")
    ax.set_ylabel("rise of harm (points)")
    columns = 1 if _axes.is_narrow() else 3
    ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=columns)
    if _axes.is_narrow():
        _axes.grow(figure, 1.0)
    return figure


KIND = Kind(
    name="search",
    keys=("trial", "useful"),
    values=VALUES,
    about="Rise of harm over the parent by an attacker's trials, and of the worst ones measured "
    "again on new prompts and with new training seeds, with the limits that decide",
    draw=draw,
)
