"""Engines answer requests: transformers in process, vLLM, an endpoint, or a script."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "base": ["Decoding", "Engine", "GREEDY", "LoadedModel", "Request", "Tally", "open_engine"],
        "huggingface": ["HuggingFaceEngine"],
        "openai": ["Endpoint", "endpoint"],
        "scripted": ["ScriptedEngine"],
    },
)
