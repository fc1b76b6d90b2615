"""L2 distance to the parent's weights in the loss.

Source: Li et al. 2018, arXiv 1802.01483 (L2-SP).
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.training.defences._near import held_near
from ftlab.training.defences.base import Defence


class L2(Defence):
    """Adds weight / 2 * |w - w_parent|^2 to the loss of SFT, over all trained weights.

    It holds every weight alike, whether safety rests on it or not, so what keeps safety also keeps
    the model from learning.
    """

    name = "l2"
    source = "Li et al. 2018, arXiv 1802.01483, L2-SP"
    methods = ("sft",)
    adapters = (None,)  # an adapter's weights are no distance from the parent

    weight: float = setting(0.1, "Weight of the distance; 0 is plain SFT", ge=0)

    def trainer(self, cls: type, job: Any) -> type:
        """Return the trainer with the distance in its loss."""
        trained = {}
        for name, weights in job.model.named_parameters():
            if weights.requires_grad:
                trained[name] = 1.0
        return held_near(cls, job.model, self.weight, trained)


DEFENCE = L2
