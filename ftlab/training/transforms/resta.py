"""RESTA: a safety vector is added to the weights of a model that is there.

Source: Bhardwaj et al. 2024, arXiv 2402.11746.
"""

from __future__ import annotations

from typing import Any

from ftlab._core import plugins
from ftlab._core.config import setting
from ftlab.models import local_model
from ftlab.training.transforms.base import OfTwo


class RESTA(OfTwo):
    """Adds gamma * (other - unaligned) to the weights, `other` being the aligned parent.

    What the defence of this name does at the end of a training, and with its failures.
    """

    name = "resta"
    source = "Bhardwaj et al. 2024, arXiv 2402.11746"
    amount = "gamma"
    others = ("other", "unaligned")

    unaligned: Any = setting(None, "The other model with its safety removed")
    gamma: float = setting(0.5, "How much of the safety vector is added; 0 adds nothing", ge=0)

    def change(self, module: Any) -> None:
        """Add the vector to the weights in place."""
        defence = plugins.get("defences", self.name)
        added = defence.make(unaligned=self.unaligned, gamma=self.gamma)
        added.repair(local_model(self.other), module)


TRANSFORM = RESTA
