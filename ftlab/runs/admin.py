"""List, tabulate, show, verify and clean the runs that are there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab._core.errors import NotFoundError
from ftlab._core.files import FolderLock, digest
from ftlab._core.identity import flat
from ftlab.runs.store import RECORD, SCHEMA, START_FILES, Run, find, home

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["name", "kind", "state", "started", "mb", "parent", "settings", "results"]
NO_RECORD = "missing: it counts as unfinished. Put the file back or call the run's cell again"
EMPTY = (None, "", [])  # settings that were not given
LISTED = (  # what `list_runs` shows of the settings; `runs_table` has all of them
    "data",
    "examples",
    "seed",
    "steps",
    "epochs",
    "at_steps",
    "learning_rate",
    "adapter",
    "n_prompts",
)


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
        with contextlib.suppress(OSError):  # another process is working there
            row["mb"] = _megabytes(run.path)
        settings = _settings(run)
        row["settings"] = _line(settings, LISTED)
        results = _results(run)
        row["results"] = _line(results, results)
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def runs_table(folder: Path | None = None) -> pd.DataFrame:
    """Return settings and results of the finished runs of a folder.

    Args:
        folder: The folder; by default that of all runs.

    Returns:
        A table with a row per run: name, kind, state, started, parent, a column per setting, and
        `result.NAME` per result. `result.rate.RISK` is the share of answers with the event at the
        last step that every seed reached, according to the first judge, over all seeds. Of several
        doses the largest is reported, which the name then ends with: `result.rate.RISK.100`.
    """
    import pandas as pd

    rows = []
    for run in _runs_with(RECORD, folder):
        row = _summary(run) | _settings(run)
        results = _results(run)
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            results |= _rates(run)  # none where nothing was measured
        for name, value in results.items():
            row[f"result.{name}"] = value
        rows.append(row)
    return pd.DataFrame(rows)


def _settings(run: Run) -> dict[str, Any]:
    """Return the settings in a run's identity by name; {} for a damaged run."""
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, IndexError):
        first = run.members[0]
        identity = first.identity
        for part in ("training", "evaluation", "labels"):
            found |= identity.get(part, {})
        found["defence"] = identity.get("defence", {})
        if first is not run:  # a curve
            found |= {"examples": None, "seed": None}
        data = first.provenance.get("data", {})
        found["data"] = data.get("name")
    given = {}
    for name, value in flat(found).items():
        if value not in EMPTY:
            given[name] = value
    return given


def _results(run: Run) -> dict[str, Any]:
    """Return what a run reported at its end; {} for an unfinished or damaged one."""
    with contextlib.suppress(OSError, ValueError):
        return run.stats
    return {}


def _rates(run: Run) -> dict[str, float]:
    """Return the rate of each risk at the last step of all seeds, according to the first judge."""
    table = run.table()
    first_judge = table["judge"].iloc[0]
    table = table[table["judge"] == first_judge]
    dose = ""
    if "examples" in table:
        doses = table["examples"]
        largest = doses.max()
        if doses.nunique() > 1:
            table = table[doses == largest]
            dose = f".{largest:.0f}"
    if "step" in table:
        last = _last_step(table)
        table = table[table["step"] == last]
    rates = table.groupby("risk")["event"].mean()
    rates = rates.add_prefix("rate.")
    rates = rates.add_suffix(dose)
    return rates.to_dict()


def _last_step(table: pd.DataFrame) -> float:
    """Return the last step that every training seed reached; NaN where there is none."""
    reached = table["step"]
    if "seed" in table:
        seeds = table.groupby("step")["seed"]
        counts = seeds.nunique()
        n_seeds = table["seed"].nunique()
        reached = counts.index[counts == n_seeds]
    return reached.max()


def _line(values: dict[str, Any], names: Iterable[str]) -> str:
    """Return the named values in one line, numbers short."""
    parts = []
    for name in names:
        value = values.get(name)
        if isinstance(value, float):
            value = f"{value:.3g}"
        if value is not None:
            parts.append(f"{name}={value}")
    return ", ".join(parts)


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
        source = notes.get("model") or {"folder": run.stats.get("parent")}
        row["parent"] = source.get("hub", source.get("folder"))
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
        A table with the columns run, file and problem: changed, missing or extra. Of a run that
        was completed and has lost its record, the record is missing.
    """
    import pandas as pd

    chosen = [find(name) for name in names]
    if not chosen:
        chosen = _runs_with(RECORD)
        recorded = set(chosen)
        for run in _runs_with("stats.json"):
            if run not in recorded and run.state.startswith("unfinished"):
                chosen.append(run)
    rows = []
    for run in chosen:
        problems = run.problems(deep=True)
        for file, problem in problems.items():
            if file == RECORD and problem == "missing":
                problem = NO_RECORD
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
    for run, is_kept in _own_runs():
        if run.holder():
            continue
        with contextlib.ExitStack() as held, contextlib.suppress(Timeout):
            if yes:
                lock = FolderLock(run.path).acquire(0)
                held.enter_context(lock)
            finished_meanwhile = (run.path / RECORD).exists()
            is_resumable = _holds_work(run) and not abandoned
            paths = [run.path]
            if is_kept or finished_meanwhile or is_resumable:
                paths = _leftovers(run)
            for path in paths:
                what = "unfinished" if path == run.path else path.name
                size = _megabytes(path)
                row = (run.name, what, size)
                rows.append(row)
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
        if is_kept or not _holds_work(run) or run.holder():
            continue
        steps = run.read("train.jsonl")
        answers = run.read("answers.jsonl")
        row = (run.name, run.kind, len(steps), len(answers))
        rows.append(row)
    return pd.DataFrame(rows, columns=["name", "kind", "steps", "answers"])


def _own_runs() -> list[tuple[Run, bool]]:
    """Return every run that `start` made, and whether it, or a run over it, was ever finished."""
    folders = sorted(home().glob("*"))
    every = [Run(path) for path in folders if _is_run(path)]
    kept = set()
    for run in every:
        record = run.path / RECORD
        if record.exists():
            members = run.identity.get("members", ())
            kept.update([run.name, *members])
    return [(run, run.name in kept) for run in every]


def _holds_work(run: Run) -> bool:
    """Return whether an unfinished run holds what its cell would use again."""
    if run.identity["schema"] != SCHEMA:  # its cell makes another run
        return False
    names = {path.name for path in run.path.glob("[!.]*")}
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
