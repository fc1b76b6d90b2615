"""The runs that are there: show one, check every byte, clear away what nobody will finish. `runs.list_runs` lists them."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from ftlab.runs.store import Run
from ftlab.runs.store import digest
from ftlab.runs.store import found
from ftlab.runs.store import home


def show_run(name: str | Path) -> dict:
    """-> what a run says of itself: folder, state, config (identity), provenance (lineage), stats, complete (files)."""
    run = found(name)
    parts = [p for p in ("config", "provenance", "stats", "complete") if (run.path / f"{p}.json").exists()]
    return {"folder": str(run.path), "state": run.state} | {p: run.part(f"{p}.json") for p in parts}


def verify_runs(*names: str | Path):
    """-> DataFrame of run, file, problem (missing, changed, extra) after reading every byte; without names, of all finished."""
    import pandas as pd

    every = [found(n) for n in names] or [Run(p.parent) for p in sorted(home().glob("*/complete.json"))]
    rows = [(run.name, *problem) for run in every for problem in run.problems(anew=True).items()]
    return pd.DataFrame(rows, columns=["run", "file", "problem"])


def clean_runs(yes: bool = False):
    """-> DataFrame (name, what, mb) of what nobody will finish; with `yes` it was removed.

    Runs never finished that no process has in hand, temporary files of killed writers, checkpoints of finished runs. What
    was finished once stays, so do members of such a run, and folders that are no runs.
    """
    import pandas as pd
    from filelock import FileLock, Timeout

    runs = [Run(p) for p in sorted(home().glob("*")) if _is_run(p)]
    kept = {m for r in runs if (r.path / "complete.json").exists() for m in r.identity.get("members", ())}
    rows = []
    for run in (r for r in runs if not r.holder()):
        with contextlib.suppress(Timeout), FileLock(run.path / ".lock", timeout=0) if yes else contextlib.nullcontext():
            begun = not (run.path / "complete.json").exists() and run.name not in kept
            for path in [run.path] if begun else _leftovers(run):
                size = sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())
                rows.append((run.name, "unfinished" if begun else path.name, size / 1e6))
                if yes:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
    return pd.DataFrame(rows, columns=["name", "what", "mb"])


def _is_run(path: Path) -> bool:
    """Whether a folder was made by `runs.start`: its name ends in the hash of its identity."""
    try:
        return not path.is_symlink() and path.name.endswith(f"-{digest(Run(path).identity)[:10]}")
    except (OSError, ValueError):
        return False


def _leftovers(run: Run) -> list[Path]:
    useless = run.finished and '"checkpoints/' not in (run.path / "complete.json").read_text(encoding="utf-8")
    return [*run.path.rglob(".*.tmp"), *(run.path.glob("checkpoints") if useless else ())]
