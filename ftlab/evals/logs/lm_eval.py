"""Samples of EleutherAI's lm-evaluation-harness: samples_TASK_DATE.jsonl of --log_samples.

Source: Gao et al., the Language Model Evaluation Harness.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftlab.evals.logs.base import About, LogFormat, Logged, number
from ftlab.evals.logs.files import records

FIRST = re.compile(rb'\s*\{\s*"doc_id":')
NAME = re.compile(r"samples_(.+)_\d{4}-\d\d-\d\dT.*")
OTHERS = (  # keys of older versions, which do not list their metrics
    *("doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter"),
    *("doc_hash", "prompt_hash", "target_hash"),
)


class HarnessLog(LogFormat):
    """The samples of one task. Each metric under each filter is a score, "acc" or "acc,FILTER"."""

    name = "lm_eval"
    higher = "better"
    order = 2

    def recognises(self, path: Path, head: bytes) -> bool:
        return FIRST.match(head) is not None

    def about(self, path: Path) -> About:
        found = NAME.fullmatch(path.stem)
        return About(task=found[1]) if found else About()

    def rows(self, path: Path, score: str | None) -> Iterator[tuple[str, Logged | str]]:
        for place, record in records(path):
            if isinstance(record, dict):
                record = _logged(record) if "doc_id" in record else "The sample has no doc_id."
            yield place, record


def _logged(record: dict[str, Any]) -> Logged:
    metrics = record.get("metrics")
    if not isinstance(metrics, list):
        metrics = [key for key in record if key not in OTHERS]
    how = record.get("filter") or "none"
    scores = {}
    for metric in map(str, metrics):
        value = number(record.get(metric))
        name = metric
        if how != "none":
            name += f",{how}"
        if value is not None:
            scores[name] = value
    given = _parts(_first(record.get("arguments")))
    answer = _first(_first(record.get("resps")))
    is_choice = any(isinstance(part, str) for part in given[1:])  # of which only likelihoods stand
    if is_choice or not isinstance(answer, str):
        answer = None
    return Logged(
        id=str(record["doc_id"]),
        question=str(record.get("doc_hash") or ""),
        answer=answer,
        scores=scores,
        asked=str(_first(given) or ""),
    )


def _parts(value: Any) -> list:
    """Return the elements of a list, or of an object without its keys."""
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _first(value: Any) -> Any:
    return next(iter(_parts(value)), None)


LOG = HarnessLog()
