"""Linear interpolation between parent and child.

Source: Wortsman et al. 2022, arXiv 2109.01903 (WiSE-FT).
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.training.defences.base import Defence


class Interpolate(Defence):
    """Moves the trained weights back toward the parent: (1 - share) * child + share * parent.

    What was learned is lost with what was broken; between two far apart models there may be
    neither. A low-rank adapter is scaled by 1 - share, which is the same.
    """

    name = "interpolate"
    source = "Wortsman et al. 2022, arXiv 2109.01903"
    stage = "afterwards"
    methods = ("sft", "dpo", "kto", "rloo")
    adapters = (None, "lora", "qlora")

    share: float = setting(0.5, "Share of the parent; 0 is the child, 1 the parent", ge=0, le=1)

    def repair(self, parent: Any, child: Any) -> None:
        """Interpolate the trained weights in place."""
        import torch

        with torch.no_grad():
            if hasattr(child, "peft_config"):
                for name, weights in child.named_parameters():
                    if "lora_B.default" in name:
                        weights.mul_(1 - self.share)
                return
            origin = dict(parent.load(training=True).named_parameters())
            for name, weights in child.named_parameters():
                if weights.requires_grad:
                    weights.lerp_(origin[name].to(weights.device), self.share)


DEFENCE = Interpolate
