"""One file a transform: a model in, a model out."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["OfTwo", "Transform", "open_transform"],
    },
)
