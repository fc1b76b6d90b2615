"""Models: references, loading, adapters, devices, memory, hashes."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "adapters": [
            "adapt",
            "difference",
            "full_precision",
            "save",  # transition
            "save_adapter",
        ],
        "devices": [
            "attention",
            "clear",  # transition
            "clear_error",
            "device",
            "free_memory",
            "labels_alone",  # transition
            "out_of_memory",
            "precision",
            "quiet",
            "released",
        ],
        "hashing": [
            "fingerprint",
            "weights_hash",
        ],
        "loading": [
            "keep_open",
            "kept",  # transition
        ],
        "memory": [
            "MemoryEstimate",
            "estimate_memory",
            "fit",  # transition
            "holds",  # transition
            "holds_activations",
        ],
        "reference": [
            "Model",
            "model",
        ],
    },
)
