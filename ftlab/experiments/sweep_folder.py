"""The folder of a sweep: its jobs, and what became of each, written by any number of machines.

`sweep-NAME-HASH/` in the folder of all runs:

    plan.json                  the jobs and what each takes, as the last call gave them
    jobs/NNN-KEY/N.json        attempt N at job NNN: who, where, since when; its lease
    jobs/NNN-KEY/N.end.json    how it ended: done (with its run), failed, lost or stopped, and why
    jobs/NNN-KEY/N.child.json  the process that does it, of the machine in N.json
    jobs/NNN-KEY/N.words.json  why it was interrupted, as its process has it
    jobs/NNN-KEY/N.again.json  a later call gives a failed job its attempts again
    jobs/NNN-KEY/N.log         what it printed

The files of attempts are written whole, by whoever is first, and never changed or removed. So
attempt N + 1 begins once, on one machine, and only when N has ended; and what ended is decided
once: an attempt that was declared lost cannot be done any more, even if its machine wakes up.

A lease is held by signs of life, the times of `N.json`. Assumed of the file system: a hard link or
an exclusive creation succeeds once (POSIX; NFS since version 3; Lustre; GPFS), times are set by
the file server, against whose clock their age is taken, and a change is seen by other machines
within `LOST_S` - `BEAT_S`. No lock is needed.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ftlab._core.errors import NotFoundError, UsageError
from ftlab._core.files import claim, digest, storage, write_atomic
from ftlab.experiments.backends import Needs
from ftlab.runs import home, now

PLAN = "plan.json"
BEAT_S = 10.0  # between two signs of life
LOST_S = 180.0  # without one, an attempt is lost; NFS shows old times for up to 60 s
BOOT = Path("/proc/sys/kernel/random/boot_id")
NAMESPACE = Path("/proc/self/ns/pid")
TORN = "the file of how it ended is not whole"
ENDS = ("done", "failed", "lost", "stopped")
OPEN = ("waiting", "stopped", "gone")  # states in which a job is taken
# A job's state, and what it means.
STATES = {
    "waiting": "nobody has begun, or the next attempt is due",
    "running": "somebody works on it",
    "stopped": "interrupted; the next attempt resumes it",
    "done": "finished",
    "gone": "it was finished, but its run is there no more",
    "failed": "not tried again before the next call",
}


@dataclass(frozen=True)
class Attempt:
    """One attempt at a job.

    Args:
        folder: The job's folder.
        number: From 1.
    """

    folder: Path
    number: int

    @property
    def path(self) -> Path:
        return self.folder / f"{self.number}.json"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder / f"{self.number}.log"

    def begin(self) -> bool:
        """Take the job, and return whether nobody else was faster."""
        return claim(self.path, json.dumps({**_this_process(), "begun": now()}, indent=1))

    def beat(self) -> None:
        """Give a sign of life."""
        with contextlib.suppress(OSError):  # the file server may be away for a while
            os.utime(self.path)

    def end(self, state: str, **record: Any) -> bool:
        """Write how it ended, and return whether nobody had declared that before.

        Args:
            state: One of `ENDS`.
            **record: `reason`, `retry` (another attempt may succeed), `seconds`, `run`, `table`.
        """
        assert state in ENDS
        ended = {"state": state, "ended": now(), "by": uuid.uuid4().hex, **record}
        return claim(self._end, json.dumps(ended, indent=1))

    def adopt(self) -> None:
        """Note this process as the one that does the work: while it lives, nobody else begins."""
        write_atomic(self._child, json.dumps({"process": os.getpid()}))

    def say(self, reason: str) -> None:
        """Leave word why it was interrupted, for who started its process and writes the end."""
        claim(self._words, json.dumps({"reason": reason, "by": uuid.uuid4().hex}))

    @property
    def last_words(self) -> str:
        """Why it was interrupted, if it has said so."""
        return (_read(self._words) or {}).get("reason", "")

    def again(self) -> None:
        """Give a failed job its attempts again."""
        claim(self._again, json.dumps({"at": now(), "by": uuid.uuid4().hex}))

    @property
    def ended(self) -> dict[str, Any] | None:
        """How it ended; None if it has not. What was half written by somebody dead is lost."""
        ended = _read(self._end)
        with contextlib.suppress(FileNotFoundError):  # it has not
            if ended is None and self._age(self._end) > LOST_S:
                # It may have been made whole after it was read.
                return _read(self._end) or {"state": "lost", "reason": TORN, "retry": True}
        return ended

    @property
    def forgiven(self) -> bool:
        """Whether it no longer counts."""
        return self._again.exists()

    @property
    def host(self) -> str:
        """The machine that it runs, or ran, on."""
        return (_read(self.path) or {}).get("host", "")

    def silence(self) -> str:
        """Return why it must be lost, or ""."""
        who = _read(self.path) or {}
        if who.get("machine") == machine():
            worker = who["process"]
            own = (_read(self._child) or {}).get("process", worker)
            if not _is_alive(worker) and not _is_alive(own):
                return f"process {worker} has ended without a word"
        age = self._age(self.path)
        if age > LOST_S:
            return f"its machine gave no sign of life for {age:.0f} s"
        return ""

    def _age(self, path: Path) -> float:
        """Return the seconds since a file was changed, by the clock of the file server."""
        changed = path.stat().st_mtime
        probe = self.folder / f".{uuid.uuid4().hex[:12]}.tmp"
        try:
            probe.touch()
            present = probe.stat().st_mtime
            probe.unlink()
        except OSError:  # somebody who may only read
            present = time.time()
        return present - changed

    @property
    def _end(self) -> Path:
        return self.folder / f"{self.number}.end.json"

    @property
    def _child(self) -> Path:
        return self.folder / f"{self.number}.child.json"

    @property
    def _words(self) -> Path:
        return self.folder / f"{self.number}.words.json"

    @property
    def _again(self) -> Path:
        return self.folder / f"{self.number}.again.json"


@dataclass(frozen=True)
class State:
    """What became of a job so far.

    Args:
        name: A key of `STATES`.
        attempts: Begun so far.
        reason: Why the last one that ended has not finished it.
        seconds: That the last one took.
        host: Where the last one ran.
        run: The folder of what its cell returned.
        table: The table that its cell returned, as a file.
    """

    name: str
    attempts: int = 0
    reason: str = ""
    seconds: float | None = None
    host: str = ""
    run: Path | None = None
    table: Path | None = None


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep: what is to be done, and where its attempts are.

    Args:
        folder: Its folder.
        number: Its place in the plan, from 0.
        retries: Attempts after the first, where another may succeed.
        name: For people.
        cell: "room.name"; "" for a notebook.
        notebook: Path of a notebook; "" for a cell.
        arguments: JSON-able.
        varied: Those of them that tell the jobs apart.
        files: Hashes of the files that they name.
    """

    folder: Path
    number: int
    retries: int
    name: str
    cell: str
    notebook: str
    arguments: dict[str, Any]
    varied: dict[str, Any]
    files: dict[str, str]

    @property
    def attempts(self) -> list[Attempt]:
        """Every attempt, the first first."""
        found = []
        for path in self.folder.glob("*.json"):
            if path.stem.isdigit():
                found.append(int(path.stem))
        return [Attempt(self.folder, number) for number in sorted(found)]

    def state(self) -> State:
        """Return what became of it so far."""
        every = self.attempts
        if not every:
            return State("waiting")
        last = every[-1]
        ended = last.ended
        if ended is None:
            before = every[-2].ended if len(every) > 1 else {}
            reason = (before or {}).get("reason", "")
            return State("running", len(every), reason, host=last.host)
        run = self._path(ended.get("run"))
        name = ended["state"]
        if name == "done" and run and not run.exists():
            name = "gone"
        elif name in ("failed", "lost"):
            name = "waiting" if ended.get("retry") and self._tries_left(every) else "failed"
            if last.forgiven:
                name = "waiting"
        return State(
            name,
            len(every),
            ended.get("reason", ""),
            ended.get("seconds"),
            last.host,
            run,
            self._path(ended.get("table")),
        )

    def refreshed(self) -> State:
        """Return what became of it; an attempt that gives no sign of life is lost."""
        self.bury()
        return self.state()

    def _path(self, name: str | None) -> Path | None:
        """Return where something is: a name is one in the folder of all runs."""
        return self.folder.parents[2].resolve() / name if name else None

    def _tries_left(self, every: list[Attempt]) -> bool:
        tries = 0
        for attempt in every:
            if attempt.forgiven:
                tries = 0
            elif (attempt.ended or {}).get("state") in ("failed", "lost"):
                tries += 1
        return tries <= self.retries

    def take(self) -> Attempt | None:
        """Begin the next attempt; None where there is nothing to do or another one does it."""
        with storage(self.folder, making=True):
            self.folder.mkdir(parents=True, exist_ok=True)
        state = self.refreshed()
        if state.name not in OPEN:
            return None
        attempt = Attempt(self.folder, state.attempts + 1)
        return attempt if attempt.begin() else None

    def bury(self) -> None:
        """Declare the running attempt lost if its process is gone or its machine is silent."""
        with contextlib.suppress(OSError):  # somebody who may only read
            for last in self.attempts[-1:]:
                reason = "" if last.ended else last.silence()
                if reason:
                    last.end("lost", reason=reason, retry=True)


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep."""

    path: Path

    @classmethod
    def make(
        cls,
        name: str,
        directory: Path,
        jobs: list[dict[str, Any]],
        needs: Needs,
        retries: int,
    ) -> SweepFolder:
        """Return the sweep of these jobs, made where it is new.

        Args:
            name: For people.
            directory: From which relative names in the arguments start.
            jobs: Of each name, cell, notebook, arguments, varied and files.
            needs: What each job takes of a machine; it may change from call to call.
            retries: Attempts of each job after the first; they may change, too.

        Raises:
            UsageError: `folder_not_writable`.
            StorageFull: `storage_full`.
        """
        path = cls.place(name, directory, jobs)
        plan = {
            "name": name,
            "directory": str(directory),
            "needs": asdict(needs),
            "retries": retries,
            "jobs": [{"key": _key(job), **job} for job in jobs],
        }
        text = json.dumps(plan, indent=1, ensure_ascii=False)
        with storage(path, making=True):
            path.mkdir(parents=True, exist_ok=True)
            if _read(path / PLAN) != plan:
                write_atomic(path / PLAN, text)
        return cls(path)

    @staticmethod
    def place(name: str, directory: Path, jobs: list[dict[str, Any]]) -> Path:
        """Return where the sweep of these jobs is, or would be; as `make`."""
        keys = [_key(job) for job in jobs]
        identity = digest({"directory": str(directory), "jobs": keys})
        label = re.sub(r"[^\w.+-]+", "-", name, flags=re.ASCII).strip("-")[:60]
        return home() / f"sweep-{label}-{identity[:10]}"

    @classmethod
    def open(cls, folder: str | Path) -> SweepFolder:
        """Return the sweep in a folder, or of this name in the folder of all runs.

        Raises:
            NotFoundError: `no_such_sweep`.
        """
        for path in (Path(folder), home() / str(folder)):
            if (path / PLAN).is_file():
                return cls(path.absolute())
        raise NotFoundError(
            "no_such_sweep",
            f"There is no sweep in {folder}. Start it by `ftlab sweep PLAN.yaml`.",
        )

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What `plan.json` holds.

        Raises:
            UsageError: `damaged_plan`.
        """
        plan = _read(self.path / PLAN)
        if plan is None:
            raise UsageError(
                "damaged_plan", f"{self.path / PLAN} is damaged. Start the sweep again."
            )
        return plan

    @property
    def name(self) -> str:
        """The plan's name."""
        return self.plan["name"]

    @property
    def directory(self) -> Path:
        """From which relative names in the arguments start."""
        return Path(self.plan["directory"])

    @property
    def needs(self) -> Needs:
        """What each job takes of a machine."""
        return Needs(**self.plan["needs"])

    @cached_property
    def jobs(self) -> list[SweepJob]:
        """Every job, in the order of the plan."""
        found = []
        for number, entry in enumerate(self.plan["jobs"]):
            job = dict(entry)
            folder = self.path / "jobs" / f"{number:03d}-{job.pop('key')}"
            found.append(SweepJob(folder, number, self.plan["retries"], **job))
        return found

    def in_state(self, *states: str) -> Iterator[SweepJob]:
        """Yield the jobs in one of these states; who is silent is lost."""
        for job in self.jobs:
            if job.refreshed().name in states:
                yield job


@cache
def machine() -> str:
    """Return what tells apart the machines, and containers, whose process ids may be the same."""
    parts = [platform.node()]
    with contextlib.suppress(OSError):
        parts.append(BOOT.read_text().strip())
        parts.append(str(NAMESPACE.stat().st_ino))
    return " ".join(parts)


def _this_process() -> dict[str, Any]:
    return {
        "host": platform.node(),
        "process": os.getpid(),
        "machine": machine(),
        "by": uuid.uuid4().hex,
    }


def _is_alive(process: int) -> bool:
    import psutil

    try:
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _key(job: dict[str, Any]) -> str:
    """Return the hash of what a job does."""
    return digest([job["cell"] or job["notebook"], job["arguments"], job["files"]])


def _read(path: Path) -> dict[str, Any] | None:
    """Return the object in a file; None where there is none, or not the whole of it yet."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
