"""The face of this room."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "admin": [
            "clean_runs",
            "show_run",
            "verify_runs",
        ],
        "store": [
            "Busy",
            "Run",
            "_provenance",
            "clock",
            "digest",
            "file_hash",
            "home",
            "list_runs",
            "load",
            "resource",
            "start",
            "storage",
            "write_atomic",
        ],
    },
)
