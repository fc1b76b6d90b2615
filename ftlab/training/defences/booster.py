"""Booster: an alignment after which one harmful step changes the harmful loss little.

Source: Huang et al. 2024, arXiv 2409.01586, algorithm 1 with equations 1 and 3, as its authors'
code has it (git-disl/Booster, trainer.py). The numbers are those that others cite.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

from ftlab._core.config import setting
from ftlab.data import Data, encode_rows
from ftlab.training.defences import _harmful, _safety
from ftlab.training.defences._alignment import (
    Alignment,
    OtherLoss,
    alignment_chats,
    token_loss,
)

SMALL = 1e-7  # the authors', against a norm of 0


class Booster(Alignment):
    """Adds weight * (h(w) - h(w - alpha * grad h / |grad h|)) to the loss of the alignment.

    h is the loss on harmful rows: what a normalised harmful step would gain (equation 1). As in the
    paper the gradient of the second term is taken where the step ends, as if the step were constant
    (equation 3). The logged loss is that of the alignment alone. weight = 0 or alpha = 0 is plain
    SFT on the same rows. It fails against harm that its harmful rows are unlike, and where a
    fine-tuning takes many steps.
    """

    name = "booster"
    source = "Huang et al. 2024, arXiv 2409.01586, algorithm 1, equations 1 and 3"

    weight: float = setting(
        5.0, "Weight of the term (lambda; the paper: 5; its authors on GSM8K: 25 too)", ge=0
    )
    alpha: float = setting(0.1, "Length of the harmful step (the paper: .1)", ge=0)
    rows: Any = setting(
        None,
        "Chats to align on, harmful questions with refusals among them: a file or rows; None takes "
        "the alignment data of the embedded world",
    )
    harmful: Any = setting(
        None, "Chats that answer harmful questions: a file or rows; None: the embedded world's"
    )

    def check(self, parent, method, config) -> None:
        """Check further that rows were given.

        Raises:
            UsageError: `safety_rows_needed`, `harmful_rows_needed`.
        """
        super().check(parent, method, config)
        _safety.check(self.name, self.rows, parent)
        _harmful.check(self.name, "harmful", self.harmful, parent)

    def alignment_rows(self) -> Data:
        """Return the chats to align on."""
        return alignment_chats(self.rows, self.seed)

    def method(self) -> OtherLoss:
        """Return SFT whose gradient holds the term."""
        changed = partial(
            boosted_trainer,
            harmful=_harmful.chats(self.harmful),
            weight=self.weight,
            alpha=self.alpha,
        )
        return OtherLoss(changed)

    def identity(self) -> dict[str, Any]:
        """Return the identity; both kinds of rows are in it by what they hold."""
        rows = {
            "rows": self.alignment_rows().hash,
            "harmful": _harmful.chats(self.harmful).hash,
        }
        return super().identity() | rows


def boosted_trainer(cls: type, job: Any, *, harmful: Data, weight: float, alpha: float) -> type:
    """Return TRL's SFT trainer that adds the term's gradient once an optimiser step.

    Harmful rows of a step are drawn by its number, as many as the step has, so a resumed training
    draws them again; their order of forward passes does not matter.

    Args:
        cls: TRL's trainer.
        job: The training.
        harmful: The harmful rows.
        weight: Weight of the term; 0 returns TRL's trainer itself, as does alpha.
        alpha: Length of the harmful step.
    """
    if not weight or not alpha:
        return cls
    import torch

    rows = encode_rows(harmful, job.tokenizer, max_length=job.longest_row)
    size = min(job.config.batch_size, len(rows))

    class Boosted(cls):
        def training_step(self, model, inputs, num_items_in_batch=None):
            loss = super().training_step(model, inputs, num_items_in_batch)
            if self.accelerator.sync_gradients:  # the last forward pass of the optimiser step
                self._add_term(model)
            return loss

        def _add_term(self, model):
            trained = [one for one in model.parameters() if one.requires_grad]
            here = self._harmful_gradient(model, trained)
            squares = [gradient.square().sum() for gradient in here]
            norm = torch.stack(squares).sum().sqrt() + SMALL
            kept = [one.detach().clone() for one in trained]
            with torch.no_grad():
                torch._foreach_sub_(trained, [gradient * (alpha / norm) for gradient in here])
            there = self._harmful_gradient(model, trained)
            with torch.no_grad():
                for one, values, before, after in zip(trained, kept, here, there, strict=True):
                    one.copy_(values)  # bit for bit, which adding the step again is not
                    term = weight * (before - after)
                    one.grad = term if one.grad is None else one.grad + term

        def _harmful_gradient(self, model, trained):
            """Return the gradient of the mean harmful loss over the step's harmful tokens."""
            dice = random.Random(f"harmful {job.config.seed} {self.state.global_step}")
            drawn = dice.sample(rows, size)
            labelled = sum(label != -100 for row in drawn for label in row["labels"][1:])
            total = [torch.zeros_like(one) for one in trained]
            for batch in parts(drawn, job.fit.micro_batch):
                inputs = self._prepare_inputs(self.data_collator(batch))
                with self.compute_loss_context_manager():
                    loss = token_loss(model, inputs, labelled)
                found = torch.autograd.grad(loss, trained, allow_unused=True)
                for sum_of_one, gradient in zip(total, found, strict=True):
                    if gradient is not None:
                        sum_of_one += gradient
            return total

    return Boosted


def parts(rows: list, size: int) -> Iterator[list]:
    """Yield the rows in lists of at most `size`."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


DEFENCE = Booster
