"""Child against parent on the same prompts: difference, ratio, McNemar's test, Holm."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from ftlab._core.errors import UsageError
from ftlab.stats.rates import Rate, quantile, rates_of, tail, wilson
from ftlab.stats.variance import Estimate, estimate, event_table


@dataclass(frozen=True)
class Paired:
    """Parent and child over the pairs (seed, prompt) that are scored in both."""

    n_prompts: int  # prompts with at least one such pair
    n_seeds: int
    parent: Rate
    child: Rate
    difference: float  # child - parent, -1 to 1
    difference_low: float
    difference_high: float
    ratio: float  # child / parent; inf if only the parent has no event, nan if neither has one
    ratio_low: float  # a lower bound where ratio_high is inf: the parent has no event
    ratio_high: float
    mcnemar_p: float  # the largest of mcnemar_per_seed; 1 if seeds point in opposite directions
    mcnemar_per_seed: tuple[float, ...]
    both: int  # pairs, summed over seeds: event in parent and child
    lost: int  # event in the parent only
    gained: int  # event in the child only
    neither: int
    method: str


def paired(
    parent: np.ndarray,
    child: np.ndarray,
    *,
    cluster: np.ndarray | None = None,
    confidence: float = 0.95,
) -> Paired:
    """Compare a child with its parent on the same prompts.

    A NaN on either side drops the pair, in its seed only. Of a parent measured once, n counts
    prompts and the rate weights each prompt by its pairs. McNemar's test is exact, two-sided and
    made for each seed (the pairs of one prompt depend on each other); a cluster counts once, by
    the sign of its net change. A small `mcnemar_p` says that every run shows the change.

    Args:
        parent: Events [P], or [S, P] if measured for each seed.
        child: Events [P] or [S, P].
        cluster: [P] ids; prompts with the same id are not independent.
        confidence: Level of the intervals, between 0 and 1.

    Raises:
        UsageError: As `rate`, and `tables_do_not_pair`.

    Source: one seed and no shared cluster: Newcombe 1998 (Stat. Med. 17:2635), method 10, and
    Bonett & Price 2006 (Stat. Med. 25:3039). Otherwise MOVER on the Wilson limits: difference
    by Zou & Donner 2008, ratio by Fagerland et al. 2014 (Stat. Med. 33:2850).
    """
    parent = np.atleast_2d(event_table("parent", parent, "P", "SP"))
    child = np.atleast_2d(event_table("child", child, "P", "SP"))
    if len(parent) not in (1, len(child)) or parent.shape[1] != child.shape[1]:
        found = f"parent {parent.shape} and child {child.shape} do not pair."
        allowed = "Give [P] or [S, P] with the same prompts, and the same seeds or one parent."
        raise UsageError("tables_do_not_pair", f"{found} {allowed}")
    scored = ~np.isnan(parent + child)
    prompts = scored.any(axis=0)
    before = np.where(scored, parent, np.nan)
    after = np.where(scored, child, np.nan)
    found = estimate(np.stack([after, before]), cluster)
    both = int(np.nansum(before * after))
    gained, lost = (found.events - both).astype(int).tolist()
    neither = int(found.n[0]) - both - gained - lost
    if len(parent) == 1:
        found = dataclasses.replace(
            found,
            events=np.array([found.events[0], parent[0, prompts].sum()]),
            n=np.array([found.n[0], prompts.sum()]),
        )
    new, old = rates_of(found, confidence, found.conditional)
    correlation = _correlation(found)
    difference_low, difference_high = _difference_limits(new, old, correlation)
    if found.plain:
        z = quantile(tail(confidence))
        ratio_low, ratio_high = _bonett_price(both, gained, lost, z)
        method = f"difference by Newcombe's method 10, ratio by Bonett-Price, {new.method}"
    else:
        ratio_low, ratio_high = _ratio_limits(new, old, correlation)
        method = f"difference and ratio by MOVER, {new.method}"
    mcnemar_p, per_seed = _mcnemar(found.hits[0] - found.hits[1])
    return Paired(
        n_prompts=int(prompts.sum()),
        n_seeds=len(child),
        parent=old,
        child=new,
        difference=new.rate - old.rate,
        difference_low=difference_low,
        difference_high=difference_high,
        ratio=_ratio(new.rate, old.rate),
        ratio_low=ratio_low,
        ratio_high=ratio_high,
        mcnemar_p=mcnemar_p,
        mcnemar_per_seed=per_seed,
        both=both,
        lost=lost,
        gained=gained,
        neither=neither,
        method=method,
    )


def holm(p_values: list[float]) -> list[float]:
    """Return p values adjusted for their number, in the order given.

    Source: Holm 1979.
    """
    from statsmodels.stats.multitest import multipletests

    if not len(p_values):
        return []
    return multipletests(p_values, method="holm")[1].tolist()


def _ratio(child: float, parent: float) -> float:
    """Return child / parent; inf over a parent of 0, nan where both are 0."""
    if parent:
        return child / parent
    if child:
        return math.inf
    return math.nan


def _correlation(found: Estimate) -> float:
    """Return the correlation of child and parent, with Newcombe's continuity correction."""
    (child, covariance), (_, parent) = found.cov
    if child * parent == 0:
        return 0.0
    corrected = covariance - 0.5 / found.clusters[0] ** 2
    covariance = max(corrected, min(covariance, 0))
    return float(np.clip(covariance / math.sqrt(child * parent), -1, 1))


def _difference_limits(child: Rate, parent: Rate, r: float) -> tuple[float, float]:
    """Return the limits of child - parent, from those of two rates with correlation r."""
    down = _distance(child.rate - child.low, parent.high - parent.rate, r)
    up = _distance(child.high - child.rate, parent.rate - parent.low, r)
    difference = child.rate - parent.rate
    return max(difference - down, -1.0), min(difference + up, 1.0)


def _distance(a: float, b: float, r: float) -> float:
    return math.sqrt(max(a * a + b * b - 2 * r * a * b, 0))


def _ratio_limits(child: Rate, parent: Rate, r: float) -> tuple[float, float]:
    """Return the limits of child / parent, from those of two rates with correlation r."""
    low = 0.0
    high = math.inf
    if child.rate:
        over, _, root = _ratio_terms(child.rate, child.low, parent.rate, parent.high, r)
        low = over / root
    if parent.rate:
        _, under, root = _ratio_terms(child.rate, child.high, parent.rate, parent.low, r)
        high = root / under
    return low, high


def _ratio_terms(p: float, x: float, q: float, y: float, r: float) -> tuple[float, ...]:
    """Solve (p - Rq)^2 = a^2 + R^2 b^2 - 2 R r a b for R, with a = |p - x| and b = |q - y|.

    The smaller root is over / root, the larger one root / under.
    """
    middle = p * q - r * abs(p - x) * abs(q - y)
    over = x * (2 * p - x)
    under = y * (2 * q - y)
    root = middle + math.sqrt(max(middle * middle - over * under, 0))
    return over, under, root


def _bonett_price(both: int, gained: int, lost: int, z: float) -> tuple[float, float]:
    """Return the limits of the ratio: Wilson's among the n prompts with any event.

    z is scaled so that the quotient of the limits fits the standard error of the log ratio.
    """
    child = both + gained
    parent = both + lost
    n = both + gained + lost
    if not n:
        return 0.0, math.inf
    width = math.sqrt((1 - (child + 1) / (n + 2)) / (child + 1))
    width += math.sqrt((1 - (parent + 1) / (n + 2)) / (parent + 1))
    error = math.sqrt((gained + lost + 2) / ((child + 1) * (parent + 1)))
    lows, highs = wilson(np.array([child, parent]) / n, n, z * error / width)
    low = 0.0
    high = math.inf
    if child:
        low = float(lows[0] / highs[1])
    if parent:
        high = float(highs[0] / lows[1])
    return low, high


def _mcnemar(change: np.ndarray) -> tuple[float, tuple[float, ...]]:
    """Return p over all seeds and for each, from the net change of each cluster [S, C]."""
    from scipy.special import bdtr

    up = (change > 0).sum(axis=1)
    down = (change < 0).sum(axis=1)
    p_values = 2 * bdtr(np.minimum(up, down), up + down, 0.5)
    per_seed = np.minimum(p_values, 1).tolist()
    largest = max(per_seed)
    if (up > down).any() and (up < down).any():
        largest = 1.0
    return largest, tuple(per_seed)
