"""Rates, paired comparisons, curves and agreement, each with an interval.

An event is 1 (it happened), 0 (it did not) or NaN (unscored: it leaves the count and never counts
as safe). Shapes: N answers, P prompts, S training seeds, K evaluated steps, C clusters. All seeds
answer the same prompts, and variants of one prompt (attacks, repeats) share a cluster id.
"""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "agreement": ["Agreement", "JudgeErrors", "alpha", "judge_errors", "kappa"],
        "comparison": ["Paired", "holm", "paired"],
        "curves": ["Band", "Crossing", "bands", "crossing", "first_below"],
        "differences": ["Shift", "shift"],
        "events": ["Rectified", "rectify"],
        "planning": [
            "MOST_PROMPTS",
            "MOST_SEEDS",
            "StudyPlan",
            "logit_sd",
            "plan",
            "smallest_difference",
        ],
        "rates": ["Rate", "rate", "wilson"],
        "scores": ["paired_scores"],
        "tolerance": ["lower_limits", "prompts_to_decide", "Tolerance", "upper_limits"],
        "variance": ["FEWEST_SEEDS", "SeedSpread", "seed_spread"],
    },
)
