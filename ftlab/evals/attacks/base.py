"""What an attack is.

An attack is one file that defines a subclass of `Attack`, a frozen dataclass of its settings, and
ends in `ATTACK = Subclass`. The project ships no jailbreak strings.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ftlab._core import plugins
from ftlab._core.errors import UsageError
from ftlab._core.types import Message, Prompt, Sample

NUMBER = re.compile(r"[0-9]{1,9}")
MOST = 10_000  # attempts at a sample, or tokens; the paper of best_of_n goes so far


@dataclass(frozen=True)
class Attack:
    """A way of asking. Its fields are its settings.

    Attributes:
        name: Name of the file, as in `attacks=["prefill"]`.
        version: Raised whenever its prompts change; part of every run's identity.
        order: Position in lists.
        argument: The settings as text, "" where all have their defaults.
        spec: The public name with its settings, such as "prefill:5".
    """

    name: ClassVar[str] = ""
    version: ClassVar[str] = "1"
    order: ClassVar[int] = 100

    @classmethod
    def parse(cls, argument: str) -> Attack:
        """Return the attack with settings from text, as in `name:argument`.

        Raises:
            UsageError: `attack_argument`.
        """
        raise wrong_argument(cls.name, argument, "none")

    @property
    def argument(self) -> str:
        return ""

    @property
    def spec(self) -> str:
        if not self.argument:
            return self.name
        return f"{self.name}:{self.argument}"

    def apply(self, samples: list[Sample]) -> list[Prompt]:
        """Return what is asked: one prompt per sample, or one per sample and attempt.

        Attempts at one sample are numbered by `Prompt.attempt`; the event holds where it holds in
        any of them.
        """
        raise NotImplementedError

    def prompt(self, sample: Sample, **changes: Any) -> Prompt:
        """Return a sample as a prompt of this attack, with these fields of `Prompt` changed."""
        unchanged = {"messages": sample.messages, "wording": sample.wording}
        return Prompt(sample, self.spec, **(unchanged | changes))


def open_attack(attack: str | Attack) -> Attack:
    """Return an attack by its public name; an `Attack` is returned as it is.

    Args:
        attack: `name` or `name:argument`, such as "prefill:5".

    Raises:
        UsageError: `unknown_attack`, `attack_argument`.
    """
    if isinstance(attack, Attack):
        return attack
    name, colon, argument = attack.partition(":")
    kind = plugins.get("attacks", name)
    if not colon:
        return kind()
    return kind.parse(argument)


def wrong_argument(name: str, argument: object, allowed: str) -> UsageError:
    """Return the error for a setting that an attack does not take."""
    message = f"Attack {name}: found {argument!r}. Allowed: {allowed}."
    return UsageError("attack_argument", message)


def whole_number(name: str, found: object) -> int:
    """Return a whole number from 1 to `MOST`, given as a number or as text."""
    text = str(found)
    is_number = NUMBER.fullmatch(text)
    if not is_number or not 1 <= int(text) <= MOST:
        raise wrong_argument(name, found, f"a whole number from 1 to {MOST}, as in {name}:5")
    return int(text)


def reworded(messages: list[Message], change: Callable[[str], str]) -> list[Message]:
    """Return the messages with the last one of the user changed."""
    changed = list(messages)
    last = max(i for i, message in enumerate(messages) if message["role"] == "user")
    question = messages[last]["content"]
    changed[last] = {**messages[last], "content": change(question)}
    return changed
