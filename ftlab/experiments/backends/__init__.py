"""Where jobs run, one file per backend."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": [
            "Backend",
            "Job",
            "Needs",
            "numbers_of",
            "open_backend",
            "ranges",
            "Result",
            "Row",
            "rows_of",
            "worker",
        ],
        "local": ["LocalBackend"],
        "ray": ["RayBackend"],
        "slurm": ["SlurmBackend"],
    },
)
