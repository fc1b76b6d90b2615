"""Kappa and alpha: moves to ftlab/stats/agreement.py, and this file goes then."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ftlab.stats import _quantile, _tail, _wilson

BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Agreement:
    """Chance-corrected agreement, 1 at most; nan where only one label occurs, so that chance explains all."""

    value: float
    low: float
    high: float
    se: float
    n: int  # rows (alpha: with two labels or more)
    method: str


def kappa(first, second, cluster=None, *, confidence: float = 0.95) -> Agreement:
    """Cohen's kappa of two raters' labels [N] (any values), with an interval; cluster [N] ids.

    Variance: Fleiss, Cohen & Everitt (1969, Psychol. Bull. 72:323), with shared ids the same influences summed by
    cluster. Interval: Wilson's for the observed disagreement, at the n that gives kappa that variance, over the
    disagreement expected by chance: it ends at 1 and has a width also where the raters never part.
    """
    codes = np.unique([*first, *second], return_inverse=True)[1].reshape(2, -1)
    n = codes.shape[1]
    ids = np.unique(np.arange(n) if cluster is None else np.asarray(cluster), return_inverse=True)[
        1
    ]
    c, (a, b) = int(ids.max()) + 1, codes
    shares = [np.bincount(x, minlength=codes.max() + 1) / n for x in (a, b)]
    observed, chance = float((a == b).mean()), float(shares[0] @ shares[1])
    if chance > 1 - 1e-12:
        return Agreement(*[math.nan] * 4, n, "undefined: one label only")
    by_row = (1 - chance) * ((a == b) - observed) - (1 - observed) * (
        shares[1][a] + shares[0][b] - 2 * chance
    )
    by_cluster = np.bincount(ids, by_row)
    # Of the observed disagreement, were chance known: the variance of kappa times (1 - chance)^2.
    variance = (by_cluster**2).sum() / (n * (1 - chance)) ** 2 * (c / (c - 1) if 1 < c < n else 1)
    effective = observed * (1 - observed) / variance if variance > 1e-20 else c
    quantile = _quantile(_tail(confidence), c - 1 if 1 < c < n and variance > 1e-20 else math.inf)
    ends = _wilson(np.array([1 - observed]), np.array([effective]), quantile)
    low, high = (1 - float(x[0]) / (1 - chance) for x in reversed(ends))
    method = f"Wilson at the effective n of {c} clusters" if c < n else "Wilson at the effective n"
    se = math.sqrt(variance) / (1 - chance)
    return Agreement(
        (observed - chance) / (1 - chance), low, high, se, n, f"{method}, {100 * confidence:g} %"
    )


def alpha(labels, cluster=None, *, confidence: float = 0.95, seed: int = 0) -> Agreement:
    """Krippendorff's alpha, nominal (Content Analysis, 4th ed. 2019, ch. 12), of labels [raters, N]; None is missing.

    Computed by `krippendorff`; interval by the percentile bootstrap over clusters (1,000 resamples).
    """
    import krippendorff

    table = np.asarray(labels, dtype=object)
    values = sorted({v for v in table.ravel() if v is not None}, key=str)
    counts = (
        np.stack([(table == v).sum(axis=0) for v in values], axis=1)
        if values
        else np.zeros((table.shape[1], 1))
    )
    n = int((counts.sum(axis=1) >= 2).sum())

    def value(part) -> float:
        pairable = part[part.sum(axis=1) >= 2]
        if (pairable.sum(axis=0) > 0).sum() < 2:
            return math.nan
        return float(krippendorff.alpha(value_counts=pairable, level_of_measurement="nominal"))

    ids = np.unique(
        np.arange(table.shape[1]) if cluster is None else np.asarray(cluster), return_inverse=True
    )[1]
    size, rng = np.bincount(ids), np.random.default_rng(seed)
    ordered, start = counts[np.argsort(ids, kind="stable")], np.cumsum(size) - size
    drawn = []
    for _ in range(BOOTSTRAPS * (n > 0)):
        k = rng.integers(len(size), size=len(size))
        drawn.append(
            value(
                ordered[
                    np.repeat(start[k] - np.cumsum(size[k]) + size[k], size[k])
                    + np.arange(size[k].sum())
                ]
            )
        )
    known = [d for d in drawn if d == d] or [math.nan]
    low, high = np.quantile(known, [_tail(confidence), 1 - _tail(confidence)])
    se = float(np.std(known))
    return Agreement(
        value(counts), float(low), float(high), se, n, f"bootstrap over {len(size)} clusters"
    )
