"""The runs that are there: show one, check every byte, clear away what nobody will finish. `runs.list_runs` lists them."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from ftlab.runs import Run, digest, found, home


def show_run(name: str | Path) -> dict:
    """-> what a run says of itself: folder, state, config, provenance (lineage), stats, complete (files).

    A file that is missing or damaged is its sentence. Raises FileNotFoundError.
    """
    run = found(name)
    said = {"folder": str(run.path), "state": run.state}
    for part in ("config", "provenance", "stats", "complete"):
        try:
            said[part] = run.part(f"{part}.json")
        except (OSError, ValueError) as e:
            said[part] = str(e)
    return said


def verify_runs(*names: str | Path):
    """-> DataFrame of run, file and problem (missing, changed, extra), empty where every byte of every file is as it was.

    Without names, of all runs that were finished. Raises FileNotFoundError.
    """
    import pandas as pd

    every = [found(n) for n in names] or [Run(p.parent) for p in sorted(home().glob("*/complete.json"))]
    rows = [(run.name, *problem) for run in every for problem in run.problems(anew=True).items()]
    return pd.DataFrame(rows, columns=["run", "file", "problem"])


def clean_runs(yes: bool = False):
    """-> DataFrame of what nobody will finish (name, what, mb); with `yes` it was removed.

    That is runs that were never finished and that no process has in hand, temporary files of writers that were killed,
    and torn checkpoints. What was ever finished stays, so do the members of such a run, and folders that are no runs.
    """
    import pandas as pd
    from filelock import FileLock, Timeout

    runs = [Run(p) for p in sorted(home().glob("*")) if _is_run(p)]
    begun = [r.name for r in runs if not (r.path / "complete.json").exists()]
    kept = {m for r in runs if r.name not in begun for m in r.identity.get("members", ())}
    rows = []
    for run in runs:
        whole = run.name in begun and run.name not in kept
        if run.holder() or not (going := [run.path] if whole else _leftovers(run)):
            continue
        with contextlib.suppress(Timeout), FileLock(run.path / ".lock", timeout=0) if yes else contextlib.nullcontext():
            for path in going:
                files = [p for p in (path, *path.rglob("*")) if p.is_file()]
                rows.append(
                    (run.name, "unfinished" if whole else path.name, sum(p.stat().st_size for p in files) / 1e6)
                )
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
    torn = [p for p in run.path.rglob("torn-*") if p.is_dir()]
    listed = [] if run.problems().get("complete.json") else run.part("complete.json")["files"]
    torn = [p for p in torn if not any((run.path / n).is_relative_to(p) for n in listed)]
    return torn + [p for p in run.path.rglob(".*.tmp") if not any(p.is_relative_to(t) for t in torn)]
