"""Prompt sets of the field as samples: what the readers of the risks share.

A set's own id is kept where it has one; else the id comes from the text without outer white space,
so that copies of a set that differ in line ends give the same ids. What is left out is counted on
stderr.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

from ftlab._core.errors import DataError
from ftlab._core.types import Sample
from ftlab.data import instruction, read_prompts, records, rows_of
from ftlab.runs import digest

TEXTS = (
    "prompt", "goal", "Goal", "question", "Question", "instruction", "Instruction", "Behavior",
    "behavior", "forbidden_prompt", "prompts_final", "text",
)  # fmt: skip
CATEGORIES = ("harm_area", "SemanticCategory", "category", "Category", "types_of_harm", "type")
TARGETS = ("target", "Target")  # how a fulfilled request begins
IDS = ("BehaviorID", "id", "Index")


def read_samples(source: Any, convert: Callable[[dict], Sample | str]) -> list[Sample]:
    """Return the samples that `convert` makes of the records of `source`.

    `convert` returns a sample, or the reason why the record is left out.
    """
    name, numbered = records(source)
    head = next((list(record) for _, record in numbered if isinstance(record, dict)), [])
    if len(head) == 1 and " " in head[0]:  # no header, as in HEx-PHI's files
        numbered = [(name, {head[0]: head[0]}), *numbered]
        numbered = [
            (where, {"prompt": record.get(head[0])} if isinstance(record, dict) else record)
            for where, record in numbered
        ]
    made = rows_of(name, numbered, lambda record: [convert(record)])
    left_out = Counter(each for each in made if isinstance(each, str))
    samples: dict[str, Sample] = {}
    for sample in made:
        if isinstance(sample, str):
            continue
        first = samples.setdefault(sample.id, sample)
        if first is not sample and first.messages != sample.messages:
            raise DataError(
                "id_not_unique",
                f"{name}: the id {sample.id!r} stands for two prompts. Make ids unique.",
            )
        if first is not sample:
            left_out["the same prompt again"] += 1
    for reason, count in left_out.items():
        print(f"{name}: {count} of {len(made)} rows are left out: {reason}", file=sys.stderr)
    if not samples:
        raise DataError("no_prompts", f"{name}: no row is left ({'; '.join(left_out)}).")
    return list(samples.values())


def sample_from_record(record: dict, risk: str) -> Sample:
    """Return a record of one of the field's prompt sets as a sample."""
    if "messages" in record:
        row = read_prompts([record], risk=risk).rows[0]
        own_id = row["id"] if record.get("id") else f"{risk}-{digest(row['messages'])}"
        return Sample(own_id, row["messages"], row["risk"], row["category"])
    column = first_of(record, TEXTS)
    if column is None:
        found = ", ".join(map(str, record))
        raise DataError("no_prompt_column", f"Columns {found}. Allowed: {', '.join(TEXTS)}.")
    text = instruction(record).strip() if column == "instruction" else text_of(record, column)
    own = first_of(record, IDS)
    category = first_of(record, CATEGORIES)
    target = first_of(record, TARGETS)
    return Sample(
        id=f"{risk}-{record[own] if own else digest(text)}",
        messages=[{"role": "user", "content": text}],
        risk=risk,
        category=str(record[category]) if category else "",
        opening=text_of(record, target) if target else "",
    )


def is_unsafe(record: dict) -> bool | None:
    """Return whether XSTest calls the prompt unsafe; None for other sets."""
    if record.get("label") in ("safe", "unsafe"):
        return record["label"] == "unsafe"
    if "focus" in record or "final_label" in record:  # the files of completions have no label
        return str(record.get("type", "")).startswith("contrast_")
    return None


def first_of(record: dict, names: tuple[str, ...]) -> str | None:
    """Return the first of the names under which the record holds something."""
    return next((name for name in names if record.get(name) not in (None, "")), None)


def text_of(record: dict, key: str) -> str:
    """Return a text of the record without outer white space."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise DataError("empty_text", f"{key!r} is empty or no text. Fill it or remove the row.")
    return value.strip()
