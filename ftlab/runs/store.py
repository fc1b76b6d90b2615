"""The run folder: identity, lock, append, complete, load.

`runs/<kind>-<label>-<hash>/` holds `config.json` (written first), `provenance.json`, append-only
JSONL files (`train.jsonl`, `answers.jsonl`, `verdicts.jsonl`), `model/` where one was trained, and
`complete.json` (written last, atomically). A run is finished when `complete.json` exists and the
hashes in it hold, never before. The hash in the name covers everything that can change the
result: the same identity is the same folder, and finished work is found again.
"""

from __future__ import annotations

import contextlib
import html
import json
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from platformdirs import user_data_path

from ftlab._core.errors import Busy, NotFoundError, UsageError
from ftlab._core.files import (
    PACKAGE,
    FolderLock,
    digest,
    file_hash,
    json_lines,
    resource,
    stamp,
    storage,
    write_atomic,
)
from ftlab._core.identity import refuse_other
from ftlab._core.text import safe
from ftlab.runs import records, tables
from ftlab.runs.origin import now, provenance, versions

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 3  # layout of the run folder; part of every identity
# Larger files are hashed once; then only after a change of inode, size or times, or by `verify`.
REMEMBERED_BYTES = 64 * 2**20
HASHES = ".hashes.json"  # in a run: {file: [SHA-256, inode, size, times]}
RECORD = "complete.json"
DAMAGED = ".damaged"  # folder of a run for files that were changed
START_FILES = ("config.json", "provenance.json")  # of `start`, which also repairs them


def home() -> Path:
    """Return the folder of all runs.

    It is `FTLAB_RUNS`; otherwise `runs` in the checkout, in the nearest folder above the working
    directory whose `runs` holds some, or in the user's data folder.
    """
    given = os.environ.get("FTLAB_RUNS")
    if given:
        return Path(given).absolute()
    here = Path.cwd()
    above = resource("data").parent
    checkout = None if above == PACKAGE else above
    if checkout and here.is_relative_to(checkout):
        return checkout / "runs"
    for folder in (here, *here.parents):
        if any(folder.glob("runs/*/provenance.json")):
            return folder / "runs"
    return (checkout or user_data_path("ftlab", appauthor=False)) / "runs"


def _place(name: str) -> Path:
    """Return where a run of this name is, or would be.

    Runs of older versions are in `runs` of the working directory.
    """
    place = home() / name
    older = Path("runs").absolute() / name
    if not place.exists() and (older / "config.json").is_file():
        return older
    return place


@dataclass(frozen=True)
class Run:
    """A run folder. A run that trained a model is also a model: give it to any cell."""

    path: Path

    def __post_init__(self):
        object.__setattr__(self, "path", Path(self.path).absolute())

    @property
    def name(self) -> str:
        """The folder's name, unique among all runs."""
        return self.path.name

    @property
    def given_as(self) -> str:
        """What `load` and `model` take for it."""
        return self.name

    def part(self, name: str) -> dict[str, Any]:
        """Return the object in one of the run's JSON files.

        Raises:
            NotFoundError: `no_such_run_file`.
            UsageError: `damaged_run_file`.
        """
        path = self.path / name
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise NotFoundError("no_such_run_file", f"{path} does not exist.") from None
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UsageError(
                "damaged_run_file",
                f"{path} is damaged: it holds no JSON object. Call the run's cell again, which "
                f"keeps that file in {DAMAGED} and writes it anew.",
            )
        return found

    @property
    def config(self) -> dict[str, Any]:
        """What `config.json` holds: the identity and the label."""
        return self.part("config.json")

    @property
    def provenance(self) -> dict[str, Any]:
        """Versions, hardware, commit, and where model and data came from."""
        return self.part("provenance.json")

    @property
    def stats(self) -> dict[str, Any]:
        """The summary that was written when the run was completed."""
        return self.part("stats.json")

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that could change the result, with the run's kind and layout.

        Raises:
            UsageError: `not_a_run`.
        """
        identity = self.config.get("identity")
        whole = isinstance(identity, dict) and isinstance(identity.get("schema"), int)
        if not whole or "kind" not in identity:
            raise UsageError(
                "not_a_run",
                f"{self.path} is not a run, or damaged: its config.json has no kind and layout. "
                "`ftlab runs list` shows the runs; the cell of a damaged one repairs it.",
            )
        return identity

    @property
    def kind(self) -> str:
        """What made the run: sft, evaluate, curve, ..."""
        return self.identity["kind"]

    @property
    def members(self) -> list[Run]:
        """The runs that hold this run's rows: those of a curve, else the run itself."""
        names = self.identity.get("members")
        if names is None:
            return [self]
        beside = [self.path.parent / name for name in names]
        return [Run(path if path.exists() else _place(path.name)) for path in beside]

    @property
    def lineage(self) -> list[dict[str, Any]]:
        """The models that this run's model was made from, oldest first."""
        return self.provenance.get("lineage", [])

    @property
    def finished(self) -> bool:
        """Whether the record is there, every file in it is unchanged, and all members are too."""
        return not self.problems()

    def problems(self, deep: bool = False) -> dict[str, str]:
        """Return {file or member run: what is wrong}; {} for a finished run.

        Args:
            deep: Read every byte, and report files that the record does not have.
        """
        files = self._recorded_files()
        if files is None and (self.path / RECORD).exists():
            return {RECORD: "changed"}
        if files is None:
            return {RECORD: "missing"}
        found = {}
        if deep:
            extra = set(files_of(self.path)) - set(files)
            found = dict.fromkeys(sorted(extra), "extra")
        for name, (size, sha) in files.items():
            fault = self._fault(name, size, sha, deep)
            if fault:
                found[name] = fault
        for member in self._other_members():
            if not member.finished:
                found[member.name] = "member, not finished"
        return found

    def _recorded_files(self) -> dict[str, tuple[int, str]] | None:
        """Return {name: (bytes, SHA-256)} of the completion record; None if it is unusable."""
        try:
            files = self.part(RECORD)["files"]
            found = {}
            for name, entry in files.items():
                found[name] = (entry["bytes"], entry["sha256"])
            return found
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _fault(self, name: str, size: int, sha: str, deep: bool) -> str:
        """Return what is wrong with a recorded file, or ""."""
        path = self.path / name
        try:
            if path.stat().st_size != size:
                return "changed"
            if not deep and size > REMEMBERED_BYTES:
                return self._fault_of_large(path, name, sha)
            if file_hash(path, deep) != sha:
                return "changed"
        except (OSError, TypeError):
            return "missing"
        return ""

    def _fault_of_large(self, path: Path, name: str, sha: str) -> str:
        """Hash a large file, unless that was done since it last changed."""
        found: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            found = self.part(HASHES)
        now = list(stamp(path))
        if found.get(name) != [sha, *now]:
            if file_hash(path) != sha:
                return "changed"
            with contextlib.suppress(OSError):  # a folder of somebody else
                write_atomic(self.path / HASHES, json.dumps(found | {name: [sha, *now]}))
        return ""

    def _other_members(self) -> list[Run]:
        try:
            return [member for member in self.members if member != self]
        except (OSError, ValueError, TypeError):  # reported as a damaged file
            return []

    def take_up(self) -> None:
        """Prepare an unfinished run, which is locked, for being worked on.

        If a finished run fails verification, what changed is moved to `.damaged/`, recomputed and
        never used again; where its record is damaged, that is everything. Other versions of the
        libraries than those that it was begun with are reported and join the provenance.
        """
        wrong = self.problems()
        if wrong and (self.path / RECORD).exists():
            names = {*wrong, RECORD}
            if RECORD in wrong:  # nothing says which files are unchanged
                names |= set(files_of(self.path)) - {*START_FILES}
            print(
                f"{self.name} was finished, but now: {_listed(wrong)}. The changed files are kept "
                f"in {self.path / DAMAGED} and the run is recomputed.",
                file=sys.stderr,
            )
            for name in names:
                if (self.path / name).is_file():
                    self._keep_aside(name)
        self._note_versions()

    def _note_versions(self) -> None:
        """Report and record that the run goes on with other libraries than it was begun with."""
        notes = self.provenance
        before = notes.get("versions", {})
        for later in notes.get("resumed", []):
            before = before | later["versions"]
        current = versions()
        changed = {}
        for name, version in sorted(current.items()):
            if before.get(name, version) != version:
                changed[name] = version
        holds_work = any(self.path.glob("*.jsonl")) or (self.path / "checkpoints").exists()
        if changed and holds_work:
            shown = ", ".join(
                f"{name} {before[name]} -> {changed[name]}" for name in sorted(changed)
            )
            print(
                f"{self.name} was begun with other libraries ({shown}) and continues with these, "
                f"which its provenance records. Remove {self.path} to start again.",
                file=sys.stderr,
            )
        if changed:
            resumed = {"at": now(), "versions": changed}
            notes["resumed"] = [*notes.get("resumed", []), resumed]
            text = json.dumps(notes, indent=1)
            write_atomic(self.path / "provenance.json", text)

    def _keep_aside(self, name: str) -> None:
        path = self.path / name
        target = self.path / DAMAGED / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if name in START_FILES and self._readable(name):  # nothing else would write it again
            shutil.copy2(path, target)
        else:
            os.replace(path, target)

    def _readable(self, name: str) -> bool:
        try:
            self.part(name)
            return name != "config.json" or bool(self.identity)
        except UsageError:
            return False

    def _repair(self) -> None:
        """Move damaged files of `start` to `.damaged/`, so that it writes them again.

        A configuration has one content only, so that a finished run is then as it was. Without a
        record nobody can tell a changed one from another call's.
        """
        recorded = self._recorded_files() or {}
        for name in START_FILES:
            known = name == "config.json" and name in recorded
            changed = known and self._fault(name, *recorded[name], deep=False)
            if (self.path / name).is_file() and (changed or not self._readable(name)):
                self._keep_aside(name)
                (self.path / name).unlink(missing_ok=True)
                kept = self.path / DAMAGED / name
                print(
                    f"{self.name}: {name} was damaged and is written again. It is kept as {kept}.",
                    file=sys.stderr,
                )

    @property
    def state(self) -> str:
        """One of "finished", "unfinished", "running (process ...)", "damaged".

        The layout is added where it is not the present one.
        """
        try:
            schema = self.identity["schema"]
        except (OSError, ValueError):
            return "damaged"
        state = "finished" if self.finished else self._unfinished_state()
        if schema == SCHEMA:
            return state
        return f"{state}, layout {schema}"

    def _unfinished_state(self) -> str:
        holder = self.holder()
        if holder:
            return f"running ({holder})"
        if (self.path / RECORD).exists():
            return "damaged"
        return "unfinished"

    def holder(self) -> str:
        """Return who is working on this run: "process ...", or ""."""
        with contextlib.suppress(OSError):  # nobody holds what cannot be locked
            if FolderLock(self.path).is_taken():
                return self._owner()
        return ""

    def _owner(self) -> str:
        try:
            return (self.path / ".owner").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "another process"

    @contextlib.contextmanager
    def lock(self, wait: bool = True) -> Iterator[None]:
        """Hold the run: one writer at a time.

        A second process waits, reports that on stderr, and then finds the work done.

        Args:
            wait: Wait for the other process; otherwise raise.

        Raises:
            Busy: `run_busy`.
        """
        with self._acquired(wait):
            note = self.path / ".owner"
            if note.exists():  # its owner was killed, and the kernel has released the lock
                gone = self._owner()
                print(f"{self.name}: {gone} has ended; resuming its work.", file=sys.stderr)
            with contextlib.suppress(OSError):  # the note only informs others
                write_atomic(note, _this_process())
            try:
                yield
            finally:
                note.unlink(missing_ok=True)

    def _acquired(self, wait: bool):
        from filelock import Timeout

        lock = FolderLock(self.path)
        try:
            with storage(self.path, making=True):
                return lock.acquire(timeout=1 if wait else 0)
        except Timeout:
            busy = f"{self.name}: {self._owner()} is working on this run, in {self.path}"
        if not wait:
            raise Busy("run_busy", f"{busy}.")
        print(f"{busy}; waiting for it.", file=sys.stderr)
        return lock.acquire()

    def append(self, file: str, rows: list[dict]) -> None:
        """Add JSON lines to a file of the run and flush them.

        Raises:
            StorageFull: `storage_full`. Then none of them was added.
        """
        records.append(self.path / file, rows)

    def read(self, file: str) -> list[dict]:
        """Return the records of a JSONL file; damaged lines are reported and left out."""
        return list(self.each(file))

    def each(self, file: str) -> Iterator[dict]:
        """Yield the records of a JSONL file one by one, as `read` returns them."""
        return records.each(self.path / file)

    def broken(self, file: str) -> bool:
        """Return whether a line before the last is damaged.

        A kill damages the last line only, so what is lost may be older than a checkpoint.
        """
        damaged = False
        for record in records.parse(self.path / file):
            if damaged:
                return True
            damaged = record is None
        return False

    def forget(self, file: str, unwanted: Callable[[dict], bool]) -> None:
        """Rewrite a JSONL file without damaged lines and where `unwanted(record)` holds."""
        if (self.path / file).exists():
            kept = [row for row in self.read(file) if not unwanted(row)]
            write_atomic(self.path / file, json_lines(kept))

    def complete(self, **summary) -> Run:
        """Write `stats.json` and, last, the record with size and SHA-256 of every file."""
        write_atomic(self.path / "stats.json", json.dumps(summary, indent=1))
        record = {"finished": now(), "files": sums(self.path)}
        write_atomic(self.path / RECORD, json.dumps(record, indent=1))
        # Last, because a kill before the record is written would lose the training.
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        return self

    def table(self) -> pd.DataFrame:
        """Return the verdict table of the run and its members: one row per answer and judge."""
        import pandas as pd

        parts = []
        for member in self.members:
            schema = member.identity["schema"]
            parts.append(tables.read(member.path, schema))
        return pd.concat(parts, ignore_index=True)

    def log(self) -> pd.DataFrame:
        """Return the training log: step, loss, learning rate and what else was logged."""
        import pandas as pd

        rows = self.read("train.jsonl")
        return pd.DataFrame(rows)

    def _repr_html_(self) -> str:
        state = self.state
        if state == "unfinished":
            state += ": call the cell again to resume"
        shown: dict[str, Any] = {"state": state, "folder": _shown(self.path)}
        if self.lineage:
            ancestors = [ancestor["name"] for ancestor in self.lineage]
            shown["lineage"] = " → ".join([*ancestors, self.name])
        if (self.path / "stats.json").exists():
            for name, value in self.stats.items():
                if not isinstance(value, (dict, list)):
                    shown[name] = value
        rows = ""
        for name, value in shown.items():
            rows += f"<tr><td>{_cell(name)}</td><td>{_cell(value)}</td></tr>"
        return f"<b>{_cell(self.name)}</b><table>{rows}</table>"


def _shown(folder: Path) -> str:
    """Return a folder relative to the working directory where that is shorter."""
    with contextlib.suppress(ValueError):  # another drive of Windows
        return min(str(folder), os.path.relpath(folder), key=len)
    return str(folder)


def _this_process() -> str:
    program = Path(sys.argv[0]).name
    command = " ".join([program, *sys.argv[1:2]])
    return f"process {os.getpid()} on {platform.node()} ({command}) since {now()}"


def _listed(problems: dict[str, str]) -> str:
    """Return the first problems of a run in one line."""
    return ", ".join(f"{name} {problem}" for name, problem in sorted(problems.items())[:6])


def _cell(value: object) -> str:
    return html.escape(safe(value))


def start(
    kind: str, label: str, identity: dict[str, Any], *, any_label: bool = False, **notes
) -> Run:
    """Return the run of an identity; make its folder and `config.json` if it is new.

    Args:
        kind: What makes the run: sft, evaluate, curve, ...
        label: A readable part of the folder's name.
        identity: Everything that can change the result, JSON-able.
        any_label: Take the run of this identity whatever its label, such as that of an older
            version.
        **notes: Joins the provenance, such as where the model came from.

    Raises:
        UsageError: `folder_not_writable`; `other_training` if another call's `config.json` is
            there.
        StorageFull: `storage_full`.
    """
    run = planned(kind, label, identity, any_label=any_label)
    path = run.path
    identity = _whole(kind, identity)
    label = _readable(label)
    with storage(path, making=True):
        path.mkdir(parents=True, exist_ok=True)
        run._repair()
        if not (path / "config.json").exists():
            config = {"identity": identity, "label": label}
            text = json.dumps(config, indent=1, ensure_ascii=False)
            write_atomic(path / "config.json", text)
        if not (path / "provenance.json").exists():
            # Takes a while, and another process may finish the run meanwhile.
            text = json.dumps({**provenance(), **notes}, indent=1)
            write_atomic(path / "provenance.json", text, new=True)
    refuse_other(f"{path}, by its config.json,", run.identity, identity)
    return run


def planned(
    kind: str,
    label: str,
    identity: dict[str, Any],
    *,
    any_label: bool = False,
) -> Run:
    """Return the run of an identity as `start` does, and write nothing: it need not be there."""
    whole = _whole(kind, identity)
    sha = digest(whole)[:10]
    readable = _readable(label)
    path = _place(f"{kind}-{readable}-{sha}")
    if any_label and not path.exists():
        others = home().glob(f"{kind}-*-{sha}")
        path = next(others, path)
    return Run(path)


def _whole(kind: str, identity: dict[str, Any]) -> dict[str, Any]:
    return {"kind": kind, "schema": SCHEMA, **identity}


def _readable(label: str) -> str:
    words = re.sub(r"[^\w.+-]+", "-", label, flags=re.ASCII)
    return words.strip("-")[:60]


def files_of(folder: Path) -> dict[str, Path]:
    """Return {name: path} of the files that a run's record lists.

    Hidden files, checkpoints and the record itself are left out.
    """
    found = {}
    for path in sorted(folder.rglob("[!.]*")):
        name = path.relative_to(folder).as_posix()
        left_out = name == RECORD or name.startswith(("checkpoints/", f"{DAMAGED}/"))
        if path.is_file() and not left_out:
            found[name] = path
    return found


def sums(folder: Path) -> dict[str, dict[str, Any]]:
    """Return size and SHA-256 of every file that a run's record lists."""
    found = {}
    for name, path in files_of(folder).items():
        size = path.stat().st_size
        found[name] = {"bytes": size, "sha256": file_hash(path)}
    return found


def find(name: str | Path) -> Run:
    """Return a run by folder, or by its name under `home()`, in whatever state.

    Raises:
        NotFoundError: `no_such_run`.
        UsageError: `not_a_run`.
    """
    if not isinstance(name, (str, Path)):
        raise UsageError("not_a_run", f"{name!r:.80} is no run. Pass a run's name or folder.")
    path = Path(name).absolute() if Path(name).is_dir() else _place(str(name))
    if not any((path / file).exists() for file in (*START_FILES, RECORD)):
        some = sorted(home().glob("*/provenance.json"))[:8]
        known = ", ".join(path.parent.name for path in some) or "none"
        raise NotFoundError("no_such_run", f"No run {str(name)!r}. Runs in {home()}: {known}.")
    return Run(path)


def load(name: str | Path) -> Run:
    """Open a finished run by folder, or by its name under the folder of all runs.

    Runs of older layouts open too; their tables are converted.

    Args:
        name: A folder or a name.

    Raises:
        NotFoundError: `no_such_run`.
        UsageError: `newer_layout`, `run_not_finished`, `not_a_run`.
    """
    run = find(name)
    schema = run.identity["schema"]
    wrong = run.problems()
    if schema > SCHEMA and "config.json" not in wrong:
        raise UsageError(
            "newer_layout",
            f"{run.path} has layout {schema}; this ftlab reads up to {SCHEMA}. Upgrade ftlab.",
        )
    if wrong:
        state = "not finished"
        fix = "to resume"
        if (run.path / RECORD).exists():
            state = "damaged"
            fix = f"to mend it; what changed is kept in {DAMAGED}"
        raise UsageError(
            "run_not_finished",
            f"{run.path} is {state} ({_listed(wrong)}). Call its cell again {fix}.",
            problems=wrong,
        )
    return run
