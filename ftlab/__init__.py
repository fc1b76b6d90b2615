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
    "read": "data", "read_prompts": "data", "check": "checks", "split": "data", "mix": "data", "dedupe": "data",
    "model": "models", "fit": "preflight", "preview": "chat", "ask": "evaluation",
    "sft": "train", "dpo": "train", "kto": "train", "reward": "train", "rloo": "train",
    "watch": "evaluation", "dealign": "evaluation", "risk_curve": "evaluation", "evaluate": "evaluation",
    "red_team": "redteam", "lm_eval": "harness", "refusal_direction": "direction",
    "rates": "tables", "by_seed": "tables", "compare": "tables", "crossing": "tables", "no_refusal": "tables",
    "outcomes": "tables", "before_after": "tables", "judged": "tables",
    "judge": "verdicts", "human_agreement": "agreement", "judge_agreement": "agreement", "judge_card": "verdicts",
    "plot": "tables", "claim": "claims", "write_report": "report", "reproduce": "batch",
    "Run": "runs", "load": "runs", "list_runs": "runs", "show_run": "shelf", "verify_runs": "shelf", "clean_runs": "shelf",
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
