"""What figures share: sizes, colours, axes, lines with their intervals, and text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from ftlab._core import plugins
from ftlab._core.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

WIDTH_IN = 8
TALLEST_IN = 24
INK = "#222222"
GREY = "#8A8A8A"
# After Okabe and Ito: distinct under the common colour blindnesses. Markers differ as well.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#B5548C", "#B8860B", "#3FA0D9", "#555555")
MARKERS = "os^DvPX"
STEPS = "fine-tuning steps"
SHARE = "share of answers (%)"


def new_figure(height: float, dpi: float = 200) -> Figure:
    """Return an empty figure; height in inches."""
    from matplotlib.figure import Figure

    if height > TALLEST_IN:
        raise UsageError(
            "figure_too_tall",
            f"The figure would be {height:.0f} in high, {TALLEST_IN} are allowed. Draw fewer rows.",
        )
    return Figure(figsize=(WIDTH_IN, height), dpi=dpi, layout="constrained")


def new_panels(titles: list[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per title, up to three in a row, with a common y axis."""
    columns = min(len(titles), 3)
    if len(titles) == 4:
        columns = 2
    rows = math.ceil(len(titles) / columns)
    figure = new_figure(0.8 + 2.5 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for ax in panels[len(titles) :]:
        ax.remove()
    for ax, title in zip(panels, titles, strict=False):
        ax.set_title(plain(title, 90, width=78 // columns))
        if ax.get_subplotspec().is_first_col():
            ax.set_ylabel(SHARE)
    return figure, list(panels[: len(titles)])


def step_axis(ax: Axes, steps: Iterable[float], label: str = STEPS) -> None:
    """Put a tick at every measured step, on a logarithmic axis where they lie far apart."""
    at = sorted(set(steps))
    gaps = np.diff(at)
    if gaps.size and gaps.max() > 4 * gaps.min():
        ax.set_xscale("asinh", linear_width=min(step for step in at if step > 0))
        label += ", log scale"
    columns = ax.get_subplotspec().get_gridspec().ncols
    letters = sum(len(f"{step:,g}") + 2 for step in at)
    every = math.ceil(letters * columns / 70)  # 70 letters fit across the figure
    labels = [""] * len(at)
    for k in range(0, len(at), every):
        labels[k] = f"{at[k]:,g}"
    ax.set_xticks(at, labels)
    ax.set_xticks([], minor=True)
    ax.set_xlabel(label)
    ax.margins(x=0.08)


def share_axis(ax: Axes, *tables: DataFrame | None) -> None:
    """Let the y axis start at 0 % and end above every value and interval."""
    most = 0.0
    for table in tables:
        if table is not None:
            columns = [name for name in ("rate", "high") if name in table]
            most = max(most, table[columns].max().max())
    top = next((top for top in (12, 24, 60) if most <= top), 100)
    ax.set_ylim(-0.04 * top, 1.06 * top)
    ax.set_yticks(np.linspace(0, top, 5))


def draw_line(ax: Axes, x: str, rows: DataFrame, look: dict[str, Any], label: str = "") -> None:
    """Draw rates over a column, with their intervals as bars and as a band."""
    known = rows[rows["low"].notna()]
    bounds = (known[x], known["low"], known["high"])
    ax.vlines(*bounds, color=look["color"], linewidth=1.2, alpha=0.75)
    ax.fill_between(*bounds, color=look["color"], alpha=0.13, linewidth=0)
    ax.plot(rows[x], rows["rate"], label=label, zorder=3, **look)


def legend(ax: Axes, **options) -> None:
    """Put the names of the lines to the right of the axes."""
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), **options)


def ordered(column: Iterable[str]) -> list[str]:
    """Return the different values: known risks in their order, others as they appear."""
    found = list(dict.fromkeys(column))
    known = [risk for risk in plugins.find("risks") if risk in found]
    return known + [name for name in found if name not in known]


def risk_name(name: str, with_title: bool = False) -> str:
    """Return a risk's short name, and what its event is; other names stay as they are."""
    risk = plugins.find("risks").get(name)
    label = getattr(risk, "label", name).replace("_", " ")
    title = getattr(risk, "title", label)
    if with_title and title != label:
        return f"{label}: {title}"
    return label


def look(k: int) -> dict[str, Any]:
    """Return colour and marker of the k-th line."""
    return {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}


def look_of(name: str, shown: Iterable[str]) -> dict[str, Any]:
    """Return colour and marker: for a known risk the same in every figure."""
    names = dict.fromkeys([*plugins.find("risks"), *shown])
    return look(list(names).index(name))


def percent(value: float) -> str:
    """Return 8.5 %, 71 %; never 0 % or 100 % for what is neither."""
    if 99.5 <= value < 100:
        return f"{min(value, 99.9):.1f} %"
    if value < 10:
        return f"{value:.2g} %"
    return f"{value:.0f} %"


def clean(text: object, most: int = 60) -> str:
    """Return one line of at most `most` characters; what does not print becomes a box."""
    line = " ".join(str(text).split())
    shown = "".join(c if c.isprintable() else "\ufffd" for c in line)
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def plain(text: object, most: int = 60, width: int = 300) -> str:
    """Return clean text, wrapped, that matplotlib does not read as mathematics."""
    return textwrap.fill(clean(text, most), width).replace("$", r"\$")
