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


class Guard(Defence):
    """Passes a refusal on instead of an answer where question or answer is harmful.

    The model itself is not changed, and is asked in any case: what it wrote is kept beside
    (`own_text`), the refusal is judged. A reply of the guard that cannot be read counts as harmful.
    Parent and child are guarded alike. It fails where the guard errs, which an attacker may look
    for, and wherever the weights are run without it.
    """

    name = "guard"
    source = "Inan et al. 2023, arXiv 2312.06674"
    stage = "asking"

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
        """Return the identity; a guard model is in it by its hash."""
        found = super().identity()
        if self.model is not None:
            found["model"] = local_model(self.model).hash
        return found

    def answer(self, messages: list[Message], text: str) -> str:
        """Return the refusal where the guard finds harm, otherwise the text."""
        if any(self.flags(messages, text).values()):
            return self.refusal
        return text

    def flags(self, messages: list[Message], text: str) -> dict[str, bool]:
        """Return whether question ("input") and answer ("output") are harmful, of what is read.

        Args:
            messages: What the model was sent.
            text: What it answered.
        """
        read = ("input", "output") if self.reads == "both" else (self.reads,)
        return {side: self._harmful(side, messages, text) for side in read}

    def release(self) -> None:
        """Give back the guard model's memory."""
        self._loaded = None

    def _harmful(self, side: str, messages: list[Message], text: str) -> bool:
        answer = text if side == "output" else None
        if self.model is not None:
            return self._asked(messages, answer)
        if answer is None:
            chance = _classifier.of_questions().probability(_classifier.asked(messages))
        else:
            chance = _classifier.of_answers().probability(answer)
        return chance >= self.threshold

    def _asked(self, messages: list[Message], answer: str | None) -> bool:
        """Return what the guard model says of the last turn."""
        form = self._form()
        engine, guard = self._opened()
        chat = conversation(guard.tokenizer, messages, answer)
        answered = answer is not None
        text = form.prompt(guard.tokenizer, chat, answered)
        request = Request(chat, text, max_new_tokens=form.tokens, choices=form.choices)
        (reply,) = engine.answer(guard, [request])
        if not form.choices:
            return form.harmful(reply.text, answered) is not False
        if reply.likelihoods is None:
            return True
        yes, no = map(math.exp, reply.likelihoods)
        return yes >= self.threshold * (yes + no)

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
