from __future__ import annotations

import sys
import types

import pytest

from ftlab._core import progress
from ftlab._core.progress import LINE_S, Progress


@pytest.fixture
def now(monkeypatch):
    """The clock, as a list of one number."""
    time = [0.0]
    monkeypatch.setattr(progress, "clock", lambda: time[0])
    return time


@pytest.fixture(params=["batch", "terminal", "jupyter"])
def where(request, monkeypatch):
    monkeypatch.setattr(progress, "surface", lambda: request.param)
    return request.param


@pytest.fixture
def shown(monkeypatch):
    """What Jupyter was given: [[first, update, ...] of every display]."""
    displays = []

    def display(value, **options):
        assert options.pop("display_id") is True  # every output can be updated
        frames = [value]
        displays.append(frames)
        return types.SimpleNamespace(update=lambda new, **_: frames.append(new))

    monkeypatch.setattr("IPython.display.display", display)
    return displays


def work(now, *, steps: int, second: float) -> Progress:
    p = Progress("training", steps)
    for step in range(1, steps + 1):
        now[0] += second
        p.update(step, f"loss {1 / step:.3f}")
        p.loss(step, 1 / step)
    p.point(steps, "jailbreak", 0.5)
    return p


def test_lines_are_throttled(now, where, shown, capsys):
    work(now, steps=120, second=0.25).finish()
    text = capsys.readouterr()
    assert text.out == ""
    if where == "jupyter":
        assert text.err == ""
        bar, figure = sorted(shown, key=lambda d: not isinstance(d[0], dict))
        assert len(bar) <= 30 / LINE_S["jupyter"] + 1 and all(list(frame) == ["text/plain"] for frame in bar)
        assert len(figure) <= 30 / progress.FIGURE_S + 2
    else:
        lines = [x for x in text.err.replace("\n", "\r").split("\r") if x]
        assert len(lines) == min(30 // LINE_S[where], 120) + 1
        assert ("\r" in text.err) == (where == "terminal") and ("\n" in text.err)


def test_the_last_line_says_done_once_and_the_figure_is_a_picture(now, where, shown, capsys):
    work(now, steps=40, second=1.0).finish("well")
    lines = (
        [x for d in shown for x in d if isinstance(x, dict)]
        if where == "jupyter"
        else capsys.readouterr().err.splitlines()
    )
    assert str(lines).count("done in 40 s well") == 1 and "done in 40 s well" in str(lines[-1])
    for frame in [d[-1] for d in shown if not isinstance(d[0], dict)]:
        assert frame._repr_mimebundle_()[0]["image/png"]  # saved in the notebook, alive without a kernel


def test_short_work_is_silent_in_a_batch(now, monkeypatch, capsys):
    monkeypatch.setenv("FTLAB_BATCH", "1")
    work(now, steps=10, second=0.1).finish()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("done", [0, 1, 10, 11, 10**9])
@pytest.mark.parametrize("total", [0, 10])
def test_any_number_of_steps_has_a_line(now, done, total):
    p = Progress("x", total)
    now[0] = 5.0
    p.done = done
    line = p._line("")
    assert line.count("█") + line.count("░") == 12 and "-" not in line and "nan" not in line


def test_the_time_left_of_resumed_work_counts_only_what_was_done_now(now, monkeypatch, capsys):
    monkeypatch.setattr(progress, "surface", lambda: "batch")
    p = Progress("run", 100)
    now[0] = 20.0
    p.update(80)
    now[0] = 40.0
    p.update(90)  # ten steps in 20 s
    assert capsys.readouterr().err.splitlines()[-1].split("90/100 ")[1].startswith("20 s left")


def test_a_terminal_line_never_wraps(now, monkeypatch, capsys):
    monkeypatch.setattr(progress, "surface", lambda: "terminal")
    monkeypatch.setenv("COLUMNS", "40")
    work(now, steps=3, second=1).finish("x" * 200)
    assert max(len(x.removeprefix("\x1b[K")) for x in capsys.readouterr().err.replace("\n", "\r").split("\r")) < 40


def test_the_surface(monkeypatch):
    class ZMQInteractiveShell: ...

    class Colab(ZMQInteractiveShell): ...

    monkeypatch.delenv("FTLAB_BATCH", raising=False)
    for shell, terminal, expected in (
        (None, False, "batch"),
        (None, True, "terminal"),
        (ZMQInteractiveShell(), True, "jupyter"),
        (Colab(), True, "jupyter"),
    ):
        monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda shell=shell: shell))
        monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(isatty=lambda terminal=terminal: terminal))
        assert progress.surface() == expected
        monkeypatch.setenv("FTLAB_BATCH", "1")
        assert progress.surface() == "batch"
        monkeypatch.delenv("FTLAB_BATCH")
