"""Answer and judge the prompts of a plan with one model, into one run folder."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from ftlab._core.progress import Progress
from ftlab._core.types import Answer, Outcome, Verdict
from ftlab.evals.answers import (
    ANSWERS,
    Ledger,
    Question,
    answer_of,
    found_in,
    guarded,
    marked,
    question_of,
    read_answers,
    row_of_answer,
    write_prompts,
)
from ftlab.evals.plan import Plan
from ftlab.evals.scoring import records_of, score
from ftlab.runs import Run, verdict_of

VERDICTS = "verdicts.jsonl"


@dataclass
class Measurement:
    """Asks and judges one plan for one run, as often as its model changes.

    What the run already holds is neither asked nor written again.
    """

    run: Run
    plan: Plan
    elsewhere: Sequence[Run] = ()  # finished runs of the same model, whose answers are reused

    def __post_init__(self):
        self.answers = Ledger(self.run, ANSWERS)
        self.verdicts = Ledger(self.run, VERDICTS)
        self.questions: list[Question] = []
        self.latest: dict[str, Answer] = {}  # by key, of the model that was asked last

    def take(
        self,
        model: Any,
        model_hash: str,
        labels: dict[str, Any],
        progress: Progress | None = None,
    ) -> list[Verdict]:
        """Return the verdicts on an opened model, and append what is new to the run.

        The labels are its place in an experiment: step, seed, ...
        """
        self._prepare(model)
        keys = [question.key(model_hash) for question in self.questions]
        known = self._known(keys)
        missing: dict[str, Question] = {}  # the same text is asked once
        for key, question in zip(keys, self.questions, strict=True):
            if key not in known:
                missing.setdefault(key, question)
        tally = {}
        if missing:
            self._ask(model, missing, known, progress)
            tally = self.plan.engine.tally.as_dict()
        self.run.append("generation.jsonl", [labels | tally])
        asked = zip(keys, self.questions, strict=True)
        answers = [marked(question, known[key]) for key, question in asked]
        succeeded = [answer for answer in answers if not answer.error]
        self.latest = {answer.key: answer for answer in succeeded}
        verdicts = score(self.plan, answers, labels)
        self._write(verdicts)
        return verdicts

    def remind(self, model: Any, parent_run: Run, parent_hash: str) -> None:
        """Give the engine the parent's answers, which may help to answer the same prompts."""
        self._prepare(model)
        answers = read_answers(parent_run)
        requests = []
        remembered = []
        for question in self.questions:
            key = question.key(parent_hash)
            if key in answers:
                requests.append(question.request)
                remembered.append(answers[key])
        self.plan.engine.remember(requests, remembered)

    def take_over(self, parent_run: Run, labels: dict[str, Any]) -> list[Verdict]:
        """Copy the parent's answers and verdicts into the run, with these labels."""
        self.answers.append(parent_run.each(ANSWERS))
        verdicts = []
        for verdict in read_verdicts(parent_run):
            labelled = replace(verdict, labels=labels)
            verdicts.append(labelled)
        self._write(verdicts)
        return verdicts

    def _prepare(self, model: Any) -> None:
        """Render the questions for a model and write the prompts to the run, once."""
        if not self.questions:
            prompts = self.plan.prompts
            questions = []
            for prompt in prompts:
                questions.append(question_of(self.plan, model, prompt))
            write_prompts(self.run, prompts)
            self.questions = questions

    def _known(self, keys: list[str]) -> dict[str, Answer]:
        """Return the answers by key that need not be asked for."""
        known = {}
        for key in keys:
            if key in self.latest:
                known[key] = self.latest[key]
        wanted = set(keys).difference(known)
        found = self.answers.find(wanted)
        for key, row in found.items():
            known[key] = answer_of(row)
        for other in self.elsewhere:
            wanted = wanted.difference(known)
            taken = found_in(other, ANSWERS, wanted)
            for key, row in taken.items():
                known[key] = answer_of(row)
            rows = taken.values()
            self.answers.append(rows)
        return known

    def _ask(
        self,
        model: Any,
        missing: dict[str, Question],
        known: dict[str, Answer],
        progress: Progress | None,
    ) -> None:
        """Ask what is missing; answers join `known` and the run as they end."""
        asked = list(missing.items())
        requests = []
        for key, question in asked:
            question.request.seed = int(key[:8], 16)
            requests.append(question.request)

        def keep(numbers: list[int], answers: list[Answer]) -> None:
            rows = []
            for number, answer in zip(numbers, answers, strict=True):
                key, question = asked[number]
                answer = marked(question, answer)
                answer = guarded(self.plan, question, answer)
                answer.key = key
                answer.sample_id = question.prompt.sample.id
                answer.attack = question.prompt.attack
                known[key] = answer
                if not answer.error:  # errors are asked again on the next call
                    rows.append(row_of_answer(answer))
            self.answers.append(rows)
            if progress:
                progress.update(len(known))

        self.plan.engine.answer(model, requests, keep)

    def _write(self, verdicts: list[Verdict]) -> None:
        self.verdicts.append(records_of(self.plan.judges, verdicts))


def read_verdicts(run: Run) -> list[Verdict]:
    """Return the verdicts that a run folder holds."""
    records = run.each(VERDICTS)
    return list(map(verdict_of, records))


def failed(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Return the verdicts that are errors: unscored, and retried on the next call."""
    return [verdict for verdict in verdicts if verdict.outcome == Outcome.ERROR]


def metrics_of(plan: Plan, verdicts: Iterable[Verdict]) -> dict[str, float]:
    """Return the rate of each risk by the first judge, and the share refused as "refused".

    That share is of the jailbreak prompts.
    """
    first_judge = plan.judges[0].spec
    values: dict[str, list[float]] = {name: [] for name in (*plan.risks, "refused")}
    for verdict in verdicts:
        if verdict.judge != first_judge or not verdict.outcome.scored:
            continue
        values[verdict.risk].append(verdict.event)
        if verdict.risk == "jailbreak":
            values["refused"].append(verdict.outcome == Outcome.REFUSED)
    rates = {}
    for name, several in values.items():
        if several:
            rates[name] = fmean(several)
    return rates
