"""The verdict table: one row per answer and judge, from run folders of this and older layouts."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import fields
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
    "left_out": "",
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
NO_COLUMNS = ("key", "answer_keys")
COLUMNS = [name for name in FIELDS if name not in NO_COLUMNS]
KEPT_ROWS = 500_000  # of all tables that are kept in memory


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


def table_of(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Return records of `verdicts.jsonl` as a table: `COLUMNS` first, then the labels."""
    import pandas as pd

    table = pd.DataFrame(_columns_of(rows))
    for name in COLUMNS:
        default = DEFAULTS.get(name)
        if name not in table:
            table[name] = default
        elif name in FILLED:
            column = table[name]
            table[name] = column.where(column.notna(), default)
    labels = [name for name in table if name not in COLUMNS]
    return table[[*COLUMNS, *labels]].astype(TYPES)


def _columns_of(rows: Iterable[dict[str, Any]]) -> dict[str, list]:
    """Return the values of records by name, NaN where there is none; a text is held once."""
    columns: dict[str, list] = {}
    texts: dict[str, str] = {}
    count = 0
    for row in rows:
        for name, value in row.items():
            if name in NO_COLUMNS:
                continue
            if isinstance(value, str):
                value = texts.get(value) or texts.setdefault(value, encodable(value))
            else:
                value = throughout(value, encodable)
            column = columns.setdefault(name, [])
            column += [math.nan] * (count - len(column))
            column.append(value)
        count += 1
    for column in columns.values():
        column += [math.nan] * (count - len(column))
    return columns


def _read(folder: Path, schema: int) -> pd.DataFrame:
    if schema < legacy.LONG_TABLE:
        return table_of(legacy.verdicts(folder))
    return table_of(records.each(folder / "verdicts.jsonl"))


_kept: dict[tuple, pd.DataFrame] = {}  # tables that were read, the latest last
_lock = threading.Lock()  # of `_kept`


def read(folder: Path, schema: int) -> pd.DataFrame:
    """Return the verdict table of a run folder of any layout, read again if the file changed."""
    current = (folder, schema, *stamp(folder / "verdicts.jsonl"))
    with _lock:
        table = _kept.get(current)
    if table is None:
        table = _read(folder, schema)
    with _lock:
        for key in list(_kept):
            if key[:2] == current[:2]:  # as it was before, too
                del _kept[key]
        _kept[current] = table
        while len(_kept) > 1 and sum(map(len, _kept.values())) > KEPT_ROWS:
            del _kept[next(iter(_kept))]
    return table.copy()
