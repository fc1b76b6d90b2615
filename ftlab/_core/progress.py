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
    if sys.stderr.isatty():
        return "terminal"
    return "batch"


def _in_jupyter() -> bool:
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shells = type(get_ipython()).mro()  # Colab's shell derives from Jupyter's
    return "ZMQInteractiveShell" in [shell.__name__ for shell in shells]


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
        self.started = clock()
        self.shown = self.started  # time of the last line
        self.drawn = self.started  # time of the last frame
        # Steps done and time at the first update: resumed steps took no time in this call.
        self.first: tuple[int, float] | None = None
        self.where = surface()
        self.bar = None
        self.figure = None

    def update(self, done: int, note: str = "") -> None:
        """Report that `done` steps are done; the line is shown at most every `LINE_S` seconds."""
        self.done = done
        if self.first is None:
            self.first = (done, clock())
        waited = clock() - self.shown
        if waited >= LINE_S[self.where]:
            self._show(self._line(note))

    def loss(self, step: int, value: float) -> None:
        """Add a training loss to the live figure."""
        self.losses.append((step, value))
        self._draw()

    def point(self, step: int, metric: str, value: float) -> None:
        """Add a measured rate to the live figure."""
        point = {"step": step, "metric": metric, "rate": value}
        self.points.append(point)
        self._draw(force=True)

    def finish(self, note: str = "") -> None:
        """Show the last line. Short work stays silent in a batch."""
        if self.losses:
            self._draw(force=True)
        seconds = clock() - self.started
        short = seconds <= LINE_S["batch"]
        if short and self.where == "batch":
            return
        line = f"{self.title}: done in {seconds:.0f} s {note}"
        self._show(line.rstrip(), last=True)

    def _line(self, note: str) -> str:
        share = min(self.done / self.total, 1)
        filled = "█" * round(BAR_WIDTH * share)
        bar = filled.ljust(BAR_WIDTH, "░")
        line = f"{self.title} {bar} {self.done}/{self.total} {self._remaining()} {note}"
        return line.rstrip()

    def _remaining(self) -> str:
        done_before, since = self.first or (0, self.started)
        done_now = self.done - done_before
        if done_now <= 0:
            return "starting"
        seconds = clock() - since
        seconds_each = seconds / done_now
        left = max(self.total - self.done, 0)
        return f"{seconds_each * left:.0f} s left"

    def _show(self, line: str, *, last: bool = False) -> None:
        self.shown = clock()
        line = safe(line, 500).replace("\n", " ")
        if self.where == "jupyter":
            plain = {"text/plain": line}
            self.bar = _display(plain, self.bar, raw=True)
        elif self.where == "terminal":
            # A wrapped line could not be overwritten.
            width = shutil.get_terminal_size().columns - 1
            end = ""
            if last:
                end = "\n"
            print(f"\r\x1b[K{line[:width]}", end=end, file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)

    def _draw(self, *, force: bool = False) -> None:
        if self.where != "jupyter":
            return
        waited = clock() - self.drawn
        if waited < FIGURE_S and not force:
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
