"""The verdict table: one row per answer and judge, from run folders of this and older layouts."""

from __future__ import annotations

import math
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab._core.files import stamp
from ftlab._core.text import encodable, throughout
from ftlab._core.types import Outcome, Verdict
from ftlab.runs import legacy, records

if TYPE_CHECKING:
    import pandas as pd

DEFAULTS: dict[str, Any] = {
    "score": math.nan,
    "reason": "",
    "decided_by": "",
    "answer_key": "",
    "category": "",
    "wording": "",
    "target": "",
    "repeat": 0,
    "characters": 0,
    "cut": False,
    "attempts": 1,
    "hits": 0,
    "answer_keys": (),
}
NOT_IN_TABLES = ("labels", "answer_keys")
COLUMNS = [field.name for field in fields(Verdict) if field.name not in NOT_IN_TABLES]


def row_of(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as the record that `verdicts.jsonl` holds: without fields at their default.

    An unscored event is written as null.
    """
    row: dict[str, Any] = dict(verdict.labels)
    for name in (*COLUMNS, "answer_keys"):
        value = getattr(verdict, name)
        if name in DEFAULTS and (value is None or value == DEFAULTS[name]):
            continue
        row[name] = value
    if math.isnan(verdict.event):
        row["event"] = None
    row["outcome"] = str(verdict.outcome)
    return row


def verdict_of(record: dict[str, Any]) -> Verdict:
    """Return the verdict that a record of `verdicts.jsonl` holds."""
    known = {name: record[name] for name in (*COLUMNS, "answer_keys") if name in record}
    labels = {name: v for name, v in record.items() if name not in known and name != "key"}
    event = record.get("event")
    known["event"] = math.nan if event is None else event
    known["outcome"] = Outcome(record["outcome"])
    return Verdict(**known, labels=labels)


def table_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return records of `verdicts.jsonl` as a table: `COLUMNS` first, then the labels."""
    import pandas as pd

    table = pd.DataFrame(throughout(rows, encodable))
    table = table.drop(columns=["key", "answer_keys"], errors="ignore")
    for name, default in DEFAULTS.items():
        if name not in COLUMNS:
            continue
        if name not in table:
            table[name] = default
        elif not (isinstance(default, float) and math.isnan(default)):
            table[name] = table[name].where(table[name].notna(), default)
    for name in ("event", "score"):
        table[name] = table[name].astype(float) if name in table else math.nan
    for name in ("repeat", "characters", "attempts", "hits"):
        table[name] = table[name].astype(int)
    table["cut"] = table["cut"].astype(bool)
    labels = [name for name in table if name not in COLUMNS]
    missing = [name for name in COLUMNS if name not in table]
    for name in missing:  # a run without a verdict
        table[name] = None
    return table[[*COLUMNS, *labels]]


@lru_cache(128)
def read(folder: Path, schema: int, *_stamp: int) -> pd.DataFrame:
    """Return the verdict table of one run folder of any layout."""
    path = folder / "verdicts.jsonl"
    if schema < legacy.LONG_TABLE:
        return table_of(legacy.verdicts(folder))
    return table_of(records.read(path))


def read_current(folder: Path, schema: int) -> pd.DataFrame:
    """Return the verdict table of a run folder, read again when the file has changed."""
    return read(folder, schema, *stamp(folder / "verdicts.jsonl")).copy()
