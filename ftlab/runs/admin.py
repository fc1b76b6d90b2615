"""List, show, verify and clean the runs that are there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab._core.files import digest
from ftlab.runs.store import RECORD, Run, find, home

if TYPE_CHECKING:
    import pandas as pd


def list_runs(folder: Path | None = None) -> pd.DataFrame:
    """List the runs of a folder: name, kind, state, started, mb.

    Args:
        folder: The folder; by default that of all runs.
    """
    import pandas as pd

    paths = sorted(Path(folder or home()).glob("*/provenance.json"))
    rows = [_summary(Run(path.parent)) for path in paths]
    return pd.DataFrame(rows, columns=["name", "kind", "state", "started", "mb"])


def _summary(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {"name": run.name, "kind": run.name.partition("-")[0]}
    row["state"] = run.state
    with contextlib.suppress(OSError, ValueError):  # a damaged run is listed with the others
        row["started"] = run.provenance.get("started")
        row["kind"] = run.kind
    with contextlib.suppress(OSError):  # another process is working there
        row["mb"] = _size(run.path) / 1e6
    return row


def show_run(name: str | Path) -> dict[str, Any]:
    """Return what a run records about itself: folder, state, config, provenance, stats, files."""
    run = find(name)
    shown: dict[str, Any] = {"folder": str(run.path), "state": run.state}
    for part in ("config", "provenance", "stats", "complete"):
        if (run.path / f"{part}.json").exists():
            shown[part] = run.part(f"{part}.json")
    return shown


def verify_runs(*names: str | Path) -> pd.DataFrame:
    """Read every byte of finished runs and list what is wrong: run, file, problem.

    Args:
        *names: Runs; by default all finished ones.
    """
    import pandas as pd

    chosen = [find(name) for name in names]
    if not chosen:
        chosen = [Run(path.parent) for path in sorted(home().glob(f"*/{RECORD}"))]
    rows = []
    for run in chosen:
        rows += [(run.name, file, problem) for file, problem in run.problems(deep=True).items()]
    return pd.DataFrame(rows, columns=["run", "file", "problem"])


def clean_runs(yes: bool = False) -> pd.DataFrame:
    """Remove abandoned runs, temporary files and leftover checkpoints.

    Runs that were finished once stay, and so do their members and folders that are no runs.

    Args:
        yes: Remove them; otherwise only list them.

    Returns:
        What was, or would be, removed: name, what, mb.
    """
    import pandas as pd

    rows = []
    for run, path in _removable(yes):
        what = "unfinished" if path == run.path else path.name
        rows.append((run.name, what, _size(path) / 1e6))
        if yes and path.is_dir():
            shutil.rmtree(path)
        elif yes:
            path.unlink()
    return pd.DataFrame(rows, columns=["name", "what", "mb"])


def _removable(lock: bool) -> Iterator[tuple[Run, Path]]:
    """Yield what could go, each run locked meanwhile where `lock` is true."""
    from filelock import FileLock, Timeout

    every = [Run(path) for path in sorted(home().glob("*")) if _is_run(path)]
    completed = [run for run in every if (run.path / RECORD).exists()]
    needed = {name for run in completed for name in run.identity.get("members", ())}
    for run in every:
        if run.holder():
            continue
        held = FileLock(run.path / ".lock", timeout=0) if lock else contextlib.nullcontext()
        with contextlib.suppress(Timeout), held:
            abandoned = run not in completed and run.name not in needed
            paths = [run.path] if abandoned else _leftovers(run)
            for path in paths:
                yield run, path


def _is_run(path: Path) -> bool:
    """Return whether `start` made the folder: its name ends in the hash of its identity."""
    try:
        suffix = f"-{digest(Run(path).identity)[:10]}"
    except (OSError, ValueError):
        return False
    return path.name.endswith(suffix) and not path.is_symlink()


def _leftovers(run: Run) -> list[Path]:
    """Return temporary files, and checkpoints that a finished run does not record."""
    found = list(run.path.rglob(".*.tmp"))
    record = run.path / RECORD
    if run.finished and '"checkpoints/' not in record.read_text(encoding="utf-8"):
        found += run.path.glob("checkpoints")
    return found


def _size(path: Path) -> int:
    files = [p for p in (path, *path.rglob("*")) if p.is_file()]
    return sum(file.stat().st_size for file in files)
