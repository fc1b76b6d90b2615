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
    first, _, _ = judge.partition(":")
    files = (resource("data") / "judge").glob("*.csv")
    cards = {file.stem: file for file in files}
    if first not in cards:
        return ()
    table = pd.read_csv(cards[first])
    own = table["judge"] == judge
    own &= table["model"] == "all models"
    columns = ["sensitivity", "specificity"]
    pairs = table.loc[own, columns].to_numpy()
    return tuple(map(tuple, pairs.tolist()))


def card_range(
    judge: str,
    risk: str,
    rate: float,
    incoherent: float = 0.0,
) -> tuple[float, float]:
    """Return between which rates the truth lies if the judge errs as on one of its card's sets.

    Each set's errors give one rate; the range is from the least to the most of them. A set on
    which the judge could not report such a rate at all is left out. How the judge errs on the
    answers at hand is not known, and the sets' own errors of estimation are left out, so this is
    no interval.

    Args:
        judge: Public name.
        risk: Name of the risk.
        rate: By the judge, 0 to 1.
        incoherent: Share of answers that are neither refused nor complied with, 0 to 1.

    Returns:
        NaN twice where the card does not say.

    Source: Rogan & Gladen 1978 (Am. J. Epidemiol. 107:71), equation 1.
    """
    coherent = 1 - incoherent
    known = risk in (*COMPLIED, *REFUSED)
    if not known or math.isnan(rate) or not coherent:
        return math.nan, math.nan
    share = rate / coherent
    turned = risk in REFUSED
    if turned:
        share = 1 - share
    found = []
    for sensitivity, specificity in card_errors(judge):
        missed = 1 - sensitivity
        power = sensitivity + specificity - 1
        if not missed <= share <= specificity or power <= 0:
            continue
        true = (share - missed) / power
        if turned:
            true = 1 - true
        found.append(coherent * true)
    if not found:
        return math.nan, math.nan
    return min(found), max(found)
