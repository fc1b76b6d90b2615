"""L2 distance to the parent's weights in the loss.

Source: Li et al. 2018, arXiv 1802.01483 (L2-SP).
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.data import IGNORED
from ftlab.training.defences.base import Defence


class L2(Defence):
    """Adds weight / 2 * |w - w_parent|^2 to the loss of SFT, over all trained weights.

    It holds every weight alike, whether safety rests on it or not, so what keeps safety also keeps
    the model from learning. EWC is the same with a weight of its own for every parameter.
    """

    name = "l2"
    source = "Li et al. 2018, arXiv 1802.01483, L2-SP"
    methods = ("sft",)
    adapters = (None,)  # an adapter's weights are no distance from the parent

    weight: float = setting(0.1, "Weight of the distance; 0 is plain SFT", ge=0)

    def trainer(self, cls: type, job: Any) -> type:
        """Return the trainer with the distance in its loss."""
        weight = self.weight
        origin = {}
        for name, weights in job.model.named_parameters():
            if weights.requires_grad:
                origin[name] = weights.detach().clone()

        class Near(cls):
            def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
                plain = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
                if return_outputs or not self.model.training:
                    return plain
                share = 1.0  # of the optimiser step, over its forward passes
                if num_items_in_batch is not None:
                    following = inputs["labels"][:, 1:]
                    share = (following != IGNORED).sum() / num_items_in_batch
                squares = 0.0
                for name, weights in self.model.named_parameters():
                    if name in origin:
                        squares = squares + (weights - origin[name]).square().sum()
                return plain + share * weight / 2 * squares

        return Near


DEFENCE = L2
