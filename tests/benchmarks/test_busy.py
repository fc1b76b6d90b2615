"""The benchmark of a busy machine sets the threads of its processes and leaves none behind."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks import busy
from benchmarks._running import BenchmarkFailed

SHOWS = 'import os, sys; sys.exit(f\'{os.environ.get("GOMP_SPINCOUNT")} {os.environ["OMP_NUM_THREADS"]}\')'


@pytest.mark.parametrize("way, shown", [("default", "300000 {cores}"), ("one", "None 1")])
def test_a_way_reaches_the_process_and_a_failure_is_told(way, shown, monkeypatch):
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    monkeypatch.setattr(busy, "COMMAND", [sys.executable, "-c", SHOWS])
    with pytest.raises(BenchmarkFailed) as caught:
        busy.run_curve(busy.WAYS[way])
    assert str(caught.value) == shown.format(cores=busy.cores())


def test_busy_processes_end_with_the_block(monkeypatch):
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *a, **k: started.append(popen(*a, **k)) or started[-1]
    )
    with busy.busy(2):
        assert [process.poll() for process in started] == [None, None]
    assert all(process.poll() is not None for process in started)
