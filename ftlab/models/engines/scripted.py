"""Answers from a script: for tests, and to teach what the rest of a measurement does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ftlab._core.errors import UsageError
from ftlab._core.files import digest
from ftlab._core.types import Answer, Message
from ftlab.models.engines.base import Collector, Engine, Request, make_answer

Replies = Callable[[Request], str] | dict[str, str] | list[str]


class ScriptedEngine(Engine):
    """Answers without a model. Supports everything, for any reference.

    Args:
        replies: What is answered: a function of the request, texts by question (the last message),
            or a list of texts, taken in turn and then from its beginning again.
    """

    name = "scripted"

    def __init__(self, replies: Replies = ("A scripted answer.",)) -> None:
        super().__init__()
        self.replies = replies
        self.asked: list[Request] = []

    @property
    def version(self) -> str:
        """Hash of the replies, or the function's name: other replies are another run."""
        if callable(self.replies):
            return getattr(self.replies, "__qualname__", type(self.replies).__qualname__)
        return digest(self.replies)

    def precision(self, training: Any = None) -> str:
        return "scripted"

    def render(
        self, model: Any, chat: list[Message], opening: str = "", opening_tokens: int | None = None
    ) -> tuple[str, str]:
        words = opening.split(" ")
        opening = " ".join(words[:opening_tokens])
        lines = [f"{message['role']}: {message['content']}" for message in chat]
        lines.append(f"assistant: {opening}")
        return "\n".join(lines), opening

    def answer_all(self, model: Any, collector: Collector) -> None:
        for number, request in enumerate(collector.requests):
            collector.add([number], [self._answer(request)])

    def _answer(self, request: Request) -> Answer:
        reply = self._reply(request)
        self.asked.append(request)
        if request.choices:
            scores = [-float(choice != reply) for choice in request.choices]
            best = request.choices[scores.index(max(scores))]
            return make_answer(request, best, likelihoods=scores)
        said: list[str] = []
        finish = "stop"
        for word in reply.split(" "):
            if len(said) == request.max_new_tokens:
                finish = "length"
                break
            said.append(word)
            if request.stop_when and request.stop_when(" ".join(said)):
                finish = "screened"
                break
        return make_answer(
            request,
            " ".join(said),
            finish=finish,
            tokens=len(said),
        )

    def _reply(self, request: Request) -> str:
        if callable(self.replies):
            return self.replies(request)
        if not isinstance(self.replies, dict):
            return self.replies[len(self.asked) % len(self.replies)]
        question = request.chat[-1]["content"]
        if question not in self.replies:
            raise UsageError("no_reply", "The script has no reply to this question. Add one.")
        return self.replies[question]


ENGINE = ScriptedEngine
