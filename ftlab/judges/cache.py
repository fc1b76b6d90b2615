"""Cache for judges that are expensive to call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from ftlab._core.files import digest
from ftlab._core.types import Judgement, Outcome, Sample
from ftlab.runs import Run, home


class Pair(NamedTuple):
    """A question and its answer, with the key under which their judgement is stored."""

    key: str
    question: str
    text: str


class JudgeCache:
    """Judgements of one judge, in a JSONL file below `FTLAB_RUNS/.judged`.

    Judgements are written as they come, so an interrupted call continues where it stopped. The
    file holds keys and judgements, never a text that was judged. Errors are not stored: those
    pairs are judged again on the next call.

    Args:
        judge: Public name of the judge with its settings.
        version: Version of the judge. Another version starts an empty file.
    """

    def __init__(self, judge: str, version: str):
        name, _, _ = judge.partition(":")
        self.file = f"{name}-{digest([judge, version])}.jsonl"
        self.folder = Run(home() / ".judged")
        self.folder.path.mkdir(parents=True, exist_ok=True)
        self.known: dict[str, Judgement] = {}
        for row in self.folder.read(self.file):
            outcome = Outcome(row["verdict"])
            self.known[row["key"]] = Judgement(outcome, row["score"], row["why"])

    def judge(
        self,
        samples: Sequence[Sample],
        texts: Sequence[str],
        ask: Callable[[list[Pair]], None],
    ) -> list[Judgement]:
        """Return one judgement per text; `ask` calls `keep` once for each pair not yet known."""
        keys = []
        new = {}
        for sample, text in zip(samples, texts, strict=True):
            key = digest((sample.question, text))
            keys.append(key)
            if not text.strip():
                self.known[key] = Judgement(Outcome.EMPTY)
            elif key not in self.known:
                new[key] = Pair(key, sample.question, text)
        if new:
            ask(list(new.values()))
        return [self.known[key] for key in keys]

    def keep(self, key: str, judgement: Judgement) -> None:
        """Store one judgement, unless it is an error."""
        self.known[key] = judgement
        if judgement.outcome is not Outcome.ERROR:
            row = {
                "key": key,
                "verdict": judgement.outcome,
                "score": judgement.score,
                "why": judgement.reason,
            }
            self.folder.append(self.file, [row])
