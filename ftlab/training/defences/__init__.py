"""Defences: one file each, found by its place."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Defence", "no_defence", "open_defence"],
    },
)
