"""Work shared out to processes: what they say arrives, and none of them outlives its caller."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from helpers import raises_code
from shared_work import act, double

from ftlab._core import processes
from ftlab._core.errors import DataError, StorageFull
from ftlab._core.processes import share_out

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def short_grace(monkeypatch):
    monkeypatch.setattr(processes, "GRACE_S", 0.3)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_results_are_in_the_order_of_the_parts():
    reported = []
    assert share_out("work", double, [(n,) for n in (3, 1, 2)], reported.append) == [6, 2, 4]
    assert sorted(reported) == [1, 2, 3]


def test_an_error_of_one_ends_all_and_is_raised_as_it_was():
    reported = []
    began = time.monotonic()
    with pytest.raises(DataError) as info:
        share_out("work", act, [("wait",), ("data",)], reported.append)
    assert time.monotonic() - began < 30
    error = info.value
    assert (error.code, str(error)) == ("bad_rows", "Row 3 is empty.")
    assert error.problems == ["3", "5"] and error.details == {"rows": [3, 5]}
    assert all(gone(pid) for _, pid in reported)


@pytest.mark.parametrize(
    "what, code, word",
    [
        ("killed", "process_lost", "SIGKILL"),
        ("real time", "process_lost", "signal 40"),
        ("unreadable", "process_failed", "cannot be read"),
        ("exit", "process_lost", "the last line"),
        ("bug", "process_failed", "nothing there"),
        ("memory", "process_failed", "out of memory"),
    ],
)
def test_a_process_that_fails_is_named(what, code, word):
    reported = []
    with raises_code(code) as info:
        share_out("work", act, [("wait",), (what,)], reported.append)
    assert "process 2 of 2" in str(info.value) and word in str(info.value)
    assert all(gone(pid) for _, pid in reported)


def test_a_full_disk_of_the_caller_ends_them():
    reported = []

    def full(value):
        reported.append(value)
        raise StorageFull("storage_full", "No room.")

    with raises_code("storage_full"):
        share_out("work", act, [("wait",), ("wait",)], full)
    assert all(gone(pid) for _, pid in reported)


def test_what_cannot_be_pickled_is_refused():
    with raises_code("cannot_be_sent"):
        share_out("work", double, [(lambda: 1,)], print)


def test_what_another_process_cannot_import_is_refused(monkeypatch):
    def nowhere(report):
        """Defined in no module that can be imported, as in a notebook."""

    nowhere.__module__, nowhere.__qualname__ = "__main__", "nowhere"
    monkeypatch.setattr(sys.modules["__main__"], "nowhere", nowhere, raising=False)
    with raises_code("cannot_be_sent"):
        share_out("work", nowhere, [()], print)


def test_an_interrupt_is_passed_on_once_and_their_words_are_raised():
    """A launcher sends it twice."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
    reported = []

    def start(value):
        reported.append(value)
        if len(reported) == 2:
            for seconds in (0.3, 0.35):
                threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()

    try:
        with pytest.raises(KeyboardInterrupt, match="stopped wait"):
            share_out("work", act, [("wait",), ("wait",)], start)
    finally:
        signal.signal(signal.SIGINT, before)
    assert all(gone(pid) for _, pid in reported)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_during_a_report_waits_for_its_end(number):
    """The report is whole, and the processes still save."""
    whole = []

    def interrupted(value):
        if not whole:
            os.kill(os.getpid(), number)
            time.sleep(0.1)
        whole.append(value)

    with pytest.raises(KeyboardInterrupt, match="stopped wait"):
        share_out("work", act, [("wait",), ("wait",)], interrupted)
    assert len(whole) == 2


def test_an_interrupt_that_comes_with_the_last_word_is_not_lost():
    def interrupted(value):
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        share_out("work", double, [(1,)], interrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_takes_interrupts_that_its_parent_ignored_or_blocked(number):
    code = "take_interrupts(); print('ready', flush=True); import time; time.sleep(60)"
    called = [sys.executable, "-c", f"from ftlab._core.processes import take_interrupts; {code}"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    def deaf():
        signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])

    with subprocess.Popen(called, env=environ, stdout=subprocess.PIPE, preexec_fn=deaf) as child:
        child.stdout.readline()
        child.send_signal(number)
        assert child.wait(20) == -signal.SIGINT


def test_they_end_with_a_caller_that_is_killed():
    code = (
        "from shared_work import act; from ftlab._core.processes import share_out\n"
        "share_out('work', act, [('wait',), ('wait',)], lambda said: print(said[1], flush=True))"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environ = {**os.environ, "PYTHONPATH": path}
    called = [sys.executable, "-c", code]
    with subprocess.Popen(called, env=environ, stdout=subprocess.PIPE, text=True) as caller:
        pids = [int(caller.stdout.readline()) for _ in range(2)]
        caller.kill()
    until = time.monotonic() + 10
    while time.monotonic() < until and not all(map(gone, pids)):
        time.sleep(0.05)
    assert all(map(gone, pids))
