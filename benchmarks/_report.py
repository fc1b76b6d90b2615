"""Writes what a benchmark found: table, JSON and figure."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import ftlab
from ftlab.analysis.plots import Kind
from ftlab.runs import provenance

ROW_IN = 0.34  # height of a bar, in inches
BAR = "#0072B2"
INK = "#222222"
LEGEND = "Medians; dark lines: least to most; hatched: scaled from a share of the answers."


def arguments(about: str) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks share."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--json", type=Path, help="file for the numbers, hardware and versions")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/bench"), help="folder for the figure and its .csv"
    )
    return parser


def at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not allowed; give a number >= 1")
    return number


def spread(values: list[float], unit: str = "seconds") -> dict:
    """Return the values with their median, least and most."""
    median = statistics.median(values)
    return {unit: values, "median": median, "least": min(values), "most": max(values)}


def row(panel: str, arm: str, found: dict) -> dict:
    """Return an arm's row of the table."""
    numbers = {name: found[name] for name in ("median", "least", "most")}
    return {"panel": panel, "arm": arm, **numbers, "note": share_note(found)}


def share_note(found: dict) -> str:
    """Say which share of the answers a time was scaled from; "" for all."""
    share = found.get("measured_share", 1)
    return f" (scaled from {share:.2g} of the answers)" if share < 1 else ""


def write(
    what: str,
    rows: list[dict],
    found: dict,
    *,
    file: Path | None,
    out: Path,
    threads: int,
    kind: Kind | None = None,
    legend: str = LEGEND,
) -> dict:
    """Print the table, write JSON and figure; return what the JSON holds."""
    import pandas as pd

    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format="{:.4g}".format))
    about = provenance()
    hardware = about["hardware"] | {"threads": threads, "load": os.getloadavg()[0]}
    versions = about["versions"]
    saved = {**found, "hardware": hardware, "versions": versions, "date": about["started"]}
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(saved, indent=1))
    machine = f"{hardware['machine']}, {hardware['system']}, {hardware['cores']} cores"
    caption = f"{legend} {machine}, {about['started']}."
    name = f"bench_{what}"
    ftlab.plot(table, name, out, kind=kind or KIND, title=f"Benchmark: {what}", caption=caption)
    return saved


def draw(table: Any) -> Any:
    """Draw one panel per quantity, with one bar per arm from zero, hatched where it was scaled."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(table["panel"]))
    counts = [sum(table["panel"] == panel) for panel in panels]
    height = 0.6 + ROW_IN * len(table) + 0.5 * len(panels)
    figure = Figure(figsize=(8, height), dpi=200, layout="constrained")
    ratios = [count + 0.8 for count in counts]
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=ratios)[:, 0]
    for ax, panel in zip(axes, panels, strict=True):
        part = table[table["panel"] == panel]
        bars = ax.barh(part["arm"], part["median"], color=BAR, edgecolor=BAR)
        for bar, note in zip(bars, part["note"], strict=True):
            if note:
                bar.set(facecolor="white", hatch="////")
        ax.hlines(part["arm"], part["least"], part["most"], color=INK, linewidth=1.3)
        for bar in part.itertuples():
            number = f"{bar.median:.3g}" if bar.median < 100 else f"{bar.median:,.0f}"
            text = number + bar.note
            place = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            ax.annotate(text, (bar.most, bar.arm), **place)
        ax.set(xlim=(0, 1.6 * part["most"].max()), title=panel)
        ax.invert_yaxis()
        ax.grid(visible=False, axis="y")
        ax.grid(axis="x")
    return figure


KIND = Kind(
    name="benchmark",
    keys=("panel", "arm", "note"),
    values=("median", "least", "most"),
    about="Medians of measurements",
    draw=draw,
)


def draw_growth(table: Any) -> Any:
    """Draw time and memory over what grows, a column per thing that grows."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(table["group"]))
    panels = list(dict.fromkeys(table["panel"]))
    size = (4 * len(groups), 3.2 * len(panels))
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    axes = figure.subplots(len(panels), len(groups), squeeze=False)
    for (i, panel), (j, group) in product(enumerate(panels), enumerate(groups)):
        ax = axes[i, j]
        part = table[(table["panel"] == panel) & (table["group"] == group)]
        for arm, rows in part.groupby("arm", sort=False):
            ax.plot(rows["n"].astype(int), rows["value"], marker="o", markersize=3, label=arm)
        ax.set(xscale="log", xlabel=group, ylabel=panel)
        if panel == "CPU seconds":
            ax.set_yscale("log")
        else:
            ax.set_ylim(bottom=0)
        ax.legend(fontsize="x-small")
    return figure


GROWTH = Kind(
    name="growth",
    keys=("panel", "group", "arm", "n"),
    values=("value",),
    about="Single measurements",
    draw=draw_growth,
)
