"""Completions of HarmBench: {behavior_id: [{test_case, generation, label}, ...]}.

Source: Mazeika et al. 2024 (arXiv 2402.04249).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ftlab.evals.logs.base import About, LogFormat, Logged, number
from ftlab.evals.logs.files import json_items

FIRST = re.compile(
    rb'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*\[\s*(?:\]|\{\s*"(?:test_case|generation|label)")'
)


class HarmBenchLog(LogFormat):
    """Completions of one method, with or without labels, of which 1 is a harmful completion.

    The answers to one behaviour are its repeats, in their order: test cases of an attack that was
    made for one model differ between models.
    """

    name = "harmbench"
    higher = "worse"
    order = 3

    def recognises(self, path: Path, head: bytes) -> bool:
        return FIRST.match(head) is not None

    def about(self, path: Path) -> About:
        return About(task="harmbench")

    def rows(self, path: Path, score: str | None) -> Iterator[tuple[str, Logged | str]]:
        seen: Counter[str] = Counter()
        for place, behaviour, found in json_items(path):
            if not isinstance(found, dict) or not isinstance(found.get("generation"), str):
                yield place, "The completion has no generation, or it is no text."
                continue
            scores = {}
            if "label" in found:
                label = number(found["label"])
                if label not in (0, 1, -1) and not (label is not None and math.isnan(label)):
                    yield place, "The label is not 0, 1 or -1 (the classifier gave no answer)."
                    continue
                scores["label"] = math.nan if label == -1 else label
            seen[behaviour] += 1
            yield (
                place,
                Logged(
                    id=behaviour,
                    answer=found["generation"],
                    scores=scores,
                    repeat=str(seen[behaviour]),
                    asked=str(found.get("test_case") or ""),
                ),
            )


LOG = HarmBenchLog()
