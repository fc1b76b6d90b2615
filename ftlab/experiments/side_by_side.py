"""Work of one call in several processes, which exchange results through run folders."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, Protocol

from ftlab._core.calls import adopt, outermost
from ftlab._core.errors import UsageError
from ftlab._core.processes import python_path
from ftlab._core.text import safe
from ftlab._core.threads import cores
from ftlab.experiments.backends import Job, LocalBackend
from ftlab.experiments.curves import MOST, is_whole
from ftlab.models import Model

MOST_PROCESSES = 4  # by default
WORK = "from ftlab.experiments.side_by_side import work; work()"
Started = Callable[[int, int], None]  # called with the place of a part that begins, of how many


class Divisible(Protocol):
    """Work of which several processes may each do what the others are not doing."""

    def run(self, started: Started, number: int, processes: int) -> Any:
        """Do it, as the process with this number (from 0) of so many."""


def processes_for(wanted: Any, parent: Model) -> int:
    """Return how many processes to start.

    Args:
        wanted: What the caller asked for; None: one per core for the embedded model, 4 at most,
            and one for any other.
        parent: The model that is trained.

    Raises:
        UsageError: `wrong_processes`.
    """
    if wanted is None:
        return min(cores(), MOST_PROCESSES) if parent.is_organism else 1
    if not (is_whole(wanted) and 0 < wanted <= MOST):
        why = f"processes={wanted!r} is not a whole number, 1 to {MOST}."
        raise UsageError("wrong_processes", why)
    return wanted


def share(name: str, divisible: Divisible, processes: int, part: str = "cell") -> None:
    """Do work in several processes until all have ended; what they leave is the caller's to do.

    Args:
        name: Of the work, for the lines of progress.
        divisible: The work. What cannot be pickled, such as a defence that is defined inside a
            function, is left to the caller.
        processes: How many. With one, nothing is done here.
        part: What the lines of progress call a part of the work.
    """
    if processes == 1:
        return
    try:
        sent = pickle.dumps((outermost(), divisible))
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        why = f"one process does it all, because another cannot be given it: {safe(error, 300)}"
        print(f"{name}: {why}", file=sys.stderr)
        return
    jobs = []
    for number in range(processes):
        job = Job(
            f"{name}, process {number + 1} of {processes}",
            _in_a_process,
            {"sent": sent, "number": number, "processes": processes, "part": part},
            lane=number,
            kernel=True,
        )
        jobs.append(job)
    for result in LocalBackend().map(jobs):
        if result.error is not None:
            print(f"{result.job.name}: {safe(result.error, 500)}", file=sys.stderr)


def _in_a_process(
    sent: bytes,
    number: int,
    processes: int,
    part: str,
    env: dict[str, str],
    on_cell: Callable[[int, int, str], None],
    kernels: list,
) -> None:
    """Do the work in a process of its own, until it ends.

    Raises:
        RuntimeError: It failed, with its last words.
    """
    more = {
        "FTLAB_BATCH": "1",
        "PYTHONPATH": python_path(),
    }
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", WORK, str(number), str(processes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **env, **more},
        )
        kernels.append(process)
        with contextlib.suppress(BrokenPipeError):  # it has ended, and says below why
            process.stdin.write(sent)
            process.stdin.close()
        for line in process.stdout:
            place, total = map(int, line.split())
            on_cell(place, total, part)
        if process.wait():
            errors.seek(0)
            last = errors.read().strip().splitlines()[-1:]
            raise RuntimeError(f"ended with {process.returncode}: {''.join(last)}")


def work() -> None:
    """Do the work on stdin, in a process that `share` started."""
    number, processes = map(int, sys.argv[1:])
    out = sys.stdout
    sys.stdout = sys.stderr  # where modules that are imported may print
    call, divisible = pickle.load(sys.stdin.buffer)  # of the process that started this one
    adopt(call)

    def started(place: int, total: int) -> None:
        print(place, total, file=out, flush=True)

    divisible.run(started, number, processes)
