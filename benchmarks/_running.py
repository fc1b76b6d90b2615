"""Runs arms, each in a process of its own, in turn and several times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks._report import share_note
from benchmarks._work import Size, Work, prepare
from ftlab._core.threads import cores


class BenchmarkFailed(RuntimeError):
    """The process of an arm failed."""


@contextmanager
def prepared(size: Size, model: Any) -> Iterator[Work]:
    """Prepare the work in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="ftlab-bench-") as folder:
        yield prepare(size, model, Path(folder))


def run_in_turn(arms: tuple[str, ...], work: Work, name: str) -> dict[str, list[dict]]:
    """Return what every arm found each time; arms alternate, `work.repeat` times.

    Raises:
        BenchmarkFailed: As `run_arm`.
    """
    load = os.getloadavg()[0]
    if load > 0.5 * threads():
        why = f"other work is running on this machine (load {load:.1f})"
        print(f"{name}: {why}; times will be too long and vary", flush=True)
    found: dict[str, list[dict]] = {arm: [] for arm in arms}
    for number in range(1, work.repeat + 1):
        for arm in arms:
            done = run_arm(arm, work, f"{arm}-{number}".replace(":", "-").replace(" ", "-"))
            found[arm].append(done)
            seconds = f"{done['seconds']:.2f} s{share_note(done)}"
            print(f"{name}: {arm} {number}/{work.repeat}: {seconds}", flush=True)
    return found


def run_arm(arm: str, work: Work, name: str) -> dict:
    """Run an arm in a process of its own, with its own folder and runs; return what it found.

    On an interrupt the process is killed, with those that it has started.

    Raises:
        BenchmarkFailed: The process ended with an error.
    """
    folder = Path(work.folder) / name
    folder.mkdir()
    file = folder / "work.json"
    replace(work, folder=str(folder)).save(file)
    own = {"OMP_NUM_THREADS": str(threads()), "FTLAB_RUNS": str(folder / "runs")}
    command = [sys.executable, "-m", "benchmarks._arms", arm, str(file)]
    with open(folder / "log.txt", "w+") as log:
        child = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | own, start_new_session=True
        )
        try:
            code = child.wait()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        log.seek(0)
        lines = log.read().strip().splitlines() or ["(nothing)"]
    if code:
        raise BenchmarkFailed(f"The arm {name} ended with code {code}. Last line: {lines[-1]}")
    return json.loads((folder / "found.json").read_text())


def threads() -> int:
    """Return the threads of every arm: OMP_NUM_THREADS, else all cores this process may use."""
    return int(os.environ.get("OMP_NUM_THREADS") or cores())
