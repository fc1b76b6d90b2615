"""What figures share: sizes, colours, axes, lines with their intervals, and text."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from ftlab._core import plugins
from ftlab._core.errors import UsageError
from ftlab._core.types import Outcome
from ftlab.analysis.verdicts import EXACT, judge_name, of_refusals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from ftlab.analysis.claims import Target

WIDTH_IN = 8
NARROW_IN = 3.9  # for a screen of 390 points; there, letters keep their size
TALLEST_IN = 24
INK = "#222222"
GREY = "#8A8A8A"
# After Okabe and Ito: distinct under the common colour blindnesses. Markers differ as well.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#B5548C", "#B8860B", "#3FA0D9", "#555555")
MARKERS = "os^DvPX"
STEPS = "fine-tuning steps"
SHARE = "share of answers (%)"


_width: ContextVar[float] = ContextVar("width", default=WIDTH_IN)


@contextmanager
def narrow() -> Iterator[None]:
    """Draw figures for a narrow screen inside the context: panels and legends below one another."""
    before = _width.set(NARROW_IN)
    try:
        yield
    finally:
        _width.reset(before)


def is_narrow() -> bool:
    return _width.get() < WIDTH_IN


def letters(across: int) -> int:
    """Return how many letters fit where `across` fit into the full width."""
    return int(across * _width.get() / WIDTH_IN)


def new_figure(height: float, dpi: float = 200) -> Figure:
    """Return an empty figure; height in inches."""
    from matplotlib.figure import Figure

    if height > TALLEST_IN:
        raise UsageError(
            "figure_too_tall",
            f"The figure would be {height:.0f} in high, {TALLEST_IN} are allowed. Draw fewer rows.",
        )
    return Figure(
        figsize=(_width.get(), height),
        dpi=dpi,
        layout="constrained",
    )


def grow(figure: Figure, inches: float) -> None:
    """Make a figure taller."""
    figure.set_figheight(figure.get_figheight() + inches)


def new_panels(titles: list[str]) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel per title, up to three in a row, with a common y axis."""
    count = len(titles)
    columns = min(count, 3)
    if count == 4:
        columns = 2
    panel_in = 2.5
    if is_narrow():
        columns = 1
        panel_in = 2.1
    rows = math.ceil(count / columns)
    figure = new_figure(0.8 + panel_in * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
    panels = list(axes.ravel())
    for ax in panels[count:]:
        ax.remove()
    for ax in axes[:, 0]:
        ax.set_ylabel(SHARE)
    panels = panels[:count]
    for ax, title in zip(panels, titles, strict=True):
        ax.set_title(plain(title, 90, width=letters(78) // columns))
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
    taken = len("  ".join(names)) * columns
    every = math.ceil(taken / letters(70))
    for k in range(len(names)):
        if k % every:
            names[k] = ""
    ax.set_xticks(at, names)
    ax.set_xticks([], minor=True)
    ax.set_xlabel(label)
    ax.margins(x=0.08)


def share_axis(ax: Axes, *tables: DataFrame, most: float = 0.0) -> None:
    """Let the y axis start at 0 % and end above `most` and every value and interval."""
    for table in tables:
        numbers = table.filter(["rate", "high"])
        most = max(most, numbers.max().max())
    top = 100
    for lower in (60, 24, 12):
        if most <= lower:
            top = lower
    ax.set_ylim(-0.04 * top, 1.06 * top)
    ax.set_yticks(np.linspace(0, top, 5))


def draw_line(ax: Axes, x: str, rows: DataFrame, look: dict[str, Any], label: str = "") -> None:
    """Draw rates over a column, with their intervals as bars and as a band."""
    colour = look["color"]
    known = rows[rows["low"].notna()]
    bounds = (known[x], known["low"], known["high"])
    ax.vlines(*bounds, color=colour, linewidth=1.2, alpha=0.75)
    ax.fill_between(*bounds, color=colour, linewidth=0, alpha=0.13)
    ax.plot(rows[x], rows["rate"], label=label, zorder=3, **look)


def draw_published(ax: Axes, target: Target | None, before: float, colour: Any = INK) -> float:
    """Draw a published figure as a dashed line; return its place in percent, 0 if there is none.

    Args:
        ax: The axes.
        target: The figure.
        before: The parent's rate in percent, of which a published ratio is a multiple.
        colour: Of the line.
    """
    if target is None:
        return 0.0
    value = 100 * target.value
    if target.unit == "ratio":
        value = target.value * before
    elif target.unit != "rate":
        return 0.0
    if not 0 <= value <= 100:
        return 0.0
    ax.axhline(
        value,
        linestyle="--",
        linewidth=1.1,
        color=colour,
        zorder=1.5,
    )
    return value


def legend(ax: Axes, **options) -> None:
    """Put the names of the lines to the right of the axes, or below on a narrow screen."""
    if not is_narrow():
        ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), **options)
        return
    from matplotlib.transforms import ScaledTranslation

    below_ticks = ScaledTranslation(-0.4, -0.5, ax.figure.dpi_scale_trans)  # inches
    made = ax.legend(
        loc="upper left",
        bbox_to_anchor=(0, 0),
        bbox_transform=ax.transAxes + below_ticks,
        borderaxespad=0,
        **options,
    )
    rows = 1
    for text in made.get_texts():
        rows += 1 + text.get_text().count("\n")
    grow(ax.figure, 0.22 * rows)


def write_beside(ax: Axes, text: str, y: float) -> None:
    """Write numbers to the right of the axes."""
    ax.annotate(
        text,
        (1.02, y),  # in widths of the axes
        xycoords=("axes fraction", "data"),
        va="center",
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


def counted(risk: str, judge: str = "") -> str:
    """Return what a judge counts as a risk's event, in words: "told a secret", "not refused"."""
    known = plugins.find("risks").get(risk)
    if known is None:
        return ""
    if judge_name(judge) in EXACT and known.told:
        return known.told
    if of_refusals(judge) and known.refusals_decide and Outcome.COMPLIED in known.events:
        return "not refused"
    return known.title


def panel_name(risk: str, rows: DataFrame) -> str:
    """Return a risk's short name, and what the first judge of these rows counted."""
    judges = rows.get("judge", [])
    label = risk_name(risk)
    first = next(iter(judges), "")
    what = counted(risk, first)
    if what in label:
        return label
    return f"{label}: {what}"


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
