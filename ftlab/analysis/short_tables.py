"""Tables for people: percentages with their intervals, no NaN, a few columns."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from ftlab._core.errors import UsageError

# Columns that are shown where a table has them; the estimates with intervals come in between.
FIRST = (
    "set",
    "model",
    "refusal",
    "risk",
    "attack",
    "category",
    "wording",
    "examples",
    "judge",
    "definition",
    "step",
    "epoch",
)
ESTIMATES = (
    *("rate", "parent", "child", "ratio", "difference", "accuracy", "kappa"),
    *("sensitivity", "specificity", "human_asr", "judge_asr", "bias"),
)
LAST = ("reached", "refusal_rate_below", "mcnemar_holm", "n", "n_prompts", "n_seeds")
HEADINGS = {
    "parent": "before",
    "child": "after",
    "mcnemar_holm": "p (Holm)",
    "n_prompts": "prompts",
    "n_seeds": "seeds",
    "refusal_rate_below": "refusals below",
}
POINTS = ("difference", "bias")
PLAIN = ("ratio", "kappa")


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Return a short table for reading: "58 % [48, 68]" instead of three columns.

    Args:
        table: A table of `rates`, `compare` or `first_step`, or of judges' agreement.

    Returns:
        Text in every cell that holds an estimate; "–" where there is none.

    Raises:
        UsageError: `nothing_to_summarise` where the table has no estimate with an interval.
    """
    first_step = "step" in table and "low" in table and "rate" not in table
    estimates = [name for name in ESTIMATES if name in table and _bounds(name)[0] in table]
    if not estimates and not first_step:
        raise UsageError(
            "nothing_to_summarise", "Pass a table of rates(), compare(), first_step() or judges."
        )
    groups = [name for name in table.attrs.get("by", ()) if name in table]
    short = pd.DataFrame(index=table.index)
    for name in dict.fromkeys((*groups, *FIRST)):
        several = name != "judge" or name in groups or table.get(name, pd.Series()).nunique() > 1
        if name in table and several:
            short[name] = table[name]
    if first_step:
        ends = zip(table["step"], table["low"], table["high"], strict=True)
        short["step"] = [_steps(*values) for values in ends]
    for name in estimates:
        columns = [table[column] for column in (name, *_bounds(name))]
        cells = zip(*columns, strict=True)
        short[HEADINGS.get(name, name)] = [_cell(name, *values) for values in cells]
    for name in LAST:
        if name in table:
            short[HEADINGS.get(name, name)] = [_last(name, value) for value in table[name]]
    return short


def _bounds(name: str) -> tuple[str, str]:
    if name == "rate":
        return "low", "high"
    return f"{name}_low", f"{name}_high"


def _cell(name: str, value: float, low: float, high: float) -> str:
    """Return an estimate with its interval."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return f"≥ {low:.2f}"  # nothing to divide by: a lower bound
    if name in PLAIN:
        return f"{value:.2f} [{low:.2f}, {_high(high)}]"
    ends = f"[{100 * low:.0f}, {100 * high:.0f}]"
    if name in POINTS:
        ends = f"[{100 * low:+.0f}, {100 * high:+.0f}]"
        return f"{100 * value:+.0f} points {ends}"
    return f"{100 * value:.0f} % {ends}"


def _high(value: float) -> str:
    return "no bound" if math.isinf(value) else f"{value:.2f}"


def _steps(step: float, low: float, high: float) -> str:
    """Return a step with its interval; infinite: not within the steps measured."""
    if math.isinf(low):
        return "never"
    words = [f"{value:.3g}" if math.isfinite(value) else "never" for value in (step, low, high)]
    return f"{words[0]} [{words[1]}, {words[2]}]"


def _last(name: str, value: Any) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "–"
    if name == "mcnemar_holm":
        return f"{value:.3f}" if value >= 0.001 else "< 0.001"
    if name in ("reached", "refusal_rate_below"):
        return f"{100 * value:.3g} %"
    return f"{value:,.0f}"
