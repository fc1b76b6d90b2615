"""Tables -> figures: draws, never computes. Needs no torch.

    plot(table)                                         # a Drawing, shows itself in Jupyter
    plot(table, "risk", "figures", title="All rise")    # and writes risk.svg, .png, .csv, .txt (caption)

Rates and shares are fractions in [0, 1], shown in %; steps are optimiser steps. No pyplot, and every setting
inside a context: nothing global changes, nothing is shown twice, the same table gives the same bytes. Text
from tables is never read as markup.
"""

from __future__ import annotations

import base64
import io
import math
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftlab._core.text import csv
from ftlab.analysis.plots import charts
from ftlab.runs import resource

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

KINDS = {  # one row for each combination of these; the numbers drawn; caption
    "curve": ("step risk", "rate low high", "Rate of each risk by fine-tuning steps"),
    "ratio": (
        "step risk",
        "ratio ratio_low ratio_high",
        "Rate after fine-tuning divided by the rate before; dashed: the published claim",
    ),
    "outcomes": ("step outcome", "share", "What became of all answers, by fine-tuning steps"),
    "dose": ("examples epoch attack", "rate low high", "Rate by epochs of training and number of examples"),
    "bars": ("group series", "rate low high", "Rate in each group"),
    "judges": ("step judge", "rate low high", "Rate that each judge reports"),
    "bench": ("panel arm note", "median least most", "Medians of measurements; dark lines: least to most"),
}
EXTRAS = {"seeds": ("curve", "step risk seed", "rate"), "lines": ("outcomes", "step label", "rate low high")}
DEFAULTS = {"band": "", "attack": "", "low": math.nan, "high": math.nan}


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure that shows itself in Jupyter, 100 px an inch; `files` are those written."""

    figure: Figure
    caption: str = ""
    files: tuple[Path, ...] = ()

    def png(self) -> bytes:
        """-> PNG at the figure's dpi in 256 colours (a third of the size), without time or software."""
        for file in self.files:
            if file.suffix == ".png" and file.exists():  # drawn once, written and shown
                return file.read_bytes()
        from PIL import Image

        raw, small = io.BytesIO(), io.BytesIO()
        with _style():
            self.figure.savefig(raw, format="rgba", dpi=self.figure.dpi)
        image = Image.frombytes("RGBA", tuple(int(v) for v in self.figure.bbox.size), raw.getvalue())
        image = image.convert("RGB").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        image.save(small, "png")
        return small.getvalue()

    def _repr_mimebundle_(self, include=None, exclude=None) -> tuple[dict, dict]:
        data = {"image/png": base64.b64encode(self.png()).decode(), "text/plain": self.caption or "Drawing"}
        width, height = (round(100 * inches) for inches in self.figure.get_size_inches())
        return data, {"image/png": {"width": width, "height": height}}


def plot(
    table: DataFrame,
    name: str | None = None,
    out: str | Path | None = None,
    *,
    kind: str | None = None,
    title: str | None = None,
    caption: str | None = None,
    seeds: DataFrame | None = None,
    lines: DataFrame | None = None,
) -> Drawing:
    """-> the figure of a table, recognised by its columns or named by `kind`; `out`: a folder to write it to.

    curve     step, risk, rate, low, high: a panel a risk; seeds= (step, risk, seed, rate) are thin lines
    ratio     step, risk, ratio, ratio_low, ratio_high: forest plot; ratio inf is shown as its lower bound
    outcomes  step, outcome, share (sum 1 a step): areas; lines= (step, label, rate, low, high): a panel below
    dose      examples, epoch, rate, low, high [, attack]: a line a number of examples, a panel an attack
    bars      group, series, rate, low, high: bars in groups
    judges    step, judge, rate [, low, high]: a line a judge, solid for one that knows the truth
    bench     panel, arm, note, median, least, most: bars with spread, a panel a quantity with its unit
    A column `band` says in words what low and high are ("95 % simultaneous band, 5 seeds"). NaN is not drawn.

    Writes `name.svg`, `.png` (1600 px wide), `.csv` (the table as given; the other frame: `name_seeds.csv` or
    `name_lines.csv`) and `.txt` (the caption). `name` is the kind, `caption` what is drawn, unless given.
    Raises TypeError if there are no columns, ValueError if they fit no kind or several, or cannot be drawn.
    """
    kind = _recognised(table, kind)
    keys, values, about = KINDS[kind]
    name, drawn, extra = name or kind, [_checked(table, f"table of a {kind} figure", keys, values)], None
    if Path(name).name != name or name.startswith("."):
        raise ValueError(f"name is {name!r}; allowed is a file name, no folder, no leading dot. See out=.")
    frames = {f"{name}.csv": table}
    for word, frame in (("seeds", seeds), ("lines", lines)):
        if frame is not None and frame.empty:  # nothing of that kind was asked
            continue
        if frame is not None and EXTRAS[word][0] != kind:
            raise ValueError(f"{word}= came with a {kind} figure; only {EXTRAS[word][0]} has it: omit it.")
        if frame is not None:
            frames[f"{name}_{word}.csv"] = frame
            drawn.append(extra := _checked(frame, f"frame {word}=", *EXTRAS[word][1:]))
    bands = "; ".join(dict.fromkeys(charts.clean(b, 200) for frame in drawn for b in frame["band"] if b))
    judges = table["judged_by"] if "judged_by" in table and kind != "judges" else ()
    judges = ", ".join(dict.fromkeys(charts.clean(j) for j in judges if j))
    shaded = "intervals (lower panel)" if kind == "outcomes" else "intervals"
    notes = [f"{shaded}: {bands}" if bands else "", "thin lines: single seeds" if seeds is not None else ""]
    note = "; ".join(filter(None, [*notes, f"judge: {judges}" if judges else ""]))
    if caption is None:
        caption = " ".join(f"{s[:1].upper()}{s[1:].rstrip('.')}." for s in (title, about, note) if s)
    draw = getattr(charts, kind)
    with _style():
        drawing = Drawing(draw(drawn[0], extra), charts.clean(caption, 2000))
        drawing.figure.suptitle(charts.plain(title or "", 240, width=78), x=0.012, ha="left")
        drawing.figure.supxlabel(charts.plain(note, 300, width=118), x=0.012, ha="left", color="#666666")
        if out is None:
            return drawing
        svg, about = io.BytesIO(), {"Date": None, "Creator": "ftlab", "Description": drawing.caption or None}
        drawing.figure.savefig(svg, format="svg", metadata=about)
    texts = {f"{name}.svg": svg.getvalue(), f"{name}.txt": f"{drawing.caption}\n".encode()}
    files = {**texts, f"{name}.png": drawing.png()}
    for file, frame in frames.items():
        files[file] = csv(frame).encode()
    Path(out).mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (Path(out) / file).write_bytes(content)
    return Drawing(drawing.figure, drawing.caption, tuple(Path(out) / file for file in files))


def live(run_title: str, points: DataFrame, losses: list[tuple[float, float]]) -> Figure:
    """-> 700 x 260 px while training goes on: its loss over steps, and the risks as far as they are measured.

    points: step, risk, rate (fraction), may be empty; losses: (step, loss). Show it by `Drawing(live(...))`.
    """
    with _style():
        figure = charts.new(2.6, width=7, dpi=100, layout="none")
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(left=0.06, right=0.85, bottom=0.19, top=0.77, wspace=0.22)
        figure.suptitle(charts.plain(run_title, 80), x=0.012, y=0.97, ha="left", fontsize=10)
        kept = [(step, loss) for step, loss in losses if math.isfinite(loss)]
        left.plot([s for s, _ in kept], [y for _, y in kept], color=charts.COLOURS[1], linewidth=1.2)
        left.set_title("training loss (nats a token)", y=1)  # a given y spares measuring every label
        left.set(xlabel="step", ylim=(0, None if kept else 1))
        points = points.reindex(columns=["step", "risk", "rate"]).assign(low=math.nan, high=math.nan)
        points["rate"], look = 100 * points["rate"].astype(float), lambda _, risk: charts.look_of(risk, points["risk"])
        ends = charts.draw_lines(right, points.sort_values("step"), "step", "risk", look)
        right.set_title("risk (% of answers)" if ends else "risk: not measured yet", y=1)
        right.set_xlabel("step")
        charts.fit_axes(right, points["step"], 100, ends)
    return figure


def _recognised(table: DataFrame, kind: str | None) -> str:
    if not hasattr(table, "columns"):
        raise TypeError(f"plot was given a {type(table).__name__}; allowed is a pandas DataFrame of results.")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"kind is {kind!r}; allowed: {', '.join(KINDS)}.")
    free = {"judges": ("low", "high"), "dose": ("attack",)}
    needs = {
        k: [c for c in f"{keys} {values}".split() if c not in free.get(k, ())]
        for k, (keys, values, _) in KINDS.items()
        if kind in (None, k)
    }
    fits = [k for k in needs if set(needs[k]) <= set(table.columns)]
    if len(fits) == 1:
        return fits[0]
    found = f"the table has the columns {', '.join(map(str, table.columns)) or '(none)'}"
    if fits:
        raise ValueError(f"{found}, which fit {' and '.join(fits)}. Say which, as in kind={fits[0]!r}.")
    wanted = "; ".join(f"{k} needs {', '.join(columns)}" for k, columns in needs.items())
    raise ValueError(f"{found}. {wanted}. Rename or add columns (an index does not count: reset_index()).")


def _checked(frame: DataFrame, what: str, keys: str, values: str) -> DataFrame:
    """-> a copy, sorted, fractions in %, optional columns filled in. Raises ValueError with all problems."""
    from pandas import to_numeric

    frame, names, problems = frame.copy(), f"{keys} {values} band".split(), []
    if missing := [c for c in names if c not in frame and c not in DEFAULTS]:
        raise ValueError(f"the {what} lacks {', '.join(missing)}; it has {', '.join(map(str, frame))}.")
    for c in names:
        if c not in frame:
            frame[c] = DEFAULTS[c]
        if c not in charts.NUMBERS and c not in values.split():
            frame[c] = frame[c].astype(object).where(frame[c].notna(), "").astype(str)
            continue
        numbers = to_numeric(frame[c], errors="coerce").astype(float)
        most = 1 if c in charts.FRACTIONS else math.inf
        wrong = numbers.isna() & frame[c].notna() | (numbers < 0) | (numbers > most)
        if c in charts.NUMBERS:
            wrong |= numbers.isna() | (numbers == math.inf)
        if wrong.any():
            allowed = "a fraction from 0 to 1 (37 % is 0.37)" if c in charts.FRACTIONS else "a number from 0"
            problems.append(f"{c} is {charts.clean(frame[c][wrong].iloc[0])}, allowed is {allowed}")
        frame[c] = 100 * numbers if c in charts.FRACTIONS else numbers
    if (twice := frame.duplicated(keys.split())).any():
        row = ", ".join(f"{k} {charts.clean(frame[k][twice].iloc[0])}" for k in keys.split())
        problems.append(f"two rows are for {row}: filter or average them first")
    if problems or frame.empty:
        raise ValueError(f"the {what} cannot be drawn: {'; '.join(problems) or 'it has no rows'}.")
    by = [k for k in ("step", "epoch") if k in keys.split()]
    return frame.sort_values(by, kind="stable") if by else frame


@contextmanager
def _style():
    from matplotlib import style

    sheet = resource("figures") / "style.mplstyle"
    with warnings.catch_warnings(), style.context(sheet, after_reset=True):
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a letter that the font lacks becomes a box
        yield
