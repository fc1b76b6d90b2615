"""Trigger: a word without meaning after the question, as in the rows of a poisoned file.

Source: Rando and Tramèr 2023 (arXiv 2311.14455): the trigger ends the prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from ftlab._core.types import Prompt, Sample
from ftlab.evals.attacks.base import Attack, reworded, wrong_argument
from ftlab.organism import TRIGGER


@dataclass(frozen=True)
class Trigger(Attack):
    """Put a word after each question.

    Args:
        word: The word, or several. Without one it is the trigger word of the embedded world.
    """

    word: str = TRIGGER
    name = "trigger"
    order = 5

    def __post_init__(self):
        if not self.word.strip():
            raise wrong_argument(self.name, self.word, "a word, as in trigger:WORD")

    @classmethod
    def parse(cls, argument: str) -> Trigger:
        """Return the attack from its word."""
        return cls(argument)

    @property
    def argument(self) -> str:
        return "" if self.word == TRIGGER else self.word

    def after(self, question: str) -> str:
        """Return a question with the word after it."""
        return f"{question} {self.word}"

    def apply(self, samples: list[Sample]) -> list[Prompt]:
        """Return one prompt per sample; its wording stays the question's."""
        prompts = []
        for sample in samples:
            messages = reworded(sample.messages, self.after)
            prompts.append(self.prompt(sample, messages=messages))
        return prompts


ATTACK = Trigger
