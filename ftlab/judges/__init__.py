"""The face of this room."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "agreement": [
            "human_agreement",
            "judge_agreement",
            "kappa",
        ],
        "answer_files": [
            "DEFAULT",
            "describe",
            "judge",
            "judge_card",
            "save",
        ],
        "base": [
            "Judgement",
            "judge",
        ],
    },
)
