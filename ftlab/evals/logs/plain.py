"""Any .jsonl, .json, .csv or .tsv of prompt, answer and score, a row an answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftlab.evals.logs.base import PLAIN_ID, LogFormat, Logged, number
from ftlab.evals.logs.files import ENDINGS, records

COLUMNS = {  # the first of these that a row has
    "id": ("id", "sample_id", "doc_id"),
    "question": ("prompt", "question", "goal", "instruction", "input"),
    "answer": ("answer", "response", "completion", "generation", "output"),
    "repeat": ("repeat", "epoch"),
}


class PlainLog(LogFormat):
    """Rows with an id or a prompt, and an answer, a score or both."""

    name = "plain"
    order = 100

    def recognises(self, path: Path, head: bytes) -> bool:
        return path.suffix.lower() in ENDINGS

    def rows(self, path: Path, score: str | None) -> Iterator[tuple[str, Logged | str]]:
        column = score or "score"
        for place, record in records(path):
            if isinstance(record, dict):
                record = _logged(record, column, score is not None)
            yield place, record


def _logged(record: dict[str, Any], column: str, needed: bool) -> Logged | str:
    found = {}
    for field, names in COLUMNS.items():
        for name in names:
            value = record.get(name)
            is_empty = value == "" and field != "answer"
            if is_empty or value is None or field in found:
                continue
            if isinstance(value, (list, dict)):
                return f"{name} is no text."
            found[field] = str(value)
    if needed and column not in record:
        has = ", ".join(name for name in record if PLAIN_ID.fullmatch(name))
        return f"There is no column {column!r:.80}. Its columns: {has:.300}."
    if column in record:
        value = number(record[column])
        if value is None:
            return f"{column} is no number."
        found["scores"] = {column: value}
    if not found.keys() & {"answer", "scores"}:
        wanted = ", ".join(COLUMNS["answer"])
        return f"The row has neither an answer ({wanted}) nor a score. --score names its column."
    return Logged(**found)


LOG = PlainLog()
