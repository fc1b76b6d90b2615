"""The interface of a backend: where jobs run.

A job is a cell and its arguments. One of a sweep also has a row on disk (`Row`): any process of any
machine that sees the sweep's folder does it with `ftlab sweep work FOLDER --jobs NUMBER`, which
takes the job's lease, resumes what is there, and writes how it ended. So a backend for other
machines only starts `Row.command` of each job somewhere, with the resources of `Needs`; it never
repeats a job, keeps no state, and needs no result: that is in the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ftlab._core import plugins
from ftlab._core.config import Config
from ftlab._core.errors import UsageError


@dataclass(frozen=True)
class Needs:
    """What one job takes.

    Args:
        cpus: Cores; None: a share of them, by how many jobs run side by side.
        memory: Bytes; None: not known.
        gpus: Accelerators; None: those that this process sees.
    """

    cpus: int | None = None
    memory: int | None = None
    gpus: int | None = None


@dataclass(frozen=True)
class Row:
    """Where a job stands on disk.

    Args:
        folder: The folder of its sweep, which every machine sees under this name.
        number: Its place among the sweep's jobs, from 0.
    """

    folder: Path
    number: int

    @property
    def command(self) -> list[str]:
        """The words of a process that does the job."""
        return [*worker(self.folder), str(self.number)]


def worker(folder: Path) -> list[str]:
    """Return the words of a process that does jobs of a sweep; their numbers follow: 3 or 3-5,8."""
    words = ["-m", "ftlab.cli", "sweep", "work", str(folder), "--jobs"]
    return [sys.executable, *words]


def ranges(numbers: list[int]) -> str:
    """Return numbers as text: [3, 4, 5, 8] is "3-5,8"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    texts = []
    for part in parts:
        ends = dict.fromkeys([part[0], part[-1]])
        texts.append("-".join(map(str, ends)))
    return ",".join(texts)


def numbers_of(text: str) -> list[int]:
    """Return the numbers in a text that `ranges` could have made.

    Raises:
        UsageError: `not_whole_numbers`.
    """
    found: list[int] = []
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
    except ValueError:
        raise UsageError(
            "not_whole_numbers", f"{text!r:.80} is not allowed. Give numbers, such as 3-5,8."
        ) from None
    return found


@dataclass(frozen=True)
class Job:
    """One piece of work: a cell and its JSON-able arguments.

    Args:
        name: For people, unique among the jobs of a call.
        cell: The cell.
        arguments: Its keyword arguments.
        lane: Jobs of one lane run one after the other; lanes may run side by side.
        kernel: The cell works in a process of its own, such as a notebook's kernel: it also takes
            `env`, `on_cell` and `kernels`.
        needs: What it takes of a machine.
        row: Where it stands on disk; None: only this process has it.
    """

    name: str
    cell: Callable[..., Any]
    arguments: dict[str, Any]
    lane: int = 0
    kernel: bool = False
    needs: Needs = field(default_factory=Needs)
    row: Row | None = None

    def run(self, **more: Any) -> Any:
        """Call the cell."""
        return self.cell(**self.arguments, **more)


def rows_of(jobs: list[Job]) -> list[Row]:
    """Return where jobs stand on disk, for a backend that runs them on other machines.

    Raises:
        UsageError: `job_not_on_disk`.
    """
    rows = [job.row for job in jobs if job.row is not None]
    if len(rows) < len(jobs):
        missing = next(job.name for job in jobs if job.row is None)
        raise UsageError(
            "job_not_on_disk",
            f"{missing} exists in this process only. Use the backend local, or `ftlab sweep`.",
        )
    return rows


@dataclass
class Result:
    """What became of a job.

    Args:
        job: The job.
        value: What its cell returned; None where it runs elsewhere.
        error: Why it has no value; None if it has one.
        seconds: Wall-clock time.
    """

    job: Job
    value: Any = None
    error: Exception | None = None
    seconds: float = 0.0


class Backend(Config):
    """Runs jobs, which exchange results through run folders, never through memory.

    A class with the backend's settings as its fields.
    """

    name: ClassVar[str]

    @property
    def waits(self) -> bool:
        """Whether `map` returns when the jobs have ended, not when they are queued."""
        return True

    def map(self, jobs: list[Job]) -> list[Result]:
        """Run the jobs and return their results in the order given.

        A job whose lane has failed is not started. An interrupt ends all jobs and is raised.
        """
        raise NotImplementedError


def open_backend(backend: str | Backend, settings: dict[str, Any] | None = None) -> Backend:
    """Return a backend by name; an object stands for itself.

    Args:
        backend: The backend.
        settings: Its settings, if it is given by name.

    Raises:
        UsageError: `unknown_backend`, `wrong_setting`.
    """
    if isinstance(backend, Backend):
        return backend
    return plugins.get("backends", backend).make(**settings or {})
