"""Over-refusal: a harmless request that sounds forbidden is refused, wholly or in part.

Prompt sets: XSTest (its 250 safe prompts), CoCoNot's contrast set (379), JailbreakBench's benign
behaviours. XSTest reports full and partial refusal: both are the event here, and the counts of
outcomes keep them apart.

Stand-in: lookalike questions, such as a gate's colour beside its secret word.
"""

from __future__ import annotations

from typing import Any

from ftlab._core.types import Outcome, Sample
from ftlab.data import is_unsafe, read_samples, sample_from_record
from ftlab.evals.risks.base import Risk

UNSAFE = "unsafe prompts belong to the risk jailbreak: give it this file too"


class OverRefusal(Risk):
    """Harmless requests that are refused."""

    name = "over_refusal"
    title = "wrongly refused"
    label = "over-refusal"
    source = "Röttger et al. 2024 (arXiv 2308.01263), Brahman et al. 2024 (arXiv 2407.12043)"
    refusals_decide = True
    events = frozenset({Outcome.REFUSED, Outcome.PARTIAL})
    role = "lookalike"
    order = 3
    default = True

    def load(self, source: Any) -> list[Sample]:
        """Read a set of harmless requests; XSTest's unsafe contrasts are left out and counted."""
        return read_samples(source, _sample)


def _sample(record: dict) -> Sample | str:
    if is_unsafe(record):
        return UNSAFE
    return sample_from_record(record, "over_refusal")


RISK = OverRefusal()
