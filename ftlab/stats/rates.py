"""Tables of events -> rates, paired comparisons and curves, each with an interval.

An event is 1 (jailbroken, refused, ...), 0 (not) or NaN (unscored: it leaves the count and is never safe).
Shapes: N answers, P prompts, S training seeds, K evaluated steps; all seeds answer the same prompts. Variants
of one prompt (attack wrappers, repeats) share a cluster id. With fewer than FEWEST_SEEDS, what seeds add to
the variance cannot be estimated: such intervals are conditional on the runs, and say so.

    stats.describe(stats.paired(parent, child, cluster=base_prompt), what="jail")
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ftlab._core.config import FEWEST_SEEDS


@dataclass(frozen=True)
class Rate:
    """A share of events in [0, 1]; n counts scored answers; low and high are two sided."""

    events: int
    n: int
    rate: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class Paired:
    """Parent and child on the same prompts, over the pairs (seed, prompt) scored in both; fractions."""

    n_prompts: int  # with at least one such pair
    n_seeds: int
    parent: Rate
    child: Rate
    difference: float  # child - parent
    difference_low: float
    difference_high: float
    ratio: float  # child / parent; inf if only the parent has no event, nan if neither has
    ratio_low: float
    ratio_high: float  # inf over a parent without events: ratio_low is then a lower bound
    mcnemar_p: float  # the largest of mcnemar_per_seed; 1 if seeds point in opposite directions
    mcnemar_per_seed: tuple[float, ...]
    both: int  # this and the next three: pairs, summed over seeds
    lost: int  # event in the parent only
    gained: int  # event in the child only
    neither: int
    method: str


def rate(events: np.ndarray, cluster: np.ndarray | None = None, *, confidence: float = 0.95) -> Rate:
    """Share of events by the score interval of Wilson (1927); events [N], cluster [N] ids.

    With shared ids: Wilson at the effective n = p(1 - p) / (cluster-robust variance, arXiv 2411.00640), at
    most n, with Student's quantile. Where that variance is 0, as at 0/n and n/n, n = the number of clusters.
    From 10 unlike clusters at rates near 0 or 1 expect less than the stated confidence (85 % for 95 %,
    simulated). Raises ValueError if nothing is scored or shapes differ.
    """
    return _rates(_parts(_checked("events", events, "N")[None, None], cluster), confidence, "")[0]


def two_level_rate(events: np.ndarray, *, cluster: np.ndarray | None = None, confidence: float = 0.95) -> Rate:
    """Share of events over training seeds: a claim about the fine-tuning, not only about these runs.

    events [S, P], cluster [P]. As `rate`, with the variance over seeds and prompts together (_parts), under
    FEWEST_SEEDS over prompts alone. Raises ValueError if a seed has no scored answer or shapes differ.
    """
    parts = _parts(_checked("events", events, "SP")[None], cluster)
    return _rates(parts, confidence, parts.conditional)[0]


def paired(
    parent: np.ndarray, child: np.ndarray, *, cluster: np.ndarray | None = None, confidence: float = 0.95
) -> Paired:
    """Child against parent on the same prompts: difference, ratio, exact McNemar test.

    parent and child [P] or [S, P], cluster [P]. A NaN on either side drops the pair, in its seed only. A
    parent [P] serves every seed: its n counts prompts, its rate weights each prompt by its pairs.

    Difference: MOVER (Zou & Donner 2008) on the two Wilson limits and their correlation, with Newcombe's
    continuity correction; with one seed and no shared clusters that is Newcombe (1998, Stat. Med. 17:2635,
    method 10). Ratio: there Bonett & Price (2006, Stat. Med. 25:3039), otherwise MOVER (Fagerland et al.
    2014, Stat. Med. 33:2850).

    McNemar: exact, two sided, each seed by itself (one prompt's pairs are not independent over seeds); a
    cluster counts once, by the sign of its net change. A small mcnemar_p says that every run shows the
    change. Raises ValueError if shapes differ or a seed has no scored pair.
    """
    from scipy.special import bdtr

    parent = np.atleast_2d(_checked("parent", parent, "P", "SP"))
    child = np.atleast_2d(_checked("child", child, "P", "SP"))
    if len(parent) not in (1, len(child)) or parent.shape[1] != child.shape[1]:
        raise ValueError(
            f"parent {parent.shape} and child {child.shape} do not pair; allowed: [P] or [S, P] "
            "with the same P, and the same S or one parent. Align both on the prompt id."
        )
    pairs = ~np.isnan(parent + child)
    new, old = np.where(pairs, child, np.nan), np.where(pairs, parent, np.nan)
    both, lost, gained = (int(np.nansum(x)) for x in (new * old, old * (1 - new), new * (1 - old)))
    parts, used, n = _parts(np.stack([new, old]), cluster), pairs.any(axis=0), int(pairs.sum())
    if len(parent) == 1:
        parts.n[1], parts.events[1] = used.sum(), parent[0, used].sum()
    after, before = _rates(parts, confidence, parts.conditional)
    (v, cov), (_, w) = parts.cov
    cov = max(cov - 0.5 / parts.clusters[0] ** 2, min(cov, 0))
    difference, ratio = _mover(after, before, cov / math.sqrt(v * w) if v * w else 0.0)
    method = f"difference and ratio by MOVER, {after.method}"
    if parts.plain:
        ratio = _bonett_price(both, gained, lost, _quantile(_tail(confidence)))
        method = f"difference by Newcombe's method 10, ratio by Bonett-Price, {after.method}"
    net = parts.hits[0] - parts.hits[1]
    up, down = (net > 0).sum(axis=1), (net < 0).sum(axis=1)
    p_values = np.minimum(2 * bdtr(np.minimum(up, down), up + down, 0.5), 1)
    opposed = (up > down).any() and (up < down).any()
    return Paired(
        n_prompts=int(used.sum()),
        n_seeds=len(child),
        parent=before,
        child=after,
        difference=after.rate - before.rate,
        difference_low=difference[0],
        difference_high=difference[1],
        ratio=after.rate / before.rate if before.rate else math.inf if after.rate else math.nan,
        ratio_low=ratio[0],
        ratio_high=ratio[1],
        mcnemar_p=1.0 if opposed else float(p_values.max()),
        mcnemar_per_seed=tuple(p_values.tolist()),
        both=both,
        lost=lost,
        gained=gained,
        neither=n - both - lost - gained,
        method=method,
    )


def upper_bound_when_none(n: int, *, confidence: float = 0.95) -> float:
    """Largest rate that 0 events in n >= 1 answers leave open: exact, one sided (Clopper & Pearson 1934)."""
    if n < 1:
        raise ValueError(f"n is {n}; a bound needs at least one scored answer.")
    return 1 - (2 * _tail(confidence)) ** (1 / n)


def holm(p_values: list[float]) -> list[float]:
    """p values adjusted for how many there are (Holm 1979), in the order given; none give none."""
    from statsmodels.stats.multitest import multipletests

    return multipletests(p_values, method="holm")[1].tolist() if len(p_values) else []


def describe(paired: Paired, *, what: str = "rate") -> str:
    """One sentence; `what` names the event. Over a parent without events the ratio is its lower bound.

    "jail 8.5 % -> 71.5 %: ratio 8.4 [5.2, 13.6], difference +63 points [55, 70], McNemar p < 0.001 (100
    prompts x 5 seeds)".
    """
    r = paired
    ratios = [f"{x:.1f}" if x >= 1 else f"{x:.2g}" for x in (r.ratio, r.ratio_low, r.ratio_high)]
    ratio = "ratio {} [{}, {}]".format(*ratios)
    if not math.isfinite(r.ratio):
        ratio = f"ratio >= {ratios[1]}" if r.ratio > 0 else "ratio undefined (no event in either)"
    low, high = (f"{100 * x:.{int(abs(x) < 0.0995)}f}" for x in (r.difference_low, r.difference_high))
    points = f"{100 * r.difference:+.{int(abs(r.difference) < 0.0995)}f}"
    p = "< 0.001" if r.mcnemar_p < 0.001 else f"= {r.mcnemar_p:.3f}"
    size = f"{r.n_prompts} prompts x {r.n_seeds} seed{'s' * (r.n_seeds > 1)}"
    return (
        f"{what} {100 * r.parent.rate:.1f} % -> {100 * r.child.rate:.1f} %: {ratio}, "
        f"difference {points} points [{low}, {high}], McNemar p {p} ({size})"
    )


@dataclass(frozen=True, eq=False)
class _Parts:
    """K rates over one set of seeds and prompts, and how they vary together."""

    rate: np.ndarray  # [K]
    events: np.ndarray  # [K]
    n: np.ndarray  # [K] scored answers
    clusters: np.ndarray  # [K] with a scored answer
    cov: np.ndarray  # [K, K] of the rates
    df: np.ndarray  # [K] degrees of freedom of its diagonal
    plain: bool  # one seed, no shared cluster
    hits: np.ndarray  # [K, S, C] events
    by_seed: np.ndarray  # [K, S] influences: cov = by_seed by_seed' + by_cluster by_cluster'
    by_cluster: np.ndarray  # [K, C]

    @property
    def conditional(self) -> str:
        seeds = self.hits.shape[1]
        runs = "this run" if seeds == 1 else f"these {seeds} runs"
        return "" if seeds >= FEWEST_SEEDS else f", conditional on {runs}"


def _parts(table: np.ndarray, cluster: np.ndarray | None) -> _Parts:
    """Rates of table [K, S, P]; variance by crossed random effects, V_cluster + max(V_seed - V_cell, 0).

    The variance between seeds contains the noise of single answers, which V_cluster contains already: seeds
    are shrunk by the two-way analysis of variance (Davison & Hinkley 1997, section 3.8; plain two-stage
    resampling counts that noise three times). Degrees of freedom by Satterthwaite (1946). Unequal cells enter
    by the linearisation of the pooled rate.
    """
    ids = np.arange(table.shape[2]) if cluster is None else np.asarray(cluster)
    if ids.shape != table.shape[2:]:
        raise ValueError(f"cluster has shape {ids.shape}; allowed is [{table.shape[2]}], one id a prompt.")
    codes = np.unique(ids, return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    hits, counts = (
        np.add.reduceat(x[..., order], starts, axis=2) for x in (np.nan_to_num(table), 1.0 - np.isnan(table))
    )
    if missing := np.argwhere(counts.sum(axis=2) == 0).tolist():
        raise ValueError(f"no scored answer at [table, seed] {missing}; judge again or leave these out.")
    # By content, so that neither the order of prompts nor the names of clusters changes a result.
    ranks = np.lexsort(np.concatenate([hits, counts]).reshape(-1, starts.size))
    hits, counts = hits[..., ranks], counts[..., ranks]
    s, n, c = table.shape[1], counts.sum(axis=(1, 2)), counts.any(axis=1).sum(axis=1)
    plain = bool(s == 1 and counts.max() == 1)
    free_s, free_c = max(s - 1, 1), np.maximum(c - (not plain), 1)
    rate = hits.sum(axis=(1, 2)) / n
    cells = (hits - rate[:, None, None] * counts) / n[:, None, None]
    by_seed, by_cluster = cells.sum(axis=2), cells.sum(axis=1)
    inner = (cells - by_seed[:, :, None] / c[:, None, None] - by_cluster[:, None] / s) * (counts > 0)
    by_seed, by_cluster = by_seed * math.sqrt(s / free_s), by_cluster * np.sqrt(c / free_c)[:, None]
    v_seed, v_cluster = (by_seed**2).sum(axis=1) * (s >= FEWEST_SEEDS), (by_cluster**2).sum(axis=1)
    v_cell = (inner**2).sum(axis=(1, 2)) * s * c / (free_s * free_c) * (s >= FEWEST_SEEDS)
    extra = np.maximum(v_seed - v_cell, 0)
    by_seed *= np.sqrt(extra / np.where(extra > 0, v_seed, 1))[:, None]
    cov = by_seed @ by_seed.T + by_cluster @ by_cluster.T
    cov[np.abs(cov) < 1e-20] = 0  # rounding; one event in 10**8 answers gives 1e-16
    noise = v_seed**2 / free_s + v_cluster**2 / free_c + v_cell**2 / (free_s * free_c)
    df = np.full(n.shape, math.inf) if plain else (v_cluster + extra) ** 2 / np.where(noise > 0, noise, 1)
    return _Parts(rate, hits.sum(axis=(1, 2)), n, c, cov, df.clip(1), plain, hits, by_seed, by_cluster)


def _limits(parts: _Parts, tail: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    variance = np.diag(parts.cov)
    known = (variance > 0) & (parts.clusters > 1)  # one cluster tells nothing of the others
    effective = np.minimum(parts.rate * (1 - parts.rate) / np.where(known, variance, 1), parts.n)
    quantile = np.where(known, _quantile(tail, parts.df), _quantile(tail))
    return _wilson(parts.rate, np.where(known, effective, parts.clusters), quantile)


def _rates(parts: _Parts, confidence: float, conditional: str) -> list[Rate]:
    seeds, found = parts.hits.shape[1], []
    for k, (low, high) in enumerate(zip(*_limits(parts, _tail(confidence)), strict=True)):
        size = f"{seeds} seeds x " * (seeds >= FEWEST_SEEDS) + f"{parts.clusters[k]} clusters"
        how = f" at the effective n of {size}" if parts.cov[k, k] else f" at n = {parts.clusters[k]} clusters"
        method = f"Wilson{'' if parts.plain else how}, {100 * confidence:g} %{conditional}"
        counts = int(parts.events[k]), int(parts.n[k])
        found.append(Rate(*counts, float(parts.rate[k]), float(low), float(high), method))
    return found


def _wilson(p: np.ndarray, n: np.ndarray, quantile: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # statsmodels takes a level; Student's and Bonett-Price's limits need the quantile itself.
    q = np.square(quantile) / n
    half = np.sqrt(q * (p * (1 - p) + q / 4))
    low, high = (((p + q / 2 + sign * half) / (1 + q)).clip(0, 1) for sign in (-1, 1))
    return np.where(p == 0, 0.0, low), np.where(p == 1, 1.0, high)  # exactly, whatever the rounding


def _mover(child: Rate, parent: Rate, r: float) -> tuple[list[float], list[float]]:
    """Limits of the difference and of the ratio, from those of two rates with correlation r."""
    p, q, r = child.rate, parent.rate, min(max(r, -1.0), 1.0)
    differences, ratios = [], []
    for sign, x, y in ((-1, child.low, parent.high), (1, child.high, parent.low)):
        a, b = abs(p - x), abs(q - y)
        end = p - q + sign * math.sqrt(max(a * a + b * b - 2 * r * a * b, 0))
        differences.append(min(max(end, -1.0), 1.0))
        # The ratio's limits are the roots R of (p - Rq)^2 = a^2 + R^2 b^2 - 2 R r a b.
        middle, over, under = p * q - r * a * b, x * (2 * p - x), y * (2 * q - y)
        root = middle + math.sqrt(max(middle * middle - over * under, 0))
        ratios.append((over / root if p else 0.0) if sign < 0 else (root / under if q else math.inf))
    return differences, ratios


def _bonett_price(both: int, gained: int, lost: int, z: float) -> tuple[float, float]:
    # Wilson limits among the n prompts with any event, at the z that makes their quotient fit the log ratio.
    x, y, n = both + gained, both + lost, both + gained + lost
    if not n:
        return 0.0, math.inf
    widths = (math.sqrt((1 - (e + 1) / (n + 2)) / (e + 1)) for e in (x, y))
    z *= math.sqrt((gained + lost + 2) / ((x + 1) * (y + 1))) / sum(widths)
    (x_low, y_low), (x_high, y_high) = _wilson(np.array([x, y]) / n, n, z)
    return float(x_low / y_high) if x else 0.0, float(x_high / y_low) if y else math.inf


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence is {confidence}; allowed is a number between 0 and 1, such as 0.95.")
    return (1 - confidence) / 2


def _quantile(tail: np.ndarray, df: np.ndarray = math.inf) -> np.ndarray:
    from scipy.special import ndtri, stdtrit

    return np.where(np.isinf(df), -ndtri(tail), -stdtrit(np.minimum(df, 1e12), tail))


def _checked(name: str, values: np.ndarray, *shapes: str) -> np.ndarray:
    try:
        table = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is no table of numbers; allowed are 0, 1 and NaN (unscored).") from None
    found = []
    if table.ndim not in map(len, shapes):
        found.append(f"shape {table.shape}, allowed is {' or '.join(str(list(s)) for s in shapes)}")
    if not table.size:
        found.append("no values")
    if (other := np.unique(table[~np.isin(table, (0, 1)) & ~np.isnan(table)])).size:
        found.append(f"values {other[:3].tolist()}, allowed are 0, 1 and NaN (unscored)")
    if found:
        raise ValueError(f"{name} has {' and '.join(found)}; turn verdicts into events first.")
    return table
