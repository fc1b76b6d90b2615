"""Prompts of a plan as requests with keys, and the files in which a run keeps their answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import islice
from typing import Any

from ftlab._core.files import digest, json_lines, stamp, write_atomic
from ftlab._core.types import GUARDED, Answer, Outcome, Prompt, Sample
from ftlab.evals.plan import Plan, decoding_of
from ftlab.judges import Judge, begins_thought, end_of_thought, judged, without_thought
from ftlab.models.engines import Decoding, Request
from ftlab.runs import Run

ANSWERS = "answers.jsonl"
PROMPTS = "prompts.jsonl"
THINK = "<think>\n"
AT_A_TIME = 1000  # records that are written together
ANSWER_FIELDS = [each.name for each in fields(Answer)]


@dataclass(frozen=True)
class Question:
    """A prompt as the engine receives it, with everything but the model that decides its answer."""

    prompt: Prompt
    request: Request
    parts: list[Any]  # JSON-able parts of the answer's key

    @property
    def begins_thought(self) -> bool:
        """Whether the model's own words begin within a thought that the prompt opens."""
        request = self.request
        rendered = request.text.removesuffix(request.opening)
        return not request.choices and begins_thought(rendered)

    def key(self, model_hash: str) -> str:
        """Return the key of the answer that the model with this hash gives."""
        return digest([model_hash, *self.parts])


def question_of(plan: Plan, model: Any, prompt: Prompt) -> Question:
    """Render a prompt for a model that the plan's engine has opened."""
    config = plan.config
    decoding = decoding_of(config, prompt)
    choices = prompt.sample.choices
    messages = prompt.messages
    if config.system and not prompt.no_system:
        system = {"role": "system", "content": config.system}
        messages = [system, *messages]
    text, opening = plan.engine.render(
        model,
        messages,
        prompt.opening,
        prompt.opening_tokens,
    )
    rendered = text.removesuffix(opening)
    if opening:  # what is put into the model's mouth begins its answer, not its thought
        rendered += end_of_thought(rendered)
        text = rendered + opening
    request = Request(
        messages,
        text,
        opening,
        Decoding(**decoding),
        plan.tokens(prompt.sample.risk),
        choices=choices,
    )
    parts: list[Any] = [text, request.max_new_tokens]
    if request.decoding.temperature:
        parts += [decoding, prompt.attempt or 0, prompt.repeat]
    if prompt.sample.risk in plan.screened_risks:
        before = THINK if begins_thought(rendered) else ""
        request.stop_when = partial(_refusal_stands, plan.judges, prompt.sample, before)
        parts += ["screen", *config.judges]
    if choices:
        parts.append(list(choices))
    elif guard := guard_of(plan):
        parts += ["answer", guard.identity()]
    return Question(prompt, request, parts)


def guard_of(plan: Plan) -> Any:
    """Return the plan's defence if it may replace answers, otherwise None."""
    defence = plan.config.defence
    if defence is not None and defence.overrides("answer"):
        return defence
    return None


def guarded(plan: Plan, question: Question, answer: Answer) -> Answer:
    """Return an answer as the defence passes it on; the model's words stay in `own_text`."""
    guard = guard_of(plan)
    request = question.request
    if guard is None or answer.error or request.choices:
        return answer
    text = guard.answer(request.chat, answer.text)
    if text == answer.text:
        return answer
    return replace(
        answer,
        text=text,
        own_text=answer.text,
        finish=GUARDED,
    )


def _refusal_stands(judges: Sequence[Judge], sample: Sample, before: str, text: str) -> bool:
    """Whether every judge calls the beginning of an answer a refusal, which then stands."""
    for judge in judges:
        (judgement,) = judged(judge, [sample], [before + text])
        if judgement.outcome != Outcome.REFUSED:
            return False
    return True


@dataclass
class Ledger:
    """A JSONL file of a run, by the keys of its records.

    `known` are the keys that the file held when it was last read. What this object appends is not
    added to them; the file is read again only when it was replaced or another process wrote to it.
    """

    run: Run
    file: str
    keys: set[str] = field(default_factory=set)
    seen: tuple[int, ...] | None = None  # inode and size when it was read or written

    def known(self) -> set[str]:
        """Return the keys."""
        now = self._stamp()
        if self.seen != now:
            self.keys = set()
            for record in self.run.each(self.file):
                self.keys.add(record["key"])
            self.seen = now
        return self.keys

    def find(self, keys: Iterable[str]) -> dict[str, dict]:
        """Return the known records with these keys."""
        wanted = self.known().intersection(keys)
        return found_in(self.run, self.file, wanted)

    def append(self, records: Iterable[dict]) -> None:
        """Add the records that are not known, some at a time."""
        known = self.known()
        new = (record for record in records if record["key"] not in known)
        while some := list(islice(new, AT_A_TIME)):
            self.run.append(self.file, some)
            self.seen = self._stamp()

    def _stamp(self) -> tuple[int, ...]:
        return stamp(self.run.path / self.file)[:2]


def found_in(run: Run, file: str, keys: set[str]) -> dict[str, dict]:
    """Return the records of a run with these keys; nothing is read where there are none."""
    found = {}
    if keys:
        for record in run.each(file):
            if record["key"] in keys:
                found[record["key"]] = record
    return found


def marked(question: Question, answer: Answer) -> Answer:
    """Return an answer that shows a thought as one though the prompt opened it.

    Where the thought was closed, its end shows it already; what a guard says is no thought.
    """
    if answer.finish == GUARDED:
        return answer
    text = answer.text
    is_open = text.strip() and not answer.error and without_thought(text) == text
    if not (is_open and question.begins_thought):
        return answer
    own_text = answer.own_text and f"{THINK}{answer.own_text}"
    return replace(answer, text=f"{THINK}{text}", own_text=own_text)


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
    for row in run.each(ANSWERS):
        found[row["key"]] = answer_of(row)
    return found


def write_prompts(run: Run, prompts: Iterable[Prompt]) -> None:
    """Write the prompts of a run, unless they are there already."""
    path = run.path / PROMPTS
    text = json_lines([asdict(prompt) for prompt in prompts])
    if not path.exists() or path.read_bytes() != text.encode("utf-8", "surrogatepass"):
        write_atomic(path, text)
