"""Models: references, loading, adapters, chat templates, devices, memory, hashes."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["engines"],
    submod_attrs={
        "adapters": ["adapt", "freeze_embeddings", "full_precision", "save_adapter"],
        "chat_template": ["answer_spans", "render", "special_tokens", "stop_ids"],
        "devices": [
            "attention",
            "check_devices",
            "clear_error",
            "device",
            "free_memory",
            "out_of_memory",
            "precision",
            "quiet",
            "released",
            "use_device",
        ],
        "hashing": ["fingerprint", "weights_hash"],
        "loading": [
            "keep_open",
            "load_sharded",
            "open_folder",
            "open_quantised",
            "share_of",
        ],
        "memory": ["MemoryEstimate", "estimate_memory"],
        "reference": ["Model", "check_reference", "is_reward_model", "local_model", "model"],
        "spectrum": ["weight_spectrum"],
    },
)
