"""Linear merge of two models.

Source: Wortsman et al. 2022, arXiv 2203.05482, section 2 (model soups).
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.training.transforms.base import OfTwo


class Merge(OfTwo):
    """Averages the weights of two models: (1 - share) * model + share * other.

    It is only of use where both come from one parent: far apart, the average is neither.
    """

    name = "merge"
    source = "Wortsman et al. 2022, arXiv 2203.05482, section 2"
    amount = "share"

    share: float = setting(0.5, "Share of the other model; 0 is the model, 1 the other", ge=0, le=1)

    def change(self, module: Any) -> None:
        """Merge the other model into the weights in place."""
        for weights, other in self.pairs(module):
            weights.lerp_(other, self.share)


TRANSFORM = Merge
