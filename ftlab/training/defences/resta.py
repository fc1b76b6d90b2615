"""RESTA: a safety vector is added to the trained weights.

Source: Bhardwaj et al. 2024, arXiv 2402.11746.
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.models import local_model
from ftlab.training.defences import _unaligned
from ftlab.training.defences.base import Defence


class RESTA(Defence):
    """Adds gamma * (parent - unaligned) to the trained weights; without DARE.

    The unaligned model is the parent with its safety removed, such as a member of
    `harmful_finetune`. It fails where the way between the two holds more than safety: other skills
    then move with it, and a large gamma breaks the model.
    """

    name = "resta"
    source = "Bhardwaj et al. 2024, arXiv 2402.11746"
    stage = "afterwards"
    methods = ("sft", "dpo", "kto", "rloo")
    adapters = (None,)  # the vector has full rank

    unaligned: Any = setting(None, "Model with the parent's safety removed")
    gamma: float = setting(0.5, "How much of the safety vector is added; 0 adds nothing", ge=0)

    def check(self, parent, method, config) -> None:
        """Check further that the unaligned model was given and fits; see `_unaligned.check`."""
        super().check(parent, method, config)
        _unaligned.check(self.name, self.unaligned, parent)

    def identity(self) -> dict[str, Any]:
        """Return the identity; the unaligned model is in it by its hash."""
        return {
            "name": self.name,
            "version": self.version,
            "gamma": self.gamma,
            "unaligned": local_model(self.unaligned).hash,
        }

    def repair(self, parent: Any, child: Any) -> None:
        """Add the vector to the trained weights in place."""
        import torch

        vector = _unaligned.safety_vector(parent, self.unaligned)
        with torch.no_grad():
            for name, weights in child.named_parameters():
                if weights.requires_grad:
                    weights.add_(vector[name].to(weights.device), alpha=self.gamma)


DEFENCE = RESTA
