"""Progress display for Jupyter, terminals and batch jobs.

In Jupyter a cell has one display, whatever number of runs it makes: a line and a figure, which are
folded when the work is done. Under papermill (`FTLAB_BATCH`) and in a pipe a line is printed now
and then.
"""

from __future__ import annotations

import base64
import contextlib
import html
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from ftlab._core import plugins
from ftlab._core.text import safe

LINE_S = {"terminal": 0.2, "batch": 15.0, "jupyter": 0.5}  # seconds between two lines
CLOCK_S = 120.0  # from so many seconds left on the line names the time of day at the end
FIGURE_S = 2.0  # seconds between two frames of the live figure
BAR_WIDTH = 12  # characters


def clock() -> float:
    """Return monotonic time in seconds."""
    return time.monotonic()


def surface() -> str:
    """Return where output goes: "jupyter", "terminal", or "batch" (papermill, pipes)."""
    if os.environ.get("FTLAB_BATCH") or _under_papermill():
        return "batch"
    if in_jupyter():
        return "jupyter"
    if sys.stderr.isatty():
        return "terminal"
    return "batch"


@cache
def _under_papermill() -> bool:
    """Return whether papermill, which shows no display that is replaced, runs this kernel."""
    import psutil

    if "ipykernel" not in sys.modules:
        return False
    try:
        words = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):
        return False
    return any(Path(word).name == "papermill" for word in words)


def in_jupyter() -> bool:
    """Return whether a Jupyter kernel runs this code."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    shells = type(get_ipython()).mro()  # Colab's shell derives from Jupyter's
    return "ZMQInteractiveShell" in [shell.__name__ for shell in shells]


class Board:
    """The one display of a notebook cell.

    Args:
        shell: IPython's shell, which says when the cell has ended; None where there is none.
    """

    def __init__(self, shell: Any = None):
        self.shell = shell
        self.cell = shell and shell.execution_count
        self.works: dict[str, Progress] = {}  # by title
        self.title = ""
        self.line = ""
        self.picture = ""  # HTML
        self.drawn = -math.inf  # time of the last frame
        self.folded = True
        self.handle = None
        if shell:
            shell.events.register("post_run_cell", self.leave)

    def show(self, line: str) -> None:
        """Show a line above the figure."""
        self.line = line
        self.folded = False
        self._display(f"<div>{html.escape(line)}</div>{self.picture}")

    def draw(self, *, force: bool = False) -> None:
        """Draw what all works of the cell have reported, at most every `FIGURE_S` seconds."""
        if clock() - self.drawn < FIGURE_S and not force:
            return
        points: list[dict] = []
        losses: list[tuple[int, float]] = []
        for work in self.works.values():
            points += work.points
            losses += work.losses
        if not (points or losses):
            return
        panel = plugins.get("panels", "live")
        frame = panel.draw(self.title, points, losses)
        self.picture = _html_of(frame, self.shell)
        self.drawn = clock()
        if not self.folded:
            self.show(self.line)

    def fold(self, line: str) -> None:
        """Leave one line, and the last figure behind it."""
        self.folded = True
        self.line = line
        self.draw(force=True)
        shown = html.escape(line)
        if self.picture:
            shown = f"<details><summary>{shown}</summary>{self.picture}</details>"
        self._display(shown)

    def leave(self, *_) -> None:
        """Fold what an error or an interrupt has left open."""
        self.shell.events.unregister("post_run_cell", self.leave)
        if not self.folded:
            self.fold(f"{self.line} (stopped)")

    def _display(self, shown: str) -> None:
        content = {"text/plain": self.line, "text/html": shown}
        if self.handle is not None:
            self.handle.update(content, raw=True)
            return
        from IPython.display import display

        self.handle = display(content, raw=True, display_id=True)


class Whole:
    """Work in parts, such as one training for each of five seeds.

    Args:
        title: What is being done.
        word: What a part is called: "seed".
        count: Number of parts.
    """

    current: Whole | None = None

    def __init__(self, title: str, word: str, count: int):
        self.title = title
        self.word = word
        self.count = count
        self.number = 0  # of the part that is being done; 0 before the first
        self.board: Board | None = None
        self.started = clock()

    @contextlib.contextmanager
    def shown(self) -> Iterator[Whole]:
        """Show every work inside as a part of this one."""
        Whole.current = self
        try:
            yield self
        finally:
            Whole.current = None
        if self.board:
            seconds = duration(clock() - self.started)
            line = f"{self.title}: {self.count} {self.word}s done in {seconds}"
            self.board.fold(safe(line, 500))


class Progress:
    """Show one line, and in Jupyter one figure, for work of `total` steps.

    Args:
        title: What is being done, such as the name of a run.
        total: Number of steps.
    """

    def __init__(self, title: str, total: int):
        self.title = title
        self.total = max(total, 1)
        self.done: float = 0
        self.note = ""
        self.losses: list[tuple[int, float]] = []
        self.points: list[dict] = []
        self.started = clock()
        self.shown = self.started  # time of the last line
        # Steps done and time at the first update: resumed steps took no time in this call.
        self.first: tuple[float, float] | None = None
        self.where = surface()
        self.whole = Whole.current
        self.board: Board | None = None
        if self.where == "jupyter":
            self.board = _board_of_cell()
            self.board.works[title] = self
            self.board.title = title
            if self.whole:
                self.whole.board = self.board
                self.board.title = self.whole.title

    def begin(self, total: int, done: float, losses: list[tuple[int, float]]) -> None:
        """Report how many steps there are and what an earlier call has done of them."""
        self.total = max(total, 1)
        self.losses = losses
        self.update(done)

    def update(self, done: float, note: str = "") -> None:
        """Report that `done` steps are done; the line is shown at most every `LINE_S` seconds.

        The time left counts from the first call, which may come before anything is done.

        Args:
            done: Steps, or parts of them, that are done.
            note: What is shown at the end of the line.
        """
        self.done = done
        self.note = note
        if self.first is None:
            self.first = (done, clock())
        waited = clock() - self.shown
        if waited >= LINE_S[self.where]:
            self._show(self._line(note))

    def loss(self, step: int, value: float) -> None:
        """Add a training loss to the live figure."""
        self.losses.append((step, value))
        if self.board:
            self.board.draw()

    def point(self, step: int, metric: str, value: float) -> None:
        """Add a measured rate to the live figure."""
        point = {"step": step, "metric": metric, "rate": value}
        self.points.append(point)
        if self.board:
            self.board.draw()

    def finish(self, note: str = "") -> None:
        """Show the last line. Short work stays silent in a batch."""
        seconds = clock() - self.started
        short = seconds <= LINE_S["batch"]
        if short and self.where == "batch":
            return
        line = f"{self.title}: done in {duration(seconds)} {note}"
        self._show(line.rstrip(), last=True)

    def _line(self, note: str) -> str:
        share = min(self.done / self.total, 1)
        filled = "█" * round(BAR_WIDTH * share)
        bar = filled.ljust(BAR_WIDTH, "░")
        title = self.title
        if self.whole and self.whole.number:
            whole = self.whole
            title = f"{whole.title}: {whole.word} {whole.number} of {whole.count}"
        line = f"{title} {bar} {int(self.done)}/{self.total} {self._remaining()} {note}"
        return line.rstrip()

    def _remaining(self) -> str:
        done_before, since = self.first or (0, self.started)
        done_now = self.done - done_before
        if done_now <= 0:
            return "starting"
        seconds = clock() - since
        seconds_each = seconds / done_now
        left = max(self.total - self.done, 0)
        if self.whole and self.whole.number:
            left += (self.whole.count - self.whole.number) * self.total
        left_s = seconds_each * left
        if left_s < CLOCK_S:
            return f"{duration(left_s)} left"
        # The line may stand still for minutes, and then a time of day stays true.
        end = time.strftime("%a %H:%M", time.localtime(time.time() + left_s))
        return f"{duration(left_s)} left, until {end}"

    def _show(self, line: str, *, last: bool = False) -> None:
        self.shown = clock()
        line = safe(line, 500).replace("\n", " ")
        if self.board and last and not self.whole:
            self.board.fold(line)
        elif self.board:
            self.board.show(line)
        elif self.where == "terminal":
            # A wrapped line could not be overwritten.
            width = shutil.get_terminal_size().columns - 1
            end = ""
            if last:
                end = "\n"
            print(f"\r\x1b[K{line[:width]}", end=end, file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)


class FarProgress:
    """Progress that another process shows.

    Args:
        report: Called with the name of a method of `Progress` and its arguments.
    """

    def __init__(self, report: Callable[[tuple], None]):
        self.report = report
        self.note = ""

    def update(self, done: float, note: str = "") -> None:
        self.note = note
        self.report(("update", done, note))

    def __getattr__(self, method: str) -> Callable[..., None]:
        def call(*given: Any) -> None:
            self.report((method, *given))

        return call


def _board_of_cell() -> Board:
    """Return the display of the cell that runs now."""
    from IPython import get_ipython

    global _board
    shell = get_ipython()
    if _board is None or shell is None or _board.cell != shell.execution_count:
        _board = Board(shell)
    return _board


_board: Board | None = None


def _html_of(frame: Any, shell: Any) -> str:
    """Return what Jupyter would display of an object, as HTML."""
    from IPython.core.formatters import DisplayFormatter

    formatter = shell.display_formatter if shell else DisplayFormatter()
    data, _ = formatter.format(frame)
    picture = data.get("image/png")
    if picture is None:
        plain = html.escape(data["text/plain"])
        return data.get("text/html", f"<pre>{plain}</pre>")
    if isinstance(picture, bytes):
        coded = base64.b64encode(picture)
        picture = coded.decode()
    return f'<img src="data:image/png;base64,{picture}" style="max-width: 100%">'


def duration(seconds: float) -> str:
    """Return a time in words: 45 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
