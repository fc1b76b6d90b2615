"""Agreement of judges with people and with each other: kappa, alpha, errors of a rate."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ftlab._core.errors import UsageError
from ftlab.stats.comparison import Paired, paired
from ftlab.stats.rates import Rate, quantile, rate, tail, wilson

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
    truth: np.ndarray,
    judged: np.ndarray,
    cluster: np.ndarray | None = None,
    *,
    positive: float = 1,
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
    ids = _cluster_codes(cluster, truth.size)
    right = (truth == judged).astype(float)
    found = {}
    for kind in (positive, 1 - positive):
        rows = truth == kind
        found[kind] = None
        if rows.any():
            found[kind] = rate(right[rows], ids[rows], confidence=confidence)
    return JudgeErrors(
        accuracy=rate(right, ids, confidence=confidence),
        sensitivity=found[positive],
        specificity=found[1 - positive],
        kappa=kappa(truth, judged, ids, confidence=confidence),
        bias=paired(truth, judged, cluster=ids, confidence=confidence),
    )


def kappa(
    first: np.ndarray,
    second: np.ndarray,
    cluster: np.ndarray | None = None,
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
    codes = np.unique([*first, *second], return_inverse=True)[1]
    a, b = codes.reshape(2, n)
    ids = _cluster_codes(cluster, n)
    clusters = int(ids.max()) + 1
    share_a = np.bincount(a, minlength=codes.max() + 1) / n
    share_b = np.bincount(b, minlength=codes.max() + 1) / n
    same = a == b
    observed = float(same.mean())
    chance = float(share_a @ share_b)
    if chance > 1 - 1e-12:
        return Agreement(math.nan, math.nan, math.nan, math.nan, n, "undefined: one label only")
    of_observed = (1 - chance) * (same - observed)
    of_chance = (1 - observed) * (share_b[a] + share_a[b] - 2 * chance)
    influence = np.bincount(ids, of_observed - of_chance) / (n * (1 - chance))
    variance = (influence**2).sum()  # of the observed disagreement, were chance known
    df = math.inf
    if 1 < clusters < n:
        variance *= clusters / (clusters - 1)
        df = clusters - 1
    effective = clusters
    if variance > 1e-20:
        effective = observed * (1 - observed) / variance
    else:
        df = math.inf
    z = quantile(tail(confidence), df)
    low, high = wilson(np.array([1 - observed]), np.array([effective]), z)
    method = "Wilson at the effective n"
    if clusters < n:
        method = f"{method} of {clusters} clusters"
    return Agreement(
        value=(observed - chance) / (1 - chance),
        low=1 - float(high[0]) / (1 - chance),
        high=1 - float(low[0]) / (1 - chance),
        se=math.sqrt(variance) / (1 - chance),
        n=n,
        method=f"{method}, {100 * confidence:g} %",
    )


def alpha(
    labels: np.ndarray,
    cluster: np.ndarray | None = None,
    *,
    confidence: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """Return Krippendorff's alpha for nominal labels.

    The interval is the percentile bootstrap over clusters (1,000 resamples).

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
    ids = _cluster_codes(cluster, table.shape[1])
    values = {label for label in table.ravel() if label is not None}
    columns = [(table == label).sum(axis=0) for label in sorted(values, key=str)]
    counts = np.array(columns, dtype=float).reshape(-1, table.shape[1]).T  # [N, V]
    n_labels = counts.sum(axis=1)
    pairable = n_labels >= 2
    counts *= pairable[:, None]
    differing = n_labels**2 - (counts**2).sum(axis=1)
    disagreement = np.where(pairable, differing / np.maximum(n_labels - 1, 1), 0)
    items = np.column_stack([disagreement, counts])
    per_cluster = np.zeros((ids.max() + 1, items.shape[1]))
    np.add.at(per_cluster, ids, items)

    rng = np.random.default_rng(seed)
    size = len(per_cluster)
    drawn = []
    for _ in range(BOOTSTRAPS):
        picked = rng.integers(size, size=size)
        drawn.append(_alpha(per_cluster[picked].sum(axis=0)))
    known = [value for value in drawn if not math.isnan(value)] or [math.nan]
    low, high = np.quantile(known, [edge, 1 - edge]).tolist()
    return Agreement(
        value=_alpha(per_cluster.sum(axis=0)),
        low=low,
        high=high,
        se=float(np.std(known)),
        n=int(pairable.sum()),
        method=f"bootstrap over {size} clusters",
    )


def _alpha(totals: np.ndarray) -> float:
    """Return alpha from the observed disagreement and the number of each label, [1 + V]."""
    observed, *counts = totals
    n = sum(counts)
    pairs = n * n - sum(count * count for count in counts)
    if pairs == 0:
        return math.nan
    return float(1 - observed * (n - 1) / pairs)


def _cluster_codes(cluster: np.ndarray | None, n: int) -> np.ndarray:
    """Return cluster ids as 0, 1, ...; each item is its own cluster where none are given."""
    if cluster is None:
        return np.arange(n)
    ids = np.asarray(cluster)
    if ids.shape != (n,):
        raise UsageError(
            "cluster_shape", f"cluster has shape {ids.shape}. Give one id per item: [{n}]."
        )
    return np.unique(ids, return_inverse=True)[1]
