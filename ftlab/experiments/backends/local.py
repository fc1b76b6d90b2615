"""Lanes side by side on this machine, as many as its cores, memory and accelerators allow."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab._core.progress import clock
from ftlab._core.threads import cores
from ftlab.experiments.backends.base import Backend, Job, Needs, Result

LINE_S = 20.0  # seconds between two lines of progress
POLL_S = 0.5
GRACE_S = 60.0  # for a training to save a checkpoint
MARGIN_S = 5.0  # of FTLAB_GRACE, for the end of this process itself


class LocalBackend(Backend):
    """Runs lanes side by side and shares the cores among them.

    Jobs that say what they need are as many at a time as this machine has cores, free memory and
    accelerators for.
    """

    name: ClassVar[str] = "local"
    side_by_side: bool = setting(
        True,
        "False runs the jobs of all lanes one after the other, which large models on one "
        "accelerator need.",
    )
    lanes: int | None = setting(
        None, "Lanes that run at a time, at most; the others wait for one to end. None: all.", ge=1
    )

    def map(self, jobs: list[Job]) -> list[Result]:
        jobs = list(map(_with_accelerator, jobs))
        lanes: dict[int, list[Job]] = {}
        for job in jobs:
            number = job.lane if self.side_by_side else 0
            lanes.setdefault(number, []).append(job)
        room = room_for(jobs)
        most = min(filter(None, [self.lanes, room]), default=None)
        results = _Work(lanes, most).run()
        return [results[job.name] for job in jobs]


def room_for(jobs: list[Job]) -> int | None:
    """Return how many of these jobs this machine has room for at a time; None: nothing is known.

    Raises:
        UsageError: `machine_too_small` where there is not enough for one.
    """
    needs = [job.needs for job in jobs]
    takes = {
        "cores": max((one.cpus or 0 for one in needs), default=0),
        "bytes of free memory": max((one.memory or 0 for one in needs), default=0),
        "accelerators": max((one.gpus or 0 for one in needs), default=0),
    }
    found = []
    for name, most in takes.items():
        if most:
            there = _there(name)
            if there < most:
                raise UsageError(
                    "machine_too_small",
                    f"A job needs {most:,} {name}; this machine has {there:,}. Ask for less, or "
                    "give another backend.",
                )
            found.append(there // most)
    return min(found, default=None)


def _with_accelerator(job: Job) -> Job:
    """Return a job that needs an accelerator if it does not say how many and there are any.

    A job that does not say its cores either was placed by somebody else.
    """
    needs = job.needs
    if needs.cpus is None or needs.gpus is not None:
        return job
    most = min(len(_accelerators()), 1)
    return replace(job, needs=replace(needs, gpus=most))


def _there(name: str) -> int:
    if name == "cores":
        return cores()
    if name == "accelerators":
        return len(_accelerators())
    import psutil

    return psutil.virtual_memory().available


def _accelerators() -> list[str]:
    """Return the accelerators that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is not None:
        return [one for one in given.split(",") if one not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


class _Work:
    """All lanes of one call."""

    def __init__(self, lanes: dict[int, list[Job]], most: int | None = None):
        self.lanes = lanes
        self.workers = min(len(lanes), most or len(lanes)) or 1
        threads = max(cores() // self.workers, 1)
        self.env = {"OMP_NUM_THREADS": str(threads)}
        self.results: dict[str, Result] = {}
        # Name of a job: where it is, and the time of its start.
        self.running: dict[str, tuple[str, float]] = {}
        self.kernels: list[Any] = []
        self.stop = threading.Event()
        self.free: list[str] = []  # accelerators that no job has
        if any(job.needs.gpus for jobs in lanes.values() for job in jobs):
            self.free = _accelerators()
        given = os.environ.get("FTLAB_GRACE")  # of a task of Slurm
        self.grace = max(float(given) - MARGIN_S, 1.0) if given else GRACE_S
        self.shown = clock()  # time of the last line of progress

    def run(self) -> dict[str, Result]:
        """Run all lanes and return results by job; end the kernels on an interrupt."""
        with ThreadPoolExecutor(self.workers) as pool:
            lanes = [pool.submit(self._lane, jobs) for jobs in self.lanes.values()]
            try:
                while wait(lanes, timeout=POLL_S).not_done:
                    self._show()
            except BaseException:
                self.stop.set()
                self._end(lanes)
                raise
        for lane in lanes:
            lane.result()
        return self.results

    def _lane(self, jobs: list[Job]) -> None:
        failed = ""
        for job in jobs:
            if self.stop.is_set():
                return
            if failed:
                reason = f"{job.name}: not started, because {failed} failed."
                self.results[job.name] = Result(job, error=RuntimeError(reason))
                continue
            if not self._run(job):
                failed = job.name

    def _run(self, job: Job) -> bool:
        began = clock()
        self.running[job.name] = ("running", began)
        _report(f"{job.name}  started")
        result = Result(job)
        try:
            with self._accelerators_of(job.needs) as env:
                result.value = job.run(**self._kernel_settings(job, began, env))
        except Exception as error:
            result.error = error
        seconds = clock() - began
        result.seconds = round(seconds, 1)
        self.results[job.name] = result
        del self.running[job.name]
        word = "failed" if result.error else "done"
        if self.stop.is_set():  # in the middle, unless it was faster
            word = "ended"
        _report(f"{job.name}  {word}, {seconds:.0f} s")
        return result.error is None

    @contextlib.contextmanager
    def _accelerators_of(self, needs: Needs) -> Iterator[dict[str, str]]:
        """Take as many accelerators as a job needs, which nobody else has, while it runs."""
        if needs.gpus is None:
            yield {}
            return
        taken = [self.free.pop() for _ in range(needs.gpus)]
        try:
            yield {"CUDA_VISIBLE_DEVICES": ",".join(taken)}
        finally:
            self.free += taken

    def _kernel_settings(self, job: Job, began: float, env: dict[str, str]) -> dict[str, Any]:
        if not job.kernel:
            return {}
        on_cell = partial(self._at, job.name, began)
        return {
            "env": {**self.env, **env},
            "on_cell": on_cell,
            "kernels": self.kernels,
        }

    def _at(self, name: str, began: float, number: int, total: int, what: str = "cell") -> None:
        if self.stop.is_set():  # nothing begins any more
            raise KeyboardInterrupt
        self.running[name] = (f"{what} {number}/{total}", began)

    def _show(self) -> None:
        if clock() - self.shown < LINE_S:
            return
        self.shown = clock()
        running = list(self.running.items())  # jobs of other threads begin and end meanwhile
        for name, (place, began) in running:
            seconds = clock() - began
            _report(f"{name}  {place}, {seconds:.0f} s")

    def _end(self, lanes: list[Future]) -> None:
        """Interrupt the kernels, so that a training saves its state; kill those that stay."""
        asked = clock()
        self._send("interrupt")
        if self.running:
            _report(
                f"Interrupted; waiting up to {self.grace:.0f} s for what runs to save its state"
            )
        try:
            while wait(lanes, timeout=POLL_S).not_done:
                if clock() - asked > self.grace:
                    self._send("kill")
        finally:  # a second interrupt does not wait
            self._send("kill")

    def _send(self, what: str) -> None:
        for kernel in self.kernels:
            with contextlib.suppress(AttributeError, OSError, ValueError):  # it has ended already
                process = kernel
                if hasattr(kernel, "provisioner"):  # a notebook's; others are processes themselves
                    process = kernel.provisioner.process
                _kill(process) if what == "kill" else process.send_signal(signal.SIGINT)


def _kill(process: Any) -> None:
    """Kill a process, and what it has started where both are a session of their own."""
    if process.poll() is None and os.getpgid(process.pid) == process.pid:
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


BACKEND = LocalBackend
