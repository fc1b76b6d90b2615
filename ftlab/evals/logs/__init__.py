"""Logs of other tools, read for a comparison. One file a tool."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["About", "Logged", "LogFormat", "number"],
        "files": ["json_items", "records"],
        "pairing": ["is_log", "paired_tables"],
    },
)
