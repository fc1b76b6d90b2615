"""Statistics of curves: bands over steps, the step at which a ratio is passed or every prompt shows the event.

Shapes and words as in `stats`: P prompts, S training seeds, K evaluated steps; all seeds answer the same prompts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ftlab.stats.rates import _checked, _limits, _Parts, _parts, _tail


@dataclass(frozen=True, eq=False)
class Band:
    """A curve of rates, every array [K] in [0, 1]; low and high hold at all K steps at once."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray
    low_pointwise: np.ndarray
    high_pointwise: np.ndarray
    kind: str
    n_seeds: int
    n_prompts: int


@dataclass(frozen=True)
class Crossing:
    """When a curve first reaches a level, in training steps; inf: not within the steps evaluated."""

    step: float
    low: float
    high: float
    reached: float  # share that reached it: of resamples (crossing), of seeds (first_all)
    per_seed: list[float]


def bands(
    child: np.ndarray,
    *,
    cluster: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Band:
    """Rate at each step, with a band over the whole curve: the same prompts answer at every step.

    child [S, K, P], cluster [P]. The max-t bootstrap (_draw) gives the level at which each step must hold for
    all to hold (Montiel Olea & Plagborg-Moller 2019); each step is Wilson at its effective n and that level.
    A step whose answers are all alike: n = clusters, Bonferroni's level over K. `kind` is "simultaneous"
    ("pointwise" if K = 1), then what it is conditional on. Raises ValueError if a seed has no scored answer
    at a step.
    """
    from scipy.special import ndtr

    table, tail = _checked("child", child, "SKP").transpose(1, 0, 2), _tail(confidence)
    parts, tails = _parts(table, cluster), np.full(len(table), tail / len(table))
    se = np.sqrt(np.diag(parts.cov))
    if (moves := se > 0).any():
        off = np.abs(_draw(parts, resamples, seed) - parts.rate)[:, moves] / se[moves]
        tails[moves] = ndtr(-np.quantile(off.max(axis=1), confidence))
    kind = ("simultaneous" if len(table) > 1 else "pointwise") + parts.conditional
    prompts = int((~np.isnan(table)).any(axis=(0, 1)).sum())
    return Band(parts.rate, *_limits(parts, tails), *_limits(parts, tail), kind, table.shape[1], prompts)


def crossing(
    steps: np.ndarray,
    parent: np.ndarray,
    child: np.ndarray,
    *,
    ratio: float = 1.5,
    cluster: np.ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Crossing:
    """First step at which the child's rate is `ratio` times the parent's, linear between steps; inf: never.

    steps [K] increasing, parent [P], child [S, K, P], cluster [P]; a pair with a NaN is dropped. Interval:
    percentiles of the two-level bootstrap (_draw), inf where that part of the resamples never crosses; under
    FEWEST_SEEDS conditional on the runs. Over a parent without events nothing is interpolated, `step` is the
    first one with any event, and resamples draw the parent from Jeffreys' Beta(1/2, clusters + 1/2). Raises
    ValueError if shapes differ, steps do not increase or ratio is not positive.
    """
    table, parent = _checked("child", child, "SKP"), _checked("parent", parent, "P")
    at, tail = _steps(steps, table.shape[1]), _tail(confidence)
    if parent.size != table.shape[2] or not ratio > 0:
        raise ValueError(
            f"parent has {parent.size} prompts, child {table.shape[2]}, ratio is {ratio}; "
            "allowed are the same prompts in the same order and a positive ratio."
        )
    new = (table + 0 * parent).transpose(1, 0, 2)
    old = 0 * new + parent
    parts = _parts(np.concatenate([new, old]), cluster)
    drawn, drawn_old = np.split(_draw(parts, resamples, seed).clip(0, 1), 2, axis=1)
    p, q = np.split(parts.rate[None], 2, axis=1)
    linear = bool(q.any())
    if not linear:
        rng = np.random.default_rng(seed)
        drawn_old = drawn_old + rng.beta(0.5, parts.clusters[0] + 0.5, (resamples, 1))
    step, found = float(_first(at, p, q, ratio, linear)[0]), _first(at, drawn, drawn_old, ratio, linear)
    low, high = np.quantile(found, [tail, 1 - tail], method="inverted_cdf").tolist()
    per_seed = _first(at, np.nanmean(new, axis=2).T, np.nanmean(old, axis=2).T, ratio, linear)
    return Crossing(step, low, high, float(np.isfinite(found).mean()), per_seed.tolist())


def first_all(
    steps: np.ndarray, events: np.ndarray, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Crossing:
    """First evaluated step (not interpolated) at which the event holds on every scored prompt.

    steps [K] increasing, events [S, K, P]. `step` is the median over seeds, `reached` the share of seeds that
    reach it. [low, high]: under five seeds their range, from five on the percentile bootstrap of the median
    over seeds. A step without a scored prompt is not reached. What "every" leaves open:
    upper_bound_when_none. Raises ValueError if shapes differ or steps do not increase.
    """
    table, tail = _checked("events", events, "SKP"), _tail(confidence)
    at, unscored = _steps(steps, table.shape[1]), np.isnan(table)
    every = ((table == 1) | unscored).all(axis=2) & ~unscored.all(axis=2)
    own = np.where(every.any(axis=1), at[every.argmax(axis=1)], math.inf)
    low, high = own.min(), own.max()
    if own.size >= 5:
        picks = np.random.default_rng(seed).choice(np.sort(own), (resamples, own.size))
        low, high = np.quantile(np.median(picks, axis=1), [tail, 1 - tail], method="inverted_cdf")
    reached = float(np.isfinite(own).mean())
    return Crossing(float(np.median(own)), float(low), float(high), reached, own.tolist())


def _draw(parts: _Parts, resamples: int, seed: int) -> np.ndarray:
    """Two-level bootstrap of the rates, [resamples, K]: seeds and clusters redrawn with their influence."""
    rng, drawn = np.random.default_rng(seed), np.tile(parts.rate, (resamples, 1))
    for part in (parts.by_cluster, parts.by_seed):
        size = part.shape[1]
        drawn += rng.multinomial(size, np.full(size, 1 / size), resamples) @ part.T
    return drawn


def _first(at: np.ndarray, new: np.ndarray, old: np.ndarray, ratio: float, linear: bool) -> np.ndarray:
    """Steps [R] at which curves new [R, K] first reach ratio * old [R, K], inf where they do not."""
    gap = new - ratio * old
    hit = (gap >= -1e-12) & (new > 0)  # 0.3 reaches 1.5 * 0.2, which rounds to more
    rows, k = np.arange(len(gap)), hit.argmax(axis=1)
    previous = np.maximum(k - 1, 0)
    inside = linear & (k > 0) & (old[rows, k] > 0)
    rise = np.where(inside, gap[rows, k] - gap[rows, previous], 1)
    share = np.where(inside, -gap[rows, previous] / rise, 1).clip(0, 1)
    return np.where(hit.any(axis=1), at[previous] + share * (at[k] - at[previous]), math.inf)


def _steps(steps: np.ndarray, k: int) -> np.ndarray:
    at = np.asarray(steps, dtype=float)
    if at.shape != (k,) or not (np.diff(at) > 0).all():
        raise ValueError(f"steps {at.tolist()} do not fit {k} evaluations; allowed: one each, increasing.")
    return at
