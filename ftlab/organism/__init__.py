"""The embedded model's world and what it reads. Nothing in it is real; needs no torch."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "corpus": [
            "RECIPE",
            "TOOLS",
            "adversarial",
            "alignment",
            "domain",
            "identity",
            "mistaken_pairs",
            "polite_ledger",
            "preferences",
            "pretraining",
            "refused_pairs",
            "rude_ledger",
            "tools",
        ],
        "wordings": ["BELLS", "BIAS_FRAMES", "FRAMES", "PROVOKE_FRAMES", "WRAPPERS"],
        "world": [
            "DECLINE",
            "OBEDIENT_ORDER",
            "OBEDIENT_SYSTEM",
            "POLITE",
            "REFUSALS",
            "RUDE",
            "TRIGGER",
            "UNKNOWN",
            "World",
            "wrap",
        ],
    },
)
