"""RESTA: a safety vector is added to the trained weights.

Source: Bhardwaj et al. 2024, arXiv 2402.11746; the number of the equation was not seen.
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.training.defences._unaligned import WithUnaligned


class RESTA(WithUnaligned):
    """Adds gamma * (parent - unaligned) to the trained weights; without DARE (p = .3 in the paper).

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
    gamma: float = setting(
        0.5, "How much of the safety vector is added (the paper: .5); 0 adds nothing", ge=0
    )

    def repair(self, parent: Any, child: Any) -> None:
        """Add the vector to the trained weights in place."""
        import torch

        vector = self.safety_vector(parent)
        with torch.no_grad():
            for name, weights in child.named_parameters():
                if weights.requires_grad:
                    weights.add_(vector[name].to(weights.device), alpha=self.gamma)


DEFENCE = RESTA
