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
    return Figure(
        figsize=(WIDTH_IN, height),
        dpi=dpi,
        layout="constrained",
    )


def new_panels(titles: list[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per title, up to three in a row, with a common y axis."""
    count = len(titles)
    columns = min(count, 3)
    if count == 4:
        columns = 2
    rows = math.ceil(count / columns)
    figure = new_figure(0.8 + 2.5 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    panels = list(axes.ravel())
    for ax in panels[count:]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel(SHARE)
    panels = panels[:count]
    for ax, title in zip(panels, titles, strict=True):
        ax.set_title(plain(title, 90, width=78 // columns))
    return figure, panels


def step_axis(ax: Axes, steps: Iterable[float], label: str = STEPS) -> None:
    """Put a tick at every measured step, on a logarithmic axis where they lie far apart."""
    at = sorted(set(steps))
    gaps = np.diff(at)
    if gaps.size and gaps.max() > 4 * gaps.min():
        first = min(step for step in at if step > 0)
        ax.set_xscale("asinh", linear_width=first)
        label += ", log scale"
    names = [f"{step:,g}" for step in at]
    columns = ax.get_subplotspec().get_gridspec().ncols
    letters = len("  ".join(names)) * columns
    every = math.ceil(letters / 70)  # 70 letters fit across the figure
    for k in range(len(names)):
        if k % every:
            names[k] = ""
    ax.set_xticks(at, names)
    ax.set_xticks([], minor=True)
    ax.set_xlabel(label)
    ax.margins(x=0.08)


def share_axis(ax: Axes, *tables: DataFrame) -> None:
    """Let the y axis start at 0 % and end above every value and interval."""
    most = 0.0
    for table in tables:
        numbers = table.filter(["rate", "high"])
        most = max(most, numbers.max().max())
    top = 100
    for lower in (60, 24, 12):
        if most <= lower:
            top = lower
    ax.set_ylim(-0.04 * top, 1.06 * top)
    ax.set_yticks(np.linspace(0, top, 5))


def draw_line(
    ax: Axes,
    x: str,
    rows: DataFrame,
    look: dict[str, Any],
    label: str = "",
) -> None:
    """Draw rates over a column, with their intervals as bars and as a band."""
    colour = look["color"]
    known = rows[rows["low"].notna()]
    bounds = (
        known[x],
        known["low"],
        known["high"],
    )
    ax.vlines(*bounds, color=colour, linewidth=1.2, alpha=0.75)
    ax.fill_between(*bounds, color=colour, linewidth=0, alpha=0.13)
    ax.plot(
        rows[x],
        rows["rate"],
        label=label,
        zorder=3,
        **look,
    )


def legend(ax: Axes, **options) -> None:
    """Put the names of the lines to the right of the axes."""
    ax.legend(
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        **options,
    )


def ordered(column: Iterable[str]) -> list[str]:
    """Return the different values: known risks in their order, others as they appear."""
    found = dict.fromkeys(column)
    known = dict.fromkeys(plugins.find("risks"))
    return [name for name in {**known, **found} if name in found]


def risk_name(name: str, with_title: bool = False) -> str:
    """Return a risk's short name, and what its event is; other names stay as they are."""
    risk = plugins.find("risks").get(name)
    label = getattr(risk, "label", name).replace("_", " ")
    title = getattr(risk, "title", label)
    if with_title and title not in label:
        return f"{label}: {title}"
    return label


def look(k: int) -> dict[str, Any]:
    """Return colour and marker of the k-th line."""
    k = k % len(COLOURS)
    return {"color": COLOURS[k], "marker": MARKERS[k]}


def look_of(name: str, shown: Iterable[str]) -> dict[str, Any]:
    """Return colour and marker: for a known risk the same in every figure."""
    names = dict.fromkeys([*plugins.find("risks"), *shown])
    return look(list(names).index(name))


def percent(value: float) -> str:
    """Return 8.5 %, 71 %; never 0 % or 100 % for what is neither."""
    if 99.5 <= value < 100:
        value = min(value, 99.9)
        return f"{value:.1f} %"
    if value < 10:
        return f"{value:.2g} %"
    return f"{value:.0f} %"


def clean(text: object, most: int = 60) -> str:
    """Return one line of at most `most` characters; what does not print becomes a box."""
    line = " ".join(str(text).split())
    line = "".join(c if c.isprintable() else "\ufffd" for c in line)
    if len(line) > most:
        return f"{line[: most - 1]}…"
    return line


def plain(text: object, most: int = 60, width: int = 300) -> str:
    """Return clean text, wrapped, that matplotlib does not read as mathematics."""
    return textwrap.fill(clean(text, most), width).replace("$", r"\$")
