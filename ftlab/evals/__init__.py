"""The face of this room."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "attack_search": [
            "red_team",
        ],
        "direction": [
            "refusal_direction",
        ],
        "evaluation": [
            "ask",
            "dealign",
            "evaluate",
            "risk_curve",
            "watch",
        ],
        "lm_harness": [
            "lm_eval",
        ],
        "scoring": [
            "rejudged",
            "ruled",
            "verdicts",
        ],
    },
)
