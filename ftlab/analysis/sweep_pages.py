"""The report of a sweep: its jobs, and what was measured in their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from ftlab._core.errors import FtlabError
from ftlab._core.files import write_page
from ftlab.analysis import rendering
from ftlab.analysis.short_tables import summary
from ftlab.analysis.tables import compare, rates
from ftlab.runs import Run

RATES = "Rates of the evaluations"
CHANGES = "Curves: each step compared with the parent"
Rows = list[dict[str, Any]]
MEASURED = {"evaluate": (RATES, rates), "curve": (CHANGES, compare)}  # by the kind of a run


def write_sweep(table: pd.DataFrame, runs: dict[str, Run], path: str | Path) -> None:
    """Write what became of a sweep's jobs, and their rates, as a page that opens offline.

    Args:
        table: One row per job; its `attrs` hold `sentence` and `folder`.
        runs: The finished runs, by job.
        path: The HTML file.

    Raises:
        UsageError: `output_not_writable`.
    """
    found: dict[str, list[pd.DataFrame]] = {"Jobs": [table]}
    notes = []
    for job, run in runs.items():
        title, measure = MEASURED.get(run.kind, ("", None))
        if measure is None:
            continue
        try:
            rows = pd.DataFrame(summary(measure(run)))
        except FtlabError as error:  # one run that is damaged hides no other
            notes.append(f"{job} is not in the tables: {error}")
            continue
        rows.insert(0, "job", job)
        parts = found.setdefault(title, [])
        parts.append(rows)
    if len(runs) > 1 and len(found) > 1:
        notes.append("Each row is about one job; differences between jobs are not tested here.")
    content = {
        "about": table.attrs,
        "tables": {title: _texts(pd.concat(parts)) for title, parts in found.items()},
        "notes": notes,
    }
    page = rendering.html_of("sweep.html.j2", content)
    write_page(Path(path), page)


def _texts(table: pd.DataFrame) -> Rows:
    """Return rows to be shown, with nothing where there is no value."""
    plain = pd.DataFrame(table).astype(object)
    filled = plain.where(plain.notna(), "")
    return filled.to_dict("records")
