"""Evaluations: risks, attacks, answers, verdicts, and monitors of models in training."""

from __future__ import annotations

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["attacks", "logs", "risks"],
    submod_attrs={
        "answer_losses": ["answer_loss"],
        "answering": ["answered_by"],
        "attack_search": ["red_team"],
        "auditing": ["ANCHORED", "AUDITS", "audit"],
        "call_monitoring": ["CHECKS", "call_alarms", "monitor_calls"],
        "calls": ["Call", "calls_in"],
        "config": ["NOT_FOR_USERS", "EvaluationConfig"],
        "direction": ["direction_of", "refusal_direction"],
        "divergences": ["divergence"],
        "evaluation": [
            "ask",
            "check_engine",
            "check_unchanged",
            "evaluate",
            "report_failures",
            "run_evaluation",
        ],
        "guarding": ["guard_rates"],
        "labelling": ["draw", "write_sheet"],
        "inspect_writing": ["write_inspect_logs"],
        "lm_harness": ["lm_eval", "lm_eval_results"],
        "measuring": ["Measurement"],
        "monitoring": ["Monitor", "monitor"],
        "plan": ["default_engine", "Plan", "plan_evaluation", "usual_risks"],
        "rescoring": ["rescore", "retry_errors"],
    },
)
