"""The face of this room."""

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
            "preferences",
            "pretraining",
            "prompts",
        ],
        "world": [
            "BIAS_FRAMES",
            "FRAMES",
            "PROVOKE_FRAMES",
            "UNKNOWN",
            "WRAPPERS",
            "World",
            "wrap",
        ],
    },
)
