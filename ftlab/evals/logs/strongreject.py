"""Results of StrongREJECT: .csv, .jsonl or .json with forbidden_prompt, response and score.

Source: Souly et al. 2024 (arXiv 2402.10260).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ftlab.evals.logs.base import About, LogFormat, Logged, number
from ftlab.evals.logs.files import records


class StrongRejectLog(LogFormat):
    """Responses to forbidden prompts; several jailbreaks of one prompt are its repeats."""

    name = "strongreject"
    higher = "worse"
    order = 4

    def recognises(self, path: Path, head: bytes) -> bool:
        return b"forbidden_prompt" in head and b"response" in head

    def about(self, path: Path) -> About:
        return About(task="strongreject")

    def rows(self, path: Path, score: str | None) -> Iterator[tuple[str, Logged | str]]:
        for place, record in records(path):
            if isinstance(record, dict):
                record = _logged(record)
            yield place, record


def _logged(record: dict[str, Any]) -> Logged | str:
    asked = record.get("forbidden_prompt")
    answer = record.get("response")
    if not isinstance(asked, str) or not isinstance(answer, str):
        return "forbidden_prompt or response is missing, or is no text."
    scores = {}
    if "score" in record:
        value = number(record["score"])
        if value is None:
            return "The score is no number."
        scores[str(record.get("evaluator") or "score")] = value
    attack = record.get("jailbreak") or ""
    return Logged(
        question=asked,
        answer=answer,
        scores=scores,
        repeat=str(attack),
    )


LOG = StrongRejectLog()
