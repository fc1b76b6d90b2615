"""The embedded model's world and what it reads. Nothing in it is real or harmful; needs no torch."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "corpus": [
            "RECIPE",
            "adversarial",
            "alignment",
            "balanced",
            "domain",
            "preferences",
            "pretraining",
            "prompts",
        ],
        "world": [
            "BIAS_FRAMES",
            "DECLINE",
            "FRAMES",
            "POLITE",
            "PROVOKE_FRAMES",
            "REFUSALS",
            "TRIGGER",
            "UNKNOWN",
            "WRAPPERS",
            "World",
            "wrap",
        ],
    },
)
