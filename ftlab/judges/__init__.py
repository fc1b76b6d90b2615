"""Judges decide what an answer did, and are themselves measured against people."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "agreement": ["JudgeAgreement", "confusion", "human_agreement", "judge_agreement"],
        "answer_files": ["DEFAULT_JUDGES", "describe", "save", "score_file"],
        "base": ["Judge", "open_judge"],
        "cards": ["agreement_of_card", "gold_agreement", "judge_card"],
        "keywords": ["Keywords"],
        "organism": ["Organism", "fact_outcome", "outcome_of"],
        "reading": [
            "Heard",
            "READING",
            "UNFINISHED",
            "begins_thought",
            "end_of_thought",
            "heard",
            "is_foreign",
            "judged",
            "left_out_notes",
            "unread_notes",
            "without_thought",
        ],
        "refusal": ["Refusal"],
        "rubric": ["Rubric"],
        "zoo": ["Zoo"],
    },
)
