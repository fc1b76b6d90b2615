"""Progress in Jupyter, in a terminal and in a batch: throttled, one last line, a live figure."""

from __future__ import annotations

import sys
import time
import types

import pytest
from hostile import CANARIES, assert_seen
from IPython.core.formatters import DisplayFormatter

from ftlab._core import plugins, progress
from ftlab._core.progress import BAR_WIDTH, FIGURE_S, LINE_S, Progress, Whole


@pytest.fixture
def now(monkeypatch):
    """Return the clock, as a list of one number."""
    time = [0.0]
    monkeypatch.setattr(progress, "clock", lambda: time[0])
    return time


@pytest.fixture(params=["batch", "terminal", "jupyter"])
def where(request, monkeypatch):
    monkeypatch.setattr(progress, "surface", lambda: request.param)
    return request.param


@pytest.fixture
def shown(monkeypatch):
    """Return what Jupyter was given: one list of frames per display."""
    displays = []

    def display(value, **options):
        assert options.pop("display_id") is True  # every output can be updated
        frames = [value]
        displays.append(frames)
        return types.SimpleNamespace(update=lambda new, **_: frames.append(new))

    monkeypatch.setattr("IPython.display.display", display)
    return displays


def work(now, *, steps: int, seconds: float) -> Progress:
    bar = Progress("training", steps)
    for step in range(1, steps + 1):
        now[0] += seconds
        bar.update(step, f"loss {1 / step:.3f}")
        bar.loss(step, 1 / step)
    bar.point(steps, "jailbreak", 0.5)
    return bar


@pytest.mark.slow
def test_lines_and_figures_are_throttled(now, where, shown, capsys):
    work(now, steps=120, seconds=0.25).finish()
    text = capsys.readouterr()
    assert text.out == ""
    if where == "jupyter":
        assert text.err == ""
        (frames,) = shown  # one display, whatever is shown
        assert len(frames) <= 30 / LINE_S["jupyter"] + 30 / FIGURE_S + 2
        assert len({picture_in(frame) for frame in frames}) <= 30 / FIGURE_S + 2
        return
    assert not shown
    lines = [line for line in text.err.replace("\n", "\r").split("\r") if line]
    assert len(lines) == min(30 // LINE_S[where], 120) + 1
    assert ("\r" in text.err) == (where == "terminal") and text.err.endswith("\n")


def picture_in(frame: dict) -> str:
    return frame["text/html"].partition('src="data:image/png;base64,')[2]


@pytest.mark.slow
def test_the_last_line_comes_once_and_folds_the_figure(now, where, shown, capsys):
    work(now, steps=40, seconds=1.0).finish("well")
    lines = capsys.readouterr().err.splitlines()
    if where == "jupyter":
        lines = [frame["text/plain"] for frame in shown[0]]
        last = shown[0][-1]["text/html"]
        assert last.startswith("<details><summary>training: done in 40 s well</summary><img ")
    assert "40 s well" in lines[-1] and str(lines).count("40 s well") == 1


def test_work_without_a_figure_leaves_its_line_alone(now, monkeypatch, shown):
    monkeypatch.setattr(progress, "surface", lambda: "jupyter")
    bar = Progress("evaluate <b>", 2)
    bar.update(1)
    bar.finish()
    assert shown == [
        [
            {
                "text/plain": "evaluate <b>: done in 0 s",
                "text/html": "evaluate &lt;b&gt;: done in 0 s",
            }
        ]
    ]


def test_the_live_figure_is_a_panel_that_gets_points_and_losses(now, monkeypatch, shown):
    drawn = []

    class Panel:
        def draw(self, title, points, losses):
            drawn.append((title, list(points), list(losses)))
            return "a <frame>"

    get = plugins.get

    def found(place, name):
        return Panel() if (place, name) == ("panels", "live") else get(place, name)

    monkeypatch.setattr(progress, "surface", lambda: "jupyter")
    monkeypatch.setattr(plugins, "get", found)
    bar = Progress("a run", 2)
    bar.point(0, "jailbreak", 0.25)
    bar.loss(1, 2.0)  # too soon after the last frame
    now[0] += FIGURE_S
    bar.loss(2, 1.0)
    first = {"step": 0, "metric": "jailbreak", "rate": 0.25}
    assert drawn == [("a run", [first], []), ("a run", [first], [(1, 2.0), (2, 1.0)])]
    bar.finish()
    assert "&lt;frame&gt;" in shown[0][-1]["text/html"]


class Shell:
    """What a board needs of IPython's shell."""

    def __init__(self):
        self.execution_count = 1
        self.left = []
        self.events = types.SimpleNamespace(
            register=lambda _, call: self.left.append(call),
            unregister=lambda _, call: self.left.remove(call),
        )
        self.display_formatter = DisplayFormatter()

    def end_cell(self) -> None:
        for call in list(self.left):
            call(None)
        self.execution_count += 1


@pytest.fixture
def shell(monkeypatch, now):
    shell = Shell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    monkeypatch.setattr(progress, "surface", lambda: "jupyter")
    return shell


@pytest.mark.slow
def test_a_cell_has_one_display_for_all_its_seeds(now, shown, shell):
    whole = Whole("almanac", "seed", 5)
    with whole.shown():
        Progress("parent", 10).finish()
        for seed in range(3):
            whole.number = seed + 1
            bar = Progress(f"run {seed}", 10)
            for step in range(1, 11):
                bar.update(step)
                bar.loss(step, 1.0)
                now[0] += 1
    lines = [frame["text/plain"] for frame in shown[0]]
    assert len(shown) == 1
    assert any("seed 3 of 5" in line and "25 s left" in line for line in lines)
    assert lines[-1] == "almanac: 5 seeds done in 30 s"
    Progress("another call", 3).finish()
    assert len(shown) == 1
    shell.end_cell()
    Progress("another cell", 3).finish()
    assert len(shown) == 2 and len(shell.left) == 1


def test_what_an_error_leaves_open_is_folded(now, shown, shell):
    bar = Progress("run", 10)
    bar.loss(1, 1.0)
    now[0] += 5
    bar.update(4)
    assert shown[0][-1]["text/html"].startswith("<div>run ")
    shell.end_cell()
    last = shown[0][-1]
    assert last["text/html"].startswith("<details><summary>run ")
    assert last["text/plain"].endswith("(stopped)")
    assert not shell.left


def test_short_work_is_silent_in_a_batch(now, monkeypatch, capsys):
    monkeypatch.setenv("FTLAB_BATCH", "1")
    work(now, steps=10, seconds=0.1).finish()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("done", [0, 1, 10, 11, 10**9])
@pytest.mark.parametrize("total", [0, 10])
def test_any_number_of_steps_has_a_line(done, total, now, monkeypatch, capsys):
    monkeypatch.setattr(progress, "surface", lambda: "batch")
    bar = Progress("x", total)
    now[0] = 20.0
    bar.update(done)
    line = capsys.readouterr().err
    assert line.count("█") + line.count("░") == BAR_WIDTH
    assert "-" not in line and "nan" not in line


def test_the_time_left_of_resumed_work_counts_only_what_was_done_now(now, monkeypatch, capsys):
    monkeypatch.setattr(progress, "surface", lambda: "batch")
    bar = Progress("run", 100)
    now[0] = 20.0
    bar.update(80)
    now[0] = 40.0
    bar.update(90)  # ten steps in 20 s
    assert capsys.readouterr().err.splitlines()[-1].split("90/100 ")[1].startswith("20 s ")


def test_long_work_names_the_time_of_day_at_its_end(now, monkeypatch, capsys):
    """A line stands still while a batch runs; the time left goes wrong then, this does not."""
    monkeypatch.setattr(progress, "surface", lambda: "batch")
    monkeypatch.setattr("time.time", lambda: 86_400.0 * 30)
    bar = Progress("run", 4)
    now[0] = 100.0
    bar.update(0)
    capsys.readouterr()
    now[0] = 160.0
    bar.update(0.5)
    line = capsys.readouterr().err
    assert "0/4 7 min left, until " in line
    end = time.localtime(86_400.0 * 30 + 420)
    assert line.rstrip().endswith(time.strftime("%H:%M", end))


def test_a_terminal_line_never_wraps(now, monkeypatch, capsys):
    monkeypatch.setattr(progress, "surface", lambda: "terminal")
    monkeypatch.setenv("COLUMNS", "40")
    work(now, steps=3, seconds=1).finish("x" * 200)
    lines = capsys.readouterr().err.replace("\n", "\r").split("\r")
    assert max(len(line.removeprefix("\x1b[K")) for line in lines) < 40


def test_names_and_notes_are_shown_safely(where, monkeypatch, shown, capsys):
    monkeypatch.setattr(progress, "LINE_S", dict.fromkeys(LINE_S, -1))
    for text in CANARIES.values():
        bar = Progress(text, 2)
        bar.update(1, text)
        line = capsys.readouterr().err.removeprefix("\r\x1b[K")
        if where == "jupyter":
            line = shown.pop()[0]["text/plain"]
        assert_seen(line, 600)


def test_the_surface(monkeypatch):
    class ZMQInteractiveShell: ...

    class Colab(ZMQInteractiveShell): ...

    monkeypatch.delenv("FTLAB_BATCH", raising=False)
    cases = [
        (None, False, "batch"),
        (None, True, "terminal"),
        (ZMQInteractiveShell(), True, "jupyter"),
        (Colab(), True, "jupyter"),
    ]
    for shell, terminal, expected in cases:
        fake = types.SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", fake)
        stderr = types.SimpleNamespace(isatty=lambda terminal=terminal: terminal)
        monkeypatch.setattr(sys, "stderr", stderr)
        assert progress.surface() == expected
        monkeypatch.setenv("FTLAB_BATCH", "1")
        assert progress.surface() == "batch"
        monkeypatch.delenv("FTLAB_BATCH")
