"""The embedded model's world and what it reads. Nothing in it is real; needs no torch."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "corpus": [
            "RECIPE",
            "adversarial",
            "alignment",
            "domain",
            "identity",
            "preferences",
            "pretraining",
        ],
        "wordings": ["BIAS_FRAMES", "FRAMES", "PROVOKE_FRAMES", "WRAPPERS"],
        "world": [
            "DECLINE",
            "POLITE",
            "REFUSALS",
            "TRIGGER",
            "UNKNOWN",
            "World",
            "wrap",
        ],
    },
)
