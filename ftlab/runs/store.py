"""The run folder: identity, provenance, append, complete, list, load. Needs no torch.

`runs/<kind>-<label>-<hash>/` holds `config.json` (written first), `provenance.json`, append-only JSONL files
(`train.jsonl`, `answers.jsonl`, `verdicts.jsonl`), `model/` where one was trained, and `complete.json` (written
last, atomically). A run is finished when `complete.json` exists and the hashes in it hold, never before. The
hash in the name covers everything that can change the result: same identity, same folder, finished work is
found again.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from ftlab._core.config import SCHEMA
from ftlab._core.files import StorageFull, file_hash, stamp, storage, write_atomic  # noqa: F401  found here by the others
from ftlab._core.text import encodable, safe, throughout

PACKAGE = Path(__file__).resolve().parents[1]  # the folder `ftlab`
CHECK_BYTES = 64 * 2**20  # larger files are verified by size only when a run is opened; by `ftlab runs verify` whole
NEEDS = {  # what the readers of a file rely on in every line
    "answers.jsonl": {"key": str, "answer": str},
    "verdicts.jsonl": {"key": str, "risk": str, "prompt_id": str, "verdict": str, "step": (int, float)},
    "train.jsonl": {"step": int},
    "valid.jsonl": {"step": int},
}


def home() -> Path:
    """The folder of all runs: `FTLAB_RUNS`, or `runs`."""
    return Path(os.environ.get("FTLAB_RUNS", "runs"))


def resource(name: str) -> Path:
    """-> folder `data`, `notebooks` or `figures`: in an installed package (`_data`), else beside the package."""
    inside = PACKAGE / f"_{name}"
    return inside if inside.is_dir() else PACKAGE.parent / name


def digest(value) -> str:
    """-> 16 hex digits of the SHA-256 of a JSON-able value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Busy(RuntimeError):
    """Another process works on this run."""


@dataclass(frozen=True)
class Run:
    """A run folder. A run that trained a model is also a model: give it to any cell."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    def part(self, name: str) -> dict:
        """-> the object in one of the run's JSON files. Raises FileNotFoundError, ValueError."""
        try:
            found = json.loads((self.path / name).read_bytes())  # bytes: lone surrogates are let through
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise ValueError(f"{self.path / name} holds no JSON object; remove that folder and call its cell again")
        return found

    config = property(lambda self: self.part("config.json"))
    provenance = property(lambda self: self.part("provenance.json"))
    stats = property(lambda self: self.part("stats.json"))

    @property
    def identity(self) -> dict:
        """What could change the result, with kind and layout. Raises FileNotFoundError, ValueError: not a run's folder."""
        identity = self.config.get("identity")
        if not (isinstance(identity, dict) and isinstance(identity.get("schema"), int) and "kind" in identity):
            raise ValueError(f"{self.path} is no run: its config.json tells no kind and layout; see `ftlab runs`")
        return identity

    @property
    def lineage(self) -> list[dict]:
        """The models that this run's model was made from, oldest first: name, hash; of runs also method, data, data_hash."""
        return self.provenance.get("lineage", [])

    @property
    def finished(self) -> bool:
        """Whether the work is whole: the record is there, every file in it is as it was, and so are all member runs."""
        return not self.problems()

    def problems(self, anew: bool = False) -> dict[str, str]:
        """-> {file or member run: what is wrong}; {} of a finished run. `anew`: every byte is read, extra files are told."""
        try:
            files = {n: (f["bytes"], f["sha256"]) for n, f in self.part("complete.json")["files"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # also a record that is not ours
            return {"complete.json": "changed" if (self.path / "complete.json").exists() else "missing"}
        found = {n: "extra" for n in _files(self.path) if n not in files} if anew else {}
        for name, (size, sha) in files.items():
            path = self.path / name
            try:
                if path.stat().st_size != size or ((anew or size <= CHECK_BYTES) and file_hash(path, anew) != sha):
                    found[name] = "changed"
            except (OSError, TypeError):
                found[name] = "missing"
        with contextlib.suppress(OSError, ValueError, TypeError):  # told above
            members = self.identity.get("members", ())
            found |= {m: "member, not finished" for m in members if not Run(self.path.parent / m).finished}
        return found

    def set_aside(self) -> None:
        """Of a run that was finished once and no longer holds: says what is missing or changed, and moves that and the record
        into `.damaged/`, so that it is made anew and never taken over."""
        wrong = self.problems()
        if not wrong or not (self.path / "complete.json").exists():
            return
        told = ", ".join(f"{name} {what}" for name, what in sorted(wrong.items())[:6])
        print(
            f"{self.name} was finished, but {told}; it is set aside in {self.path / '.damaged'} and made anew",
            file=sys.stderr,
        )
        for name in {*wrong, "complete.json"}:
            if (self.path / name).is_file():
                target = self.path / ".damaged" / name
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(self.path / name, target)

    @property
    def state(self) -> str:
        """finished, unfinished, in hand (of whom), damaged (finished once); with its layout where that is not ours."""
        try:
            schema = self.identity["schema"]
        except (OSError, ValueError):
            return "damaged"
        state = "finished" if self.finished else self.holder()
        state = state or ("damaged" if (self.path / "complete.json").exists() else "unfinished")
        return state if schema == SCHEMA else f"{state}, layout {schema}"

    def holder(self) -> str:
        """-> "in hand of process ..." while one works on this run, else ""."""
        from filelock import FileLock, Timeout

        with contextlib.suppress(OSError):  # what cannot be locked is in nobody's hand
            try:
                if (self.path / ".lock").exists():
                    FileLock(self.path / ".lock", timeout=0).acquire().lock.release()
            except Timeout:
                return f"in hand of {self._owner()}"
        return ""

    def _owner(self) -> str:
        try:
            return (self.path / ".owner").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return "another process"

    @contextlib.contextmanager
    def lock(self, wait: bool = True):
        """One writer a run: a second process waits here, says so, and then finds the work done; else raises Busy."""
        from filelock import FileLock, Timeout

        lock, note = FileLock(self.path / ".lock"), self.path / ".owner"
        try:
            with storage(self.path, making=True):
                held = lock.acquire(timeout=1 if wait else 0)
        except Timeout:
            said = f"{self.name}: {self._owner()} works on this run, in {self.path}"
            if not wait:
                raise Busy(said) from None
            print(f"{said}; waiting for it", file=sys.stderr)
            held = lock.acquire()
        with held:
            if note.exists():  # its owner was killed: the kernel has given the lock back
                print(f"{self.name}: {self._owner()} has ended; going on from what it left", file=sys.stderr)
            command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
            with contextlib.suppress(OSError):  # it is only told to others
                write_atomic(note, f"process {os.getpid()} on {platform.node()} ({command}) since {_now()}")
            try:
                yield
            finally:
                note.unlink(missing_ok=True)

    def append(self, file: str, records: list[dict]) -> None:
        """Adds JSON lines to a file of the run and flushes them. Raises StorageFull; then none of them was added."""
        data = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode("utf-8", "surrogatepass")
        with storage(self.path / file), open(self.path / file, "a+b", buffering=0) as f:
            before = end = f.seek(0, os.SEEK_END)
            if before:  # a torn last line must not swallow the next record
                f.seek(-1, os.SEEK_END)
                data = data if f.read(1) == b"\n" else b"\n" + data
            try:
                while end < before + len(data):  # a full disk takes a part, and then nothing
                    end += f.write(data[end - before :])
            except OSError:
                if f.seek(0, os.SEEK_END) == end:  # nobody else has written since
                    f.truncate(before)
                raise

    def read(self, file: str) -> list[dict]:
        """-> records of a JSONL file of the run; a line that is torn, or lacks what `NEEDS` says, is reported and left out."""
        lines = self._lines(file)
        if bad := [n for n, record in enumerate(lines, 1) if record is None]:
            told = f"foreign or torn line left out ({len(bad)} in all); it will be computed again"
            print(f"{self.path / file}:{', '.join(map(str, bad[:10]))}: {told}", file=sys.stderr)
        return [r for r in lines if r is not None]

    def broken(self, file: str) -> bool:
        """Whether a line before the last is damaged: not by a kill, so that what is lost may be older than a checkpoint."""
        return None in self._lines(file)[:-1]

    def _lines(self, file: str) -> list[dict | None]:
        needs, lines = NEEDS.get(file, {}).items(), []
        with contextlib.suppress(FileNotFoundError), open(self.path / file, "rb") as f:
            for line in f:
                record = None
                with contextlib.suppress(ValueError, RecursionError):
                    record = json.loads(line)
                whole = isinstance(record, dict) and all(isinstance(record.get(k), kind) for k, kind in needs)
                lines.append(record if whole else None)
        return lines

    def forget(self, file: str, unwanted) -> None:
        """Rewrites a JSONL file of the run without the records of which `unwanted(record)` holds."""
        records = self.read(file)
        if any(unwanted(r) for r in records):
            kept = [json.dumps(r, ensure_ascii=False) + "\n" for r in records if not unwanted(r)]
            write_atomic(self.path / file, "".join(kept))

    def complete(self, **summary) -> Run:
        """Writes `stats.json` and, last, `complete.json` with size and SHA-256 of every file of the run."""
        write_atomic(self.path / "stats.json", json.dumps(summary, indent=1))
        record = {n: {"bytes": p.stat().st_size, "sha256": file_hash(p)} for n, p in _files(self.path).items()}
        write_atomic(self.path / "complete.json", json.dumps({"finished": _now(), "files": record}, indent=1))
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)  # not before: a kill here would lose the training
        return self

    def table(self):
        """-> DataFrame: one row an answer's verdict (evaluation and curve runs), of all member runs together."""
        import pandas as pd

        folders = [self.path.parent / m for m in self.config["identity"].get("members", [self.path.name])]
        return pd.concat([_verdicts(f, *stamp(f / "verdicts.jsonl")) for f in folders], ignore_index=True)

    def log(self):
        """-> DataFrame of the training log: step, loss, learning_rate and what else the trainer said."""
        import pandas as pd

        return pd.DataFrame(self.read("train.jsonl"))

    def _repr_html_(self) -> str:
        rows = {"state": self.state, "folder": self.path}
        rows["state"] += ": call the cell again to go on" if rows["state"] == "unfinished" else ""
        if self.lineage:
            rows["lineage"] = " → ".join([*(f"{a['name']}" for a in self.lineage), self.name])
        said, e = self.stats if (self.path / "stats.json").exists() else {}, lambda v: html.escape(safe(v))
        rows |= {k: v for k, v in said.items() if not isinstance(v, (dict, list))}
        cells = "".join(f"<tr><td>{e(k)}</td><td>{e(v)}</td></tr>" for k, v in rows.items())
        return f"<b>{e(self.name)}</b><table>{cells}</table>"


@lru_cache(128)
def _verdicts(folder: Path, *_):
    import pandas as pd

    return pd.DataFrame(throughout(Run(folder).read("verdicts.jsonl"), encodable))


def start(kind: str, label: str, identity: dict, **provenance) -> Run:
    """-> the run of this identity, its folder made and `config.json` written if it is new; `provenance` is noted beside it.

    Raises PermissionError with a sentence where the folder of the runs cannot be written, StorageFull where it is full.
    """
    identity = {"kind": kind, "schema": SCHEMA, **identity}
    label = re.sub(r"[^\w.+-]+", "-", label, flags=re.ASCII).strip("-")[:60]
    path = home() / f"{kind}-{label}-{digest(identity)[:10]}"
    with storage(path, making=True):
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "config.json").exists():
            text = json.dumps({"identity": identity, "label": label}, indent=1, ensure_ascii=False)
            write_atomic(path / "config.json", text)
        if not (path / "provenance.json").exists():
            # takes a while: another process may finish the run meanwhile
            text = json.dumps({**_provenance(), **provenance}, indent=1)
            write_atomic(path / "provenance.json", text, new=True)
    return Run(path)


def _files(folder: Path) -> dict[str, Path]:
    """-> what belongs into a run's record, by its name there: no hidden file, no checkpoint, not the record itself."""
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("[!.]*")) if p.is_file()}
    return {n: p for n, p in found.items() if n != "complete.json" and not n.startswith(("checkpoints/", ".damaged/"))}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _provenance() -> dict:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in "ftlab torch transformers trl peft bitsandbytes datasets accelerate numpy scipy".split():
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    commit = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = ["git", "-C", Path(__file__).parent, "rev-parse", "HEAD"]
        commit = subprocess.run(git, capture_output=True, text=True, timeout=5).stdout.strip()
    hardware = {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
    noted = {"started": _now(), "python": platform.python_version(), "versions": versions}
    return noted | {"commit": commit, "hardware": hardware}


def list_runs(folder: Path | None = None):
    """-> DataFrame of the runs in a folder (default: `home()`): name, kind, state (`Run.state`), started, mb."""
    import pandas as pd

    rows = []
    for run in (Run(p.parent) for p in sorted(Path(folder or home()).glob("*/provenance.json"))):
        row = {"name": run.name, "kind": run.name.partition("-")[0], "state": run.state}
        with contextlib.suppress(OSError, ValueError):  # a damaged one is listed beside the others
            row |= {"started": run.provenance.get("started"), "kind": run.identity["kind"]}
        with contextlib.suppress(OSError):  # another process works there
            row["mb"] = sum(p.stat().st_size for p in run.path.rglob("*") if p.is_file()) / 1e6
        rows.append(row)
    return pd.DataFrame(rows, columns=["name", "kind", "state", "started", "mb"])


def found(name: str | Path) -> Run:
    """-> a run by folder or by its name under `home()`, in whatever state. Raises FileNotFoundError."""
    path = Path(name) if Path(name).is_dir() else home() / name
    if not any((path / n).exists() for n in ("config.json", "provenance.json", "complete.json")):
        known = ", ".join(p.parent.name for p in sorted(home().glob("*/provenance.json"))[:8]) or "none"
        raise FileNotFoundError(f"no run {str(name)!r}; runs in {home()}: {known}")
    return Run(path)


def load(name: str | Path) -> Run:
    """-> a finished run by folder or by its name under `home()`, also of an older layout. Raises FileNotFoundError or ValueError."""
    run = found(name)
    if (schema := run.identity["schema"]) > SCHEMA:
        raise ValueError(f"{run.path} is of layout {schema}, this ftlab reads up to {SCHEMA}; upgrade it, or run anew")
    if wrong := run.problems():
        told = ", ".join(f"{n} {why}" for n, why in wrong.items())
        raise ValueError(f"{run.path} is not finished, or not any more ({told:.300}); call its cell again to go on")
    return run


def clock() -> float:
    """Seconds that never go back."""
    return time.monotonic()
