"""Rates of events with Wilson intervals, over prompts and over training seeds."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy import ndarray

from ftlab._core.errors import UsageError
from ftlab.stats.events import Events, event_table
from ftlab.stats.variance import FEWEST_SEEDS, Estimate, estimate, of_labels


@dataclass(frozen=True)
class Rate:
    """A share of events with a two-sided interval."""

    events: int
    n: int  # scored answers
    rate: float  # events / n, 0 to 1
    low: float
    high: float
    method: str  # how the interval was made, its level, and what it is conditional on


def rate(
    events: Events,
    cluster: ndarray | None = None,
    *,
    confidence: float = 0.95,
) -> Rate:
    """Return the share of events with its interval.

    With shared cluster ids or several seeds, Wilson's interval is taken at the effective n,
    rate (1 - rate) / variance (at most n), with Student's quantile. Where the variance is 0, as
    at 0/n and n/n, n is the number of clusters. With 10 unlike clusters and a rate near 0 or 1,
    expect 85 % coverage from a 95 % interval (simulated).

    Args:
        events: [N], or [S, P] for a claim about the fine-tuning and not only about these runs
            (from FEWEST_SEEDS seeds on). Or what `rectify` returns.
        cluster: [N] or [P] ids; answers with the same id are not independent.
        confidence: Level of the interval, between 0 and 1.

    Raises:
        UsageError: `events_shape`, `events_values`, `events_not_numeric`, `events_empty`,
            `cluster_shape`, `wrong_confidence`; `nothing_scored` where a seed has no scored answer.

    Source: Wilson 1927; clustered variance: Miller 2024 (arXiv 2411.00640), section 2.2.
    """
    rectified = event_table("events", events, "N", "SP").arrays
    n_axes = rectified.ndim - 1
    if n_axes == 1:
        rectified = rectified[:, None]
    table = rectified[0]
    weights = equal_weights(table)
    noise, labels = of_labels(rectified, weights)
    found = estimate(table[None], cluster, noise, labels)
    conditional = ""
    if n_axes == 2:
        conditional = found.conditional
    rates = rates_of(found, confidence, conditional)
    return rates[0]


def equal_weights(table: ndarray) -> ndarray:
    """Return the weight of each answer in the rate of a table [S, P]: 1 / n where scored."""
    scored = ~np.isnan(table)
    return scored / max(scored.sum(), 1)


def rates_of(
    found: Estimate,
    confidence: float,
    conditional: str,
) -> list[Rate]:
    """Return each rate of an estimate with its interval; `conditional` ends the method."""
    beyond = tail(confidence)
    low, high = limits(found, beyond)
    level = f"{100 * confidence:g} %"
    rates = []
    for k, share in enumerate(found.rate):
        made = Rate(
            events=round(found.events[k]),
            n=int(found.n[k]),
            rate=float(share),
            low=float(low[k]),
            high=float(high[k]),
            method=f"{_method(found, k)}, {level}{conditional}",
        )
        rates.append(made)
    return rates


def limits(found: Estimate, tails: ndarray) -> tuple[ndarray, ndarray]:
    """Return the limits of each rate, with probability `tails` beyond each of them.

    Labels that show no event say no more than that its rate is about 1 / (labels + 2).
    """
    variance = found.variance
    known = variance > 0
    known &= found.clusters > 1  # one cluster says nothing about others
    variance = np.where(known, variance, 1)
    least = np.where(found.labels > 0, 1 / (found.labels + 2), 0)
    share = found.rate.clip(least, 1 - least)
    binomial = share * (1 - share)
    effective = binomial / variance
    effective = np.minimum(effective, found.n)
    n = np.where(known, effective, found.clusters)
    df = np.where(known, found.df, inf)
    z = quantile(tails, df)
    return wilson(found.rate, n, z)


def wilson(
    share: ndarray,
    n: ndarray,
    z: ndarray,
) -> tuple[ndarray, ndarray]:
    """Return Wilson's limits of shares.

    Args:
        share: Observed shares, 0 to 1.
        n: Effective number of answers, above 0.
        z: Quantile of the limits: 1.96 for 95 %, or Student's.

    Source: Wilson 1927.
    """
    ratio = np.square(z) / n
    scale = 1 + ratio
    middle = share + ratio / 2
    variance = share * (1 - share)
    variance = variance + ratio / 4
    half = np.sqrt(ratio * variance)
    low = (middle - half) / scale
    high = (middle + half) / scale
    low = np.where(share == 0, 0.0, low)  # exactly, whatever the rounding
    high = np.where(share == 1, 1.0, high)
    return low.clip(0, 1), high.clip(0, 1)


def tail(confidence: float) -> float:
    """Return the probability beyond each limit of a two-sided interval.

    Raises:
        UsageError: `wrong_confidence`.
    """
    if not 0 < confidence < 1:
        message = f"confidence is {confidence}. Allowed: between 0 and 1, such as 0.95."
        raise UsageError("wrong_confidence", message)
    return (1 - confidence) / 2


def quantile(tail: ndarray, df: ndarray = inf) -> ndarray:
    """Return the point with probability `tail` above it: Student's t, normal where df is inf."""
    from scipy.special import ndtri, stdtrit

    finite = np.minimum(df, 1e12)
    student = -stdtrit(finite, tail)
    normal = -ndtri(tail)
    return np.where(np.isinf(df), normal, student)


def _method(found: Estimate, k: int) -> str:
    """Return how the interval of rate k was made."""
    if found.plain:
        return "Wilson"
    if found.labels[k]:
        return f"{_size(found, k)}, corrected by {found.labels[k]:.0f} labels"
    return _size(found, k)


def _size(found: Estimate, k: int) -> str:
    size = f"{found.clusters[k]} clusters"
    if not found.cov[k, k]:
        return f"Wilson at n = {size}"
    if found.n_seeds >= FEWEST_SEEDS:
        size = f"{found.n_seeds} seeds x {size}"
    return f"Wilson at the effective n of {size}"
