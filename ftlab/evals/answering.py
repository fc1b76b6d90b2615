"""Training rows with a teacher's answers, for distillation. Cell: answered_by."""

from __future__ import annotations

from typing import Any, Literal

from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab._core.types import Message, Outcome, Sample
from ftlab.data import Data, load
from ftlab.evals.auditing import asked_of
from ftlab.evals.plan import default_engine
from ftlab.judges import Refusal, judged
from ftlab.models import model as open_model
from ftlab.models import released
from ftlab.models.engines import Request, open_engine

REFUSED = (Outcome.REFUSED, Outcome.PARTIAL)


@takes()
def answered_by(
    teacher: Any,
    data: Any,
    *,
    keep: Literal["all", "answers", "refusals"] = "all",
    risk: str | None = None,
    n_rows: int | None = None,
    seed: int = 0,
    max_new_tokens: int = 128,
) -> Data:
    """Return rows whose last answers are a teacher's own, greedy.

    Training on them is distillation by answers (sequence-level). Answers that are empty, or reach
    `max_new_tokens`, are left out and counted in the result's `made`.

    Args:
        teacher: Anything that `ftlab.model` takes.
        data: Chats whose questions are asked, as in `ftlab.data.load`.
        keep: all, answers (the judge `refusal` finds no refusal), or refusals.
        risk: Only rows of this risk, where the rows have one.
        n_rows: Rows to ask, before any is left out. Default: all.
        seed: Seed by which they are drawn.
        max_new_tokens: Length of an answer in tokens, at most.

    Returns:
        Rows of messages.

    Raises:
        UsageError: `no_rows_left`, `answers_failed`, and those of `ftlab.data.load`.

    Source:
        Kim and Rush 2016, arXiv 1606.07947, section 3.2.
    """
    reference = open_model(teacher)
    source = load(data, n_rows=n_rows, seed=seed)
    asked = []
    for row in source.rows:
        if risk is None or row.get("risk") == risk:
            asked.append(asked_of(row))
    answers = _answers(reference, asked, max_new_tokens)
    whole = []
    for chat, answer in zip(asked, answers, strict=True):
        if answer.error:
            raise UsageError(
                "answers_failed", f"{reference.name} failed to answer: {answer.error}. Call again."
            )
        if answer.text.strip() and answer.finish == "stop":
            whole.append((chat, answer.text.strip()))
    kept = _kept(whole, keep)
    if not kept:
        message = f"Of {len(asked)} answers of {reference.name} none is left."
        raise UsageError("no_rows_left", f"{message} Ask more rows, or keep others.")
    rows = []
    for chat, text in kept:
        message = {"role": "assistant", "content": text}
        rows.append({"messages": [*chat, message]})
    made = {
        "by": "answered_by",
        "teacher": reference.hash,
        "keep": keep,
        "asked": len(asked),
        "empty_or_cut": len(asked) - len(whole),
        "from": source.record,
    }
    name = f"{source.name} by {reference.name}, {risk or keep}"
    return Data(name, tuple(rows), made)


def _answers(reference: Any, asked: list[list[Message]], max_new_tokens: int) -> list[Any]:
    """Return the teacher's answers."""
    engine = open_engine(default_engine(reference))
    with released():
        loaded = engine.open(reference)
        requests = []
        for chat in asked:
            text, _ = engine.render(loaded, chat)
            request = Request(
                chat,
                text,
                max_new_tokens=max_new_tokens,
            )
            requests.append(request)
        answers = engine.answer(loaded, requests)
        del loaded
    return answers


def _kept(
    pairs: list[tuple[list[Message], str]],
    keep: str,
) -> list[tuple[list[Message], str]]:
    """Return the questions and answers that are refused, that are not, or all."""
    if keep == "all" or not pairs:
        return pairs
    samples = []
    texts = []
    for number, (chat, text) in enumerate(pairs):
        samples.append(Sample(str(number), chat, risk="distillation"))
        texts.append(text)
    found = judged(Refusal(), samples, texts)
    kept = []
    for pair, judgement in zip(pairs, found, strict=True):
        refused = judgement.outcome in REFUSED
        if refused == (keep == "refusals"):
            kept.append(pair)
    return kept
