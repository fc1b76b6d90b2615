"""Progress display for Jupyter, terminals and batch jobs.

In Jupyter one display handle is updated, so that the saved notebook keeps the last frame. Under
papermill (`FTLAB_BATCH`) and in a pipe a line is printed now and then.
"""

from __future__ import annotations

import os
import shutil
import sys
import time

from ftlab._core import plugins
from ftlab._core.text import safe

LINE_S = {"terminal": 0.2, "batch": 15.0, "jupyter": 0.5}  # seconds between two lines
FIGURE_S = 2.0  # seconds between two frames of the live figure
BAR_WIDTH = 12  # characters


def clock() -> float:
    """Return monotonic time in seconds."""
    return time.monotonic()


def surface() -> str:
    """Return where output goes: "jupyter", "terminal", or "batch" (papermill, pipes)."""
    if os.environ.get("FTLAB_BATCH"):
        return "batch"
    if _in_jupyter():
        return "jupyter"
    return "terminal" if sys.stderr.isatty() else "batch"


def _in_jupyter() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shells = type(get_ipython()).__mro__  # Colab's shell derives from Jupyter's
    return any(shell.__name__ == "ZMQInteractiveShell" for shell in shells)


class Progress:
    """Show one line, and in Jupyter one figure, for work of `total` steps.

    Args:
        title: What is being done, such as the name of a run.
        total: Number of steps.
    """

    def __init__(self, title: str, total: int):
        self.title = title
        self.total = max(total, 1)
        self.done = 0
        self.losses: list[tuple[int, float]] = []
        self.points: list[dict] = []
        self.started = self.shown = self.drawn = clock()
        # Steps done and time at the first update: what was resumed took no time now.
        self.first: tuple[int, float] | None = None
        self.where = surface()
        self.bar = None
        self.figure = None

    def update(self, done: int, note: str = "") -> None:
        """Report that `done` steps are done; the line is shown at most every `LINE_S` seconds."""
        self.done = done
        self.first = self.first or (done, clock())
        if clock() - self.shown >= LINE_S[self.where]:
            self._show(self._line(note))

    def loss(self, step: int, value: float) -> None:
        """Add a training loss to the live figure."""
        self.losses.append((step, value))
        self._draw()

    def point(self, step: int, metric: str, value: float) -> None:
        """Add a measured rate to the live figure."""
        self.points.append({"step": step, "metric": metric, "rate": value})
        self._draw(force=True)

    def finish(self, note: str = "") -> None:
        """Show the last line. Short work stays silent in a batch."""
        self._draw(force=bool(self.losses))
        seconds = clock() - self.started
        if self.where != "batch" or seconds > LINE_S["batch"]:
            self._show(f"{self.title}: done in {seconds:.0f} s {note}".rstrip(), last=True)

    def _line(self, note: str) -> str:
        done_before, since = self.first or (0, self.started)
        done_now = self.done - done_before
        remaining = "starting"
        if done_now > 0:
            seconds_each = (clock() - since) / done_now
            remaining = f"{seconds_each * max(self.total - self.done, 0):.0f} s left"
        filled = min(round(BAR_WIDTH * self.done / self.total), BAR_WIDTH)
        bar = "█" * filled + "░" * (BAR_WIDTH - filled)
        return f"{self.title} {bar} {self.done}/{self.total} {remaining} {note}".rstrip()

    def _show(self, line: str, *, last: bool = False) -> None:
        self.shown = clock()
        line = safe(line, 500).replace("\n", " ")
        if self.where == "jupyter":
            self.bar = _display({"text/plain": line}, self.bar, raw=True)
        elif self.where == "terminal":
            width = shutil.get_terminal_size().columns - 1  # a wrapped line cannot be overwritten
            end = "\n" if last else ""
            sys.stderr.write("\r\x1b[K" + line[:width] + end)
            sys.stderr.flush()
        else:
            print(line, file=sys.stderr, flush=True)

    def _draw(self, *, force: bool = False) -> None:
        due = force or clock() - self.drawn >= FIGURE_S
        if self.where != "jupyter" or not due:
            return
        self.drawn = clock()
        panel = plugins.get("panels", "live")
        frame = panel.draw(self.title, self.points, self.losses)
        self.figure = _display(frame, self.figure)


def _display(content, handle, *, raw: bool = False):
    """Show content in Jupyter, or replace what `handle` shows; return the handle."""
    if handle is not None:
        handle.update(content, raw=raw)
        return handle
    from IPython.display import display

    return display(content, raw=raw, display_id=True)
