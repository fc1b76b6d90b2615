"""The face of this room."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "claims": [
            "claim",
        ],
        "report": [
            "write_report",
        ],
        "tables": [
            "before_after",
            "by_seed",
            "compare",
            "crossing",
            "judged",
            "no_refusal",
            "outcomes",
            "plot",
            "rates",
        ],
    },
)
