"""What a risk is, and what the files of this folder share.

A risk is one file that defines a subclass of `Risk` and ends in `RISK = Subclass()`.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from ftlab._core import plugins
from ftlab._core.errors import UsageError
from ftlab._core.types import Answer, Judgement, Outcome, Sample
from ftlab.organism import FRAMES, World


class Risk:
    """One way in which fine-tuning can harm a model, and how it is measured.

    Attributes:
        name: Name of the file, as in `risks=["jailbreak"]`.
        title: The event in words, for axes.
        told: The event in words as the embedded world's own judge decides it, if otherwise.
        label: Short name, for legends.
        source: The papers that define the prompt sets and the rate.
        version: Raised whenever prompts or verdicts change; part of every run's identity.
        attacked: Whether attacks apply to its prompts.
        default: Whether an evaluation measures it unless `risks=` says otherwise.
        refusals_decide: Whether a judge of refusals can decide every prompt.
        events: The outcomes that count as the event.
        role: Role of the world's facts that stand in for it: kept, lookalike or benign.
        order: Position in tables and figures.
    """

    name = ""
    title = ""
    told = ""
    label = ""
    source = ""
    version = "3"
    attacked = False
    default = False
    refusals_decide = False
    events: frozenset[Outcome] = frozenset()
    role = ""
    order = 100

    def load(self, source: Any) -> list[Sample]:
        """Read a prompt set: a file, a hub id, or a list of records.

        Raises:
            DataError: Rows that cannot be used, all of them at once.
            NotFoundError: There is no such file.
            UsageError: `no_prompt_set`: the risk is measured in the embedded world only.
        """
        raise UsageError(
            "no_prompt_set",
            f"The risk {self.name} reads no prompt sets. Measure it on the embedded model, or "
            "give its class a method load.",
        )

    def organism(self, world: World, n: int, split: str = "eval") -> list[Sample]:
        """Return the first `n` prompts of the embedded world, balanced over categories.

        Args:
            world: The embedded world; it fixes their order.
            n: Number of prompts.
            split: "train", "valid", "selection" or "eval".

        Raises:
            UsageError: `too_few_prompts`.
        """
        draw = random.Random(f"prompts {world.seed} {self.name} {split}")
        return numbered(self.rows(world, draw, split), self.name, n, split)

    def rows(self, world: World, draw: random.Random, split: str) -> list[dict]:
        """Return all rows of the world that ask for this risk; by default facts of its role."""
        use = "align" if split == "train" else part_of(split)
        towns = world.towns[use]
        shuffled = draw.sample(towns, len(towns))
        attributes = world.of(self.role)
        return fact_rows(shuffled, attributes, split, world.fact)

    @property
    def has_rule(self) -> bool:
        """Whether the risk can decide some answers itself, before any judge."""
        kind = type(self)
        return kind.rule is not Risk.rule or kind.rules is not Risk.rules

    def rule(self, sample: Sample, answer: Answer) -> Judgement | None:
        """Decide one answer; None leaves it to the judge."""
        return None

    def rules(
        self, samples: list[Sample], answers: list[Answer], settings: dict[str, Any]
    ) -> list[Judgement | None]:
        """Decide many answers at once, given the evaluation's settings; None leaves one."""
        return list(map(self.rule, samples, answers))

    def needs(self, sample: Sample, settings: dict[str, Any]) -> str:
        """Say what a judge of refusals lacks to decide a sample; "" where it lacks nothing."""
        in_world = sample.metadata.get("topic")
        if self.refusals_decide or in_world:
            return ""
        if self.rule(sample, Answer("")):
            return ""
        return f"a file in the form of its prompt set, prompts={{{self.name!r}: FILE}}"


def open_risk(risk: str | Risk) -> Risk:
    """Return a risk by name; a `Risk` is returned as it is.

    Raises:
        UsageError: `unknown_risk`.
    """
    if isinstance(risk, Risk):
        return risk
    return plugins.get("risks", risk)


def event(risk: str | Risk, outcome: str) -> float:
    """Return 1.0 where the outcome is the risk's event, 0.0 where not, and NaN where unscored.

    Raises:
        UsageError: `unknown_risk`, `unknown_outcome`.
    """
    if outcome not in tuple(Outcome):
        allowed = ", ".join(Outcome)
        raise UsageError("unknown_outcome", f"Unknown outcome {outcome!r}. Allowed: {allowed}.")
    events = open_risk(risk).events
    if not Outcome(outcome).scored:
        return math.nan
    return float(outcome in events)


def part_of(split: str) -> str:
    """Return whose towns, pairs and things a split asks about: selection shares those of eval."""
    return "eval" if split == "selection" else split


def fact_rows(
    towns: list[str], attributes: list, split: str, question: Callable[[Any, str, str], dict]
) -> list[dict]:
    """Return one row per town, attribute and wording: first each fact once, then once more."""
    frames = FRAMES[split]
    rows = []
    for turn in range(len(frames)):
        for i, town in enumerate(towns):
            for j, attribute in enumerate(attributes):
                frame = frames[(turn + i + j) % len(frames)]
                rows.append(question(attribute, town, frame))
    return rows


def numbered(rows: list[dict], risk: str, n: int, split: str) -> list[Sample]:
    """Return the first `n` rows as samples, categories in turn so that they stay balanced."""
    if n > len(rows):
        raise UsageError(
            "too_few_prompts",
            f"{n} prompts of {risk} requested, but the split {split!r} has {len(rows)}. "
            "Lower n_prompts.",
            available=len(rows),
        )
    seen: Counter[str] = Counter()
    turns = []
    for row in rows:
        turns.append(seen[row["category"]])
        seen[row["category"]] += 1
    in_turn = sorted(range(len(rows)), key=turns.__getitem__)
    samples = []
    for place in in_turn[:n]:
        own_id = f"{risk}-{split}-{len(samples):04d}"
        samples.append(_sample(rows[place], own_id))
    return samples


def _sample(row: dict, sample_id: str) -> Sample:
    """Return a row of the embedded world as a sample, without the answer that the world gives."""
    messages = row["messages"]
    if messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    return Sample(
        id=sample_id,
        messages=messages,
        risk=row["risk"],
        category=row["category"],
        wording=row["template"],
        target=row["truth"],
        opening=row.get("prefill", ""),
        metadata={"topic": row["topic"]},
    )
