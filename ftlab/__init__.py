"""Measure what fine-tuning does to a language model's safety.

    import ftlab as ft

    parent = ft.model("organism")                              # or a folder, a run, a hub id
    child = ft.sft(parent, "chat.jsonl", epochs=3, adapter="lora")  # a run, and a model too
    curve = ft.risk_curve(parent, "chat.jsonl", at_steps=[0, 10, 30, 100], seeds=5)
    ft.compare(curve)                                          # paired ratios with intervals
    ft.plot(curve)

The verbs are here; everything else is in the namespaces `data`, `models`, `training`, `evals`,
`judges`, `stats`, `runs`, `analysis`, `experiments` and `ui`. Nothing heavy is imported before it
is used.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

import lazy_loader

from ftlab._core import threads

__version__ = "0.4.0"

_NAMESPACES = [
    "analysis",
    "course",
    "data",
    "evals",
    "experiments",
    "judges",
    "models",
    "runs",
    "stats",
    "training",
    "ui",
]
_VERBS = {
    "analysis": ["answers", "card", "plot", "rates", "report"],
    "evals": ["ask", "evaluate"],
    "experiments": [
        "accept",
        "compare",
        "explain",
        "gate",
        "grid",
        "harmful_finetune",
        "risk_curve",
        "sweep",
    ],
    "models": ["model"],
    "runs": ["load"],
    "training": ["dpo", "sft"],
}
_MOVED = {  # names of version 0.3: where each is now
    "Run": "runs.Run",
    "before_after": "analysis.before_after",
    "by_seed": "analysis.by_seed",
    "check": "data.check",
    "claim": "analysis.record_claim",
    "clean_runs": "runs.clean_runs",
    "crossing": "analysis.crossing",
    "dealign": "experiments.harmful_finetune",
    "dedupe": "data.deduplicate",
    "fit": "models.estimate_memory",
    "human_agreement": "judges.human_agreement",
    "judge": "judges.score_file",
    "judge_agreement": "judges.judge_agreement",
    "judge_card": "judges.judge_card",
    "judged": "evals.rescore",
    "kto": "training.kto",
    "list_runs": "runs.list_runs",
    "lm_eval": "evals.lm_eval",
    "mix": "data.mix",
    "no_refusal": "analysis.no_refusal",
    "outcomes": "analysis.outcome_shares",
    "preview": "data.preview",
    "read": "data.load",
    "read_prompts": "data.load_prompts",
    "red_team": "evals.red_team",
    "refusal_direction": "evals.refusal_direction",
    "reproduce": "experiments.reproduce",
    "reward": "training.train_reward_model",
    "rloo": "training.rloo",
    "show_run": "runs.show_run",
    "split": "data.split",
    "verify_runs": "runs.verify_runs",
    "watch": "evals.monitor",
    "write_report": "analysis.report",
}

threads.settle()  # before anything imports torch
warnings.filterwarnings("ignore", "IProgress not found")  # by tqdm, whoever imports it first
_lazy, __dir__, __all__ = lazy_loader.attach(__name__, submodules=_NAMESPACES, submod_attrs=_VERBS)


def __getattr__(name: str) -> Any:
    if name in __all__:
        return _lazy(name)
    from ftlab._core.errors import FtlabDeprecationWarning, NoSuchName
    from ftlab._core.text import did_you_mean

    if name not in _MOVED:
        hint = did_you_mean(name, [*__all__, *_MOVED]) or f" It has: {', '.join(__all__)}."
        raise NoSuchName("no_such_name", f"ftlab has no {name!r}.{hint}")
    room, attribute = _MOVED[name].split(".")
    warnings.warn(
        f"ftlab.{name} is now ftlab.{room}.{attribute}; the old name goes in the next release.",
        FtlabDeprecationWarning,
        stacklevel=2,
    )
    return getattr(import_module(f"ftlab.{room}"), attribute)
