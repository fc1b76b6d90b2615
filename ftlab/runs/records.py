"""Append-only JSON Lines: one writer, flushed line by line; torn lines are reported and ignored."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from ftlab._core.files import json_lines, storage

# What the readers of a file rely on in every line.
REQUIRED = {
    "answers.jsonl": {"key": str, "text": str},
    "verdicts.jsonl": {"key": str, "risk": str, "sample_id": str, "outcome": str, "judge": str},
    "train.jsonl": {"step": int},
    "valid.jsonl": {"step": int},
}
REPORTED = 10  # line numbers named in a notice


def append(path: Path, records: list[dict]) -> None:
    """Add records to a file and flush them.

    Raises:
        StorageFull: `storage_full`. Then none of the records was added.
    """
    data = json_lines(records).encode("utf-8", "surrogatepass")
    with storage(path), open(path, "a+b", buffering=0) as file:
        start = file.seek(0, os.SEEK_END)
        if start and not _ends_with_newline(file):
            data = b"\n" + data  # a torn last line must not swallow the next record
        written = 0
        try:
            while written < len(data):  # a full disk takes a part, and then nothing
                written += file.write(data[written:])
        except OSError:
            nobody_else_wrote = file.seek(0, os.SEEK_END) == start + written
            if nobody_else_wrote:
                file.truncate(start)
            raise


def _ends_with_newline(file) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def each(path: Path) -> Iterator[dict]:
    """Yield the records of a file; lines that are torn or incomplete are reported on stderr."""
    bad = []
    for number, record in enumerate(parse(path), 1):
        if record is None:
            bad.append(number)
        else:
            yield record
    if bad:
        where = ", ".join(map(str, bad[:REPORTED]))
        notice = f"{len(bad)} damaged lines are ignored and will be computed again"
        print(f"{path}:{where}: {notice}", file=sys.stderr)


def parse(path: Path, required: dict[str, type] | None = None) -> Iterator[dict | None]:
    """Yield one record per line; None where the line is no object or lacks a required field.

    Args:
        path: The file; a missing one has no lines.
        required: Field names and types; by default those that `REQUIRED` has for the file.
    """
    if required is None:
        required = REQUIRED.get(path.name, {})
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            yield _record(line, required)


def _record(line: bytes, required: dict[str, type]) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    for name, kind in required.items():
        if not isinstance(record.get(name), kind):
            return None
    return record
