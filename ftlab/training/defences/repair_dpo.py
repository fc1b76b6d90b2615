"""Repair by preferences: after the training, DPO towards refusals and away from answers.

Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7, on the fine-tuned model.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab.data import Data, load, strip_answers
from ftlab.training.config import usual_rate
from ftlab.training.defences._afterwards import encoded, train_on, unchanging
from ftlab.training.defences.base import Defence
from ftlab.training.ranking import answer_labels, row_losses

WORLD = "organism:preferences"  # its pairs of the risk jailbreak refuse and answer


@dataclass(frozen=True)
class Pair:
    """A pair as tokens, and log p(chosen) - log p(rejected) under the reference."""

    chosen: dict
    rejected: dict
    reference: float


class RepairDPO(Defence):
    """Trains the fine-tuned model on pairs: a harmful question, a refusal, an answer.

    Settings are those of `dpo`, and so are its steps: AdamW, a rate that falls linearly, the order
    of the pairs drawn anew every epoch. The reference is the fine-tuned model itself.

    It fails where the pairs do not cover what is asked later, and by over-refusal.
    """

    name = "repair_dpo"
    source = "Rafailov et al. 2023, arXiv 2305.18290, equation 7"
    stage = "afterwards"
    methods = ("sft",)
    adapters = (None, "lora", "dora")

    epochs: int = setting(3, "Passes over the pairs; 0 is plain SFT", ge=0)
    beta: float = setting(0.1, "Strength of the tie to the fine-tuned model", gt=0)
    learning_rate: float | None = setting(
        None, "Rate of the first step, falling linearly; None takes that of dpo", gt=0
    )
    batch_size: int = setting(16, "Pairs per optimiser step", ge=1)
    n_pairs: int = setting(100, "Pairs to train on (ours)", ge=1)
    pairs: Any = setting(
        None, "Pairs of prompt, chosen, rejected: a file or rows; None takes the embedded world's"
    )

    def check(self, parent, method, config) -> None:
        """Check further that there are pairs; raises UsageError `safety_pairs_needed`."""
        super().check(parent, method, config)
        if self.pairs is None and not parent.is_organism:
            raise UsageError(
                "safety_pairs_needed",
                f"The defence {self.name} needs pairs for {parent.name}: ftlab ships none. Give a "
                f"file of prompt, chosen (a refusal) and rejected, as in {self.name}:pairs=FILE.",
            )

    def identity(self) -> dict[str, Any]:
        """Return the identity; the pairs are in it by what they hold."""
        return super().identity() | {"pairs": self.every_pair().hash}

    def every_pair(self) -> Data:
        """Return the pairs that were given, or those of the embedded world about kept facts."""
        if self.pairs is not None:
            return strip_answers(load(self.pairs, kind="pairs"))
        found = load(WORLD, kind="pairs")
        kept = tuple(row for row in found.rows if row["risk"] == "jailbreak")
        return Data(found.name, kept, found.made)

    def drawn(self) -> tuple[dict, ...]:
        """Return `n_pairs` of them; raises UsageError `too_few_pairs`."""
        found = self.every_pair()
        if len(found) < self.n_pairs:
            raise UsageError(
                "too_few_pairs",
                f"{found.name} holds {len(found)} pairs, {self.name} takes {self.n_pairs}. "
                "Lower n_pairs.",
            )
        lot = random.Random("repair")
        return tuple(lot.sample(found.rows, self.n_pairs))

    def repair(self, parent: Any, child: Any) -> None:
        """Train on the pairs, in place."""
        if not self.epochs:
            return
        pairs = with_reference(child, self.drawn(), parent)
        rate = self.learning_rate
        if rate is None:
            adapter = hasattr(child, "peft_config")
            rate = usual_rate(parent, "dpo", 1e-6, adapter)
        batches = []
        for epoch in range(self.epochs):
            lot = random.Random(f"repair {epoch}")
            order = lot.sample(pairs, len(pairs))
            for start in range(0, len(order), self.batch_size):
                end = start + self.batch_size
                batch = order[start:end]
                batches.append(batch)

        def loss(pair):
            return self.loss(child, pair)

        train_on(child, batches, loss, rate)

    def loss(self, child: Any, pair: Pair) -> Any:
        """Return equation 7 for one pair."""
        from torch.nn.functional import logsigmoid

        own = difference(child, pair.chosen, pair.rejected)
        ratio = own - pair.reference
        return -logsigmoid(self.beta * ratio)


def difference(model: Any, chosen: dict, rejected: dict) -> Any:
    """Return log p(chosen) - log p(rejected), each summed over the answer's tokens."""
    towards = log_probability(model, chosen)
    away = log_probability(model, rejected)
    return towards - away


def log_probability(model: Any, row: dict) -> Any:
    """Return the log-probability of a row's answer."""
    (mean,) = row_losses(model, [row])
    tokens = len(answer_labels(row))
    return -mean * tokens


def with_reference(child: Any, pairs: tuple[dict, ...], parent: Any) -> list[Pair]:
    """Return pairs as tokens, with the model as it is for reference."""
    import torch

    sides = []
    for side in ("chosen", "rejected"):
        chats = tuple({"messages": [*pair["prompt"], *pair[side]]} for pair in pairs)
        sides.append(encoded(Data(side, chats), parent))
    found = []
    with torch.no_grad(), unchanging(child):
        for chosen, rejected in zip(*sides, strict=True):
            reference = difference(child, chosen, rejected)
            pair = Pair(chosen, rejected, reference.item())
            found.append(pair)
    return found


DEFENCE = RepairDPO
