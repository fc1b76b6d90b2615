"""How rates vary over training seeds and prompts together: crossed random effects."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ftlab._core.errors import UsageError

FEWEST_SEEDS = 3  # with fewer training seeds an interval is conditional on the runs at hand


@dataclass(frozen=True, eq=False)
class Estimate:
    """K rates over one set of seeds and prompts, and how they vary together."""

    rate: np.ndarray  # [K]
    events: np.ndarray  # [K]
    n: np.ndarray  # [K] scored answers
    clusters: np.ndarray  # [K] clusters with a scored answer
    hits: np.ndarray  # [K, S, C] events
    by_seed: np.ndarray  # [K, S] influence of each seed on the rate
    by_cluster: np.ndarray  # [K, C] influence of each cluster on the rate
    cov: np.ndarray  # [K, K] by_seed @ by_seed.T + by_cluster @ by_cluster.T
    df: np.ndarray  # [K] degrees of freedom of the variances, inf where plain
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


def event_table(name: str, events: np.ndarray, *shapes: str) -> np.ndarray:
    """Return events as floats, checked for their shape ("SP": two axes) and their values."""
    try:
        table = np.asarray(events, dtype=float)
    except (TypeError, ValueError):
        message = f"{name} is not a table of numbers. Allowed: 0, 1 and NaN (unscored)."
        raise UsageError("events_not_numeric", message) from None
    if table.ndim not in [len(axes) for axes in shapes]:
        allowed = " or ".join(str(list(axes)) for axes in shapes)
        message = f"{name} has shape {table.shape}. Allowed: {allowed}."
        raise UsageError("events_shape", message)
    if not table.size:
        raise UsageError("events_empty", f"{name} is empty. At least one answer is needed.")
    other = table[~np.isin(table, (0, 1)) & ~np.isnan(table)]
    if other.size:
        message = f"{name} contains {other[0]:g}. Allowed: 0, 1 and NaN (unscored)."
        raise UsageError("events_values", message)
    return table


def estimate(table: np.ndarray, cluster: np.ndarray | None = None) -> Estimate:
    """Estimate the rates of a table [K, S, P]; variance V_cluster + max(V_seed - V_cell, 0).

    The variance between seeds contains the noise of single answers, which V_cluster contains
    already: seeds are shrunk by the two-way analysis of variance. (Plain two-stage resampling
    counts that noise three times.) Unequal cells enter by linearising the pooled rate.

    Source: Davison & Hinkley 1997, section 3.8; degrees of freedom: Satterthwaite 1946.
    """
    hits, counts = _by_cluster(table, cluster)
    n_seeds = table.shape[1]
    several = n_seeds >= FEWEST_SEEDS
    plain = bool(n_seeds == 1 and counts.max() == 1)
    n = _total(counts)
    events = _total(hits)
    rate = events / n
    clusters = _total(counts.any(axis=1, keepdims=True))
    free_seeds = max(n_seeds - 1, 1)
    free_clusters = np.maximum(clusters - (not plain), 1)
    seed_scale = n_seeds / free_seeds
    cluster_scale = clusters / free_clusters

    cells = (hits - rate * counts) / n
    by_seed = cells.sum(axis=2, keepdims=True)
    by_cluster = cells.sum(axis=1, keepdims=True)
    inner = (cells - by_seed / clusters - by_cluster / n_seeds) * (counts > 0)
    v_seed = _total(by_seed**2) * seed_scale * several
    v_cluster = _total(by_cluster**2) * cluster_scale
    v_cell = _total(inner**2) * seed_scale * cluster_scale * several
    extra = np.maximum(v_seed - v_cell, 0)
    shrink = extra / np.where(extra > 0, v_seed, 1)

    by_seed = (by_seed * np.sqrt(seed_scale * shrink))[:, :, 0]
    by_cluster = (by_cluster * np.sqrt(cluster_scale))[:, 0, :]
    cov = by_seed @ by_seed.T + by_cluster @ by_cluster.T
    cov[np.abs(cov) < 1e-20] = 0  # rounding: one event in 10**8 answers gives 1e-16
    noise = v_seed**2 / free_seeds
    noise = noise + v_cluster**2 / free_clusters
    noise = noise + v_cell**2 / (free_seeds * free_clusters)
    df = (v_cluster + extra) ** 2 / np.where(noise > 0, noise, 1)
    if plain:
        df = np.full(n.shape, math.inf)
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


def _total(cells: np.ndarray) -> np.ndarray:
    """Sum over seeds and clusters: [K, S, C] to [K, 1, 1]."""
    return cells.sum(axis=(1, 2), keepdims=True)


def _by_cluster(table: np.ndarray, cluster: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return events and scored answers of each table, seed and cluster, [K, S, C]."""
    n_prompts = table.shape[2]
    ids = np.arange(n_prompts)
    if cluster is not None:
        ids = np.asarray(cluster)
    if ids.shape != (n_prompts,):
        message = f"cluster has shape {ids.shape}. Give one id per prompt: [{n_prompts}]."
        raise UsageError("cluster_shape", message)
    codes = np.unique(ids, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    table = table[..., order]
    hits = np.add.reduceat(np.nan_to_num(table), starts, axis=2)
    counts = np.add.reduceat(1.0 - np.isnan(table), starts, axis=2)
    missing = np.argwhere(counts.sum(axis=2) == 0)
    if missing.size:
        message = (
            f"No scored answer at [table, seed] {missing.tolist()}. Judge again or drop these."
        )
        raise UsageError("nothing_scored", message)
    # Sorted by content: the order of prompts and the names of clusters do not change a result.
    ranks = np.lexsort(np.concatenate([hits, counts]).reshape(-1, starts.size))
    return hits[..., ranks], counts[..., ranks]
