"""Run folders: start, lock, append, complete, load; list, tabulate, show, verify, clean."""

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
        "results": ["results_folder"],
        "store": ["Run", "SCHEMA", "find", "home", "load", "planned", "resource", "start"],
        "tables": ["row_of", "table_of", "verdict_of"],
    },
)
