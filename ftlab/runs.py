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

from ftlab.config import SCHEMA
from ftlab.shown import encodable, safe, throughout

CHECK_BYTES = 64 * 2**20  # larger files are verified by size only when a run is opened


def home() -> Path:
    """The folder of all runs: `FTLAB_RUNS`, or `runs`."""
    return Path(os.environ.get("FTLAB_RUNS", "runs"))


def resource(name: str) -> Path:
    """-> folder `data`, `notebooks` or `figures`: in an installed package (`_data`), else beside the package."""
    inside = Path(__file__).parent / f"_{name}"
    return inside if inside.is_dir() else Path(__file__).parent.parent / name


def digest(value) -> str:
    """-> 16 hex digits of the SHA-256 of a JSON-able value."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()[:16]


def file_hash(path: Path) -> str:
    """-> SHA-256 of a file's bytes, hex; remembered while the file's inode, size and times stay the same."""
    return _file_hash(str(path), *_stamp(Path(path)))


def _stamp(path: Path) -> tuple:
    """-> what changes when a file does; () where there is none."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


@lru_cache(4096)
def _file_hash(path: str, *_) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_atomic(path: Path, text: str, *, new: bool = False) -> None:
    """A temporary sibling, fsync, replace: the file is whole or not there. `new`: a file that is there is left alone."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", errors="surrogatepass") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        if not new:
            os.replace(temporary, path)
        elif not path.exists():
            try:
                os.link(temporary, path)
            except FileExistsError:
                pass
            except OSError:  # a file system without links
                os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class Busy(RuntimeError):
    """Another process works on this run."""


@dataclass(frozen=True)
class Run:
    """A run folder. A run that trained a model is also a model: give it to any cell."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> dict:
        return json.loads((self.path / "config.json").read_bytes())  # bytes: lone surrogates are let through

    @property
    def provenance(self) -> dict:
        return json.loads((self.path / "provenance.json").read_bytes())

    @property
    def lineage(self) -> list[dict]:
        """The models that this run's model was made from, oldest first: name, hash; of runs also method, data, data_hash."""
        return self.provenance.get("lineage", [])

    @property
    def finished(self) -> bool:
        """Whether the work is whole: the record is there, every file in it is as it was, and so are all member runs."""
        try:
            files = json.loads((self.path / "complete.json").read_bytes())["files"]
            if not all(Run(self.path.parent / m).finished for m in self.config["identity"].get("members", ())):
                return False
            return all((self.path / n).stat().st_size == f["bytes"] for n, f in files.items()) and all(
                f["bytes"] > CHECK_BYTES or file_hash(self.path / n) == f["sha256"] for n, f in files.items()
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # missing, torn, or not our record
            return False

    @contextlib.contextmanager
    def lock(self, wait: bool = True):
        """One writer a run: a second process waits here, says so, and then finds the work done; else raises Busy."""
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".lock")
        try:
            held = lock.acquire(timeout=1 if wait else 0)
        except Timeout:
            if not wait:
                raise Busy(f"{self.name}: another process works on this run") from None
            print(f"{self.name}: another process works on this run; waiting for it", file=sys.stderr)
            held = lock.acquire()
        with held:
            yield

    def append(self, file: str, records: list[dict]) -> None:
        """Adds JSON lines to a file of the run and flushes them."""
        with open(self.path / file, "a+b") as f:
            if f.tell():  # a torn last line must not swallow the next record
                f.seek(-1, os.SEEK_END)
                if f.read(1) != b"\n":
                    f.write(b"\n")
            f.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode("utf-8", "surrogatepass"))

    def read(self, file: str) -> list[dict]:
        """-> records of a JSONL file of the run; a torn or foreign line is reported and left out."""
        path, out = self.path / file, []
        if not path.exists():
            return out
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            if isinstance(record, dict):
                out.append(record)
            else:
                print(f"{path}:{number}: torn line left out; it will be computed again", file=sys.stderr)
        return out

    def forget(self, file: str, unwanted) -> None:
        """Rewrites a JSONL file of the run without the records of which `unwanted(record)` holds."""
        records = self.read(file)
        if any(unwanted(r) for r in records):
            kept = [json.dumps(r, ensure_ascii=False) + "\n" for r in records if not unwanted(r)]
            write_atomic(self.path / file, "".join(kept))

    def complete(self, **summary) -> Run:
        """Writes `stats.json` and, last, `complete.json` with size and SHA-256 of every file of the run."""
        shutil.rmtree(self.path / "checkpoints", ignore_errors=True)
        write_atomic(self.path / "stats.json", json.dumps(summary, indent=1))
        files = sorted(
            p for p in self.path.rglob("*") if p.is_file() and p.name != "complete.json" and not p.name.startswith(".")
        )
        record = {
            p.relative_to(self.path).as_posix(): {"bytes": p.stat().st_size, "sha256": file_hash(p)} for p in files
        }
        write_atomic(self.path / "complete.json", json.dumps({"finished": _now(), "files": record}, indent=1))
        return self

    @property
    def stats(self) -> dict:
        return json.loads((self.path / "stats.json").read_bytes())

    def table(self):
        """-> DataFrame: one row an answer's verdict (evaluation and curve runs), of all member runs together."""
        import pandas as pd

        folders = [self.path.parent / m for m in self.config["identity"].get("members", [self.path.name])]
        return pd.concat([_verdicts(f, *_stamp(f / "verdicts.jsonl")) for f in folders], ignore_index=True)

    def log(self):
        """-> DataFrame of the training log: step, loss, learning_rate and what else the trainer said."""
        import pandas as pd

        return pd.DataFrame(self.read("train.jsonl"))

    def _repr_html_(self) -> str:
        rows = {
            "state": "finished" if self.finished else "unfinished: call the cell again to go on",
            "folder": self.path,
        }
        if self.lineage:
            rows["lineage"] = " → ".join([*(f"{a['name']}" for a in self.lineage), self.name])
        rows |= {
            k: v
            for k, v in (self.stats if (self.path / "stats.json").exists() else {}).items()
            if not isinstance(v, (dict, list))
        }
        cells = "".join(
            f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(safe(v))}</td></tr>" for k, v in rows.items()
        )
        return f"<b>{html.escape(safe(self.name))}</b><table>{cells}</table>"


@lru_cache(128)
def _verdicts(folder: Path, *_):
    import pandas as pd

    return pd.DataFrame(throughout(Run(folder).read("verdicts.jsonl"), encodable))


def start(kind: str, label: str, identity: dict, **provenance) -> Run:
    """-> the run of this identity, its folder made and `config.json` written if it is new; `provenance` is noted beside it.

    Raises PermissionError with a sentence where the folder of the runs cannot be written.
    """
    identity = {"kind": kind, "schema": SCHEMA, **identity}
    label = re.sub(r"[^\w.+-]+", "-", label, flags=re.ASCII).strip("-")[:60]
    path = home() / f"{kind}-{label}-{digest(identity)[:10]}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "config.json").exists():
            write_atomic(
                path / "config.json", json.dumps({"identity": identity, "label": label}, indent=1, ensure_ascii=False)
            )
        if not (path / "provenance.json").exists():
            text = json.dumps(
                {**_provenance(), **provenance}, indent=1
            )  # takes a while: another process may finish the run meanwhile
            write_atomic(path / "provenance.json", text, new=True)
    except OSError as e:
        raise PermissionError(
            f"{home()}: runs cannot be written there ({e.strerror}); set FTLAB_RUNS to a folder that can"
        ) from e
    return Run(path)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _provenance() -> dict:
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in (
        "ftlab",
        "torch",
        "transformers",
        "trl",
        "peft",
        "bitsandbytes",
        "datasets",
        "accelerate",
        "numpy",
        "scipy",
    ):
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    commit = ""
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        root = Path(__file__).parent
        commit = subprocess.run(
            ["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        ).stdout.strip()
    hardware = {"machine": platform.machine(), "system": platform.system(), "cores": os.cpu_count()}
    return {
        "started": _now(),
        "python": platform.python_version(),
        "versions": versions,
        "commit": commit,
        "hardware": hardware,
    }


def list_runs(folder: Path | None = None):
    """-> DataFrame of the runs in a folder (default: `home()`): name, kind, finished, started."""
    import pandas as pd

    runs = [Run(p.parent) for p in sorted(Path(folder or home()).glob("*/provenance.json"))]
    rows = [
        {
            "name": r.name,
            "kind": r.config["identity"]["kind"],
            "finished": r.finished,
            "started": r.provenance["started"],
        }
        for r in runs
    ]
    return pd.DataFrame(rows, columns=["name", "kind", "finished", "started"])


def load(name: str | Path) -> Run:
    """-> a finished run by folder or by its name under `home()`. Raises FileNotFoundError or ValueError."""
    path = Path(name) if Path(name).is_dir() else home() / name
    if not (path / "config.json").exists():
        known = ", ".join(p.parent.name for p in sorted(home().glob("*/provenance.json"))[:8]) or "none"
        raise FileNotFoundError(f"no run {name!r}; runs in {home()}: {known}")
    run = Run(path)
    if not run.finished:
        raise ValueError(f"{path} is not finished (or a file of it was changed); call its cell again to go on")
    return run


def clock() -> float:
    """Seconds that never go back."""
    return time.monotonic()
