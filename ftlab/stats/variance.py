"""How rates vary over training seeds and prompts together: crossed random effects."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, sqrt

import numpy as np
from numpy import ndarray

from ftlab._core.errors import UsageError
from ftlab.stats.events import Rectified, uncorrected

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
    plain: bool  # one seed, no shared cluster, no label
    noise: ndarray  # [K] variance of labelling that the answers do not show
    labels: ndarray  # [K] labels that corrected the rate; 0: the judge's own rate

    @property
    def variance(self) -> ndarray:
        """Return the variance of each rate, [K]."""
        return np.diag(self.cov) + self.noise

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


def cluster_codes(cluster: ndarray | None, n: int) -> ndarray:
    """Return ids as 0, 1, ...; without any, each of the n items is its own cluster."""
    if cluster is None:
        return np.arange(n)
    ids = np.asarray(cluster)
    if ids.shape != (n,):
        message = f"cluster has shape {ids.shape}. Give one id per item: [{n}]."
        raise UsageError("cluster_shape", message)
    return np.unique(ids, return_inverse=True)[1]


def estimate(
    table: ndarray,
    cluster: ndarray | None = None,
    noise: ndarray | float = 0.0,  # [K] variance of labelling that the answers do not show
    labels: ndarray | int = 0,  # [K] labels that corrected the table
) -> Estimate:
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
    labels = np.broadcast_to(labels, len(table))
    noise = np.broadcast_to(noise, len(table))
    plain = n_seeds == 1 and most == 1 and not labels.any()
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
    spread = v_cluster**2 / free_clusters
    spread += v_seed**2 / free_seeds
    spread += v_cell**2 / free_cells
    spread = np.where(spread > 0, spread, 1)
    df = (v_cluster + extra) ** 2
    df /= spread
    df = df.ravel().clip(1)
    if plain:
        df[:] = inf
    df = _with_noise(df, np.diag(cov), noise, labels)
    share = rate.ravel()
    if labels.any():  # a weighted label may lead beyond 0 and 1
        share = share.clip(0, 1)
    return Estimate(
        rate=share,
        events=events.ravel(),
        n=n.ravel(),
        clusters=clusters.ravel(),
        hits=hits,
        by_seed=by_seed,
        by_cluster=by_cluster,
        cov=cov,
        df=df,
        plain=plain,
        noise=noise,
        labels=labels,
    )


def _with_noise(df: ndarray, variance: ndarray, noise: ndarray, labels: ndarray) -> ndarray:
    """Return the degrees of freedom of variance + noise, of which labels give the second."""
    of_noise = np.maximum(labels - 1, 1)
    inverse = variance**2 / df + noise**2 / of_noise
    inverse = np.where(noise > 0, inverse, 1)
    return np.where(noise > 0, (variance + noise) ** 2 / inverse, df)


def of_labels(
    rectified: ndarray,  # [3, S, P]: table, noise, labels
    weights: ndarray,  # [S, P] weight of each answer in the rate
) -> tuple[float, float]:
    """Return the further variance of a rate by its labels, and their number.

    Seeds with the same answers, such as those of a parent that was measured once, share labels.
    """
    table, noise, labelled = rectified
    used = weights > 0
    if Rectified(table, noise, labelled).once:
        weights = weights.sum(axis=0)
        used = weights > 0
        noise = noise[0]
        labelled = labelled[0]
    variance = (noise * weights**2)[used].sum()
    count = float(labelled[used].sum())
    if labelled.any():
        count = max(count, 1.0)  # corrected, though all labels are of pairs that dropped out
    return float(variance), count


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


@dataclass(frozen=True)
class SeedSpread:
    """How much a rate differs between training seeds, and what its interval owes to them."""

    rate: float
    sd: float  # between seeds, beyond what single answers vary; nan below FEWEST_SEEDS seeds
    least: float  # lowest rate of a seed
    most: float  # highest rate of a seed
    share: float  # of the rate's variance that comes from seeds, 0 to 1; nan without variance


def seed_spread(events: ndarray, cluster: ndarray | None = None) -> SeedSpread:
    """Return how much a rate differs between training seeds.

    Args:
        events: [S, P], 1, 0 or NaN.
        cluster: [P] ids; answers with the same id are not independent.

    Raises:
        UsageError: As `rate`.

    Source: Davison & Hinkley 1997, section 3.8.
    """
    table = uncorrected("events", events, "SP")
    found = estimate(table[None], cluster)
    of_seeds = float((found.by_seed**2).sum())
    whole = float(found.cov[0, 0])
    own = np.nanmean(table, axis=1)
    several = len(table) >= FEWEST_SEEDS
    if of_seeds < 1e-18:  # rounding
        of_seeds = 0.0
    return SeedSpread(
        rate=float(found.rate[0]),
        sd=sqrt(of_seeds * len(table)) if several else nan,
        least=float(own.min()),
        most=float(own.max()),
        share=of_seeds / whole if several and whole else nan,
    )
