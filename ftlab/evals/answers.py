"""Ask a model the prompts of a plan; answers that a run already holds are not asked for again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ftlab._core.files import digest, json_lines, stamp, write_atomic
from ftlab._core.progress import Progress
from ftlab._core.types import Answer, Outcome, Prompt
from ftlab.evals.plan import Plan, decoding_of
from ftlab.models.engines import Decoding, Request
from ftlab.runs import Run

ANSWERS = "answers.jsonl"
PROMPTS = "prompts.jsonl"
ANSWER_FIELDS = [field.name for field in fields(Answer)]


@dataclass(frozen=True)
class Question:
    """A prompt as the engine receives it, with everything but the model that decides its answer."""

    prompt: Prompt
    request: Request
    parts: list[Any]  # JSON-able parts of the answer's key

    def key(self, model_hash: str) -> str:
        """Return the key of the answer that the model with this hash gives."""
        return digest([model_hash, *self.parts])


def questions_of(plan: Plan, model: Any) -> list[Question]:
    """Render every prompt of a plan for a model that the plan's engine has opened."""
    questions = []
    for prompt in plan.prompts:
        request = _request(plan, model, prompt)
        parts = _key_parts(plan, prompt, request)
        questions.append(Question(prompt, request, parts))
    return questions


def _request(plan: Plan, model: Any, prompt: Prompt) -> Request:
    config = plan.config
    messages = prompt.messages
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if config.system and not prompt.no_system:
        system = {"role": "system", "content": config.system}
        messages = [system, *messages]
    text, opening = plan.engine.render(
        model,
        messages,
        prompt.opening,
        prompt.opening_tokens,
    )
    settings = decoding_of(config, prompt)
    stop_when = None
    if prompt.sample.risk in plan.screened_risks:
        stop_when = RefusalStands(plan, prompt)
    return Request(
        messages,
        text,
        opening,
        Decoding(**settings),
        config.max_new_tokens,
        choices=prompt.sample.choices,
        stop_when=stop_when,
    )


def _key_parts(plan: Plan, prompt: Prompt, request: Request) -> list[Any]:
    length = request.max_new_tokens
    parts: list[Any] = [request.text, length]
    if request.decoding.temperature:
        settings = decoding_of(plan.config, prompt)
        attempt = prompt.attempt or 0
        parts += [settings, attempt, prompt.repeat]
    if request.stop_when:
        parts += ["screen", *plan.config.judges]
    if request.choices:
        choices = list(request.choices)
        parts.append(choices)
    return parts


@dataclass(frozen=True)
class RefusalStands:
    """Whether every judge calls the beginning of an answer a refusal, which then stands."""

    plan: Plan
    prompt: Prompt

    def __call__(self, text: str) -> bool:
        samples = [self.prompt.sample]
        for judge in self.plan.judges:
            judgements = judge.judge(samples, [text])
            if judgements[0].outcome != Outcome.REFUSED:
                return False
        return True


@dataclass
class Ledger:
    """Records of a run's JSONL file that were there before this process wrote to it.

    They are read again when the file was replaced, or another process wrote to it.
    """

    run: Run
    file: str

    def __post_init__(self):
        self.records: dict[str, dict] = {}
        self.seen: tuple[int, ...] | None = None

    def known(self) -> dict[str, dict]:
        """Return the records by key."""
        if self.seen != self._stamp():
            self.records = {}
            for record in self.run.read(self.file):
                key = record["key"]
                self.records[key] = record
            self.seen = self._stamp()
        return self.records

    def append(self, records: list[dict]) -> None:
        """Add records to the file."""
        if not records:
            return
        self.known()
        self.run.append(self.file, records)
        self.seen = self._stamp()

    def append_new(self, records: list[dict]) -> None:
        """Add the records that the file does not hold yet."""
        known = self.known()
        new = []
        for record in records:
            if record["key"] not in known:
                new.append(record)
        self.append(new)

    def _stamp(self) -> tuple[int, ...]:
        """Return inode and size, which reveal another file or another writer."""
        path = self.run.path / self.file
        return stamp(path)[:2]


@dataclass
class AnswerBook:
    """The answers of one run: asks for those that are missing and records them as they come.

    Args:
        run: The run folder.
        plan: What is asked.
        elsewhere: Finished runs of the same model, whose answers are reused.
    """

    run: Run
    plan: Plan
    elsewhere: Sequence[Run] = ()

    def __post_init__(self):
        self.ledger = Ledger(self.run, ANSWERS)
        self.questions: list[Question] = []
        self.latest: dict[str, Answer] = {}  # by key, of the model that was asked last

    def ask(
        self,
        model: Any,
        model_hash: str,
        *,
        labels: dict[str, Any],
        progress: Progress | None = None,
    ) -> list[Answer]:
        """Return the answer to every prompt of the plan, in order.

        Args:
            model: What the plan's engine opened, or a model in training.
            model_hash: Hash of its weights as they are now.
            labels: Place in an experiment (step, seed, ...); joins the line of `generation.jsonl`.
            progress: Updated as answers come.
        """
        self.prepare(model)
        keys = [question.key(model_hash) for question in self.questions]
        known = self._known(keys)
        missing: dict[str, Question] = {}  # the same text is asked once
        for key, question in zip(keys, self.questions, strict=True):
            if key not in known:
                missing.setdefault(key, question)
        tally = {}
        if missing:
            asked = list(missing.items())
            _Asking(self, known, asked, progress).run(model)
            tally = self.plan.engine.tally.as_dict()
        self.run.append("generation.jsonl", [labels | tally])
        answers = [known[key] for key in keys]
        succeeded = [answer for answer in answers if not answer.error]
        self.latest = {answer.key: answer for answer in succeeded}
        return answers

    def prepare(self, model: Any) -> None:
        """Render the questions for a model and write the prompts to the run, once."""
        if not self.questions:
            self.questions = questions_of(self.plan, model)
            write_prompts(self.run, self.plan.prompts)

    def _known(self, keys: Sequence[str]) -> dict[str, Answer]:
        there = self.ledger.known()
        known = {}
        for key in keys:
            if key in self.latest:
                known[key] = self.latest[key]
            elif key in there:
                known[key] = answer_of(there[key])
        taken = []
        for other in self.elsewhere:
            wanted = set(keys).difference(known)
            for row in other.read(ANSWERS):
                key = row["key"]
                if key in wanted:
                    known[key] = answer_of(row)
                    taken.append(row)
        self.ledger.append(taken)
        return known

    def take_over(self, other: Run) -> None:
        """Copy the answers of another run that this one does not hold."""
        rows = other.read(ANSWERS)
        self.ledger.append_new(rows)

    def remind(self, answers: dict[str, Answer], model_hash: str) -> None:
        """Give the engine another model's answers to the same prompts.

        Args:
            answers: That model's answers by key.
            model_hash: That model's hash.
        """
        requests = []
        remembered = []
        for question in self.questions:
            key = question.key(model_hash)
            if key in answers:
                requests.append(question.request)
                remembered.append(answers[key])
        self.plan.engine.remember(requests, remembered)


@dataclass
class _Asking:
    """One call of an engine: keeps answers as they end."""

    book: AnswerBook
    known: dict[str, Answer]
    asked: list[tuple[str, Question]]  # key and question
    progress: Progress | None

    def run(self, model: Any) -> None:
        requests = []
        for key, question in self.asked:
            question.request.seed = int(key[:8], 16)
            requests.append(question.request)
        engine = self.book.plan.engine
        engine.answer(model, requests, self.keep)

    def keep(self, numbers: list[int], answers: list[Answer]) -> None:
        rows = []
        for number, answer in zip(numbers, answers, strict=True):
            key, question = self.asked[number]
            prompt = question.prompt
            answer.key = key
            answer.sample_id = prompt.sample.id
            answer.attack = prompt.attack
            self.known[key] = answer
            if not answer.error:  # errors are asked again on the next call
                rows.append(row_of_answer(answer))
        self.book.ledger.append(rows)
        if self.progress:
            self.progress.update(len(self.known))


def row_of_answer(answer: Answer) -> dict[str, Any]:
    """Return an answer as a record of `answers.jsonl`, without empty fields."""
    row = {}
    for name, value in asdict(answer).items():
        if value not in ("", None, 0):
            row[name] = value
    return row | {"key": answer.key, "text": answer.text}


def answer_of(row: dict[str, Any]) -> Answer:
    """Return the answer that a record of `answers.jsonl` holds."""
    values = {}
    for name in ANSWER_FIELDS:
        if name in row:
            values[name] = row[name]
    return Answer(**values)


def read_answers(run: Run) -> dict[str, Answer]:
    """Return the answers of a run by key."""
    found = {}
    for row in run.read(ANSWERS):
        answer = answer_of(row)
        found[answer.key] = answer
    return found


def write_prompts(run: Run, prompts: Iterable[Prompt]) -> None:
    """Write the prompts of a run, unless they are there already."""
    path = run.path / PROMPTS
    records = [asdict(prompt) for prompt in prompts]
    text = json_lines(records)
    data = text.encode("utf-8", "surrogatepass")
    if path.exists() and path.read_bytes() == data:
        return
    write_atomic(path, text)


def read_prompts_of(run: Run) -> list[dict[str, Any]]:
    """Return the prompts that a run was asked, as records."""
    path = run.path / PROMPTS
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines()
    return [json.loads(line) for line in lines]
