"""A guard around the model: a second model reads questions and answers.

Source: Inan et al. 2023, arXiv 2312.06674 (Llama Guard); Han et al. 2024, arXiv 2406.18495
(WildGuard); Zeng et al. 2024, arXiv 2407.21772 (ShieldGemma).
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import PrivateAttr

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab._core.types import Message
from ftlab.models import local_model
from ftlab.models.engines import Request, open_engine
from ftlab.training.defences import _classifier
from ftlab.training.defences._guards import FORMS, Form, conversation, form_of
from ftlab.training.defences.base import Defence

REFUSAL = "I'm sorry, but I cannot help with that."
MOST_UNREAD = 0.2  # share of a guard model's replies that cannot be read, beyond which it is none
FEWEST = 20  # replies from which on that share is looked at


class Guard(Defence):
    """Passes a refusal on instead of an answer where question or answer is harmful.

    The model itself is not changed, and is asked in any case: what it wrote is kept beside
    (`own_text`), the refusal is judged. An empty answer stays empty. A reply of the guard that
    cannot be read counts as harmful; where more than a fifth of at least 20 replies cannot, that is
    an error. Parent and child are guarded alike. It fails where the guard errs, which an attacker
    may look for, and wherever the weights are run without it.
    """

    name = "guard"
    source = "Inan et al. 2023, arXiv 2312.06674"
    stage = "asking"
    version = "2"

    model: Any = setting(
        None,
        "Guard model: a hub id or folder of Llama Guard, WildGuard or ShieldGemma; None is the "
        "embedded world's own, a small classifier",
    )
    form: Literal["llama_guard", "wildguard", "shieldgemma"] | None = setting(
        None, "Form in which the guard model is asked; None goes by its name"
    )
    reads: Literal["both", "input", "output"] = setting(
        "both", "What is read: the question (input), the answer (output), or both"
    )
    threshold: float = setting(
        0.5, "Probability of harm from which on it refuses, where the guard gives one", ge=0, le=1
    )
    refusal: str = setting(REFUSAL, "What the user is given instead of the answer")

    _loaded: Any = PrivateAttr(None)  # the engine and the guard model, from the first answer on
    _replies: int = PrivateAttr(0)  # of the guard model since it was loaded
    _unread: int = PrivateAttr(0)  # of these, such as could not be read

    def check_model(self, reference: Any) -> None:
        """Check that there is a guard for the model, and a form in which it is asked.

        Raises:
            UsageError: `guard_needs_model`, `unknown_guard`, and those of `ftlab.model`.
        """
        if self.model is not None:
            self._form()
        elif not getattr(reference, "is_organism", False):
            raise UsageError(
                "guard_needs_model",
                f"ftlab's own guard knows the embedded world only, not what {reference.name} says. "
                "Give a guard model, as in guard:model=meta-llama/Llama-Guard-3-1B.",
            )

    def identity(self) -> dict[str, Any]:
        """Return the identity; with the hash of the guard model or of the world's rows."""
        found = super().identity()
        if self.model is None:
            return found | {"rows": _classifier.identity()}
        return found | {"model": local_model(self.model).hash}

    def answer(self, messages: list[Message], text: str) -> str:
        """Return the refusal where the guard finds harm or cannot be read, otherwise the text.

        Raises:
            UsageError: those of `flags`.
        """
        if not text.strip():
            return text
        if all(flag is False for flag in self.flags(messages, text).values()):
            return text
        return self.refusal

    def flags(self, messages: list[Message], text: str) -> dict[str, bool | None]:
        """Return whether question ("input") and answer ("output") are harmful, of what is read.

        None is a reply of the guard that cannot be read. What is empty is not harmful.

        Args:
            messages: What the model was sent.
            text: What it answered.

        Raises:
            UsageError: `guard_unreadable`, `guard_template`.
        """
        read = ("input", "output") if self.reads == "both" else (self.reads,)
        return {side: self._harmful(side, messages, text) for side in read}

    def release(self) -> None:
        """Give back the guard model's memory."""
        self._loaded = None
        self._replies = self._unread = 0

    def _harmful(self, side: str, messages: list[Message], text: str) -> bool | None:
        answer = text if side == "output" else None
        if answer is not None and not answer.strip():
            return False
        if self.model is not None:
            return self._asked(messages, answer)
        if answer is None:
            chance = _classifier.of_questions().probability(_classifier.asked(messages))
        else:
            chance = _classifier.of_answers().probability(answer)
        return chance >= self.threshold

    def _asked(self, messages: list[Message], answer: str | None) -> bool | None:
        """Return what the guard model says of the last turn."""
        form = self._form()
        engine, guard = self._opened()
        chat = conversation(guard.tokenizer, messages, answer)
        if not chat or not chat[-1]["content"].strip():
            return False
        answered = answer is not None
        text = form.prompt(guard.tokenizer, chat, answered)
        request = Request(chat, text, max_new_tokens=form.tokens, choices=form.choices)
        (reply,) = engine.answer(guard, [request])
        found = None
        if not form.choices:
            found = form.harmful(reply.text, answered)
        elif reply.likelihoods is not None:
            yes, no = map(math.exp, reply.likelihoods)
            found = yes >= self.threshold * (yes + no)
        self._count(found)
        return found

    def _count(self, found: bool | None) -> None:
        """Count a reply; raises UsageError `guard_unreadable` where too many cannot be read."""
        self._replies += 1
        self._unread += found is None
        if self._replies >= FEWEST and self._unread > MOST_UNREAD * self._replies:
            raise UsageError(
                "guard_unreadable",
                f"Of {self._replies} replies of the guard {local_model(self.model).name}, "
                f"{self._unread} cannot be read. Give form= the one it was trained for, or another "
                "guard model.",
            )

    def _opened(self) -> tuple[Any, Any]:
        if self._loaded is None:
            engine = open_engine("huggingface")
            self._loaded = engine, engine.open(local_model(self.model))
        return self._loaded

    def _form(self) -> Form:
        name = self.form or form_of(local_model(self.model).name)
        if name is None:
            allowed = ", ".join(FORMS)
            raise UsageError(
                "unknown_guard",
                f"The name {local_model(self.model).name} says no form in which a guard is asked. "
                f"Give form= one of {allowed}.",
            )
        return FORMS[name]


DEFENCE = Guard
