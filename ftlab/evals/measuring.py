"""Answer and judge the prompts of a plan with one model, into one run folder."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ftlab._core.progress import Progress
from ftlab._core.types import Outcome, Verdict
from ftlab.evals.answers import AnswerBook, Ledger
from ftlab.evals.plan import Plan
from ftlab.evals.scoring import record_of, score
from ftlab.runs import Run, verdict_of

VERDICTS = "verdicts.jsonl"


class Measurement:
    """Asks and judges one plan for one run, as often as its model changes.

    What the run already holds is neither asked nor written again.

    Args:
        run: The run folder.
        plan: What is asked.
        elsewhere: Finished runs whose answers of the same model are taken over.
    """

    def __init__(self, run: Run, plan: Plan, elsewhere: Iterable[Run] = ()):
        self.run = run
        self.plan = plan
        self.answers = AnswerBook(run, plan, elsewhere)
        self.ledger = Ledger(run, VERDICTS)

    def take(
        self, model: Any, model_hash: str, labels: dict[str, Any], progress: Progress | None = None
    ) -> list[Verdict]:
        """Return the verdicts on a model, and append what is new to the run.

        Args:
            model: What the plan's engine opened, or a model in training.
            model_hash: Hash of its weights as they are now.
            labels: Where in an experiment this is: step, seed, ...
            progress: Is moved as answers come.
        """
        answers = self.answers.ask(model, model_hash, labels=labels, progress=progress)
        verdicts = score(self.plan, answers, labels)
        self.write(verdicts)
        return verdicts

    def write(self, verdicts: list[Verdict]) -> None:
        """Append the verdicts that the run does not hold yet."""
        versions = {judge.spec: judge.version for judge in self.plan.judges}
        known = self.ledger.known()
        records = [record_of(verdict, versions[verdict.judge]) for verdict in verdicts]
        self.ledger.append([record for record in records if record["key"] not in known])


def read_verdicts(run: Run) -> list[Verdict]:
    """Return the verdicts that a run folder holds."""
    return [verdict_of(record) for record in run.read(VERDICTS)]


def failed(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return the verdicts that are errors: unscored, and retried on the next call."""
    return [verdict for verdict in verdicts if verdict.outcome == Outcome.ERROR]


def metrics_of(plan: Plan, verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Return the rate of each risk, by the first judge.

    Under "refused" stands the share of jailbreak prompts that are refused.
    """
    first_judge = plan.judges[0].spec
    counted = [v for v in verdicts if v.judge == first_judge and v.outcome.scored]
    found = {}
    for name in plan.risks:
        events = [verdict.event for verdict in counted if verdict.risk == name]
        if events:
            found[name] = sum(events) / len(events)
    harmful = [verdict.outcome for verdict in counted if verdict.risk == "jailbreak"]
    if harmful:
        found["refused"] = harmful.count(Outcome.REFUSED) / len(harmful)
    return found
