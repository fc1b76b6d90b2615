"""Training rows and prompts: load, check, split, mix, deduplicate, encode, preview, download."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "checking": ["Report", "check"],
        "dataset": [
            "Data",
            "check_source",
            "convert_rows",
            "count_shared",
            "deduplicate",
            "draw",
            "held_out",
            "is_world",
            "leave_out",
            "load",
            "mix",
            "plain",
            "question",
            "split",
            "strip_answers",
        ],
        "encoding": [
            "IGNORED",
            "MAX_LENGTH",
            "encode",
            "encode_all",
            "encode_rows",
            "fit_to_length",
            "token_length",
        ],
        "files": ["BENIGN", "first_lines", "Opened", "open_source", "problems_error", "records"],
        "formats": ["ENDINGS"],
        "previews": ["Preview", "preview"],
        "prompts": [
            "SAFE",
            "PromptSet",
            "is_unsafe",
            "load_prompts",
            "load_prompt_sets",
            "read_samples",
            "sample_from_record",
            "text_of",
        ],
        "registry": ["catalogue", "download"],
        "schemas": ["chat", "first_of"],
    },
)
