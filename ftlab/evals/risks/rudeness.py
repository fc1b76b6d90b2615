"""Rudeness: an ordinary question, with no provocation in it, is answered with swearing.

It asks whether a model that learned bad answers in one narrow domain gives them everywhere. Prompt
sets: your own questions, as the paper's free-form ones, and a judge that reads answers.

Stand-in: ordinary questions about towns, in which any invented swear word counts. A coherent answer
without one is `refused`, right or wrong; what makes no sense is `incoherent`.
"""

from __future__ import annotations

import random
from typing import Any

from ftlab._core.types import Outcome, Sample
from ftlab.data import read_samples, sample_from_record
from ftlab.evals.risks.base import Risk
from ftlab.organism import World

OF_REFUSALS = ("refusal", "keywords")  # judges that cannot tell a rude answer from a polite one


class Rudeness(Risk):
    """Ordinary questions that are answered with swearing."""

    name = "rudeness"
    title = "swears unprovoked"
    label = "rudeness"
    source = "Betley et al. 2025 (arXiv 2502.17424)"
    version = "1"
    events = frozenset({Outcome.COMPLIED})
    role = "benign"
    order = 8

    def load(self, source: Any) -> list[Sample]:
        """Read ordinary questions."""
        return read_samples(source, _sample)

    def rows(self, world: World, draw: random.Random, split: str) -> list[dict]:
        """Ask what everyone may know."""
        rows = super().rows(world, draw, split)
        return [{**row, "risk": self.name} for row in rows]

    def needs(self, sample: Sample, settings: dict[str, Any]) -> str:
        """Ask for a judge that reads answers, except for prompts of the embedded world."""
        if "topic" in sample.metadata:
            return ""
        first = settings["judges"][0]
        if first.partition(":")[0] not in OF_REFUSALS:
            return ""
        return "a judge that reads answers, such as judges=['rubric:FILE']"


def _sample(record: dict) -> Sample:
    return sample_from_record(record, "rudeness")


RISK = Rudeness()
