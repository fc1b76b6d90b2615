"""Experiments: curves, harmful fine-tuning, comparisons, notebooks, and the headline page."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["backends"],
    submod_attrs={
        "audit_trials": ["AuditTrial", "plant_and_audit", "remove_and_retrain"],
        "comparison": ["compare"],
        "curves": ["Arm", "Curve"],
        "explanation": ["explain"],
        "gating": ["gate"],
        "harmful_finetuning": ["harmful_finetune", "weakened_model"],
        "notebooks": ["copy_notebooks", "find_notebook", "run_notebook"],
        "parameters": ["check_parameters", "parse_parameters"],
        "poisoning": [
            "fewest_rows",
            "loss_on_clean_rows",
            "poison",
            "poison_effect",
            "trigger_effect",
        ],
        "reproduction": ["reproduce"],
        "risk_curves": ["risk_curve"],
    },
)
