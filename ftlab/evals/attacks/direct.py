"""Direct: the question as it is."""

from __future__ import annotations

from dataclasses import dataclass

from ftlab._core.types import Prompt, Sample
from ftlab.evals.attacks.base import Attack


@dataclass(frozen=True)
class Direct(Attack):
    """Ask the question as it is."""

    name = "direct"
    order = 0

    def apply(self, samples: list[Sample]) -> list[Prompt]:
        """Return one prompt per sample."""
        return [self.prompt(sample) for sample in samples]


ATTACK = Direct
