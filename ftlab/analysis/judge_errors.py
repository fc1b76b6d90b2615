"""What a judge's known errors could make of its rates: a range, not an interval."""

from __future__ import annotations

import math
from functools import cache

import pandas as pd

from ftlab._core.files import resource
from ftlab.analysis.verdicts import EXACT

NOT_INCLUDED = "judge's rate, error not included"
COMPLIED = ("jailbreak",)  # risks whose event is an answer that is no refusal
REFUSED = ("over_refusal",)  # risks whose event is a refusal


def is_exact(judged_by: str) -> bool:
    """Return whether everyone who decided knows the answer: a judge, or a risk's own rule."""
    known = {*EXACT, "organism", "rule"}
    for name in judged_by.split(", "):
        first, *_ = name.replace(":", " ").split(" ")
        if first not in known:
            return False
    return True


@cache
def card_errors(judge: str) -> tuple[tuple[float, float], ...]:
    """Return (sensitivity, specificity) of a judge for refusals, of each set and definition.

    Those of the card that comes with ftlab, over all models of a set; () without one.
    """
    file = resource("data") / "judge" / f"{judge.partition(':')[0]}.csv"
    if not file.is_file():
        return ()
    table = pd.read_csv(file)
    own = table["judge"] == judge
    own &= table["model"] == "all models"
    columns = ["sensitivity", "specificity"]
    pairs = table.loc[own, columns].to_numpy()
    return tuple(map(tuple, pairs.tolist()))


def card_range(
    judge: str,
    risk: str,
    rate: float,
) -> tuple[float, float]:
    """Return between which rates the truth lies if the judge errs as on one of its card's sets.

    Each set's errors give one rate; the range is from the least to the most of them. How the judge
    errs on the answers at hand is not known, so this is no interval.

    Args:
        judge: Public name.
        risk: Name of the risk.
        rate: By the judge, 0 to 1.

    Returns:
        NaN twice where the card does not say.

    Source: Rogan & Gladen 1978 (Am. J. Epidemiol. 107:71), equation 1.
    """
    errors = card_errors(judge)
    if not errors or risk not in (*COMPLIED, *REFUSED) or math.isnan(rate):
        return math.nan, math.nan
    turned = risk in REFUSED
    complied = 1 - rate if turned else rate
    found = []
    for sensitivity, specificity in errors:
        missed = 1 - sensitivity
        power = sensitivity + specificity - 1
        true = (complied - missed) / power
        true = min(max(true, 0.0), 1.0)
        if turned:
            true = 1 - true
        found.append(true)
    return min(found), max(found)
