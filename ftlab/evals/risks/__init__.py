"""Risks: where the prompts of each come from and which outcomes are its event. One file a risk."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Risk", "event", "open_risk"],
        "bias": ["bias_score"],
        "toxicity": ["expected_maximum_toxicity"],
        "utility": ["few_shot"],
    },
)
