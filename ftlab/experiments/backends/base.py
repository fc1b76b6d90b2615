"""The interface of a backend: where jobs run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ftlab._core import plugins


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
    """

    name: str
    cell: Callable[..., Any]
    arguments: dict[str, Any]
    lane: int = 0
    kernel: bool = False

    def run(self, **more: Any) -> Any:
        """Call the cell."""
        return self.cell(**self.arguments, **more)


@dataclass
class Result:
    """What became of a job.

    Args:
        job: The job.
        value: What its cell returned.
        error: Why it has no value; None if it has one.
        seconds: Wall-clock time.
    """

    job: Job
    value: Any = None
    error: Exception | None = None
    seconds: float = 0.0


class Backend:
    """Runs jobs, which exchange results through run folders, never through memory."""

    name: str

    def map(self, jobs: list[Job]) -> list[Result]:
        """Run the jobs and return their results in the order given.

        A job whose lane has failed is not started. An interrupt ends all jobs and is raised.
        """
        raise NotImplementedError


def open_backend(backend: str | Backend) -> Backend:
    """Return a backend by name; an object stands for itself.

    Raises:
        UsageError: `unknown_backend`.
    """
    if isinstance(backend, Backend):
        return backend
    return plugins.get("backends", backend)()
