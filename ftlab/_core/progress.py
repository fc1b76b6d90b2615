"""Long work shows itself: a live figure and a bar in Jupyter, one throttled line elsewhere.

In Jupyter one display handle is updated, so the saved notebook keeps the last frame and nothing that is dead on
reopening. Under papermill (`FTLAB_BATCH`) and in a pipe a line is printed now and then.
"""

from __future__ import annotations

import os
import shutil
import sys

from ftlab._core.text import safe
from ftlab.runs import clock

LINE_S = {"terminal": 0.2, "batch": 15.0, "jupyter": 0.5}  # seconds between two lines
FIGURE_S = 2.0  # seconds between two frames of the live figure


def surface() -> str:
    """-> where output goes: `jupyter`, `terminal`, or `batch` (papermill, pipes)."""
    if os.environ.get("FTLAB_BATCH"):
        return "batch"
    if "IPython" in sys.modules:
        from IPython import get_ipython

        if any(
            c.__name__ == "ZMQInteractiveShell" for c in type(get_ipython()).__mro__
        ):  # also what derives from it: Colab
            return "jupyter"
    return "terminal" if sys.stderr.isatty() else "batch"


class Progress:
    """One line (and in Jupyter one figure) for a piece of work of `total` steps.

    `update(done, note)` moves it; `loss` and `point` feed the live figure of a training.
    """

    def __init__(self, title: str, total: int):
        self.title, self.total, self.done = title, max(total, 1), 0
        self.losses: list[tuple[int, float]] = []
        self.points: list[dict] = []
        self.started = self.shown = self.drawn = clock()
        self.first: tuple[int, float] | None = None  # done and clock at the first update: what was resumed took no time
        self.where, self.bar, self.figure = surface(), None, None

    def update(self, done: int, note: str = "") -> None:
        self.done, self.first = done, self.first or (done, clock())
        if clock() - self.shown >= LINE_S[self.where]:
            self._show(self._line(note))

    def loss(self, step: int, value: float) -> None:
        self.losses.append((step, value))
        self._draw()

    def point(self, step: int, risk: str, rate: float) -> None:
        self.points.append({"step": step, "risk": risk, "rate": rate})
        self._draw(force=True)

    def finish(self, note: str = "") -> None:
        self._draw(force=bool(self.losses))
        seconds = clock() - self.started
        if self.where != "batch" or seconds > LINE_S["batch"]:
            self._show(f"{self.title}: done in {seconds:.0f} s {note}".rstrip(), last=True)

    def _line(self, note: str) -> str:
        before, since = self.first or (0, self.started)
        made = self.done - before
        left = (clock() - since) / made * max(self.total - self.done, 0) if made > 0 else 0
        bar = "█" * min(round(12 * self.done / self.total), 12)
        remaining = f"{left:.0f} s left" if made > 0 else "starting"
        return f"{self.title} {bar:░<12} {self.done}/{self.total} {remaining} {note}".rstrip()

    def _show(self, line: str, *, last: bool = False) -> None:
        self.shown, line = clock(), safe(line, 500).replace("\n", " ")
        if self.where == "jupyter":
            from IPython.display import display

            if self.bar is None:
                self.bar = display({"text/plain": line}, raw=True, display_id=True)
            else:
                self.bar.update({"text/plain": line}, raw=True)
        elif self.where == "terminal":
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be written over
            sys.stderr.write("\r\x1b[K" + line[:width] + ("\n" if last else ""))
            sys.stderr.flush()
        else:
            print(line, file=sys.stderr, flush=True)

    def _draw(self, *, force: bool = False) -> None:
        if self.where != "jupyter" or not (force or clock() - self.drawn >= FIGURE_S):
            return
        import pandas as pd
        from IPython.display import display

        from ftlab.analysis.plots import Drawing, live

        self.drawn = clock()
        frame = Drawing(live(self.title, pd.DataFrame(self.points, columns=["step", "risk", "rate"]), self.losses))
        if self.figure is None:
            self.figure = display(frame, display_id=True)
        else:
            self.figure.update(frame)
