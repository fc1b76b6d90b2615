"""One-shot repair: after the training, a few steps on one chosen safety row.

Source: Zhang et al. 2026, arXiv 2601.01887 (Safety at One Shot); the number of the equation was not
seen. The paper itself was not at hand: read were its abstract and notes on it (zhaoyang97/
Paper-Notes-en).
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.training.config import usual_rate
from ftlab.training.defences import _safety
from ftlab.training.defences._afterwards import encoded, train_on, unchanging
from ftlab.training.ranking import row_gradient, row_losses


class OneShot(_safety.WithSafetyRows):
    """Chooses one safety row by the trained model's gradients, and trains on it alone.

    The paper states the choice as bi-level: the row after whose training the model is nearest to
    the parent on harmful prompts and to the child on its task, by KL divergence. Here it is
    approximated to first order, which is ours, and the task does not count: g is a row's gradient,
    and the row with the largest <g, mean g> / |g| is taken, by which the mean loss of the safety
    rows falls fastest for a step of one length. The paper trains on its row for 10 epochs at a rate
    of 2e-5.

    It fails where one refusal teaches to refuse everything: read the utility and over-refusal.
    """

    name = "one_shot"
    source = "Zhang et al. 2026, arXiv 2601.01887"
    stage = "afterwards"
    methods = ("sft",)
    adapters = (None, "lora", "dora")

    steps: int = setting(10, "Optimiser steps on the row (the paper: 10); 0 is plain SFT", ge=0)
    learning_rate: float | None = setting(
        None,
        "Rate of the first step, falling linearly; None takes that of sft (the paper: 2e-5)",
        gt=0,
    )
    n_rows: int = setting(100, "Safety rows to choose from (ours; the paper: 256)", ge=1)
    rows: Any = setting(
        None, "Chats that refuse: a file or rows; None takes refusals of the embedded world"
    )

    def repair(self, parent: Any, child: Any) -> None:
        """Choose a row and train on it, in place."""
        if not self.steps:
            return
        data = _safety.drawn(self.name, self.rows, self.n_rows, seed=0)
        rows = encoded(data, parent)
        row = rows[chosen(child, rows)]
        rate = self.learning_rate
        if rate is None:
            rate = usual_rate(parent, "sft", 2e-5, hasattr(child, "peft_config"))

        def loss(one):
            return row_losses(child, [one])[0]

        train_on(child, [[row]] * self.steps, loss, rate)


def chosen(child: Any, rows: list[dict]) -> int:
    """Return the number of the row that lowers the mean loss of all fastest."""
    import torch

    weights = [one for one in child.parameters() if one.requires_grad]
    mean = [torch.zeros_like(one) for one in weights]
    with unchanging(child):
        for row in rows:
            gradient, _ = row_gradient(child, row, weights)
            for total, part in zip(mean, gradient, strict=True):
                total.add_(part, alpha=1 / len(rows))
        falls = []
        for row in rows:
            gradient, norm = row_gradient(child, row, weights)
            along = 0.0
            for total, part in zip(mean, gradient, strict=True):
                along += (total * part).sum().item()
            falls.append(along / norm)
    return falls.index(max(falls))


DEFENCE = OneShot
