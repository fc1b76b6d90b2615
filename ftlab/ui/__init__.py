"""What notebooks show: panels over the cells, one file each in the folder `panels`."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["panels"],
    submod_attrs={
        "panels.compare": ["compare"],
        "panels.data": ["data"],
        "panels.explore": ["explore"],
        "panels.guard": ["guard"],
        "panels.label": ["label"],
        "panels.runs": ["runs"],
        "panels.train": ["train"],
    },
)
