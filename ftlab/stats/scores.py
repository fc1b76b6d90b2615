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


def paired_scores(
    parent: ndarray,
    child: ndarray,
    *,
    cluster: ndarray | None = None,
    confidence: float = 0.95,
) -> Paired:
    """Compare the mean score of a child with its parent's on the same prompts.

    A cluster counts once, by its mean, whatever the number of its pairs. A NaN on either side drops
    the pair. Where all clusters changed alike there is no spread: the interval then goes as far as
    so many clusters cannot rule out, (1 - .025 ^ (1 / n)) of the scores' range, at least of 1.

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
    before, after = (np.atleast_2d(np.asarray(side, float)) for side in (parent, child))
    if before.shape[1] != after.shape[1] or len(before) not in (1, len(after)):
        found = f"{before.shape} and {after.shape}"
        raise UsageError("tables_do_not_pair", f"Scores of the shapes {found} do not pair.")
    codes = cluster_codes(cluster, after.shape[1])
    scored = ~np.isnan(before + after)
    if not scored.any():
        raise UsageError("nothing_scored", "No pair has a score on both sides. Score the answers.")
    old = _means(before, scored, codes)
    new = _means(after, scored, codes)
    values = np.stack([before + 0 * after, after])[:, scored]
    is_share = values.min() >= 0 and values.max() <= 1
    span = max(1.0, float(np.ptp(values)))
    method = f"Student's t over the means of {len(old)} clusters, {100 * confidence:g} %"
    rates = []
    for side, total in zip((old, new), values.sum(axis=1), strict=True):
        low, high, _ = _limits(side, span, confidence)
        if is_share:
            low, high = max(low, 0.0), min(high, 1.0)
        n_pairs = values.shape[1]
        rates.append(Rate(round(total), n_pairs, float(side.mean()), low, high, method))
    low, high, p = _limits(new - old, span, confidence)
    low, high = max(low, -span), min(high, span)
    ratio = [nan, nan, nan]
    if values.min() >= 0:
        ratio = _ratio(old, new, low, high, confidence)
    return Paired(
        n_prompts=int(scored.any(axis=0).sum()),
        n_seeds=len(after),
        parent=rates[0],
        child=rates[1],
        difference=float((new - old).mean()),
        difference_low=low,
        difference_high=high,
        ratio=ratio[0],
        ratio_low=ratio[1],
        ratio_high=ratio[2],
        p=p,
        mcnemar_p=nan,
        mcnemar_per_seed=(),
        both=nan,
        lost=nan,
        gained=nan,
        neither=nan,
        method=f"mean difference by {method}; ratio by Fieller",
    )


def _means(table: ndarray, scored: ndarray, codes: ndarray) -> ndarray:
    """Return the mean of each cluster over its scored pairs."""
    sums = np.bincount(codes, np.where(scored, table, 0).sum(axis=0))
    counts = np.bincount(codes, scored.sum(axis=0))
    return sums[counts > 0] / counts[counts > 0]


def _limits(values: ndarray, span: float, confidence: float) -> tuple[float, float, float]:
    """Return the limits of the mean of clusters, and p of no mean."""
    from scipy.stats import ttest_1samp

    n = len(values)
    mean = float(values.mean())
    if n > 1 and np.ptp(values) > ALIKE * span:
        found = ttest_1samp(values, 0)
        low, high = found.confidence_interval(confidence)
        return float(low), float(high), float(found.pvalue)
    away = span * (1 - tail(confidence) ** (1 / n))
    p = 2 * 0.5**n  # all clusters changed the same way by chance
    if abs(mean) <= ALIKE * span:
        p = 1.0
    return mean - away, mean + away, p


def _ratio(
    old: ndarray,
    new: ndarray,
    low: float,
    high: float,
    confidence: float,
) -> list[float]:
    """Return the ratio of two means of the same clusters with its limits.

    Where all clusters changed alike they are those of the difference, `low` and `high`.
    """
    p = new.mean()
    q = old.mean()
    n = len(old)
    if q == 0:
        return [inf if p else nan, 0.0, inf]
    ends = [1 + low / q, 1 + high / q]
    if n > 1 and np.ptp(new - old) > ALIKE:
        t = float(quantile(tail(confidence), n - 1))
        (of_old, shared), (_, of_new) = t**2 * np.cov(old, new) / n
        a = q**2 - of_old
        b = p * q - shared
        c = p**2 - of_new
        root = sqrt(max(b**2 - a * c, 0))
        ends = [0.0, inf]
        if a > 0:
            ends = [(b - root) / a, (b + root) / a]
    return [float(p / q), max(float(ends[0]), 0.0), float(ends[1])]
