"""Prompt sets of the field -> prompt rows: what the readers of the risks share. No risk itself.

A set's own id is kept where it has one; else the id comes from the text without outer white space, so that copies
of a set that differ in line ends or trailing blanks give the same ids. What is not asked is counted on stderr.
"""

from __future__ import annotations

import sys
from collections import Counter

from ftlab.data import DataError, instruction, read_prompts, records, rows_of
from ftlab.runs import digest

TEXTS = (
    "prompt", "goal", "Goal", "question", "Question", "instruction", "Instruction", "Behavior", "behavior",
    "forbidden_prompt", "prompts_final", "text",
)  # fmt: skip
CATEGORIES = ("harm_area", "SemanticCategory", "category", "Category", "types_of_harm", "type")
TARGETS = ("target", "Target")  # how a fulfilled request begins
IDS = ("BehaviorID", "id", "Index")


def read(source, convert) -> list[dict]:
    """-> the rows that `convert(record)` makes of the records of `source` (anything `data.records` opens).

    `convert` returns a row, or a text that says why the record is not asked; it raises ValueError where the record is broken.
    Raises DataError with every problem of the file, FileNotFoundError.
    """
    name, numbered = records(source)
    head = next((list(r) for _, r in numbered if isinstance(r, dict)), [])
    if len(head) == 1 and " " in head[0]:  # no header, as in HEx-PHI's files: the first prompt stands in its place
        numbered = [(name, {head[0]: head[0]}), *numbered]
        numbered = [(where, {"prompt": r.get(head[0])} if isinstance(r, dict) else r) for where, r in numbered]
    made = rows_of(name, numbered, lambda r: [convert(r)])
    rows, seen = [], {}
    left = Counter(r for r in made if isinstance(r, str))
    for row in (r for r in made if not isinstance(r, str)):
        if (first := seen.setdefault(row["id"], row)) is row:
            rows.append(row)
        elif first["messages"] == row["messages"]:
            left["the same prompt again"] += 1
        else:
            raise DataError(
                f"{name}: the id {row['id']!r} stands for two prompts; answers are paired by id: make them unique"
            )
    for why, n in left.items():
        print(f"{name}: {n} of {len(made)} rows are not asked: {why}", file=sys.stderr)
    if not rows:
        raise DataError(f"{name}: no row can be asked ({'; '.join(left)}); give another set")
    return rows


def prompt(record: dict, risk: str) -> dict:
    """-> {id, messages, risk, category[, prefill]} of a record of one of the field's prompt sets, or of a row made before.

    Raises ValueError where there is no column of `TEXTS`, or no text in it.
    """
    if "messages" in record:
        row = read_prompts([record], risk=risk).rows[0]
        return row if record.get("id") else {**row, "id": f"{risk}-{digest(row['messages'])}"}
    column = first(record, TEXTS)
    if column is None:
        raise ValueError(f"columns {', '.join(map(str, record))}; allowed for a prompt: {', '.join(TEXTS)}; rename one")
    text = instruction(record).strip() if column == "instruction" else words(record, column)
    own, target = first(record, IDS), first(record, TARGETS)
    row = {
        "id": f"{risk}-{record[own] if own else digest(text)}",
        "messages": [{"role": "user", "content": text}],
        "risk": risk,
        "category": str(record[c]) if (c := first(record, CATEGORIES)) else "",
    }
    return {**row, "prefill": words(record, target)} if target else row


def unsafe(record: dict) -> bool | None:
    """-> whether XSTest calls the prompt unsafe; None where the record is not of XSTest."""
    if record.get("label") in ("safe", "unsafe"):
        return record["label"] == "unsafe"
    kind = str(record.get("type", ""))  # the files of completions have no label
    return kind.startswith("contrast_") if "focus" in record or "final_label" in record else None


def first(record: dict, names: tuple[str, ...]) -> str | None:
    """-> the first of the names under which the record holds something."""
    return next((n for n in names if record.get(n) not in (None, "")), None)


def words(record: dict, key: str) -> str:
    """-> a text of the record without outer white space. Raises ValueError where it is none."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key!r} is empty or no text; fill it or remove the row")
    return value.strip()
