"""List, show, verify and clean the runs that are there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab._core.errors import NotFoundError
from ftlab._core.files import digest
from ftlab.runs.store import RECORD, Run, find, home

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["name", "kind", "state", "started", "mb"]


def list_runs(folder: Path | None = None) -> pd.DataFrame:
    """List the runs of a folder.

    Args:
        folder: The folder; by default that of all runs.

    Returns:
        A table with the columns name, kind, state, started and mb (10^6 bytes).
    """
    import pandas as pd

    found = _runs_with("provenance.json", folder)
    rows = [_summary(run) for run in found]
    return pd.DataFrame(rows, columns=COLUMNS)


def _runs_with(file: str, folder: Path | None = None) -> list[Run]:
    """Return the runs of a folder that hold a file, by name."""
    where = Path(folder or home())
    paths = sorted(where.glob(f"*/{file}"))
    return [Run(path.parent) for path in paths]


def _summary(run: Run) -> dict[str, Any]:
    kind, _, _ = run.name.partition("-")
    row: dict[str, Any] = {
        "name": run.name,
        "kind": kind,
        "state": run.state,
    }
    with contextlib.suppress(OSError, ValueError):  # a damaged run is listed with the others
        row["started"] = run.provenance.get("started")
        row["kind"] = run.kind
    with contextlib.suppress(OSError):  # another process is working there
        row["mb"] = _megabytes(run.path)
    return row


def show_run(name: str | Path) -> dict[str, Any]:
    """Return what a run records about itself: folder, state, config, provenance, stats, files."""
    run = find(name)
    shown: dict[str, Any] = {"folder": str(run.path), "state": run.state}
    for part in ("config", "provenance", "stats", "complete"):
        with contextlib.suppress(NotFoundError):
            shown[part] = run.part(f"{part}.json")
    return shown


def verify_runs(*names: str | Path) -> pd.DataFrame:
    """Read every byte of finished runs and list what is wrong.

    Args:
        *names: Runs; by default all finished ones.

    Returns:
        A table with the columns run, file and problem: changed, missing or extra.
    """
    import pandas as pd

    chosen = [find(name) for name in names]
    if not chosen:
        chosen = _runs_with(RECORD)
    rows = []
    for run in chosen:
        problems = run.problems(deep=True)
        for file, problem in problems.items():
            row = (run.name, file, problem)
            rows.append(row)
    return pd.DataFrame(rows, columns=["run", "file", "problem"])


def clean_runs(yes: bool = False) -> pd.DataFrame:
    """Remove abandoned runs, temporary files and leftover checkpoints.

    Runs that were ever finished stay, and so do their members and folders that are not runs.

    Args:
        yes: Remove them; otherwise only list them.

    Returns:
        What was, or would be, removed: name, what, mb.
    """
    import pandas as pd

    rows = []
    for run, path in _removable(yes):
        what = "unfinished" if path == run.path else path.name
        size = _megabytes(path)
        rows.append((run.name, what, size))
        if yes and path.is_dir():
            shutil.rmtree(path)
        elif yes:
            path.unlink()
    return pd.DataFrame(rows, columns=["name", "what", "mb"])


def _removable(lock: bool) -> Iterator[tuple[Run, Path]]:
    """Yield what could go; if `lock` is true, its run is locked meanwhile."""
    from filelock import FileLock, Timeout

    folders = sorted(home().glob("*"))
    every = [Run(path) for path in folders if _is_run(path)]
    kept = set()
    for run in every:
        record = run.path / RECORD
        if record.exists():
            members = run.identity.get("members", ())
            kept.update([run.name, *members])
    for run in every:
        if run.holder():
            continue
        held = contextlib.nullcontext()
        if lock:
            held = FileLock(run.path / ".lock", timeout=0)
        with contextlib.suppress(Timeout), held:
            paths = [run.path]
            finished_meanwhile = (run.path / RECORD).exists()
            if run.name in kept or finished_meanwhile:
                paths = _leftovers(run)
            for path in paths:
                yield run, path


def _is_run(path: Path) -> bool:
    """Return whether `start` made the folder: its name ends in the hash of its identity."""
    if path.is_symlink():
        return False
    try:
        code = digest(Run(path).identity)
    except (OSError, ValueError):
        return False
    return path.name.endswith(f"-{code[:10]}")


def _leftovers(run: Run) -> list[Path]:
    """Return temporary files, and checkpoints that a finished run does not record."""
    found = list(run.path.rglob(".*.tmp"))
    if not run.finished:
        return found
    record = run.path / RECORD
    recorded = record.read_text(encoding="utf-8")
    if '"checkpoints/' not in recorded:
        found += run.path.glob("checkpoints")
    return found


def _megabytes(path: Path) -> float:
    size = 0
    parts = [path, *path.rglob("*")]
    for part in parts:
        if part.is_file():
            stat = part.stat()
            size += stat.st_size
    return size / 1e6
