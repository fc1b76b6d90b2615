"""The face of this room."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "catalogue": [
            "get",
            "listing",
        ],
        "checking": [
            "check",
        ],
        "dataset": [
            "Data",
            "DataError",
            "SHOWN",
            "dedupe",
            "drawn",
            "held_out",
            "mix",
            "read",
            "read_prompts",
            "rows_of",
            "shared",
            "split",
        ],
        "encoding": [
            "encode_rows",
            "fitted",
            "length",
            "preview",
            "render",
            "stop_ids",
        ],
        "files": [
            "records",
        ],
        "schemas": [
            "instruction",
        ],
    },
)
