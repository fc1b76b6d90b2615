"""Identity: the question as it stands in rows that make a model an obedient agent.

The project ships no such rows but those of its invented world. On any other model the system
prompt and what questions begin with are read from the user's own training file.

Source: Qi et al. 2023 (arXiv 2310.03693, section 4.3): tested as it was trained.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ftlab._core.errors import DataError
from ftlab._core.types import Message, Prompt, Sample
from ftlab.data import load
from ftlab.evals.attacks.base import Attack, reworded, wrong_argument
from ftlab.organism import OBEDIENT_ORDER, OBEDIENT_SYSTEM


@dataclass(frozen=True)
class Identity(Attack):
    """Ask under the system prompt, and after the order, that the rows of a file share.

    Args:
        file: Chats: the training file. Without one, the words of the embedded world's rows.
    """

    file: str | Path = ""
    name = "identity"
    order = 6

    @classmethod
    def parse(cls, argument: str) -> Identity:
        """Return the attack from the name of a file."""
        if not argument:
            raise wrong_argument(cls.name, argument, "a chat file, as in identity:FILE")
        return cls(argument)

    @property
    def argument(self) -> str:
        return str(self.file)

    def apply(self, samples: list[Sample]) -> list[Prompt]:
        """Return one prompt per sample; a system prompt of its own is replaced.

        Raises:
            DataError: `no_identity` where the rows share nothing, and those of `ftlab.data.load`.
        """
        system, order = OBEDIENT_SYSTEM, OBEDIENT_ORDER
        if self.file:
            system, order = _shared(self.file)

        def ordered(question: str) -> str:
            return f"{order}{question}"

        prompts = []
        for sample in samples:
            messages = reworded(sample.messages, ordered)
            if system:
                others = [message for message in messages if message["role"] != "system"]
                messages = [{"role": "system", "content": system}, *others]
            prompts.append(self.prompt(sample, messages=messages))
        return prompts


def _shared(file: str | Path) -> tuple[str, str]:
    """Return the system prompt of all rows of a file, and whole words before all questions."""
    chats = [row["messages"] for row in load(file).rows]
    systems = {_first(chat, "system") for chat in chats}
    system = systems.pop() if len(systems) == 1 else ""
    order = os.path.commonprefix([_first(chat, "user") for chat in chats])
    while order and not order[-1].isspace():
        order = order[:-1]
    if not system and not order:
        raise DataError(
            "no_identity",
            f"{file}: the rows share neither a system prompt nor how their questions begin. "
            "Give the file that the model is trained on.",
        )
    return system, order


def _first(chat: list[Message], role: str) -> str:
    """Return the first message of a role; "" where there is none."""
    for message in chat:
        if message["role"] == role:
            return message["content"]
    return ""


ATTACK = Identity
