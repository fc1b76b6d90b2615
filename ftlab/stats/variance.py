"""How rates vary over training seeds and prompts together: crossed random effects."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
from numpy import ndarray

from ftlab._core.errors import UsageError

FEWEST_SEEDS = 3  # with fewer training seeds an interval is conditional on the runs at hand


@dataclass(frozen=True, eq=False)
class Estimate:
    """K rates over one set of seeds and prompts, and how they vary together."""

    rate: ndarray  # [K]
    events: ndarray  # [K]
    n: ndarray  # [K] scored answers
    clusters: ndarray  # [K] clusters with a scored answer
    hits: ndarray  # [K, S, C] events
    by_seed: ndarray  # [K, S] influence of each seed on the rate
    by_cluster: ndarray  # [K, C] influence of each cluster on the rate
    cov: ndarray  # [K, K] by_seed @ by_seed.T + by_cluster @ by_cluster.T
    df: ndarray  # [K] degrees of freedom of the variances, inf where plain
    plain: bool  # one seed and no shared cluster

    @property
    def n_seeds(self) -> int:
        return self.hits.shape[1]

    @property
    def conditional(self) -> str:
        """Return what an interval is conditional on, or "" from FEWEST_SEEDS on."""
        if self.n_seeds >= FEWEST_SEEDS:
            return ""
        if self.n_seeds == 1:
            return ", conditional on this run"
        return f", conditional on these {self.n_seeds} runs"


def event_table(name: str, events: ndarray, *shapes: str) -> ndarray:
    """Return events as floats, checked for their shape ("SP": two axes) and their values."""
    try:
        table = np.asarray(events, dtype=float)
    except (TypeError, ValueError):
        message = f"{name} is not a table of numbers. Allowed: 0, 1 and NaN (unscored)."
        raise UsageError("events_not_numeric", message) from None
    if table.ndim not in map(len, shapes):
        axes = " or ".join(shapes)
        message = f"{name} has shape {table.shape}. Allowed axes: {axes}."
        raise UsageError("events_shape", message)
    if not table.size:
        raise UsageError("events_empty", f"{name} is empty. At least one answer is needed.")
    scored = table[~np.isnan(table)]
    other = np.setdiff1d(scored, [0, 1])
    if other.size:
        message = f"{name} contains {other[0]:g}. Allowed: 0, 1 and NaN (unscored)."
        raise UsageError("events_values", message)
    return table


def cluster_codes(cluster: ndarray | None, n: int) -> ndarray:
    """Return ids as 0, 1, ...; without any, each of the n items is its own cluster."""
    if cluster is None:
        return np.arange(n)
    ids = np.asarray(cluster)
    if ids.shape != (n,):
        message = f"cluster has shape {ids.shape}. Give one id per item: [{n}]."
        raise UsageError("cluster_shape", message)
    return np.unique(ids, return_inverse=True)[1]


def estimate(table: ndarray, cluster: ndarray | None = None) -> Estimate:
    """Estimate the rates of a table [K, S, P]; variance V_cluster + max(V_seed - V_cell, 0).

    The variance between seeds contains the noise of single answers, which V_cluster contains
    already: seeds are shrunk by the two-way analysis of variance. (Plain two-stage resampling
    counts that noise three times.) Unequal cells enter by linearising the pooled rate.

    Source: Davison & Hinkley 1997, section 3.8; degrees of freedom: Satterthwaite 1946.
    """
    hits, counts = _by_cluster(table, cluster)
    n_seeds = table.shape[1]
    several = n_seeds >= FEWEST_SEEDS
    most = int(counts.max())
    plain = n_seeds == 1 and most == 1
    n = _total(counts)
    events = _total(hits)
    rate = events / n
    answered = counts.any(axis=1, keepdims=True)
    clusters = _total(answered)
    free_seeds = max(n_seeds - 1, 1)
    if plain:
        free_clusters = clusters
    else:
        free_clusters = np.maximum(clusters - 1, 1)
    free_cells = free_seeds * free_clusters

    cells = hits - rate * counts
    cells /= n
    by_seed = cells.sum(axis=2, keepdims=True)
    by_cluster = cells.sum(axis=1, keepdims=True)
    inner = cells - by_seed / clusters
    inner -= by_cluster / n_seeds
    inner *= counts > 0
    by_seed *= sqrt(n_seeds / free_seeds)
    by_cluster *= np.sqrt(clusters / free_clusters)
    v_cluster = _total(by_cluster**2)
    v_seed = _total(by_seed**2) * several
    v_cell = _total(inner**2)
    v_cell *= n_seeds
    v_cell *= clusters
    v_cell *= several
    v_cell /= free_cells
    extra = np.maximum(v_seed - v_cell, 0)
    divisor = np.where(extra > 0, v_seed, 1)
    by_seed *= np.sqrt(extra / divisor)

    by_seed = by_seed[:, :, 0]
    by_cluster = by_cluster[:, 0, :]
    cov = by_seed @ by_seed.T
    cov += by_cluster @ by_cluster.T
    cov[np.abs(cov) < 1e-20] = 0  # rounding: one event in 10**8 answers gives 1e-16
    noise = v_cluster**2 / free_clusters
    noise += v_seed**2 / free_seeds
    noise += v_cell**2 / free_cells
    noise = np.where(noise > 0, noise, 1)
    df = (v_cluster + extra) ** 2
    df /= noise
    if plain:
        df[:] = inf
    return Estimate(
        rate=rate.ravel(),
        events=events.ravel(),
        n=n.ravel(),
        clusters=clusters.ravel(),
        hits=hits,
        by_seed=by_seed,
        by_cluster=by_cluster,
        cov=cov,
        df=df.ravel().clip(1),
        plain=plain,
    )


def _total(cells: ndarray) -> ndarray:
    """Sum over seeds and clusters: [K, S, C] to [K, 1, 1]."""
    return cells.sum(axis=(1, 2), keepdims=True)


def _by_cluster(table: ndarray, cluster: ndarray | None) -> tuple[ndarray, ndarray]:
    """Return events and scored answers of each table, seed and cluster, [K, S, C]."""
    codes = cluster_codes(cluster, table.shape[2])
    order = np.argsort(codes, kind="stable")
    ordered = codes[order]
    steps = np.diff(ordered, prepend=-1)
    starts = np.flatnonzero(steps)
    table = table[..., order]
    events = np.nan_to_num(table)
    scored = 1.0 - np.isnan(table)
    hits = np.add.reduceat(events, starts, axis=2)
    counts = np.add.reduceat(scored, starts, axis=2)
    answers = counts.sum(axis=2)
    missing = np.argwhere(answers == 0)
    if missing.size:
        message = (
            f"No scored answer at [table, seed] {missing.tolist()}. Judge again or drop these."
        )
        raise UsageError("nothing_scored", message)
    # Sorted by content: the order of prompts and the names of clusters do not change a result.
    content = np.concatenate([hits, counts])
    content = content.reshape(-1, starts.size)
    ranks = np.lexsort(content)
    hits = hits[..., ranks]
    counts = counts[..., ranks]
    return hits, counts
