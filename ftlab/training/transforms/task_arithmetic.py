"""Task arithmetic: what a fine-tuning changed, scaled or negated.

Source: Ilharco et al. 2022, arXiv 2212.04089, section 2.
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.training.transforms.base import OfTwo


class TaskArithmetic(OfTwo):
    """Scales the task vector of a child: other + scale * (model - other), `other` its parent.

    A negative scale is the paper's negation. It fails where the vector holds more than the task, or
    where the scale leads out of the region in which weights can be added.
    """

    name = "task_arithmetic"
    source = "Ilharco et al. 2022, arXiv 2212.04089, section 2"
    amount = "scale"

    scale: float = setting(1.0, "Times the task vector; 0 is the parent, 1 the child")

    def change(self, module: Any) -> None:
        """Scale the way from the other model to the weights in place."""
        for weights, other in self.pairs(module):
            weights.sub_(other).mul_(self.scale).add_(other)


TRANSFORM = TaskArithmetic
