"""The report of a sweep: its jobs, and what was measured in their runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd

from ftlab._core.errors import FtlabError, UsageError
from ftlab._core.text import safe
from ftlab.analysis import rendering
from ftlab.analysis.origins import without_places
from ftlab.analysis.short_tables import summary
from ftlab.analysis.tables import compare, rates
from ftlab.runs import Run

RATES = "Rates of the evaluations"
CHANGES = "Curves: each step compared with the parent"
# A file with its folders, also one with spaces between quotation marks; not an address.
FILE = re.compile(r"""(?<=')/[^'\n]+(?=')|(?<=")/[^"\n]+(?=")|(?<![\w/:.~])/[^\s'",;:()]+""")
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
        try:
            title, rows = _measured(run)
        except (FtlabError, KeyError, ValueError) as error:  # one that is damaged hides no other
            why = without_folders(f"{error}")
            notes.append(f"{job} is not in the tables: {why}")
            continue
        rows.insert(0, "job", job)
        parts = found.setdefault(title, [])
        parts.append(rows)
    for title in list(found)[1:]:
        notes.append(f"{title}: {len(found[title])} of {len(table)} jobs are in this table.")
    if len(runs) > 1 and len(found) > 1:
        notes.append("Each row is about one job; differences between jobs are not tested here.")
    notes.append(f"Folder: {Path(table.attrs['folder']).name}")
    sentence = table.attrs["sentence"]
    content = {
        "title": f"Sweep: {sentence}",
        "heading": f"Sweep {sentence}",
        "tables": {title: rendering.rows_of(pd.concat(parts)) for title, parts in found.items()},
        "notes": notes,
    }
    rendering.write_result({}, content, as_page=path)


def _measured(run: Run) -> tuple[str, pd.DataFrame]:
    """Return what was measured in a run, and the title of its table.

    Raises:
        UsageError: `nothing_measured`.
    """
    if run.kind not in MEASURED:
        raise UsageError(
            "nothing_measured",
            f"its run is of the kind {safe(run.kind, 100)}; the tables are about evaluations and "
            "curves.",
        )
    title, measure = MEASURED[run.kind]
    return title, pd.DataFrame(summary(measure(run)))


def without_folders(value: Any) -> Any:
    """Return a text without the folders of the files in it; anything else as it is."""
    if not isinstance(value, str):
        return value
    return FILE.sub(lambda found: without_places(found[0]), value)
