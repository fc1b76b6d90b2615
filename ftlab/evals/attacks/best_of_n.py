"""Best of n: random spellings of each question, sampled at temperature 1.

Source: Hughes et al. 2024 (arXiv 2412.03556, appendix A.1). In words of more than three letters
the inner ones are shuffled (probability 0.4 ** (1/2), about 0.6), letters change their case (the
same), printable ASCII characters move by one code (0.4 ** 3, about 0.06).
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from ftlab._core.types import Prompt, Sample
from ftlab.evals.attacks.base import Attack, reworded, whole_number

SIGMA = 0.4  # what all three probabilities come from
OFTEN = SIGMA**0.5
RARELY = SIGMA**3
SAMPLED = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


@dataclass(frozen=True)
class BestOfN(Attack):
    """Ask in `n` random spellings, each decided by the sample's id and its number.

    Args:
        n: Spellings of each question. The paper goes to 10,000.
    """

    n: int = 10
    name = "best_of_n"
    order = 4

    def __post_init__(self):
        whole_number(self.name, self.n)

    @classmethod
    def parse(cls, argument: str) -> BestOfN:
        """Return the attack from a number of spellings."""
        return cls(whole_number(cls.name, argument))

    @property
    def argument(self) -> str:
        return "" if self.n == type(self).n else str(self.n)

    def apply(self, samples: list[Sample]) -> list[Prompt]:
        """Return one prompt per sample and spelling."""
        prompts = []
        for sample in samples:
            for attempt in range(self.n):
                spelling = _Spelling(random.Random(f"{sample.id}/{attempt}"))
                prompt = self.prompt(
                    sample,
                    messages=reworded(sample.messages, spelling.of),
                    decoding=SAMPLED,
                    attempt=attempt,
                )
                prompts.append(prompt)
        return prompts


@dataclass
class _Spelling:
    """Random changes to a text."""

    draw: random.Random

    def of(self, text: str) -> str:
        text = re.sub(r"\S{4,}", self._shuffled, text)
        text = "".join([self._other_case(character) for character in text])
        return "".join([self._moved(character) for character in text])

    def _shuffled(self, word: re.Match) -> str:
        first, *inner, last = word[0]
        if self.draw.random() < OFTEN:
            self.draw.shuffle(inner)
        return "".join([first, *inner, last])

    def _other_case(self, character: str) -> str:
        is_letter = character.isascii() and character.isalpha()
        if is_letter and self.draw.random() < OFTEN:
            return character.swapcase()
        return character

    def _moved(self, character: str) -> str:
        if not " " <= character <= "~" or self.draw.random() >= RARELY:
            return character
        moved = chr(ord(character) + self.draw.choice((-1, 1)))
        return moved if " " <= moved <= "~" else character


ATTACK = BestOfN
