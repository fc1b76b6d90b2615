"""Jobs of a sweep as an array of Slurm, written as a file that a person can read and submit."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import StringConstraints

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab._core.files import storage, write_atomic
from ftlab._core.text import safe
from ftlab.experiments.backends.base import Backend, Job, Needs, Result, ranges, rows_of, worker

POLL_S = 10.0  # between two looks at the queue
MIB = 2**20
ARRAY_SIZE = 1001  # MaxArraySize of Slurm, if its administrator has not set another
OneLine = Annotated[str, StringConstraints(pattern=r"^[^\r\n]+$")]
# Minutes, minutes:seconds, hours:minutes:seconds, or days-hours with minutes and seconds.
Time = Annotated[str, StringConstraints(pattern=r"^(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})$")]
SCRIPT = """#!/bin/bash
# The jobs of a sweep. `ftlab sweep status {folder}` says what became of each.
{options}

export FTLAB_RUNS={home}
export FTLAB_GRACE={grace}
{setup}
# {which}
jobs={jobs}
{command} "$jobs" &
worker=$!

# {grace} seconds before its time is over, a task is told to save what it has done.
trap 'kill -TERM "$worker"' TERM
wait "$worker"
code=$?
while kill -0 "$worker" 2>/dev/null; do  # the signal has ended the waiting only
    wait "$worker"
    code=$?
done
trap - TERM

# It is then queued again, and resumes there; not so if somebody has cancelled it.
# SLURM_JOB_ID of the last task is the number of the whole array.
me="${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
state=$(squeue --noheader --jobs "$me" --format %T)
if [[ $code = 130 || $code = 143 ]] && [[ $state = RUNNING ]]; then
    scontrol requeue "$me"
fi
exit "$code"
"""


class SlurmBackend(Backend):
    """Writes an array file, and submits it where `sbatch` is installed.

    Each task does one job of the sweep, or several where they are more than an array may have
    tasks. It saves before its time is over, is queued again, and resumes. Tasks that are in the
    queue already are not submitted a second time.
    """

    name: ClassVar[str] = "slurm"
    time: Time | None = setting(None, "Time limit of a task, such as 08:00:00")
    partition: OneLine | None = setting(None, "Partition")
    account: OneLine | None = setting(None, "Account")
    tasks: int | None = setting(
        None,
        "Tasks of the array, at most; where the jobs are more, a task does several, one after the "
        "other. None: as many as Slurm takes (MaxArraySize)",
        ge=1,
    )
    at_once: int | None = setting(None, "Tasks that run at a time, at most", ge=1)
    grace: int = setting(60, "Seconds before the limit at which a task saves", ge=1)
    options: list[OneLine] | None = setting(
        None, "Further options of sbatch, such as --constraint=a100"
    )
    setup: list[OneLine] | None = setting(
        None, "Lines of the shell before the work, such as `module load cuda`"
    )
    wait: bool = setting(False, "Wait until no task is left in the queue")

    @property
    def waits(self) -> bool:
        return self.wait

    def map(self, jobs: list[Job]) -> list[Result]:
        """Write the array file and submit it.

        Raises:
            UsageError: `job_not_on_disk`, `no_arrays`, `sbatch_refused`, `squeue_refused`.
        """
        rows = rows_of(jobs)
        for folder in {row.folder: None for row in rows}:
            numbers = [row.number for row in rows if row.folder == folder]
            self._submit(folder, numbers, jobs[0].needs)
        return [Result(job) for job in jobs]

    def _submit(self, folder: Path, numbers: list[int], needs: Needs) -> None:
        installed = shutil.which("sbatch") is not None
        tasks = self.tasks or (_array_size() if installed else ARRAY_SIZE)
        queued = _queued(folder) if installed else set()
        kept = folder / "slurm" / "tasks"  # by which jobs were given to the tasks in the queue
        if queued and kept.exists():
            tasks = int(kept.read_text())
        left = [number for number in numbers if number % tasks not in queued]
        if left:
            file = folder / "slurm" / "array.sh"
            with storage(file, making=True):
                file.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(file, self.script(folder, left, needs, tasks))
                write_atomic(kept, str(tasks))
            if not installed:
                print(f"There is no sbatch here. Submit {len(left)} jobs by: sbatch {file}")
                return
            print(f"{file}: submitted as {_sbatch(file)}", file=sys.stderr)
        if queued:
            print(f"{len(queued)} tasks of the sweep are in the queue already.", file=sys.stderr)
        while self.wait and _queued(folder):
            time.sleep(POLL_S)

    def script(self, folder: Path, numbers: list[int], needs: Needs, tasks: int) -> str:
        """Return the array file.

        Args:
            folder: The folder of the sweep.
            numbers: The places of its jobs in the plan, which fix their tasks: so the tasks of one
                call are those of the next.
            needs: What each takes of a machine.
            tasks: Of the array, at most; job N is one of task N modulo this.
        """
        array = ranges(list({number % tasks for number in numbers}))
        which = "One job per task."
        jobs = '"$SLURM_ARRAY_TASK_ID"'
        last = max(numbers)
        if last >= tasks:
            which = f"Several jobs per task: every {tasks:,}th up to {last:,}, one after the other."
            jobs = f'$(seq -s , "$SLURM_ARRAY_TASK_ID" {tasks} {last})'
        if self.at_once:
            array += f"%{self.at_once}"
        given = {
            "job-name": _job_name(folder),
            "array": array,
            "output": folder / "slurm" / "%a.log",
            "open-mode": "append",
            "signal": f"B:TERM@{self.grace}",
            "time": self.time,
            "partition": self.partition,
            "account": self.account,
            "cpus-per-task": needs.cpus,
            "mem": f"{-(-needs.memory // MIB)}M" if needs.memory else None,
            "gres": f"gpu:{needs.gpus}" if needs.gpus else None,
        }
        lines = ["#SBATCH --requeue"]
        for name, value in given.items():
            if value is not None:
                lines.append(f"#SBATCH --{name}={shlex.quote(str(value))}")
        lines += [f"#SBATCH {option}" for option in self.options or []]
        return SCRIPT.format(
            folder=shlex.quote(str(folder)),
            options="\n".join(lines),
            home=shlex.quote(str(folder.parent)),
            setup="\n".join([*(self.setup or []), ""]),
            which=which,
            jobs=jobs,
            command=shlex.join(worker(folder)),
            grace=self.grace,
        )


def _job_name(folder: Path) -> str:
    return f"ftlab-{folder.name}"


def _array_size() -> int:
    """Return how many tasks this Slurm takes in an array; their indices begin at 0."""
    done = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True)
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
    size = int(found[1]) if found else ARRAY_SIZE
    if not size:
        why = "This Slurm takes no job arrays (MaxArraySize = 0)"
        raise UsageError("no_arrays", f"{why}. Use --backend local within a job of your own.")
    return size


def _queued(folder: Path) -> set[int]:
    """Return the tasks of a sweep that wait or run in the queue."""
    words = ["squeue", "--me", "--noheader", "--array", "--format=%K", "--name", _job_name(folder)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise _refused("squeue", done.stderr)
    return {int(word) for word in done.stdout.split() if word.isdigit()}


def _sbatch(file: Path) -> str:
    """Submit a file and return the number of its array."""
    done = subprocess.run(["sbatch", "--parsable", str(file)], capture_output=True, text=True)
    if done.returncode:
        raise _refused("sbatch", done.stderr)
    return done.stdout.strip().partition(";")[0]


def _refused(program: str, text: str) -> UsageError:
    return UsageError(
        f"{program}_refused",
        f"{program} ended with an error: {safe(text.strip(), 500)} Change the plan's settings "
        "under backends: slurm:, or submit the file by hand.",
    )


BACKEND = SlurmBackend
