"""Lanes side by side on this machine, each job in a kernel of its own."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from ftlab._core.progress import clock
from ftlab.experiments.backends.base import Backend, Job, Result

LINE_S = 30.0  # seconds between two lines of progress
POLL_S = 0.5


@dataclass
class LocalBackend(Backend):
    """Runs lanes side by side and shares the cores among them.

    Args:
        side_by_side: False runs all lanes one after the other, as large models on one
            accelerator need it.
    """

    side_by_side: bool = True
    name: str = field(default="local", init=False)

    def map(self, jobs: list[Job]) -> list[Result]:
        lanes: dict[int, list[Job]] = {}
        for job in jobs:
            lanes.setdefault(job.lane if self.side_by_side else 0, []).append(job)
        work = _Work(lanes, max(1, cores() // max(len(lanes), 1)))
        return [work.results[job.name] for job in jobs] if work.run() else []


class _Work:
    """All lanes of one call."""

    def __init__(self, lanes: dict[int, list[Job]], threads: int):
        self.lanes = lanes
        self.env = {"OMP_NUM_THREADS": str(threads)}
        self.results: dict[str, Result] = {}
        self.running: dict[str, tuple[str, float]] = {}  # job: place, time of its start
        self.kernels: list[Any] = []
        self.stop = threading.Event()
        self.shown = clock()

    def run(self) -> bool:
        """Run all lanes; end their kernels on an interrupt."""
        with ThreadPoolExecutor(len(self.lanes) or 1) as pool:
            lanes = [pool.submit(self._lane, jobs) for jobs in self.lanes.values()]
            try:
                while wait(lanes, timeout=POLL_S).not_done:
                    self._show()
            except BaseException:
                self.stop.set()
                while wait(lanes, timeout=POLL_S).not_done:
                    self._kill()
                raise
        for lane in lanes:
            lane.result()
        return True

    def _lane(self, jobs: list[Job]) -> None:
        failed = ""
        for job in jobs:
            if self.stop.is_set():
                return
            if failed:
                error = RuntimeError(f"{job.name}: not started, because {failed} failed.")
                self.results[job.name] = Result(job, error=error)
                continue
            if not self._run(job):
                failed = job.name

    def _run(self, job: Job) -> bool:
        began = clock()
        self.running[job.name] = ("starting", began)
        print(f"{job.name}  started", file=sys.stderr, flush=True)
        result = Result(job)
        try:
            result.value = job.run(
                env=self.env,
                on_cell=partial(self._at, job.name, began),
                kernels=self.kernels,
            )
        except (RuntimeError, OSError, ValueError) as error:
            result.error = error
        result.seconds = round(clock() - began, 1)
        self.results[job.name] = result
        del self.running[job.name]
        word = "failed" if result.error else "done"
        print(f"{job.name}  {word}, {result.seconds:.0f} s", file=sys.stderr, flush=True)
        return result.error is None

    def _at(self, name: str, began: float, number: int, total: int) -> None:
        self.running[name] = (f"cell {number}/{total}", began)

    def _show(self) -> None:
        if clock() - self.shown < LINE_S:
            return
        self.shown = clock()
        for name, (place, began) in list(self.running.items()):
            print(f"{name}  {place}, {clock() - began:.0f} s", file=sys.stderr, flush=True)

    def _kill(self) -> None:
        for kernel in self.kernels:
            with contextlib.suppress(AttributeError, OSError):  # it has ended already
                kernel.provisioner.process.kill()


def cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


BACKEND = LocalBackend
