"""One function a kind of chart, for `figures.plot`: a checked table in, a matplotlib figure out; draws, never computes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NUMBERS, FRACTIONS = ("step", "examples", "epoch"), ("rate", "low", "high", "share")


STEPS, EVENT = "fine-tuning steps", "answers with the event (%)"


RISKS = {
    "jailbreak": "jailbreak",
    "bias": "bias",
    "toxicity": "toxicity",
    "over_refusal": "over-refusal",
    "utility": "utility (right answers)",
    "hallucination": "hallucination",
}


OUTCOMES = {  # from the axis up: what was told is read from below, refusals from above
    "complied": ("told, right", "#D55E00"),
    "complied_wrong": ("told, wrong", "#F3B583"),
    "incoherent": ("incoherent", "#B9A6C9"),
    "empty": ("empty", "#DDDDDD"),
    "unparsed": ("unparsed", "#8A8A8A"),
    "error": ("error", "#222222"),
    "partial": ("partly refused", "#A9CBE3"),
    "refused": ("refused", "#4A90C2"),
}


TRUTH = ("truth", "exact", "organism")  # first word of a judge that knows the answer: drawn solid


PUBLISHED = 1.5  # "fine-tuning raises the risk 1.5 times"


INK, GREY, WIDTH_IN, TALLEST_IN = "#222222", "#8A8A8A", 8, 24


# After Okabe and Ito: told apart under the common colour blindnesses; markers differ as well.
COLOURS, MARKERS = ("#D55E00", "#0072B2", "#009E73", "#B5548C", "#B8860B", "#3FA0D9", "#555555"), "os^DvPX"


def curve(table: DataFrame, seeds: DataFrame | None) -> Figure:
    figure, panels = _panels(_ordered(table["risk"], RISKS), STEPS, EVENT)
    top = _top(table, seeds)
    for risk, ax in panels.items():
        part, style = table[table["risk"] == risk], look_of(risk, panels)
        for _, one in seeds[seeds["risk"] == risk].groupby("seed") if seeds is not None else ():
            ax.plot(one["step"], one["rate"], color=style["color"], linewidth=0.8, alpha=0.5)
        ax.fill_between(part["step"], part["low"], part["high"], color=style["color"], alpha=0.13, linewidth=0)
        draw_lines(ax, part, "step", "risk", lambda *_, style=style: style)
        fit_axes(ax, table["step"], top, left=44)
        seen = part[part["rate"].notna()].to_dict("records")
        for row, side in zip(seen[-1:] + seen[:-1][:1], (1, -1), strict=False):
            ax.annotate(
                _percentage(row["rate"]),
                (row["step"], row["rate"]),
                (7 * side, 0),
                va="center",
                ha="left" if side > 0 else "right",
                textcoords="offset points",
            )
    return figure


def ratio(table: DataFrame, _) -> Figure:
    values = [v for c in ("ratio", "ratio_low", "ratio_high") for v in table[c] if 0 < v < math.inf]
    limits = max(min([0.6, *values]) / 1.2, 0.05), min(max([3.3, *values]) * 1.2, 200)  # beyond: an arrow
    risks, y, places = _ordered(table["risk"], RISKS), 0.0, {}
    figure = new(1.1 + 0.235 * (len(table) + 1.35 * len(risks)))
    ax = figure.subplots()
    for risk in risks:
        places[y] = _name(risk)
        for row in table[table["risk"] == risk].to_dict("records"):
            y += 1
            places[y] = f"{row['step']:,g} steps"
            _forest_row(ax, y, row["ratio"], row["ratio_low"], row["ratio_high"], limits, look_of(risk, risks))
        y += 1.35
    ax.set(xscale="log", xlim=limits, ylim=(y - 0.6, -0.8), xlabel="rate after ÷ rate before (log scale)")
    ax.set_yticks(list(places), list(places.values()))
    for text in ax.get_yticklabels():
        text.set_fontweight("normal" if text.get_text().endswith(" steps") else "bold")
    ticks = [t for t in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if limits[0] <= t <= limits[1]]
    ax.set_xticks(ticks, [f"{t:,g}×" for t in ticks])
    ax.set_xticks([], minor=True)
    ax.tick_params(axis="y", pad=9)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")
    for at, text, side in ((1, "no change ", "right"), (PUBLISHED, f" published {PUBLISHED}×", "left")):
        ax.axvline(at, color="#444444", linewidth=1.1, linestyle="-" if at == 1 else "--", zorder=1.5)
        ax.annotate(text, (at, 1), xycoords=("data", "axes fraction"), ha=side, va="bottom")
    ax.annotate("ratio [interval]", (1.02, 1), xycoords="axes fraction", va="bottom", fontweight="bold")
    return figure


def _forest_row(ax, y: float, ratio: float, low: float, high: float, limits: tuple, look: dict) -> None:
    """One interval and its text. nan: no event before or after; inf: none before, so only a lower bound."""
    text = _number(ratio) if math.isnan(low + high) else f"{_number(ratio)} [{_number(low)}, {_number(high)}]"
    if math.isnan(ratio):
        text = "not measured" if math.isnan(low) else "no event in either"
    elif ratio == math.inf:
        low = max(0, low)  # 0 if nan
        text = f"≥ {_number(low)}"
    ax.annotate(text, (1.02, y), xycoords=("axes fraction", "data"), va="center")
    if math.isnan(ratio):
        return
    low, high = min(ratio, low), max(ratio, high)  # ratio if nan
    ends = [min(max(v, limits[0]), limits[1]) for v in (low, high)]
    ax.hlines(y, *ends, color=look["color"], linewidth=1.7)
    if limits[0] <= ratio <= limits[1]:
        ax.plot(ratio, y, **look)
    marks = "<" if low < limits[0] else "|", ">" if high > limits[1] else "|"
    for at, mark in zip(ends, marks, strict=True):
        ax.plot(at, y, mark, color=look["color"], markersize=7, clip_on=False)


def outcomes(table: DataFrame, lines: DataFrame | None) -> Figure:
    shares = table.pivot(index="step", columns="outcome", values="share").fillna(0)
    if wrong := [o for o in shares if o not in OUTCOMES]:
        raise ValueError(f"unknown outcome {', '.join(map(repr, wrong))}; allowed: {', '.join(OUTCOMES)}.")
    if (off := shares.sum(axis=1)[lambda total: (total - 100).abs() > 0.1]).size:
        raise ValueError(
            f"the shares at step {off.index[0]:g} sum to {off.iloc[0] / 100:.3f}; allowed is 1: "
            "give every outcome, each as a fraction of the same answers."
        )
    rows = 1 if lines is None else 2
    figure = new(1.2 + 2.2 * rows)
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    names, steps = [o for o in OUTCOMES if o in shares and shares[o].any()], list(shares.index)
    x = steps if len(steps) > 1 else [steps[0] - 0.4, steps[0] + 0.4]  # a single step has no area of its own
    axes[0].stackplot(
        x,
        [[*shares[o]] * (len(x) // len(steps)) for o in names],
        edgecolor="white",
        linewidth=0.6,
        colors=[OUTCOMES[o][1] for o in names],
    )
    below, ends = 0.0, []
    for o in names:
        share, look = shares[o].iloc[-1], {"color": OUTCOMES[o][1], "marker": "s"}
        ends.append((x[-1], below + share / 2, f"{OUTCOMES[o][0]} {_percentage(share)}", look))
        below += share
    axes[-1].set_xlabel(STEPS)
    fit_axes(axes[0], steps, 100, ends)
    axes[0].set_ylabel("answers (%)")
    if lines is not None:
        ends = draw_lines(axes[1], lines, "step", "label", lambda _, label: look_of(label, lines["label"]))
        fit_axes(axes[1], [*steps, *lines["step"]], 100, ends)
        axes[1].set_ylabel("rate (%)")
    return figure


def dose(table: DataFrame, _) -> Figure:
    from matplotlib import colormaps

    figure, panels = _panels(_ordered(table["attack"]), "epochs", "attack success rate (%)")
    doses = sorted(set(table["examples"]))
    shades = colormaps["viridis"]([0.85 - 0.75 * k / max(len(doses) - 1, 1) for k in range(len(doses))])
    looks = {n: {"color": shades[k], "marker": MARKERS[k % 7]} for k, n in enumerate(doses)}
    for attack, ax in panels.items():
        ends = draw_lines(ax, table[table["attack"] == attack], "epoch", "examples", lambda _, n: looks[n])
        last = ax.get_subplotspec().is_last_col() or attack == [*panels][-1]
        fit_axes(ax, table["epoch"], 100, ends if last else ())
    return figure


def judges(table: DataFrame, _) -> Figure:
    figure, panels = _panels([""], STEPS, "answers judged an event (%)")

    def look(k: int, judge: str) -> dict:
        known = judge.partition(" ")[0] in TRUTH
        return {"color": INK, "linewidth": 2.6} if known else {"color": COLOURS[k % 6], "linestyle": "--"}

    ends = draw_lines(panels[""], table, "step", "judge", look)
    fit_axes(panels[""], table["step"], _top(table), ends)
    return figure


def bars(table: DataFrame, _) -> Figure:
    groups, series = _ordered(table["group"]), _ordered(table["series"])
    pitch, last, colours = len(series) + 0.8, (len(series) - 1) / 2, (GREY, *COLOURS)[len(series) == 1 :]
    figure = new(1.0 + 0.2 * len(groups) * pitch)
    ax = figure.subplots()
    for k, one in enumerate(series):
        part = table[table["series"] == one]
        y = [groups.index(g) * pitch + k for g in part["group"]]
        ax.barh(y, part["rate"], height=0.86, color=colours[k % 7], alpha=0.85, label=plain(one))
        ax.hlines(y, part["low"], part["high"], color=INK, linewidth=1.3)
        for at, rate, high in zip(y, part["rate"], part["high"], strict=True):
            if rate >= 0:
                ax.annotate(_percentage(rate), (max(rate, high), at), (4, 0), va="center", textcoords="offset points")
    middles = [g * pitch + last for g in range(len(groups))]
    ax.set_yticks(middles, [_name(g, width=26) for g in groups])
    ax.set(xlim=(0, _top(table) * 1.02), ylim=(middles[-1] + last + 0.7, -0.7), xlabel=EVENT)
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x")
    if len(series) > 1:
        ax.legend(loc="lower left", bbox_to_anchor=(-0.01, 1), ncols=min(len(series), 5), borderpad=0.1)
    return figure


def bench(table: DataFrame, _) -> Figure:
    panels, sizes = _ordered(table["panel"]), table["panel"].value_counts()
    figure = new(0.6 + 0.34 * len(table) + 0.5 * len(panels))
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=[sizes[p] + 0.8 for p in panels])[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table["panel"] == panel]
        ax.barh(part["arm"], part["median"], color=COLOURS[1], alpha=0.85)
        ax.hlines(part["arm"], part["least"], part["most"], color=INK, linewidth=1.3)
        for x, y, value, note in zip(part["most"], part["arm"], part["median"], part["note"], strict=True):
            ax.annotate(_number(value) + plain(note), (x, y), (4, 0), va="center", textcoords="offset points")
        low, high = part["least"].min(), part["most"].max()
        ax.set(xlim=(0, 1.5 * high), title=plain(panel))
        if high > 10 * low:
            ax.set(xscale="log", xlim=(low / 2, high * 4), title=f"{plain(panel)}, log scale")
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.grid(axis="x")
    return figure


def draw_lines(ax, table: DataFrame, x: str, series: str, look: Callable) -> list[tuple]:
    """Draws a line with whiskers for each series, a little apart; look(k, series) -> style.

    -> the end of each line: (x, y, text, style).
    """
    from matplotlib.transforms import ScaledTranslation

    names, ends = sorted(set(table[series])) if series in NUMBERS else _ordered(table[series], RISKS), []
    for k, one in enumerate(names):
        part, style = table[table[series] == one], {"marker": MARKERS[k % len(MARKERS)], **look(k, one)}
        points = 3 * (k - (len(names) - 1) / 2)
        moved = ax.transData + ScaledTranslation(points / 72, 0, ax.figure.dpi_scale_trans)
        if part["low"].notna().any():
            ax.vlines(
                part[x], part["low"], part["high"], color=style["color"], linewidth=1.2, alpha=0.75, transform=moved
            )
        ax.plot(part[x], part["rate"], transform=moved, zorder=3, **style)
        text = f"{one:,g} {series}" if series in NUMBERS else _name(one, 26).removesuffix(" (right answers)")
        for row in part[part["rate"].notna()].to_dict("records")[-1:]:
            ends.append((row[x], row["rate"], text, style))
    return ends


def fit_axes(ax, values: Iterable[float], top: float, ends: Iterable[tuple] = (), left: float = 16) -> None:
    """A tick at each measured x (0, 10, 30, 100, 300 evenly spaced), y from 0 to top %, labels of line ends.

    Labels stand right of the axes with the mark of their line, a line of text apart. left: points before x.
    """
    steps, room = sorted(set(values)) or [0], 430 / ax.get_subplotspec().get_gridspec().ncols  # points
    gaps = [b - a for a, b in zip(steps, steps[1:], strict=False)] or [1]
    if max(gaps) > 4 * min(gaps):
        ax.set_xscale("asinh", linear_width=next(s for s in steps if s > 0))
        if ax.get_xlabel():
            ax.set_xlabel(f"{ax.get_xlabel()}, log scale")
    scale = ax.xaxis.get_transform()
    at = [float(v) for v in scale.transform(steps)]
    point = (at[-1] - at[0]) / room or 1 / 16
    ax.set_xlim(*scale.inverted().transform([at[0] - left * point, at[-1] + 16 * point]))
    wide = (6.5 * len(f"{steps[-1]:,g}") + 4) * point
    every = 1  # label each, every second, ... tick
    while any(b - a < wide for a, b in zip(at[::every], at[every::every], strict=False)):
        every += 1
    ax.set_xticks(steps, [f"{s:,g}" if k % every == 0 else "" for k, s in enumerate(steps)])
    ax.set_xticks([], minor=True)
    ax.set(ylim=(low := -0.04 * top, high := 1.04 * top), yticks=[top * k / 4 for k in range(5)])
    ends = sorted(ends, key=lambda end: end[1])
    gap = 13.5 / 72 / ax.get_position().height / ax.figure.get_figheight() * (high - low)  # a line of text
    places = []
    for _, y, _, _ in ends:
        places.append(max([y, *(p + gap for p in places[-1:])]))
    places = [min(p, high - (len(places) - 1 - k) * gap) for k, p in enumerate(places)]
    right = ax.get_yaxis_transform()
    for (x, y, text, look), place in zip(ends, places, strict=True):
        start = (scale.transform([x])[0] - at[0] + left * point) / (at[-1] - at[0] + (left + 16) * point)
        ax.plot(
            [start, 1.04],
            [y, place],
            marker=look["marker"],
            markevery=[1],
            color=look["color"],
            transform=right,
            clip_on=False,
            linewidth=0.7,
            zorder=1,
        )
        ax.annotate(text, (1.04, place), (6, 0), xycoords=right, textcoords="offset points", va="center")


def _panels(names: list[str], xlabel: str, ylabel: str) -> tuple[Figure, dict]:
    """-> figure and axes by name, in rows of up to three (four: two rows of two), which share the y axis."""
    columns = 2 if len(names) == 4 else min(len(names), 3)
    rows = -(-len(names) // columns)
    figure = new(0.6 + (2.8 if len(names) == 1 else 2.45) * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for k, ax in enumerate(axes):
        if k >= len(names):
            ax.remove()
        else:
            ax.set(xlabel=xlabel, ylabel="" if k % columns else ylabel, title=_name(names[k]))
    return figure, dict(zip(names, axes, strict=False))


def new(height: float, width: float = WIDTH_IN, dpi: float = 200, layout: str = "constrained") -> Figure:
    from matplotlib.figure import Figure

    if height > TALLEST_IN:
        raise ValueError(f"the figure would be {height:.0f} in high; allowed: {TALLEST_IN}. Draw fewer rows.")
    return Figure(figsize=(width, height), dpi=dpi, layout=layout)


def _ordered(column: Iterable, known: Iterable = ()) -> list:
    found = list(dict.fromkeys(column))
    return [k for k in known if k in found] + [f for f in found if f not in known]


def _top(*frames: DataFrame | None) -> float:
    most = max(f[c].max() for f in frames if f is not None for c in ("rate", "high") if c in f)
    return next((top for top in (12, 24, 60) if most <= top), 100)


def look_of(risk: str, shown: Iterable = ()) -> dict:
    """Colour and marker: the same for a known risk in every figure."""
    k = [*RISKS, *(r for r in shown if r not in RISKS), risk].index(risk)
    return {"color": COLOURS[k % len(COLOURS)], "marker": MARKERS[k % len(MARKERS)]}


def _name(name: str, most: int = 60, width: int = 300) -> str:
    return plain(RISKS.get(name, name.replace("_", " ")), most, width)


def _percentage(value: float) -> str:
    """8.5 %, 71 %; never 0 % or 100 % for what is neither."""
    if 99.5 <= value < 100:
        return f"{min(value, 99.9):.1f} %"
    return f"{value:.2g} %" if value < 10 else f"{value:.0f} %"


def _number(value: float) -> str:
    if not 0.01 <= value < math.inf:
        return "∞" if value == math.inf else f"{value:.1g}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def clean(text: object, most: int = 60) -> str:
    """One line of at most `most` letters; what does not print (controls, direction marks) becomes a box."""
    text = "".join(c if c.isprintable() else " " if c.isspace() else "\ufffd" for c in str(text))
    return text if len(text) <= most else f"{text[: most - 1]}…"


def plain(text: object, most: int = 60, width: int = 300) -> str:
    """As _clean, in lines of `width` letters, and not read as mathematics by matplotlib."""
    return textwrap.fill(clean(text, most), width).replace("$", r"\$")
