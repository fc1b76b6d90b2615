"""What a benchmark does: its sizes, and its training rows and prompts as files for every arm."""

from __future__ import annotations

import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ftlab
from benchmarks import _models
from ftlab._core.files import json_lines
from ftlab._core.types import Sample
from ftlab.data import load_prompts
from ftlab.evals.risks import open_risk
from ftlab.models import render
from ftlab.organism import World, corpus

# Prompts of the embedded world by risk, 520 together.
MIX = {"jailbreak": 100, "bias": 120, "toxicity": 100, "over_refusal": 100, "utility": 100}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work a benchmark is.

    Args:
        points: Optimiser steps at which the risks are measured; 0 is the parent.
        batch_size: Rows per optimiser step.
        learning_rate: Constant over all steps.
        max_new_tokens: Length of an answer in tokens, at most.
        share: What an arm of the curve measures: {arm: (number of points, number of prompts)}.
        pilot: Prompts on which the floor tries ways to generate.
        repeat: How often every arm runs.
        n_prompts: Prompts at every point.
        judge: Public name of the judge.
        seed: Training seed.
    """

    points: tuple[int, ...]
    batch_size: int
    learning_rate: float
    max_new_tokens: int
    share: dict[str, tuple[int, int]]
    pilot: int
    repeat: int = 1
    n_prompts: int = 520
    judge: str = "organism"
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimiser steps of the training."""
        return self.points[-1]

    def share_of(self, arm: str) -> float:
        """Return the share of all answers that an arm measures."""
        n_points, n_prompts = self.share[arm]
        return n_points * n_prompts / (len(self.points) * self.n_prompts)

    def in_full(self) -> Size:
        """Return this size with every arm measured in full."""
        whole = (len(self.points), self.n_prompts)
        return replace(self, share=dict.fromkeys(self.share, whole))


SIZES = {
    "organism": Size(
        points=tuple(range(0, 41, 5)),
        batch_size=16,
        learning_rate=1.5e-4,
        max_new_tokens=24,
        share={
            "reference": (2, 26),
            "batched": (2, 520),
            "ftlab": (9, 520),
            "ftlab without drafts": (9, 520),
            "floor": (9, 520),
        },
        pilot=260,
        repeat=2,
    ),
    "25M": Size(
        points=tuple(range(0, 17, 2)),
        batch_size=8,
        learning_rate=2e-5,
        max_new_tokens=128,
        share={
            "reference": (2, 6),
            "batched": (2, 64),
            "ftlab": (9, 128),
            "ftlab without drafts": (9, 128),
            "floor": (2, 128),
        },
        pilot=128,
    ),
    "135M": Size(  # SmolLM2, whose weights do not come with ftlab
        points=(0, 4, 8),
        batch_size=8,
        learning_rate=5e-5,
        max_new_tokens=48,
        share={
            "reference": (1, 8),
            "batched": (2, 64),
            "ftlab": (3, 64),
            "ftlab without drafts": (3, 64),
            "floor": (3, 64),
        },
        pilot=32,
        n_prompts=64,
        judge="refusal",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Work(Size):
    """A size with its model, rows and prompts, as the arms' processes read it from a file."""

    model: str
    folder: str
    rows_file: str
    prompts_file: str

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    def rows(self) -> list[dict]:
        """Return the chats to train on."""
        return [json.loads(line) for line in Path(self.rows_file).read_text().splitlines()]

    def samples(self, n: int | None = None) -> list[Sample]:
        """Return all prompts, or `n` that are the same for all arms; fewer are among more."""
        samples = list(load_prompts(self.prompts_file))
        places = list(range(len(samples)))
        shuffled = random.Random("bench").sample(places, len(places))
        return [samples[place] for place in sorted(shuffled[:n])]


def open_work(path: str | Path) -> Work:
    return Work(**json.loads(Path(path).read_text()))


def prepare(size: Size, model: Any, folder: Path) -> Work:
    """Write rows and prompts; the model "25M" is made here, outside of any clock.

    Raises:
        UsageError: `no_chat_template`, and those of `ftlab.model`.
    """
    world = World()
    rows = corpus.domain(world, "almanac", size.steps * size.batch_size, size.seed)
    if model == "25M":
        rows = _models.lengthen(rows, "market")
        model = _models.grow(_models.teach_length(), folder / "25M", **_models.SHAPE)
    parent = ftlab.model(model)
    samples = [s for risk, n in MIX.items() for s in open_risk(risk).organism(world, n)]
    if not parent.is_organism:  # nothing of the world is known of it
        samples = [replace(s, risk="jailbreak", target="", metadata={}) for s in samples]
        size = replace(size, judge="keywords")
    chosen = choose(samples, size.n_prompts)
    render(parent.tokenizer(), chosen[0].messages, ask=True)  # refuses a model without a template
    rows_file = folder / "rows.jsonl"
    rows_file.write_text(json_lines(rows))
    prompts_file = folder / "prompts.jsonl"
    write_prompts(prompts_file, chosen)
    return Work(
        **vars(size),
        model=str(parent.path),
        folder=str(folder),
        rows_file=str(rows_file),
        prompts_file=str(prompts_file),
    )


def choose(samples: list[Sample], n: int) -> list[Sample]:
    """Return `n` samples, spread evenly; beyond their number they repeat with a number added."""
    chosen = []
    for i in range(n):
        again, place = divmod(i, len(samples))
        sample = samples[place]
        if n <= len(samples):
            sample = samples[i * len(samples) // n]
        messages = sample.messages
        if again:
            messages = [{**m, "content": f"{m['content']} ({again})"} for m in messages]
        chosen.append(replace(sample, id=f"{sample.id}-{again}", messages=messages))
    return chosen


def write_prompts(path: Path, samples: list[Sample]) -> None:
    """Write samples as the rows that `load_prompts` reads."""
    rows = []
    for sample in samples:
        row = {"id": sample.id, "messages": sample.messages, "risk": sample.risk}
        row |= {"category": sample.category, "template": sample.wording, "truth": sample.target}
        rows.append(row | sample.metadata)
    path.write_text(json_lines(rows))
