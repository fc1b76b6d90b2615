"""Scores between no and yes: the mean change over the same prompts."""

from __future__ import annotations

from math import inf, nan, sqrt

import numpy as np
from numpy import ndarray

from ftlab._core.errors import UsageError
from ftlab.stats.comparison import Paired
from ftlab.stats.rates import Rate, quantile, tail
from ftlab.stats.variance import cluster_codes

ALIKE = 1e-12  # of the range: a spread that is rounding
FEWEST_APART = 15  # clusters away from the median below which Student's t is too narrow


def paired_scores(
    parent: ndarray,
    child: ndarray,
    *,
    cluster: ndarray | None = None,
    confidence: float = 0.95,
) -> Paired:
    """Compare the mean score of a child with its parent's on the same prompts.

    A cluster counts once, by its mean, whatever the number of its pairs; of several seeds the
    intervals are conditional on these runs. A NaN on either side drops the pair. Where few clusters
    changed, fewer than 15 and less than half, their spread says little: the interval then goes at
    least as far as so many clusters cannot rule out, (1 - .025 ^ (1 / n)) of the range. That is 1
    for scores from 0 to 1, else the range observed; no interval has an end where such other scores
    all changed alike.

    Args:
        parent: Scores [P] or [S, P], any numbers.
        child: Scores [P] or [S, P] of the same prompts.
        cluster: [P] ids; prompts with the same id are not independent.
        confidence: Level of the intervals, between 0 and 1.

    Returns:
        As `paired`, with means in place of rates; McNemar's test and the counts of pairs are NaN.
        Of negative scores there is no ratio. Its interval has no upper bound where the parent's
        mean may be 0.

    Raises:
        UsageError: `tables_do_not_pair`, `nothing_scored`, `cluster_shape`, `wrong_confidence`.

    Source: Student's t over the clusters' mean changes (Miller 2024, arXiv 2411.00640, section
    4); the ratio by Fieller 1954.
    """
    table = _table(parent, child)
    scored = ~np.isnan(table).any(axis=0)
    if not scored.any():
        raise UsageError("nothing_scored", "No pair has a score on both sides. Score the answers.")
    codes = cluster_codes(cluster, table.shape[2])
    old, new = _means(table, scored, codes)
    values = table[:, scored]
    least = values.min()
    most = values.max()
    span = max(1.0, most - least)
    bounds = (-inf, inf)
    widest = inf
    if least >= 0 and most <= 1:
        bounds = (0.0, 1.0)
        widest = 1.0
    n_pairs = int(scored.sum())
    method = f"Student's t over the means of {len(old)} clusters, {100 * confidence:g} %"
    if len(scored) > 1:
        method += ", conditional on these runs"
    rates = []
    for side in (old, new):
        mean = float(side.mean())
        ends, _ = _limits(side, span, widest, confidence)
        low, high = np.clip(ends, *bounds).tolist()
        rates.append(Rate(round(mean * n_pairs), n_pairs, mean, low, high, method))
    change = new - old
    ends, p = _limits(change, span, widest, confidence)
    low, high = np.clip(ends, -widest, widest).tolist()
    ratio = [nan] * 3
    if least >= 0:
        ratio = _ratio(
            old,
            new,
            (low, high),
            _apart(change, span) < len(change),
            confidence,
        )
    return Paired(
        n_prompts=int(scored.any(axis=0).sum()),
        n_seeds=len(scored),
        parent=rates[0],
        child=rates[1],
        difference=float(change.mean()),
        difference_low=low,
        difference_high=high,
        ratio=ratio[0],
        ratio_low=ratio[1],
        ratio_high=ratio[2],
        p=p,
        p_of_seeds=nan,
        mcnemar_p=nan,
        mcnemar_per_seed=(),
        both=nan,
        lost=nan,
        gained=nan,
        neither=nan,
        method=f"mean difference by {method}; ratio by Fieller",
    )


def _table(
    parent: ndarray,
    child: ndarray,
) -> ndarray:
    """Return the scores as [side, seed, prompt]."""
    sides = [np.atleast_2d(side).astype(float) for side in (parent, child)]
    seeds = {len(side) for side in sides}
    prompts = {side.shape[1] for side in sides}
    if len(seeds - {1}) > 1 or len(prompts) > 1:
        why = "Parent and child have scores of different prompts or seeds. Give the same."
        raise UsageError("tables_do_not_pair", why)
    return np.stack(np.broadcast_arrays(*sides))


def _means(
    table: ndarray,
    scored: ndarray,
    codes: ndarray,
) -> list[ndarray]:
    """Return the mean of each cluster over its scored pairs, parent and child."""
    counts = np.bincount(codes, scored.sum(axis=0))
    known = counts > 0
    found = []
    for side in table:
        by_item = np.where(scored, side, 0).sum(axis=0)
        sums = np.bincount(codes, by_item)
        found.append(sums[known] / counts[known])
    return found


def _apart(
    values: ndarray,
    span: float,
) -> int:
    """Return how many clusters lie away from the median, if those are few; else all of them."""
    distance = np.abs(values - np.median(values))
    apart = int((distance > ALIKE * span).sum())
    few = apart < min(FEWEST_APART, len(values) / 2)
    return apart if few else len(values)


def _limits(
    values: ndarray,
    span: float,
    widest: float,  # what is known of the range; infinite where nothing is
    confidence: float,
) -> tuple[tuple[float, float], float]:
    """Return the limits of the mean of clusters, and p of no mean."""
    from scipy.stats import ttest_1samp

    n = len(values)
    mean = float(values.mean())
    apart = _apart(values, span)
    ends = (mean, mean)
    p = 1.0
    if apart:
        found = ttest_1samp(values, 0)
        p = float(found.pvalue)
        ends = tuple(found.confidence_interval(confidence))
        if apart == n:
            return ends, p
    share = 1 - tail(confidence) ** (1 / n)
    away = share * (span if apart else widest)
    ends = (min(ends[0], mean - away), max(ends[1], mean + away))
    same_way = n if np.median(values) else apart
    by_sign = 1.0
    if abs(mean) > ALIKE * span:
        by_sign = min(1.0, 2 * 0.5**same_way)  # all that moved went the same way by chance
    return ends, max(p, by_sign) if apart else by_sign


def _ratio(
    old: ndarray,
    new: ndarray,
    ends: tuple[float, float],  # of the difference
    few: bool,  # clusters changed
    confidence: float,
) -> list[float]:
    """Return the ratio of two means of the same clusters with its limits.

    Where few clusters changed they are those of the difference.
    """
    p = float(new.mean())
    q = float(old.mean())
    n = len(old)
    if q == 0:
        ratio = inf if p else nan
        return [ratio, 0.0, inf]
    low, high = (1 + end / q for end in ends)
    if not few:
        t = quantile(tail(confidence), n - 1)
        spread = t**2 * np.cov(old, new) / n
        a = q**2 - spread[0, 0]
        b = p * q - spread[0, 1]
        c = p**2 - spread[1, 1]
        root = sqrt(max(b**2 - a * c, 0))
        low, high = 0.0, inf
        if a > 0:
            low = (b - root) / a
            high = (b + root) / a
    return [p / q, max(float(low), 0.0), float(high)]
