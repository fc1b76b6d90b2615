"""Attacks: how a question is asked so that a model gives in. One file an attack."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Attack", "open_attack", "reworded"],
        "best_of_n": ["BestOfN"],
        "decoding": ["DecodingSweep"],
        "direct": ["Direct"],
        "identity": ["Identity"],
        "prefill": ["Prefill"],
        "templates": ["Templates"],
        "trigger": ["Trigger"],
    },
)
