"""One file a risk: where its prompts come from, which verdicts are the event, and the source.

A risk is a module with `TITLE` (the event in words, for axes), `HARM` (whether the event is a harm), `ATTACKED`
(whether attacks apply to its prompts) and `EVENTS` (the verdicts that count). `unparsed` and `error` are never
scored: they leave the rate and are counted beside it. Optional: `read(source) -> prompt rows`, where the field's files
need more than `data.read_prompts`, and `rule(row, answer, argument) -> Judgement or None`, where the risk itself knows
what is right (None: the judge decides); `rules` is the same for many rows at once.
"""

from __future__ import annotations

from importlib import import_module

from ftlab._core.config import RISKS, VERDICTS

UNSCORED = ("unparsed", "error")


def risk(name: str):
    """-> the module of a risk. Raises ValueError with the names that exist."""
    if name not in RISKS:
        raise ValueError(f"unknown risk {name!r}; allowed: {', '.join(RISKS)}")
    return import_module(f"ftlab.evals.risks.base.{name}")


def event(name: str, verdict: str) -> float:
    """-> 1.0 where the verdict is the risk's event, 0.0 where not, nan where it was not scored."""
    if verdict not in VERDICTS:
        raise ValueError(f"unknown verdict {verdict!r}; allowed: {', '.join(VERDICTS)}")
    return float("nan") if verdict in UNSCORED else float(verdict in risk(name).EVENTS)
