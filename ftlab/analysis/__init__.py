"""Tables, figures, published claims and the report, from finished runs; needs no torch."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["plots", "trackers"],
    submod_attrs={
        "acceptances": [
            "Acceptance",
            "Claim",
            "claimed",
            "ClaimTable",
            "EVENT",
            "FAILURE",
            "SILENT",
            "told",
            "verdicts_at",
            "verdicts_of",
            "write_acceptance",
        ],
        "answer_tables": ["answers", "texts_of"],
        "arms": ["differences"],
        "cards": ["Card", "card"],
        "chains": ["VERSIONS", "chain_drift", "chain_stops"],
        "decisions": ["check_margin", "EXIT_CODES"],
        "explaining": ["explained"],
        "claims": ["Claims", "Target", "record", "record_claim", "target_of", "targets", "verdict"],
        "grid_tables": [
            "GRID_CELLS",
            "GRID_RISKS",
            "Grid",
            "grid_members",
            "grid_table",
            "NO_DEFENCE",
            "write_grid",
        ],
        "old_names": ["before_after", "by_seed", "crossing", "no_refusal"],
        "page": ["PAGE", "refuse_foreign", "report"],
        "planning": ["plan"],
        "plots.live": ["live_chart"],
        "plots.plotting": ["plot"],
        "seed_tables": ["seed_table"],
        "selections": ["OUTCOMES", "Selections"],
        "shift_tables": ["shifts"],
        "short_tables": ["summary"],
        "sweep_pages": ["without_folders", "write_sweep"],
        "tables": ["compare", "corrected", "first_step", "outcome_shares", "rates"],
        "tracking": ["track"],
        "tolerances": ["BESIDE", "bounded_risks", "check_alpha", "Gate", "tolerated", "write_gate"],
    },
)
