"""Jobs of a sweep as tasks of Ray, on a cluster, or on this machine where it belongs to none."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab._core.files import storage
from ftlab._core.processes import python_path
from ftlab._core.progress import clock
from ftlab._core.text import safe
from ftlab.experiments.backends.base import Backend, Job, Needs, Result, Row, rows_of

POLL_S = 1.0  # between two looks at tasks, or at a process
GRACE_S = 40.0  # for a worker to end its job, which has 20 s to save a checkpoint
END_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


class RayBackend(Backend):
    """One task of Ray per job, where the cores, memory and accelerators that it needs are free.

    A job whose node or worker is lost goes on elsewhere. The call waits for all jobs; if it ends
    before, the jobs save what they have done and end, too.
    """

    name: ClassVar[str] = "ray"
    address: str | None = setting(
        None,
        "Address of the cluster, such as 10.0.0.1:6379; None: RAY_ADDRESS, or the cluster that "
        "this machine belongs to, or a new one of this machine alone",
    )
    grows: bool = setting(
        False, "Wait for a node that is large enough where there is none yet, instead of an error"
    )

    def map(self, jobs: list[Job]) -> list[Result]:
        """Run the jobs as tasks of Ray.

        Raises:
            UsageError: `job_not_on_disk`, `ray_missing`, `no_ray_cluster`, `machine_too_small`,
                `ray_task_failed` when all others have ended.
        """
        rows = rows_of(jobs)
        if not find_spec("ray"):
            raise UsageError("ray_missing", "Install the extra: pip install 'ftlab[ray]'.")
        with _cluster(self.address) as ray:
            if not self.grows:
                _check_room(ray.nodes(), [job.needs for job in jobs])
            tasks = {}
            for job, row in zip(jobs, rows, strict=True):
                # Retries are without limit for Ray: the sweep's folder counts lost attempts.
                task = ray.remote(max_retries=-1, name=job.name, **_options(job.needs))(work)
                tasks[task.remote(row.command, _environ(row, job.needs), _log(row))] = job
            try:
                errors = _watch(ray, tasks)
            except BaseException:
                _end(ray, list(tasks))
                raise
        if errors:
            name, error = next(iter(errors.items()))
            raise UsageError(
                "ray_task_failed",
                f"Ray could not run {len(errors)} jobs. {name}: {safe(error, 500)} Ask for other "
                "cpus, memory or gpus in the plan, or repair the node; the same call goes on.",
            )
        return [Result(job) for job in jobs]


@contextlib.contextmanager
def _cluster(address: str | None) -> Iterator[Any]:
    """Yield the module `ray`, connected as long as this process was not before.

    Raises:
        UsageError: `no_ray_cluster`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent to Ray's makers
    import ray

    if ray.is_initialized():
        yield ray
        return
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="warning")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            "no_ray_cluster",
            f"Ray cannot be reached at {address or 'this machine'}: {safe(error, 500)} Start it by "
            "`ray start --head`, or change `address` in the plan under backends: ray:.",
        ) from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray has put its own in the place
    try:
        yield ray
    finally:
        ray.shutdown()


def _options(needs: Needs) -> dict[str, Any]:
    """Return what a job needs, as Ray names it."""
    taken = {"num_cpus": needs.cpus or 1, "num_gpus": needs.gpus, "memory": needs.memory}
    return {name: value for name, value in taken.items() if value is not None}


def _check_room(nodes: list[dict[str, Any]], needs: list[Needs]) -> None:
    """Raise UsageError `machine_too_small` where no node could ever take a job."""
    found = [node["Resources"] for node in nodes if node["Alive"]]
    for one in dict.fromkeys(needs):
        takes = {"CPU": one.cpus or 1, "GPU": one.gpus or 0, "memory": one.memory or 0}
        for there in found:
            if all(there.get(name, 0) >= most for name, most in takes.items()):
                break
        else:
            asked = ", ".join(f"{most:,} {name}" for name, most in takes.items() if most)
            raise UsageError(
                "machine_too_small",
                f"A job needs {asked}; none of the {len(found)} nodes of Ray has that. Ask for "
                "less, or set `grows: true` under backends: ray: to wait for such a node.",
            )


def _environ(row: Row, needs: Needs) -> dict[str, str]:
    """Return the environment variables that a job takes from here, not from its node."""
    own = {name: value for name, value in os.environ.items() if name.startswith("FTLAB_")}
    if not needs.gpus:  # Ray hides none from a task that asked for none
        own["CUDA_VISIBLE_DEVICES"] = ""
    return {**own, "FTLAB_RUNS": str(row.folder.parent), "PYTHONPATH": python_path()}


def _log(row: Row) -> Path:
    """Return the file of what a job's workers print; its folder is made."""
    log = row.folder / "ray" / f"{row.number}.log"
    with storage(log, making=True):
        log.parent.mkdir(parents=True, exist_ok=True)
    return log


def work(words: list[str], environ: dict[str, str], log: Path) -> int:
    """Do a job in a process of its own, on the node that Ray has chosen, and return its exit code.

    Args:
        words: Of the process.
        environ: Environment variables beside those of the node.
        log: File that it prints to.
    """
    with open(log, "ab") as said:
        process = subprocess.Popen(
            words,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ray kills the group of a worker that is lost
            preexec_fn=_begin,
        )
    try:
        while True:  # Ray interrupts Python code, not a wait of the system
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(POLL_S)
    finally:
        process.terminate()
        process.wait()


def _begin() -> None:
    """Prepare the new process: it takes interrupts, and is told to end if Ray's worker is killed.

    Else the job would go on here, while its task begins elsewhere.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray blocks it in its workers
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(END_WITH_PARENT, signal.SIGTERM)


def _watch(ray: Any, tasks: dict[Any, Job]) -> dict[str, Exception]:
    """Wait for tasks; return the errors of those that Ray could not run, by job."""
    errors: dict[str, Exception] = {}
    left = list(tasks)
    while left:
        ended, left = ray.wait(left, timeout=POLL_S)
        for task in ended:
            name = tasks[task].name
            try:
                code = ray.get(task)
                told = "done" if code == 0 else f"its worker ended with {code}"
            except ray.exceptions.RayError as error:
                errors[name] = error
                told = "Ray could not run it"
            print(f"{name}  {told}", file=sys.stderr, flush=True)
    return errors


def _end(ray: Any, tasks: list[Any]) -> None:
    """Interrupt tasks, so that jobs save their state, and wait for those that run."""
    asked = clock()
    for task in tasks:
        ray.cancel(task, force=False)
    while tasks and clock() - asked < GRACE_S:
        _, tasks = ray.wait(tasks, num_returns=len(tasks), timeout=POLL_S)


BACKEND = RayBackend
