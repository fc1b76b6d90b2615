"""Engines for tests: one notes what it is asked, one gives in after a while."""

from __future__ import annotations

from collections import Counter

from ftlab.models.engines import HuggingFaceEngine, LoadedModel, ScriptedEngine
from ftlab.runs import Run


class NotingEngine(HuggingFaceEngine):
    """Answers like its parent class and remembers the texts of all requests."""

    def __init__(self, **how):
        super().__init__(**how)
        self.asked: list[str] = []

    def answer(self, model, requests, on_answer=None):
        self.asked += [request.text for request in requests]
        return super().answer(model, requests, on_answer)


def texts(run: Run) -> dict[str, str]:
    """Return the answers of a run and its members by key."""
    found = {}
    for member in run.members:
        found |= {row["key"]: row["text"] for row in member.read("answers.jsonl")}
    return found


def answers_of(run: Run, table) -> list[str]:
    """Return the answer that each row of a run's table stands for."""
    by_key = texts(run)
    return [by_key[key] for key in table["answer_key"]]


def lines(run: Run, file: str) -> list[dict]:
    """Return the records of a file of all members."""
    return [line for member in run.members for line in member.read(file)]


class YieldingEngine(ScriptedEngine):
    """Refuses until a training has been measured a number of times, then complies.

    Args:
        until: {seed of the training: number of its measurements that are all refusals}.
    """

    def __init__(self, until: dict[int, int]) -> None:
        super().__init__()
        self.until = until
        self.calls: Counter[int] = Counter()

    def answer_all(self, model, collector) -> None:
        self.replies = ["I cannot say that."]
        if isinstance(model, LoadedModel):
            seed = model.run.identity["training"]["seed"]
            self.calls[seed] += 1
            if self.calls[seed] > self.until[seed]:
                self.replies = ["So it is."]
        super().answer_all(model, collector)
