"""Jobs of a sweep as tasks of a Ray cluster, placed by their cores, memory and accelerators."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab._core.progress import clock
from ftlab.experiments.backends.base import Backend, Job, Needs, Result, rows_of

GRACE_S = 30.0  # for a training to save a checkpoint


class RayBackend(Backend):
    """Starts one task per job on a Ray cluster, and waits for all of them.

    A task whose worker or node was lost is started elsewhere, and resumes there.
    """

    name: ClassVar[str] = "ray"
    address: str | None = setting(
        None,
        "Address of the cluster, such as auto or ray://head:10001. None: that of RAY_ADDRESS, or "
        "the one of this machine, or a new one of this machine alone",
    )
    restarts: int = setting(3, "Times that a task is started again after its worker was lost", ge=0)
    grows: bool = setting(
        False, "The cluster adds nodes where tasks need them, so a job may be too large for it now"
    )

    def map(self, jobs: list[Job]) -> list[Result]:
        """Run the jobs on the cluster.

        Raises:
            UsageError: `job_not_on_disk`, `ray_missing`, `ray_not_reached`, `cluster_too_small`.
        """
        rows = rows_of(jobs)
        ray = _ray()
        ours = not ray.is_initialized()
        if ours:
            self._connect(ray)
        try:
            if not self.grows:
                check_room(ray, [job.needs for job in jobs])
            tasks = {}
            for job, row in zip(jobs, rows, strict=True):
                task = self._remote(ray, job).remote(str(row.folder), row.number)
                tasks[task] = Result(job)
            _wait(ray, tasks)
            return list(tasks.values())
        finally:
            if ours:
                ray.shutdown()

    def _connect(self, ray: ModuleType) -> None:
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="warning")
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise UsageError(
                "ray_not_reached",
                f"Ray cannot be reached: {error}. Change address under backends: ray:.",
            ) from None

    def _remote(self, ray: ModuleType, job: Job) -> Any:
        return ray.remote(
            num_cpus=job.needs.cpus or 1,
            num_gpus=job.needs.gpus,
            memory=job.needs.memory,
            max_retries=self.restarts,
            max_calls=1,
        )(work)


def work(folder: str, number: int) -> str:
    """Do a job of a sweep, in a worker of the cluster, and return what became of it."""
    from ftlab.experiments import sweep_work

    table = sweep_work(Path(folder), [number])
    return table["state"].iloc[0]


def check_room(ray: ModuleType, needs: list[Needs]) -> None:
    """Raise UsageError `cluster_too_small` where no node of the cluster is as large as a job."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for one in set(needs):
        takes = {"CPU": one.cpus or 1, "memory": one.memory or 0, "GPU": one.gpus}
        if not any(_holds(node, takes) for node in nodes):
            wanted = ", ".join(f"{name} {amount:,}" for name, amount in takes.items() if amount)
            raise UsageError(
                "cluster_too_small",
                f"A job needs {wanted}, which none of {len(nodes)} nodes has. Ask for less; if "
                "the cluster adds nodes by itself, write grows: true under backends: ray:.",
            )


def _holds(node: dict[str, float], takes: dict[str, int]) -> bool:
    return all(node.get(name, 0) >= amount for name, amount in takes.items())


def _wait(ray: ModuleType, tasks: dict[Any, Result]) -> None:
    """Note how each task ended; on an interrupt, end all of them first."""
    began = clock()
    left = list(tasks)
    try:
        while left:
            (ended, *_), left = ray.wait(left)
            result = tasks[ended]
            try:
                result.value = ray.get(ended)
            except Exception as error:  # what happens to one job hides no other
                result.error = error
            result.seconds = round(clock() - began, 1)
            said = f"not done, {type(result.error).__name__}" if result.error else result.value
            print(f"{result.job.name}  {said}", file=sys.stderr, flush=True)
    except BaseException:
        for task in left:
            ray.cancel(task)
        ray.wait(left, num_returns=len(left), timeout=GRACE_S)
        raise


def _ray() -> ModuleType:
    try:
        import ray
    except ModuleNotFoundError:
        raise UsageError("ray_missing", "Install the extra: pip install 'ftlab[ray]'.") from None
    return ray


BACKEND = RayBackend
