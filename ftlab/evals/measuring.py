"""Answer and judge the prompts of a plan with one model, into one run folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ftlab._core.progress import Progress
from ftlab._core.types import Outcome, Verdict
from ftlab.evals.answers import AnswerBook, Ledger
from ftlab.evals.plan import Plan
from ftlab.evals.scoring import record_of, score
from ftlab.runs import Run, verdict_of

VERDICTS = "verdicts.jsonl"


@dataclass
class Measurement:
    """Asks and judges one plan for one run, as often as its model changes.

    What the run already holds is neither asked nor written again. For the arguments see
    `AnswerBook`.
    """

    run: Run
    plan: Plan
    elsewhere: Sequence[Run] = ()

    def __post_init__(self):
        self.answers = AnswerBook(self.run, self.plan, self.elsewhere)
        self.ledger = Ledger(self.run, VERDICTS)

    def take(
        self,
        model: Any,
        model_hash: str,
        labels: dict[str, Any],
        progress: Progress | None = None,
    ) -> list[Verdict]:
        """Return the verdicts on a model, and append what is new to the run.

        For the arguments see `AnswerBook.ask`.
        """
        answers = self.answers.ask(
            model,
            model_hash,
            labels=labels,
            progress=progress,
        )
        verdicts = score(self.plan, answers, labels)
        self.write(verdicts)
        return verdicts

    def write(self, verdicts: list[Verdict]) -> None:
        """Append the verdicts that the run does not hold yet."""
        records = records_of(self.plan, verdicts)
        self.ledger.append_new(records)


def records_of(plan: Plan, verdicts: Iterable[Verdict]) -> list[dict[str, Any]]:
    """Return verdicts of a plan's judges as records of `verdicts.jsonl`."""
    versions = {judge.spec: judge.version for judge in plan.judges}
    records = []
    for verdict in verdicts:
        version = versions[verdict.judge]
        records.append(record_of(verdict, version))
    return records


def read_verdicts(run: Run) -> list[Verdict]:
    """Return the verdicts that a run folder holds."""
    records = run.read(VERDICTS)
    return [verdict_of(record) for record in records]


def failed(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return the verdicts that are errors: unscored, and retried on the next call."""
    return [verdict for verdict in verdicts if verdict.outcome == Outcome.ERROR]


def metrics_of(plan: Plan, verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Return the rate of each risk by the first judge, and the share refused as "refused".

    That share is of the jailbreak prompts.
    """
    first_judge = plan.judges[0].spec
    events: dict[str, list[float]] = {name: [] for name in plan.risks}
    refusals = []
    for verdict in verdicts:
        if verdict.judge != first_judge or not verdict.outcome.scored:
            continue
        events[verdict.risk].append(verdict.event)
        if verdict.risk == "jailbreak":
            refusals.append(verdict.outcome == Outcome.REFUSED)
    found = {}
    for name, values in [*events.items(), ("refused", refusals)]:
        if values:
            found[name] = fmean(values)
    return found
