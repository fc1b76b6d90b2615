"""The interface of an engine: what answers requests, and what it is given and returns."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from ftlab._core import plugins
from ftlab._core.config import Config, setting
from ftlab._core.errors import UsageError
from ftlab._core.types import Answer, Message
from ftlab.models.chat_template import render

OLD_NAMES = {"transformers": "huggingface"}  # names of engines in version 0.3
OnAnswer = Callable[[list[int], list[Answer]], None]  # numbers of the requests, their answers


class Decoding(Config):
    """How the tokens of an answer are chosen: temperature first, then top-k, then top-p."""

    temperature: float = setting(
        0.0, "Sampling temperature; 0 takes the most probable token each time (greedy)", ge=0
    )
    top_p: float = setting(
        1.0, "Sample from the most probable tokens that reach this probability together", gt=0, le=1
    )
    top_k: int = setting(0, "Sample from the k most probable tokens only; 0 for all", ge=0)


GREEDY = Decoding()


@dataclass(slots=True)
class Request:
    """One question to a model.

    Args:
        chat: The messages; the last one is the user's.
        text: The chat as `Engine.render` returned it, the opening included.
        opening: Words written into the model's mouth, as `Engine.render` returned them.
        decoding: How tokens are chosen.
        max_new_tokens: Length of the answer in tokens, at most.
        seed: Decides a sampled answer. Required where `decoding` has a temperature.
        choices: The answers to choose from; then the likeliest one is the answer.
        stop_when: Called with the model's own words so far; true ends the answer there.
    """

    chat: list[Message]
    text: str
    opening: str = ""
    decoding: Decoding = GREEDY
    max_new_tokens: int = 24
    seed: int | None = None
    choices: tuple[str, ...] = ()
    stop_when: Callable[[str], bool] | None = None


@dataclass
class LoadedModel:
    """A model in memory.

    Args:
        module: The torch model; None for an engine that loads the weights itself.
        tokenizer: Its tokenizer.
        reference: The `Model` that it came from.
        run: The run that is training it; None where nobody is.
    """

    module: Any
    tokenizer: Any
    reference: Any
    run: Any = None


@dataclass
class Tally:
    """What one call of `Engine.answer` took.

    Args:
        answers: Number of answers.
        tokens: New tokens, ends of turn included.
        drafted: Tokens of earlier answers that were verified as drafts.
        saved: Drafted tokens that held, so that they needed no step of their own.
        halved: How often memory did not suffice and a batch was halved.
        near_ties: Greedy answers with a token whose lead is within rounding, so that another
            batch may answer otherwise; None where the engine does not count them.
        seconds: Wall-clock time.
    """

    answers: int = 0
    tokens: int = 0
    drafted: int = 0
    saved: int = 0
    halved: int = 0
    near_ties: int | None = None
    seconds: float = 0.0

    def as_dict(self) -> dict[str, float]:
        """Return the fields that are known, with seconds rounded to milliseconds."""
        found = asdict(self) | {"seconds": round(self.seconds, 3)}
        return {name: value for name, value in found.items() if value is not None}


class Engine:
    """Answers requests. One object may live through a whole curve and keep what helps it there."""

    name = ""
    version = "1"  # raised whenever answers can change; part of an evaluation's identity

    def __init__(self) -> None:
        self.tally = Tally()

    def supports(
        self,
        reference: Any,
        *,
        choices: bool = False,
        openings: bool = False,
        screened: bool = False,
        training: Any = None,
    ) -> str | None:
        """Return why the engine cannot do this, or None if it can.

        Args:
            reference: The model or endpoint that is asked.
            choices: Whether some requests have choices.
            openings: Whether some requests have an opening.
            screened: Whether some requests have `stop_when`.
            training: Settings of the training during which the model is asked, if any.
        """
        return None

    def open(self, reference: Any, **how) -> Any:
        """Return what `answer` takes as `model`; `how` are keyword arguments of `Model.load`."""
        return reference

    def use_devices(self, devices: int) -> None:
        """Share requests out among so many GPUs; on a machine without one, among processes.

        Raises:
            UsageError: `one_device_only`, `too_few_devices`.
        """
        if devices > 1:
            raise UsageError(
                "one_device_only",
                f"The engine {self.name} does not share requests out among {devices} devices. "
                "Leave devices out, or use the engine huggingface.",
            )

    def precision(self, training: Any = None) -> str:
        """Return the numbers in which a model answers, for the identity of an evaluation.

        Args:
            training: Settings of the training during which the model is asked, if any.
        """
        return ""

    def render(
        self, model: Any, chat: list[Message], opening: str = "", opening_tokens: int | None = None
    ) -> tuple[str, str]:
        """Return the text that the model reads, and the opening that it ends in.

        Args:
            model: What `open` returned.
            chat: The messages; the last one is the user's.
            opening: Words written into the model's mouth.
            opening_tokens: Keep only the first so many tokens of the opening; None for all.
        """
        tokenizer = model.tokenizer
        if opening and opening_tokens:
            ids = tokenizer(opening, add_special_tokens=False)["input_ids"]
            opening = tokenizer.decode(ids[:opening_tokens])
        return render(tokenizer, chat, ask=True) + opening, opening

    def answer(
        self, model: Any, requests: list[Request], on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        """Return the answer to each request, in the order given.

        Args:
            model: What `open` returned, or a `LoadedModel` in training.
            requests: The questions.
            on_answer: Called with numbers of requests and their answers, as answers end.

        Raises:
            UsageError: `prompt_too_long`, `seed_missing`, and others where no request can succeed.
        """
        began = time.perf_counter()
        self.tally = Tally()
        collector = Collector(requests, on_answer, self.tally)
        self.answer_all(model, collector)
        self.tally.seconds = time.perf_counter() - began
        return [collector.found[number] for number in range(len(requests))]

    def answer_all(self, model: Any, collector: Collector) -> None:
        """Answer the requests of a collector. What an engine implements."""
        raise NotImplementedError

    def remember(self, requests: list[Request], answers: list[Answer]) -> None:
        """Take note of earlier greedy answers, which may help to answer the same requests again."""

    def release(self) -> None:
        """Give back what the engine keeps between calls."""


@dataclass
class Collector:
    """Takes the answers to requests, counts them, and reports them as they end."""

    requests: list[Request]
    on_answer: OnAnswer | None
    tally: Tally
    found: dict[int, Answer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sampled = [request for request in self.requests if request.decoding.temperature]
        missing = sum(request.seed is None for request in sampled)
        if missing:
            raise UsageError(
                "seed_missing",
                f"{missing} of {len(sampled)} sampled requests have no seed. Give each one a seed.",
            )

    def groups(self) -> list[list[int]]:
        """Return the numbers of requests, grouped by what one batch must share."""
        groups: dict[tuple, list[int]] = {}
        for number, request in enumerate(self.requests):
            shared = (bool(request.choices), request.decoding, request.max_new_tokens)
            groups.setdefault(shared, []).append(number)
        return list(groups.values())

    def add(self, numbers: list[int], answers: list[Answer]) -> None:
        self.found.update(zip(numbers, answers, strict=True))
        self.tally.answers += len(answers)
        self.tally.tokens += sum(answer.tokens for answer in answers)
        if self.on_answer:
            self.on_answer(numbers, answers)


def open_engine(engine: str | Engine) -> Engine:
    """Return an engine, given its name or the engine itself.

    Raises:
        UsageError: `unknown_engine`.
    """
    if isinstance(engine, Engine):
        return engine
    return plugins.get("engines", OLD_NAMES.get(engine, engine))()


def make_answer(request: Request, own_text: str, **fields) -> Answer:
    """Return an answer, which begins with the request's opening if the model continued it."""
    if not request.opening:
        return Answer(own_text, **fields)
    text = own_text
    if own_text.strip():
        text = f"{request.opening} {own_text.strip()}"
    return Answer(text, own_text, **fields)


def check_length(longest: int, new: int, room: int | None) -> None:
    """Raise UsageError `prompt_too_long` where a prompt and its answer exceed the context."""
    if room and longest + new > room:
        raise UsageError(
            "prompt_too_long",
            f"The longest prompt has {longest} tokens; with max_new_tokens={new} "
            f"it exceeds the context of {room} tokens. Shorten the prompt or the answer.",
        )
