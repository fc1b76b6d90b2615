"""The face of this room."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adapters": [
            "adapt",
            "full_precision",
            "save",
        ],
        "chat_template": ["answer_spans", "render", "special_tokens", "stop_ids"],
        "devices": [
            "labels_alone",
            "out_of_memory",
        ],
        "memory": [
            "fit",
            "holds",
        ],
        "reference": [
            "Model",
            "device",
            "kept",
            "model",
            "precision",
            "quiet",
            "released",
        ],
    },
)
