"""Run folders: start, lock, append, complete, load; list, show, verify, clean, export."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "admin": [
            "clean_runs",
            "list_runs",
            "resumable_runs",
            "runs_table",
            "show_run",
            "verify_runs",
        ],
        "archives": ["Archive", "export_run", "import_run"],
        "labels": [
            "ALLOWED",
            "DRAW",
            "Labels",
            "known_labels",
            "read_labels",
            "read_sheet",
            "sheet_of",
        ],
        "origin": ["now", "provenance"],
        "redaction": [
            "SAFETY_REMOVED",
            "public",
            "public_label",
            "public_text",
            "safety_note",
        ],
        "results": ["results_folder"],
        "store": ["Run", "SCHEMA", "find", "home", "load", "planned", "resource", "start"],
        "tables": ["row_of", "table_of", "verdict_of"],
    },
)
