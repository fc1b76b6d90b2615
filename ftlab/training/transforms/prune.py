"""Magnitude pruning.

Source: Han et al. 2015, arXiv 1506.02626, section 3; without its retraining.
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.training.transforms._layers import linear_layers
from ftlab.training.transforms.base import Transform


class Prune(Transform):
    """Sets the smallest weights of every linear layer but the output head to 0."""

    name = "prune"
    source = "Han et al. 2015, arXiv 1506.02626, section 3"
    amount = "share"

    share: float = setting(0.5, "Share of a layer's weights that become 0", ge=0, lt=1)

    def change(self, module: Any) -> None:
        """Prune the layers in place."""
        from torch.nn.utils import prune

        for layer in linear_layers(module):
            prune.l1_unstructured(layer, "weight", amount=self.share)
            prune.remove(layer, "weight")


TRANSFORM = Prune
