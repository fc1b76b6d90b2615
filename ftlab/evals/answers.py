"""Ask a model the prompts of a plan; what a run already holds is never asked again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ftlab._core.files import digest, json_lines, stamp, write_atomic
from ftlab._core.progress import Progress
from ftlab._core.types import Answer, Outcome, Prompt
from ftlab.evals.plan import Plan
from ftlab.models.engines import Decoding, Request
from ftlab.runs import Run

ANSWERS = "answers.jsonl"
ANSWER_FIELDS = [field.name for field in fields(Answer)]


@dataclass(frozen=True)
class Question:
    """A prompt as the engine is asked it, with everything but the model that decides its answer.

    Args:
        prompt: The prompt.
        request: What the engine gets.
        parts: JSON-able parts of the answer's key.
    """

    prompt: Prompt
    request: Request
    parts: list[Any]

    def key(self, model_hash: str) -> str:
        """Return the key of the answer of the model with this hash."""
        return digest([model_hash, *self.parts])


def questions_of(plan: Plan, model: Any) -> list[Question]:
    """Render every prompt of a plan for a model that the plan's engine has opened."""
    return [_question(plan, model, prompt) for prompt in plan.prompts]


def _question(plan: Plan, model: Any, prompt: Prompt) -> Question:
    config = plan.config
    messages = prompt.messages
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if config.system and not prompt.no_system:
        messages = [{"role": "system", "content": config.system}, *messages]
    rendered = plan.engine.render(model, messages, prompt.opening, prompt.opening_tokens)
    text, opening = rendered
    settings = config.decoding.model_dump() | (prompt.decoding or {})
    decoding = Decoding(**settings)
    choices = prompt.sample.choices
    parts: list[Any] = [text, config.max_new_tokens]
    if decoding.temperature:
        parts += [settings, prompt.attempt or 0, prompt.repeat]
    screened = prompt.sample.risk in plan.screened_risks
    if screened:
        parts += ["screen", *config.judges]
    if choices:
        parts.append(list(choices))
    request = Request(messages, text, opening, decoding, config.max_new_tokens, choices=choices)
    if screened:
        request.stop_when = RefusalStands(plan, prompt)
    return Question(prompt, request, parts)


@dataclass(frozen=True)
class RefusalStands:
    """Tells when every judge calls the beginning of an answer a refusal, which then stands."""

    plan: Plan
    prompt: Prompt

    def __call__(self, text: str) -> bool:
        for judge in self.plan.judges:
            judgement = judge.judge([self.prompt.sample], [text])[0]
            if judgement.outcome != Outcome.REFUSED:
                return False
        return True


class Ledger:
    """Records of a run's JSONL file that were there before this process wrote to it.

    They are read again when the file was replaced, or another process wrote to it.
    """

    def __init__(self, run: Run, file: str):
        self.run = run
        self.file = file
        self.records: dict[str, dict] = {}
        self.seen: tuple[int, ...] | None = None

    def known(self) -> dict[str, dict]:
        """Return the records by key."""
        if self.seen != self._stamp():
            self.records = {record["key"]: record for record in self.run.read(self.file)}
            self.seen = self._stamp()
        return self.records

    def append(self, records: list[dict]) -> None:
        """Add records to the file."""
        self.known()
        self.run.append(self.file, records)
        self.seen = self._stamp()

    def _stamp(self) -> tuple[int, ...]:
        """Return inode and size, which tell another file or another writer."""
        return stamp(self.run.path / self.file)[:2]


class AnswerBook:
    """The answers of one run: asks for what is missing and writes down what comes.

    Args:
        run: The run folder.
        plan: What is asked.
        elsewhere: Finished runs whose answers of the same model are taken over.
    """

    def __init__(self, run: Run, plan: Plan, elsewhere: Iterable[Run] = ()):
        self.run = run
        self.plan = plan
        self.elsewhere = list(elsewhere)
        self.ledger = Ledger(run, ANSWERS)
        self.questions: list[Question] = []
        self.latest: dict[str, Answer] = {}  # by key, of the model that was asked last

    def ask(
        self, model: Any, model_hash: str, *, labels: dict, progress: Progress | None = None
    ) -> list[Answer]:
        """Return the answer to every prompt of the plan, in order.

        Args:
            model: What the plan's engine opened, or a model in training.
            model_hash: Hash of its weights as they are now.
            labels: Where in an experiment this is; joins the line of `generation.jsonl`.
            progress: Is moved as answers come.
        """
        self.prepare(model)
        keys = [question.key(model_hash) for question in self.questions]
        known = self._known(keys)
        missing = {}  # the same text is asked once
        for key, question in zip(keys, self.questions, strict=True):
            if key not in known:
                missing.setdefault(key, question)
        if missing:
            _Asking(self, known, missing, progress).run(model)
        answers = [known[key] for key in keys]
        tally = self.plan.engine.tally if missing else None
        self.run.append("generation.jsonl", [labels | (tally.as_dict() if tally else {})])
        self.latest = {key: known[key] for key in keys if not known[key].error}
        return answers

    def prepare(self, model: Any) -> None:
        """Render the questions for a model, and write the prompts down, once."""
        if not self.questions:
            self.questions = questions_of(self.plan, model)
            write_prompts(self.run, self.plan.prompts)

    def _known(self, keys: Sequence[str]) -> dict[str, Answer]:
        there = self.ledger.known()
        known = {key: answer_of(there[key]) for key in keys if key in there}
        known |= {key: self.latest[key] for key in keys if key in self.latest}
        for other in self.elsewhere:
            wanted = set(keys) - set(known)
            taken = [row for row in other.read(ANSWERS) if row["key"] in wanted]
            self.ledger.append(taken)
            known |= {row["key"]: answer_of(row) for row in taken}
        return known

    def take_over(self, other: Run) -> None:
        """Copy the answers of another run that this one does not hold."""
        known = self.ledger.known()
        self.ledger.append([row for row in other.read(ANSWERS) if row["key"] not in known])

    def remind(self, answers: dict[str, Answer], model_hash: str) -> None:
        """Tell the engine what another model answered to the same prompts.

        Args:
            answers: That model's answers by key.
            model_hash: That model's hash.
        """
        requests = []
        remembered = []
        for question in self.questions:
            answer = answers.get(question.key(model_hash))
            if answer is not None:
                requests.append(question.request)
                remembered.append(answer)
        self.plan.engine.remember(requests, remembered)


class _Asking:
    """One call of an engine: keeps answers as they end."""

    def __init__(
        self,
        book: AnswerBook,
        known: dict[str, Answer],
        missing: dict[str, Question],
        progress: Progress | None,
    ):
        self.book = book
        self.known = known
        self.keys = list(missing)
        self.questions = list(missing.values())
        self.progress = progress

    def run(self, model: Any) -> None:
        requests = []
        for key, question in zip(self.keys, self.questions, strict=True):
            question.request.seed = int(key[:8], 16)
            requests.append(question.request)
        self.book.plan.engine.answer(model, requests, self.keep)

    def keep(self, numbers: list[int], answers: list[Answer]) -> None:
        rows = []
        for number, answer in zip(numbers, answers, strict=True):
            prompt = self.questions[number].prompt
            answer.key = self.keys[number]
            answer.sample_id = prompt.sample.id
            answer.attack = prompt.attack
            self.known[answer.key] = answer
            if not answer.error:  # errors are asked again on the next call
                rows.append(row_of_answer(answer))
        self.book.ledger.append(rows)
        if self.progress:
            self.progress.update(len(self.known))


def row_of_answer(answer: Answer) -> dict[str, Any]:
    """Return an answer as the record that `answers.jsonl` holds, without empty fields."""
    row = {name: value for name, value in asdict(answer).items() if value not in ("", None, 0)}
    return row | {"key": answer.key, "text": answer.text}


def answer_of(row: dict[str, Any]) -> Answer:
    """Return the answer that a record of `answers.jsonl` holds."""
    return Answer(**{name: row[name] for name in ANSWER_FIELDS if name in row})


def write_prompts(run: Run, prompts: Iterable[Prompt]) -> None:
    """Write the prompts of a run, unless they are there already."""
    path = run.path / "prompts.jsonl"
    text = json_lines([asdict(prompt) for prompt in prompts])
    if not path.exists() or path.read_bytes() != text.encode("utf-8", "surrogatepass"):
        write_atomic(path, text)


def read_prompts_of(run: Run) -> list[dict[str, Any]]:
    """Return the prompts that a run was asked, as records."""
    path = run.path / "prompts.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_bytes().splitlines()]
