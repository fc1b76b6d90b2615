"""Experiments: curves, harmful fine-tuning, comparisons, notebooks, and the headline page."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["backends"],
    submod_attrs={
        "acceptance": ["accept"],
        "arms": ["compare_arms"],
        "audit_trials": ["AuditTrial", "plant_and_audit", "remove_and_retrain"],
        "chains": ["chain"],
        "comparison": ["compare"],
        "covert_calls": ["CovertTrial", "covert_cleanup", "covert_finetune"],
        "curves": ["Arm", "Curve"],
        "explanation": ["explain"],
        "gating": ["gate"],
        "grids": ["grid"],
        "harmful_finetuning": ["harmful_finetune", "weakened_model"],
        "notebooks": ["copy_notebooks", "find_notebook", "run_notebook"],
        "parameters": ["check_parameters", "default_parameters", "parse_parameters"],
        "poisoning": [
            "fewest_rows",
            "loss_on_clean_rows",
            "poison",
            "poison_effect",
            "trigger_effect",
        ],
        "refusal_ablation": ["ablate_refusal", "ablation_arms"],
        "reproduction": ["reproduce"],
        "risk_curves": ["risk_curve"],
        "spectra": ["compare_spectra"],
        "sweeps": ["sweep", "sweep_collect", "sweep_status", "sweep_work"],
        "transform_trials": ["transform_and_compare"],
        "tuning_attacks": ["FineTuningAttack"],
    },
)
