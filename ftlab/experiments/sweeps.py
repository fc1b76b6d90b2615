"""Sweeps: a table of jobs, done once each by any number of workers. Cell: sweep.

`do` is what a worker does with one job: it takes the job's lease, runs each attempt in a process
of its own, gives signs of life meanwhile, and writes how the attempt ended where the process could
not. `make_attempt` is that process.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ftlab import analysis, models
from ftlab._core.config import takes
from ftlab._core.errors import Busy, FtlabError, UsageError
from ftlab._core.files import write_atomic
from ftlab._core.processes import python_path, signal_name
from ftlab._core.progress import clock
from ftlab._core.shown import Shown
from ftlab._core.text import csv, redacted, safe
from ftlab.experiments.backends import Backend, Job, LocalBackend, Needs, Result, Row, open_backend
from ftlab.experiments.notebooks import run_notebook
from ftlab.experiments.sweep_folder import (
    BEAT_S,
    LOST_S,
    OPEN,
    Attempt,
    State,
    SweepFolder,
    SweepJob,
)
from ftlab.experiments.sweep_memory import needs_of
from ftlab.experiments.sweep_plans import Plan, Resolved, open_cell, resolve
from ftlab.runs import Run, find

WORK = (
    "from ftlab._core.processes import take_interrupts; take_interrupts(); "  # during imports, too
    "from ftlab.experiments.sweeps import make_attempt; make_attempt()"
)
POLL_S = 5.0  # between two looks at jobs that run elsewhere
INTERRUPTED = 130
ALL_DONE, SOME_FAILED, NOT_YET = 0, 1, 3  # exit codes
COLUMNS = ("number", "job", "state", "attempts", "reason", "seconds", "where", "run")
INTERRUPTS = (INTERRUPTED, -signal.SIGINT, -signal.SIGTERM)  # exit codes of a process
ALONE_S = 60.0  # for a job to save a checkpoint when its worker was killed; less than LOST_S
SIGNAL_S = 1.0  # within which a signal that is meant for a worker and its job reaches both
DEAD_KERNEL = "DeadKernelError"


class SweepTable(Shown):
    """One row per job; `attrs` holds `folder`, `counts`, `sentence` and `exit_code`."""


@takes(Plan)
def sweep(
    plan: str | Path | dict[str, Any] | None = None,
    *,
    backend: str | Backend = "local",
    **settings,
) -> SweepTable:
    """Do every job of a plan once: a cell or notebook, its arguments crossed.

    The same call resumes. Several calls, on whatever machines, share the jobs of the same plan. A
    job that failed for good is tried again by the next call, and stops no other.

    Args:
        plan: A YAML file, or its content as a dict; None where the settings say it all.
        backend: Where the jobs run: local, ray, slurm, or an object.
        {settings}

    Returns:
        One row per job: number, job, state, attempts, reason (why the last attempt did not finish
        it), seconds, where (its machine), run (the folder of what its cell returned).
        `attrs["exit_code"]`: 0 all are done, 1 some failed or could not begin, 3 some are not done
        for other reasons.

    Raises:
        NotFoundError: `no_such_plan`.
        UsageError: `wrong_plan` with every problem and its line, `unknown_backend`,
            `wrong_setting` of a backend, `machine_too_small`, `ray_missing`,
            `no_ray_cluster`, `ray_task_failed`, `nothing_to_estimate`, `folder_not_writable`.
    """
    found = resolve(plan, settings)
    runner = _runner(backend, found)
    folder = _folder_of(found)
    for job in folder.in_state("failed"):
        job.attempts[-1].again()
    ended: set[int] = set()  # jobs that this call has begun and somebody has stopped
    errors: dict[int, Exception] = {}  # why jobs could not even begin
    while True:
        jobs = _open_jobs(folder, ended)
        before = _attempts(folder)
        results = runner.map(jobs) if jobs else []
        stuck = jobs and _attempts(folder) == before  # no worker could begin
        errors |= _errors(results)
        begun = {job.name for job in jobs}
        for job in folder.in_state("stopped", "gone"):
            if _job(folder, job).name in begun:
                ended.add(job.number)
        if not runner.waits or stuck or not _wait(folder, ended):
            return sweep_table(folder, errors=errors)


def _errors(results: list[Result]) -> dict[int, Exception]:
    """Return the errors of jobs, by their numbers."""
    found = {}
    for result in results:
        if result.error and result.job.row:
            found[result.job.row.number] = result.error
    return found


def _runner(backend: str | Backend, found: Resolved) -> Backend:
    given = found.plan.backends or {}
    for name, settings in given.items():  # those of the others are checked, too
        open_backend(name, settings)
    return open_backend(backend, given.get(str(backend)))


def _folder_of(found: Resolved) -> SweepFolder:
    needs = needs_of(found)
    return SweepFolder.make(found.name, found.directory, found.jobs, needs, found.plan.retries)


def _open_jobs(folder: SweepFolder, but: Collection[int] = ()) -> list[Job]:
    """Return the jobs that can be taken, but these."""
    return [_job(folder, job) for job in folder.in_state(*OPEN) if job.number not in but]


def _attempts(folder: SweepFolder) -> int:
    return sum(len(job.attempts) for job in folder.jobs)


def _job(folder: SweepFolder, job: SweepJob) -> Job:
    """Return a job as a backend takes it."""
    arguments = {"folder": folder.path, "number": job.number}
    return Job(
        f"{job.number:03d} {job.name}",
        do,
        arguments,
        lane=job.number,
        kernel=True,
        needs=folder.needs,
        row=Row(folder.path, job.number),
    )


def _wait(folder: SweepFolder, but: Collection[int]) -> bool:
    """Wait for jobs that another call works on; return whether some but these are left to take."""
    shown = False
    while True:
        if _open_jobs(folder, but):
            return True
        running = list(folder.in_state("running"))
        if not running:
            return False
        if not shown:
            print(f"{len(running)} jobs run elsewhere; waiting for them.", file=sys.stderr)
            shown = True
        time.sleep(POLL_S)


def sweep_work(folder: str | Path, numbers: list[int]) -> SweepTable:
    """Do these jobs of a sweep one after the other, as a worker on any machine.

    A job that another worker has is left to it, unless that one is silent for three minutes.

    Args:
        folder: The folder of the sweep.
        numbers: The places of jobs in the plan, from 0.

    Returns:
        As `sweep`, of these jobs.

    Raises:
        NotFoundError: `no_such_sweep`.
        UsageError: `no_such_job`.
    """
    opened = SweepFolder.open(folder)
    missing = [number for number in numbers if not 0 <= number < len(opened.jobs)]
    if missing:
        most = len(opened.jobs) - 1
        raise UsageError("no_such_job", f"There is no job {missing[0]}. Jobs are 0 to {most}.")
    until = clock() + LOST_S + 2 * BEAT_S
    errors: dict[int, Exception] = {}
    ended: set[int] = set()  # jobs that this call has seen to
    while True:
        states = {number: opened.jobs[number].refreshed().name for number in numbers}
        free = [one for one in numbers if states[one] in OPEN and one not in ended]
        # The machine of a task that was queued again may be gone: then its job is free soon.
        if not free and ("running" not in states.values() or clock() > until):
            return sweep_table(opened, numbers, errors)
        if not free:
            time.sleep(POLL_S)
            continue
        jobs = [_job(opened, opened.jobs[one]) for one in free]
        # Who started this process has seen to what a job needs.
        results = LocalBackend(lanes=1).map([replace(job, needs=Needs()) for job in jobs])
        errors |= _errors(results)
        for one in free:
            if opened.jobs[one].refreshed().name != "running":
                ended.add(one)
        until = clock() + LOST_S + 2 * BEAT_S


def sweep_status(plan: str | Path | dict[str, Any]) -> SweepTable:
    """Return what became of the jobs of a plan so far.

    Args:
        plan: The plan, or the folder or name of its sweep.

    Returns:
        As `sweep`.

    Raises:
        NotFoundError: `no_such_plan`, `no_such_sweep`.
        UsageError: `wrong_plan`.
    """
    return sweep_table(opened_sweep(plan))


def opened_sweep(plan: str | Path | dict[str, Any]) -> SweepFolder:
    """Return the folder of a plan's sweep that has begun."""
    is_file = isinstance(plan, (str, Path)) and str(plan).endswith((".yaml", ".yml"))
    if isinstance(plan, dict) or is_file:
        found = resolve(plan, {}, imports=False)
        plan = SweepFolder.place(found.name, found.directory, found.jobs)
    return SweepFolder.open(plan)


def sweep_table(
    folder: SweepFolder,
    numbers: list[int] | None = None,
    errors: dict[int, Exception] | None = None,
) -> SweepTable:
    """Return one row per job of a sweep.

    Args:
        folder: The folder of the sweep.
        numbers: Of these jobs only.
        errors: Why jobs could not even begin, by their numbers. Where one is still open, that is
            its reason, and the exit code is 1.
    """
    rows = []
    stuck = False
    for job in folder.jobs:
        if numbers is None or job.number in numbers:
            state = job.refreshed()
            error = (errors or {}).get(job.number)
            if error is not None and state.name in OPEN:
                state = replace(state, reason=safe(redacted(f"{error}"), 1000))
                stuck = True
            rows.append(_row(job, state))
    table = SweepTable(rows, columns=list(COLUMNS))
    counts = Counter(table["state"])
    code = NOT_YET
    if counts["failed"] or stuck:
        code = SOME_FAILED
    elif counts["done"] == len(table):
        code = ALL_DONE
    parts = [f"{count} {state}" for state, count in sorted(counts.items())]
    told = ", ".join(parts)
    table.attrs = {
        "folder": str(folder.path),
        "counts": dict(counts),
        "sentence": f"{folder.name}: {len(table)} jobs: {told}",
        "exit_code": code,
    }
    return table


def _row(job: SweepJob, state: State) -> dict[str, Any]:
    return {
        "number": job.number,
        "job": job.name,
        "state": state.name,
        "attempts": state.attempts,
        "reason": state.reason,
        "seconds": state.seconds,
        "where": state.host,
        "run": str(state.run or state.table or ""),
    }


def do(
    folder: Path,
    number: int,
    env: dict[str, str],
    on_cell: Callable[..., None],
    kernels: list,
) -> State:
    """Attempt a job until it is done, failed for good, or somebody else has it.

    Args:
        folder: The folder of the sweep.
        number: The job's place in the plan.
        env: Environment variables for its processes.
        on_cell: Called before each attempt, and after one that was interrupted, with its number
            and how many there may be. It raises KeyboardInterrupt while the caller is ending.
        kernels: The process of an attempt is in it while it runs, so that the caller can end it.

    Returns:
        What became of it.

    Raises:
        RuntimeError: It failed for good, with the reason.
    """
    opened = SweepFolder.open(folder)
    job = opened.jobs[number]
    while True:
        attempt_number = len(job.attempts) + 1
        most = max(attempt_number, job.retries + 1)  # more, of a job that an earlier call tried
        begins = partial(on_cell, attempt_number, most, "attempt")
        begins()
        attempt = job.take()
        if attempt is None:
            break
        _supervise(opened, job, attempt, env, kernels, partial(_is_asked_to_stop, begins))
        if (attempt.ended or {}).get("state") in ("stopped", "done"):
            break
    state = job.state()
    if state.name == "failed":
        raise RuntimeError(state.reason)
    return state


def _is_asked_to_stop(begins: Callable[[], None]) -> bool:
    """Return whether the caller is ending; the signal may reach it a little later than a job."""
    until = clock() + SIGNAL_S
    while True:
        try:
            begins()  # refused while the caller is ending
        except KeyboardInterrupt:
            return True
        if clock() > until:
            return False
        time.sleep(SIGNAL_S / 10)


def _supervise(
    folder: SweepFolder,
    job: SweepJob,
    attempt: Attempt,
    env: dict[str, str],
    kernels: list,
    is_asked_to_stop: Callable[[], bool],
) -> None:
    """Run an attempt in a process of its own, and write how it ended if the process has not.

    One that was interrupted though nobody asked this process to stop is lost: else a job that is
    interrupted each time would be begun for ever.
    """
    places = [str(folder.path), str(job.number), str(attempt.number)]
    words = [sys.executable, "-P", "-c", WORK, *places]
    more = {
        "FTLAB_BATCH": "1",
        "FTLAB_RUNS": str(folder.path.parent),
        # Last: a file beside the plan, such as datasets.py, must not stand for a library.
        "PYTHONPATH": python_path(str(folder.directory)),
    }
    if folder.needs.cpus:
        more["OMP_NUM_THREADS"] = str(folder.needs.cpus)
    state = "lost"
    reason = "its process could not be started"
    began = clock()
    try:
        with open(attempt.log, "ab") as log:
            process = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,  # closed by the end of this process, however it comes
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **env, **more},
                cwd=folder.directory,
                start_new_session=True,  # Ctrl-C of a terminal reaches it through this process only
            )
        kernels.append(process)
        _watch(process, attempt)
        reason = _last_words(process.returncode, attempt)
        if process.returncode in (*INTERRUPTS, -signal.SIGKILL) and is_asked_to_stop():
            state = "stopped"  # also where it took too long to save, and was killed
            reason = attempt.last_words or "interrupted"
        elif process.returncode in INTERRUPTS:
            words = attempt.last_words or "interrupted"
            reason = f"interrupted by itself or somebody else: {words}"
    except OSError as error:
        reason = f"{reason}: {error}"
    finally:
        seconds = round(clock() - began, 1)
        attempt.end(state, reason=reason, retry=True, seconds=seconds)


def _watch(process: subprocess.Popen, attempt: Attempt) -> None:
    """Give signs of life until a process ends; end it if the attempt was given to another."""
    while True:
        try:
            process.wait(BEAT_S)
            break
        except subprocess.TimeoutExpired:
            attempt.beat()
            if attempt.ended:
                process.kill()
    process.stdin.close()


def _last_words(code: int, attempt: Attempt) -> str:
    if code >= 0:
        return f"its process ended with {code} and left no record; see {attempt.log.name}"
    name = signal_name(-code)
    by_whom = " (out of memory, or by somebody)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{by_whom}"


def make_attempt() -> None:
    """Make one attempt at a job, in a process that `do` started, and write how it ended."""
    folder, number, which = sys.argv[1:]
    opened = SweepFolder.open(folder)
    job = opened.jobs[int(number)]
    current = Attempt(job.folder, int(which))
    current.adopt()
    if current.ended or _is_alone():  # another may have begun before it could be seen
        sys.exit(INTERRUPTED)
    alone = threading.Event()  # who started this process has ended
    threading.Thread(target=_end_with_parent, args=(alone,), daemon=True).start()
    began = clock()
    code = 0
    ended: dict[str, Any] = {}
    try:
        value = _call(opened, job)
        ended = {"state": "done", **_kept(value, job.folder)}
    except KeyboardInterrupt as error:
        reason = safe(redacted(f"{error}"), 1000) or "interrupted"
        if alone.is_set():
            ended = {"state": "stopped", "reason": reason}
        else:  # only who started this process knows why
            current.say(reason)
        code = INTERRUPTED
    except Exception as error:
        print(redacted("".join(traceback.format_exception(error))), file=sys.stderr)
        text = safe(redacted(f"{error}"), 1000)
        if not isinstance(error, FtlabError):
            text = f"{type(error).__name__}: {text}"
        ended = {"state": "failed", "reason": text, "retry": is_worth_a_retry(error)}
        code = 1
    if ended:
        current.end(**ended, seconds=round(clock() - began, 1))
    sys.exit(code)


def _is_alone() -> bool:
    """Return whether the process that started this one has ended."""
    readable, _, _ = select.select([0], [], [], 0)
    return bool(readable)


def _end_with_parent(alone: threading.Event) -> None:
    """End this process when the one that started it has ended: by an interrupt, then by force."""
    os.read(0, 1)  # of sys.stdin, whose lock would stop the end of this process
    alone.set()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(ALONE_S)
    os._exit(INTERRUPTED)


def _call(folder: SweepFolder, job: SweepJob) -> Any:
    """Return what the job's cell returns, or the path of its executed notebook."""
    if not job.notebook:
        return open_cell(job.cell, folder.directory)(**job.arguments)
    output = job.folder / Path(job.notebook).name
    arguments = {"notebook": job.notebook, "output": output, "parameters": job.arguments}
    # The backend ends the kernel on an interrupt.
    (result,) = LocalBackend().map([Job(job.name, run_notebook, arguments, kernel=True)])
    if result.error:
        raise result.error
    return result.value


def _kept(value: Any, folder: Path) -> dict[str, str]:
    """Return where what a cell returned is: its run, or a table that is written now."""
    found = {}
    run = getattr(value, "run", value)
    if hasattr(value, "to_csv"):
        write_atomic(folder / "table.csv", csv(value))
        found["table"] = str(folder / "table.csv")
        run = value.attrs.get("run")
    if isinstance(run, str):
        with contextlib.suppress(FtlabError):
            run = find(run)
    if isinstance(run, Run):
        found["run"] = str(run.path)
    elif isinstance(run, Path):
        found["run"] = str(run)
    home = folder.parents[2].resolve()
    return {name: _name_in(home, Path(path)) for name, path in found.items()}


def _name_in(home: Path, path: Path) -> str:
    """Return how a result is named from the folder of all runs.

    Raises:
        UsageError: `no_result`.
    """
    if not path.exists():
        name = safe(path.name, 200)
        raise UsageError(
            "no_result",
            f"The cell returned the path {name}, where nothing is. Let it return a run, a table, "
            "or the path of a file that it has written.",
        )
    return os.path.relpath(path.resolve(), home)


def is_worth_a_retry(error: Exception) -> bool:
    """Return whether another attempt at the same job may succeed.

    It may after want of memory or room, an error of the file system, a run that somebody else was
    working on, or the death of a notebook's kernel; not after a wrong argument or a fault of code.
    """
    if getattr(error, "code", "") == "out_of_memory" or isinstance(error, MemoryError):
        return True
    if "torch" in sys.modules and models.out_of_memory(error):
        return True
    if type(error.__cause__).__name__ == DEAD_KERNEL or isinstance(error, Busy):
        return True
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError)


def _shown(value: Any) -> Any:
    return value if isinstance(value, (str, int, float)) else str(value)


def sweep_collect(
    plan: str | Path | dict[str, Any], *, html: str | Path | None = None
) -> SweepTable:
    """Return what became of the jobs of a plan, and write one report over their runs.

    Args:
        plan: The plan, or the folder or name of its sweep.
        html: File for the report: the jobs, the rates of each evaluation and the comparison of
            each curve. It opens offline.

    Returns:
        As `sweep`, with a column per argument that varies; fit to be shown to others: without the
        machines, runs as they are named in the folder of all runs, files by their names.

    Raises:
        NotFoundError: `no_such_plan`, `no_such_sweep`.
        UsageError: `wrong_plan`, `output_not_writable`.
    """
    folder = opened_sweep(plan)
    table = sweep_table(folder)
    varied = [job.varied for job in folder.jobs]
    for name in dict.fromkeys(name for one in varied for name in one):
        column = f"{name} (argument)" if name in COLUMNS else name
        table[column] = [_shown(one.get(name, "")) for one in varied]
    table = _public(folder, table)
    if html is not None:
        runs = {}
        for job in folder.jobs:
            state = job.state()
            if state.name == "done" and state.run and (state.run / "config.json").exists():
                runs[f"{job.number:03d} {job.name}"] = Run(state.run)
        analysis.write_sweep(table, runs, html)
    return table


def _public(folder: SweepFolder, table: SweepTable) -> SweepTable:
    """Return a table without anything that tells of a machine."""
    shown = SweepTable(table.drop(columns="where"))
    shown.attrs = table.attrs
    home = folder.path.parent.resolve()
    names = []
    for run in table["run"]:
        name = os.path.relpath(run, home) if run else ""
        names.append(name)
    shown["run"] = names
    others = shown.columns.difference(["run"])
    shown[others] = shown[others].map(analysis.without_folders)
    return shown
