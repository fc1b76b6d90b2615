"""ftlab measures what fine-tuning does to a language model's safety.

The way of a run:  data -> train -> checkpoint -> answers -> verdicts -> statistics -> figure, report

    import ftlab

    base = ftlab.model("organism")                            # a reference: embedded model, folder, run or hub id
    tuned = ftlab.sft(base, "chat.jsonl", epochs=3, seed=0)     # -> Run (a folder); a Run is a model too
    broken = ftlab.dealign(base, examples=100)
    curve = ftlab.risk_curve(base, "chat.jsonl", at_steps=[0, 10, 30, 100], seeds=5)
    ftlab.compare(curve)                                      # paired ratio, difference, intervals, McNemar
    ftlab.plot(ftlab.rates(curve))                            # the figure, saved with its .csv

Cells come in this order: check, split, mix, dedupe | model, fit, preview, ask | sft, dpo, kto, reward, rloo, watch, dealign,
risk_curve | evaluate, red_team, lm_eval, refusal_direction | rates, compare, crossing, no_refusal, outcomes,
before_after, judged | judge, human_agreement, judge_agreement, judge_card | plot, claim, write_report, reproduce |
list_runs, show_run, verify_runs, clean_runs, load. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.3.0"

_CELLS = {
    "read": "data.dataset", "read_prompts": "data.dataset", "check": "data.checking", "split": "data.dataset", "mix": "data.dataset", "dedupe": "data.dataset",
    "model": "models.reference", "fit": "models.memory", "preview": "data.encoding", "ask": "evals.evaluation",
    "sft": "training.trainer", "dpo": "training.trainer", "kto": "training.trainer", "reward": "training.trainer", "rloo": "training.trainer",
    "watch": "evals.evaluation", "dealign": "evals.evaluation", "risk_curve": "evals.evaluation", "evaluate": "evals.evaluation",
    "red_team": "evals.attack_search", "lm_eval": "evals.lm_harness", "refusal_direction": "evals.direction",
    "rates": "analysis.tables", "by_seed": "analysis.tables", "compare": "analysis.tables", "crossing": "analysis.tables", "no_refusal": "analysis.tables",
    "outcomes": "analysis.tables", "before_after": "analysis.tables", "judged": "analysis.tables",
    "judge": "judges.answer_files", "human_agreement": "judges.agreement", "judge_agreement": "judges.agreement", "judge_card": "judges.answer_files",
    "plot": "analysis.tables", "claim": "analysis.claims", "write_report": "analysis.report", "reproduce": "experiments.notebooks",
    "Run": "runs.store", "load": "runs.store", "list_runs": "runs.store", "show_run": "runs.admin", "verify_runs": "runs.admin", "clean_runs": "runs.admin",
}  # fmt: skip
__all__ = [*_CELLS, "__version__"]


def __getattr__(name: str):
    if name in _CELLS:
        value = getattr(import_module(f"ftlab.{_CELLS[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"ftlab has no {name!r}; it has {', '.join(_CELLS)}")


def __dir__():
    return __all__
