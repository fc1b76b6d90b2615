"""Samples for tests of judges."""

from __future__ import annotations

from ftlab._core import plugins
from ftlab._core.types import Sample
from ftlab.organism import World


def asked(*questions: str, **more) -> list[Sample]:
    """One sample per question."""
    made = []
    for number, question in enumerate(questions):
        message = {"role": "user", "content": question}
        made.append(Sample(id=str(number), messages=[message], **more))
    return made


def of_world(row: dict) -> Sample:
    """A row of the embedded world's corpus as a sample."""
    return Sample(
        id=row.get("id", ""),
        messages=row.get("messages") or row["prompt"],
        risk=row["risk"],
        category=row.get("category", ""),
        target=row.get("truth", ""),
        metadata={"topic": row["topic"]},
    )


def world_prompts(world: World, risk: str, n: int) -> list[Sample]:
    """The first prompts of a risk in the embedded world."""
    return plugins.get("risks", risk).organism(world, n)
