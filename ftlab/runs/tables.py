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
    "topic": "",
    "target": "",
    "repeat": 0,
    "characters": 0,
    "cut": False,
    "attempts": 1,
    "hits": 0,
    "answer_keys": (),
}
FILLED = [name for name, default in DEFAULTS.items() if name != "score"]
TYPES = {
    "event": float,
    "score": float,
    "repeat": int,
    "characters": int,
    "cut": bool,
    "attempts": int,
    "hits": int,
}
FIELDS = [field.name for field in fields(Verdict) if field.name != "labels"]
COLUMNS = [name for name in FIELDS if name != "answer_keys"]


def row_of(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict as a record of `verdicts.jsonl`, without fields at their default.

    An unscored event is written as null.
    """
    row: dict[str, Any] = dict(verdict.labels)
    for name in FIELDS:
        value = getattr(verdict, name)
        is_default = value is None or value == DEFAULTS.get(name)
        if name in DEFAULTS and is_default:
            continue
        row[name] = value
    if math.isnan(verdict.event):
        row["event"] = None
    row["outcome"] = str(verdict.outcome)
    return row


def verdict_of(record: dict[str, Any]) -> Verdict:
    """Return the verdict that a record of `verdicts.jsonl` holds."""
    labels = dict(record)
    labels.pop("key", None)
    known: dict[str, Any] = {}
    for name in FIELDS:
        if name in labels:
            known[name] = labels.pop(name)
    if known.get("event") is None:
        known["event"] = math.nan
    known["outcome"] = Outcome(record["outcome"])
    return Verdict(**known, labels=labels)


def table_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return records of `verdicts.jsonl` as a table: `COLUMNS` first, then the labels."""
    import pandas as pd

    readable = throughout(rows, encodable)
    table = pd.DataFrame(readable).drop(columns=["key", "answer_keys"], errors="ignore")
    for name in COLUMNS:
        default = DEFAULTS.get(name)
        if name not in table:
            table[name] = default
        elif name in FILLED:
            column = table[name]
            table[name] = column.where(column.notna(), default)
    labels = [name for name in table if name not in COLUMNS]
    return table[[*COLUMNS, *labels]].astype(TYPES)


@lru_cache(128)
def _read(folder: Path, schema: int, *_stamp: int) -> pd.DataFrame:
    if schema < legacy.LONG_TABLE:
        rows = legacy.verdicts(folder)
    else:
        rows = records.read(folder / "verdicts.jsonl")
    return table_of(rows)


def read(folder: Path, schema: int) -> pd.DataFrame:
    """Return the verdict table of a run folder of any layout, read again if the file changed."""
    current = stamp(folder / "verdicts.jsonl")
    return _read(folder, schema, *current).copy()
