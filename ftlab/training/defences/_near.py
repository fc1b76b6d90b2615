"""What defences share that hold the weights near the parent's."""

from __future__ import annotations

from typing import Any

from ftlab.data import IGNORED


def held_near(cls: type, model: Any, weight: float, importance: dict[str, Any]) -> type:
    """Return TRL's SFT trainer with weight / 2 * sum of F * (w - w_parent)^2 in its loss.

    The distance counts once an optimiser step, over however many forward passes. Validation keeps
    the plain loss.

    Args:
        cls: TRL's trainer.
        model: The torch model, with the parent's weights still.
        weight: Of the sum.
        importance: F by a parameter's name, a number or one for each of its weights; parameters
            without one are not held.
    """
    origin = {}
    for name, weights in model.named_parameters():
        if name in importance:
            origin[name] = weights.detach().clone()

    class Near(cls):
        held = origin  # where the weights are held, by name

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            count = num_items_in_batch
            plain = super().compute_loss(model, inputs, return_outputs, count)
            if return_outputs or not self.model.training:
                return plain
            share = 1.0  # of the optimiser step
            if count is not None:
                labels = inputs["labels"]
                labelled = labels[:, 1:] != IGNORED
                share = labelled.sum() / count
            penalty = weight / 2 * self.distance()
            return plain + share * penalty

        def distance(self):
            total = 0.0
            for name, weights in self.model.named_parameters():
                if name in self.held:
                    change = weights - self.held[name]
                    squares = importance[name] * change.square()
                    total = total + squares.sum()
            return total

    return Near
