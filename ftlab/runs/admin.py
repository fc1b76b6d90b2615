"""List, tabulate, show, verify and clean the runs that are there."""

from __future__ import annotations

import contextlib
import math
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab._core.errors import NotFoundError
from ftlab._core.files import FolderLock, digest
from ftlab._core.identity import flat
from ftlab.runs.store import RECORD, SCHEMA, START_FILES, Run, find, home

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["name", "kind", "state", "started", "mb", "parent", "settings", "results"]
# What `list_runs` shows of the settings; `runs_table` has all of them.
LISTED = ("seed", "labels", "steps", "epochs", "at_steps", "learning_rate", "adapter", "n_prompts")
NO_RESULT = ("parent", "model", "data", "rows")  # of stats.json


def list_runs(folder: Path | None = None) -> pd.DataFrame:
    """List the runs of a folder.

    Args:
        folder: The folder; by default that of all runs.

    Returns:
        A table with the columns name, kind, state, started, mb (10^6 bytes), parent, settings (the
        main ones) and results (what the run reported at its end).
    """
    import pandas as pd

    rows = []
    for run in _runs_with("provenance.json", folder):
        row = _summary(run)
        with contextlib.suppress(OSError, ValueError):
            row["mb"] = _megabytes(run.path)  # fails where another process is working
        settings = _settings(run).items()
        row["settings"] = _line({k: v for k, v in settings if k.split(".")[0] in LISTED})
        row["results"] = _line(_results(run))
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def runs_table(folder: Path | None = None) -> pd.DataFrame:
    """Return settings and results of the finished runs of a folder.

    Args:
        folder: The folder; by default that of all runs.

    Returns:
        A table with a row per run: name, kind, state, started, parent, a column per setting, and
        `result.NAME` per result. `result.rate.RISK` is the share of answers with the event at the
        last step, according to the first judge, over all seeds.
    """
    import pandas as pd

    rows = []
    for run in _runs_with(RECORD, folder):
        results = _results(run) | _rates(run)
        row = _summary(run) | _settings(run)
        rows.append(row | {f"result.{name}": value for name, value in results.items()})
    return pd.DataFrame(rows)


def _settings(run: Run) -> dict[str, Any]:
    """Return the settings in a run's identity by name; {} for a damaged run."""
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError):
        identity = run.identity
        for part in ("training", "evaluation"):
            found |= identity.get(part, {})
        if "labels" in identity:
            found["labels"] = identity["labels"]
        if "data" in run.provenance:
            found["data"] = run.provenance["data"].get("name", "")
        found = flat(found)
    return {name: value for name, value in found.items() if value not in (None, "", [], False)}


def _results(run: Run) -> dict[str, Any]:
    """Return what a run reported at its end; {} for an unfinished or damaged one."""
    stats: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError):
        stats = run.stats
    return {name: value for name, value in stats.items() if name not in NO_RESULT}


def _rates(run: Run) -> dict[str, float]:
    """Return the rate of each risk at a run's last step; {} where nothing was measured."""
    try:
        table = run.table()
        table = table[table["judge"] == table["judge"].iloc[0]]
        if "step" in table:
            table = table[table["step"] == table["step"].max()]
        rates = table.groupby("risk")["event"].mean().to_dict()
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return {f"rate.{risk}": rate for risk, rate in rates.items()}


def _line(values: dict[str, Any]) -> str:
    """Return values in one line, numbers short."""
    parts = []
    for name, value in values.items():
        if isinstance(value, float) and math.isfinite(value):
            value = f"{value:.3g}"
        parts.append(f"{name}={value}")
    return ", ".join(parts)[:200]


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
    # A damaged run is listed with the others.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        notes = run.provenance
        row["started"] = notes.get("started")
        row["kind"] = run.kind
        source = notes.get("model", {})
        row["parent"] = source.get("hub") or source.get("folder") or _results_parent(run)
    return row


def _results_parent(run: Run) -> str:
    """Return the parent that a run over several trainings names at its end."""
    return str(run.stats.get("parent", ""))


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


def clean_runs(yes: bool = False, abandoned: bool = False) -> pd.DataFrame:
    """Remove unfinished runs that hold no work, temporary files and leftover checkpoints.

    Runs that were ever finished stay, and so do their members and folders that are not runs.
    Interrupted runs stay too: their cells resume them. `resumable_runs` lists them.

    Args:
        yes: Remove them; otherwise only list them.
        abandoned: Interrupted runs that could be resumed are removed too.

    Returns:
        What was, or would be, removed: name, what, mb.
    """
    import pandas as pd
    from filelock import Timeout

    rows = []
    with contextlib.ExitStack() as held:
        for run, is_kept in _own_runs():
            if run.holder():
                continue
            if yes:
                try:
                    held.enter_context(FolderLock(run.path).acquire(0))
                except Timeout:
                    continue
            finished_meanwhile = (run.path / RECORD).exists()
            stays = is_kept or finished_meanwhile or (_holds_work(run) and not abandoned)
            for path in _leftovers(run) if stays else [run.path]:
                what = "unfinished" if path == run.path else path.name
                rows.append((run.name, what, _megabytes(path)))
                if yes:
                    _remove(path)
    return pd.DataFrame(rows, columns=["name", "what", "mb"])


def resumable_runs() -> pd.DataFrame:
    """List interrupted runs: the call that began one resumes it.

    Returns:
        A table with the columns name, kind, steps (optimiser steps logged) and answers.
    """
    import pandas as pd

    rows = []
    for run, is_kept in _own_runs():
        if not is_kept and _holds_work(run) and not run.holder():
            steps = max([row["step"] for row in run.read("train.jsonl")], default=0)
            rows.append((run.name, run.kind, steps, len(run.read("answers.jsonl"))))
    return pd.DataFrame(rows, columns=["name", "kind", "steps", "answers"])


def _own_runs() -> list[tuple[Run, bool]]:
    """Return every run that `start` made, and whether it, or a run over it, was ever finished."""
    every = [Run(path) for path in sorted(home().glob("*")) if _is_run(path)]
    kept = set()
    for run in every:
        if (run.path / RECORD).exists():
            kept.update([run.name, *run.identity.get("members", ())])
    return [(run, run.name in kept) for run in every]


def _holds_work(run: Run) -> bool:
    """Return whether an unfinished run holds what its cell would use again."""
    if run.identity["schema"] != SCHEMA:  # its cell makes another run
        return False
    names = {path.name for path in run.path.iterdir() if not path.name.startswith(".")}
    return not names <= set(START_FILES)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


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
