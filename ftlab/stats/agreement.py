"""Agreement of judges with people and with each other: kappa, alpha, errors of a rate."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isnan, nan, sqrt

import numpy as np
from numpy import ndarray

from ftlab._core.errors import UsageError
from ftlab.stats.comparison import Paired, paired
from ftlab.stats.rates import Rate, quantile, rate, tail, wilson
from ftlab.stats.variance import cluster_codes

BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Agreement:
    """Chance-corrected agreement, at most 1; nan where only one label occurs."""

    value: float
    low: float
    high: float
    se: float
    n: int  # items (alpha: items with at least two labels)
    method: str


@dataclass(frozen=True)
class JudgeErrors:
    """A judge's events against the true ones."""

    accuracy: Rate  # share of answers judged right
    sensitivity: Rate | None  # share of positives found; None where there is no positive
    specificity: Rate | None  # share of negatives found; None where there is no negative
    kappa: Agreement
    bias: Paired  # the judge's rate (child) against the true one (parent)


def judge_errors(
    truth: ndarray,
    judged: ndarray,
    cluster: ndarray | None = None,
    *,
    positive: int = 1,
    confidence: float = 0.95,
) -> JudgeErrors:
    """Measure a judge's errors, and what they do to a rate.

    Args:
        truth: [N] events by people's labels, 0 or 1.
        judged: [N] events by the judge, 0 or 1.
        cluster: [N] ids; answers with the same id are not independent.
        positive: The event that counts as positive, 0 or 1. Sensitivity is its share found.
        confidence: Level of the intervals, between 0 and 1.

    Raises:
        UsageError: As `rate`, `paired` and `kappa`.
    """
    truth = np.asarray(truth)
    judged = np.asarray(judged)
    ids = cluster_codes(cluster, truth.size)
    right = (truth == judged).astype(float)

    def share(rows: ndarray) -> Rate | None:
        return rate(right[rows], ids[rows], confidence=confidence) if rows.any() else None

    return JudgeErrors(
        accuracy=rate(right, ids, confidence=confidence),
        sensitivity=share(truth == positive),
        specificity=share(truth != positive),
        kappa=kappa(truth, judged, ids, confidence=confidence),
        bias=paired(truth, judged, cluster=ids, confidence=confidence),
    )


def kappa(
    first: ndarray,
    second: ndarray,
    cluster: ndarray | None = None,
    *,
    confidence: float = 0.95,
) -> Agreement:
    """Return Cohen's kappa of two raters.

    The interval is Wilson's for the observed disagreement, at the n that gives kappa its
    variance, over the disagreement expected by chance. It ends at 1, and has a width where the
    raters never differ. With shared cluster ids the influences are summed over each cluster.

    Args:
        first, second: [N] labels of any kind.
        cluster: [N] ids; items with the same id are not independent.
        confidence: Level of the interval, between 0 and 1.

    Raises:
        UsageError: `labels_do_not_pair`, `cluster_shape`, `wrong_confidence`.

    Source: Cohen 1960; variance: Fleiss, Cohen & Everitt 1969 (Psychol. Bull. 72:323).
    """
    n = len(first)
    if len(second) != n or n == 0:
        message = f"The raters gave {n} and {len(second)} labels. Give one of each per item."
        raise UsageError("labels_do_not_pair", message)
    labels = [*first, *second]
    codes = np.unique(labels, return_inverse=True)[1]
    a, b = codes.reshape(2, n)
    ids = cluster_codes(cluster, n)
    clusters = int(ids.max()) + 1
    levels = codes.max() + 1
    share_a = np.bincount(a, minlength=levels) / n
    share_b = np.bincount(b, minlength=levels) / n
    same = a == b
    observed = float(same.mean())
    chance = float(share_a @ share_b)
    if chance > 1 - 1e-12:
        return Agreement(nan, nan, nan, nan, n, "undefined: one label only")
    room = 1 - chance
    by_chance = share_b[a] + share_a[b]
    by_chance -= 2 * chance
    of_chance = (1 - observed) * by_chance
    of_observed = room * (same - observed)
    influence = np.bincount(ids, of_observed - of_chance)
    influence /= n * room
    variance = (influence**2).sum()  # of the observed disagreement, were chance known
    df = inf
    if 1 < clusters < n:
        variance *= clusters / (clusters - 1)
        df = clusters - 1
    effective = clusters
    if variance > 1e-20:
        effective = observed * (1 - observed) / variance
    else:
        df = inf
    z = quantile(tail(confidence), df)
    low, high = wilson(1 - observed, effective, z)
    method = "Wilson at the effective n"
    if clusters < n:
        method = f"{method} of {clusters} clusters"
    return Agreement(
        value=(observed - chance) / room,
        low=max(1 - float(high) / room, -1.0),
        high=1 - float(low) / room,
        se=sqrt(variance) / room,
        n=n,
        method=f"{method}, {100 * confidence:g} %",
    )


def alpha(
    labels: ndarray,
    cluster: ndarray | None = None,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """Return Krippendorff's alpha for nominal labels.

    The interval is the percentile bootstrap over clusters (1,000 resamples). Where raters never
    differ, its lower end is what Wilson's limit of 0 in as many clusters leaves open.

    Args:
        labels: [raters, N] labels of any kind; None is missing.
        cluster: [N] ids; items with the same id are not independent.
        confidence: Level of the interval, between 0 and 1.
        seed: Of the resamples.

    Raises:
        UsageError: `cluster_shape`, `wrong_confidence`.

    Source: Krippendorff 2019, Content Analysis, 4th edition, chapter 12.
    """
    table = np.asarray(labels, dtype=object)
    edge = tail(confidence)
    n = table.shape[1]
    ids = cluster_codes(cluster, n)
    values = set(table.ravel()) - {None}
    counts = np.zeros((n, len(values)))
    for column, value in enumerate(values):
        counts[:, column] = (table == value).sum(axis=0)
    n_labels = counts.sum(axis=1)
    pairable = n_labels >= 2
    counts[~pairable] = 0
    alike = (counts**2).sum(axis=1)
    differing = (n_labels**2 - alike) * pairable
    disagreement = differing / np.maximum(n_labels - 1, 1)
    items = np.column_stack([disagreement, counts])
    size = ids.max() + 1
    by_cluster = np.zeros((size, items.shape[1]))
    np.add.at(by_cluster, ids, items)

    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(BOOTSTRAPS):
        picked = by_cluster[rng.integers(size, size=size)]
        drawn.append(_alpha(picked.sum(axis=0)))
    known = [value for value in drawn if not isnan(value)]
    if not known:
        known = [nan]
    ends = [edge, 1 - edge]
    low, high = np.quantile(known, ends)
    totals = by_cluster.sum(axis=0)
    value = _alpha(totals)
    if value == 1:
        _, most = wilson(0.0, size, quantile(edge))
        low = 1 - float(most) / _by_chance(totals)
    return Agreement(
        value=value,
        low=max(float(low), -1.0),
        high=float(high),
        se=float(np.std(known)),
        n=int(pairable.sum()),
        method=f"bootstrap over {size} clusters",
    )


def _by_chance(totals: ndarray) -> float:
    """Return the share of pairs of labels that differ if they are dealt out by chance."""
    counts = totals[1:]
    n = counts.sum()
    return float((n**2 - counts @ counts) / (n * (n - 1)))


def _alpha(totals: ndarray) -> float:
    """Return alpha from the observed disagreement and the number of each label, [1 + V]."""
    observed = totals[0]
    counts = totals[1:]
    n = counts.sum()
    expected = n**2 - counts @ counts
    if expected == 0:
        return nan
    observed *= n - 1
    return float(1 - observed / expected)
