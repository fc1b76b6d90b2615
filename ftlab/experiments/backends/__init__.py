"""Where jobs run, one file per backend."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Backend", "Job", "Result", "open_backend"],
        "local": ["LocalBackend"],
    },
)
