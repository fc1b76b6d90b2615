"""Curves over training steps: bands, and the first step at which a ratio or a rate is reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from math import inf
from typing import Any

import numpy as np
from numpy import ndarray

from ftlab._core.errors import UsageError
from ftlab.stats.events import Events, event_table, uncorrected
from ftlab.stats.rates import equal_weights, limits, tail
from ftlab.stats.variance import Estimate, estimate, of_labels

KEPT = 2**21  # numbers of all resamples, up to which they are kept for the next curve
BLOCK = 2**19  # numbers that are drawn at a time where there are more


@dataclass(frozen=True, eq=False)
class Band:
    """A curve of rates; every array is [K] in [0, 1]. low and high hold at all steps at once."""

    estimate: ndarray
    low: ndarray
    high: ndarray
    low_pointwise: ndarray
    high_pointwise: ndarray
    kind: str  # "simultaneous" or "pointwise" (one step), and what it is conditional on
    n_seeds: int
    n_prompts: int


@dataclass(frozen=True)
class Crossing:
    """When a curve first reaches a level, in training steps; inf where it does not.

    low and high are measured steps: between two of them nothing is known of the curve.
    """

    step: float
    low: float
    high: float
    reached: float  # share that reached it: of resamples (crossing), of seeds (first_below)
    per_seed: list[float]


def bands(
    child: Events,
    *,
    cluster: ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Band:
    """Return the rate at each step, with a band that holds over the whole curve.

    The max-t bootstrap gives the level at which each step must hold for all to hold. Each step
    is Wilson at its effective n and that level. Where all answers of a step are alike, n is the
    number of clusters and the level is Bonferroni's over K.

    Args:
        child: Events [S, K, P], the same prompts at every step; or what `rectify` returns.
        cluster: [P] ids; prompts with the same id are not independent.
        confidence: Level of the band, between 0 and 1.
        resamples: Bootstrap draws.
        seed: Of the draws.

    Raises:
        UsageError: As `rate`.

    Source: Montiel Olea & Plagborg-Moller 2019 (J. Appl. Econometrics 34:1).
    """
    from scipy.special import ndtr

    rectified = event_table("child", child, "SKP").arrays.transpose(2, 0, 1, 3)
    table = rectified[:, 0]
    n_steps, n_seeds, _ = table.shape
    noise, labels = zip(*[of_labels(one, equal_weights(one[0])) for one in rectified], strict=True)
    found = estimate(table, cluster, noise, labels)
    pointwise = tail(confidence)
    joint = np.full(n_steps, pointwise / n_steps)
    error = np.sqrt(np.diag(found.cov))
    varies = error > 0
    if varies.any():
        drawn = _resampled(found, resamples, seed)
        away = np.abs(drawn - found.rate)
        away = away[:, varies] / error[varies]
        largest = away.max(axis=1)
        critical = np.quantile(largest, confidence)
        joint[varies] = ndtr(-critical)
    low, high = limits(found, joint)
    low_pointwise, high_pointwise = limits(found, pointwise)
    kind = "simultaneous"
    if n_steps == 1:
        kind = "pointwise"
    return Band(
        estimate=found.rate,
        low=low,
        high=high,
        low_pointwise=low_pointwise,
        high_pointwise=high_pointwise,
        kind=f"{kind}{found.conditional}",
        n_seeds=n_seeds,
        n_prompts=int((~np.isnan(table)).any(axis=(0, 1)).sum()),
    )


def crossing(
    steps: ndarray,
    parent: ndarray,
    child: ndarray,
    *,
    ratio: float = 1.5,
    cluster: ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Crossing:
    """Return the first step at which the child's rate is `ratio` times the parent's.

    `step` is linear between measured steps. The interval is of measured ones, percentiles of the
    two-level bootstrap: at `low` the ratio was not reached yet (or it is the first step that was
    measured), at `high` it was; inf where that part of the resamples never reaches it. Below
    FEWEST_SEEDS seeds it is conditional on the runs. Over a parent without events `step` is the
    first one with any event, and resamples draw the parent from Beta(1/2, clusters + 1/2).

    Args:
        steps: [K] training steps, increasing.
        parent: Events [P]; a pair with a NaN is dropped.
        child: Events [S, K, P].
        ratio: Above 0.
        cluster, confidence, resamples, seed: As in `bands`.

    Raises:
        UsageError: As `rate`, and `steps_do_not_fit`, `parent_does_not_fit`, `wrong_ratio`.

    Source: Davison & Hinkley 1997, section 3.8; prior over an empty parent: Jeffreys.
    """
    table = uncorrected("child", child, "SKP")
    parent = uncorrected("parent", parent, "P")
    steps = _checked_steps(steps, table.shape[1])
    if parent.size != table.shape[2]:
        found = f"parent has {parent.size} prompts and child {table.shape[2]}."
        message = f"{found} Give the same prompts in the same order."
        raise UsageError("parent_does_not_fit", message)
    if not ratio > 0:
        raise UsageError("wrong_ratio", f"ratio is {ratio}. Allowed: above 0.")
    new = (table + 0 * parent).transpose(1, 0, 2)
    old = parent + 0 * new
    both = np.concatenate([new, old])
    found = estimate(both, cluster)
    drawn = _resampled(found, resamples, seed).clip(0, 1)
    drawn_new, drawn_old = np.split(drawn, 2, axis=1)
    rates = found.rate[None]
    rate_new, rate_old = np.split(rates, 2, axis=1)
    parent_has_events = bool(rate_old.any())
    if not parent_has_events:
        rng = np.random.default_rng(seed)
        others = found.clusters[0] + 0.5
        drawn_old = drawn_old + rng.beta(0.5, others, (resamples, 1))
    first = partial(_first_reached, steps, ratio, parent_has_events)
    seed_new = np.nanmean(new, axis=2).T
    seed_old = np.nanmean(old, axis=2).T
    own, _, _ = first(seed_new, seed_old)
    step, _, _ = first(rate_new, rate_old)
    _, not_yet, reached = first(drawn_new, drawn_old)
    low, _ = _percentiles(not_yet, confidence)
    _, high = _percentiles(reached, confidence)
    return Crossing(
        step=float(step[0]),
        low=low,
        high=high,
        reached=float(np.isfinite(reached).mean()),
        per_seed=own.tolist(),
    )


def first_below(
    steps: ndarray,
    events: Events,
    *,
    below: float = 0.05,
    cluster: ndarray | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Crossing:
    """Return the first measured step at which a rate is below a level.

    The interval is that of the band: at `low`, the measured step before the band first reaches
    down to the level, the rate was still above it; at `high` the whole band is below. Of what was
    before the first measured step nothing is known; `low` is then that step. A band over few
    prompts never goes below a low level: without any event 5 % takes some 200 prompts, and `high`
    is inf where there are fewer.

    Args:
        steps: [K] training steps, increasing.
        events: [S, K, P]; or what `rectify` returns.
        below: The level, a share above 0.
        cluster, confidence, resamples, seed: As in `bands`.

    Raises:
        UsageError: As `rate`, and `steps_do_not_fit`, `wrong_level`.
    """
    table = event_table("events", events, "SKP").table
    steps = _checked_steps(steps, table.shape[1])
    if not 0 < below <= 1:
        raise UsageError("wrong_level", f"below is {below}. Allowed: above 0, at most 1.")
    found = bands(
        events,
        cluster=cluster,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    first = partial(_first_step, steps, below)
    reaches_down = first(found.low)
    before = steps[steps < reaches_down]
    own = [first(rates) for rates in np.nanmean(table, axis=2)]
    return Crossing(
        step=first(found.estimate),
        low=float(before[-1]) if before.size else float(steps[0]),
        high=first(found.high),
        reached=float(np.isfinite(own).mean()),
        per_seed=own,
    )


def _first_step(
    steps: ndarray,
    below: float,
    values: ndarray,
) -> float:
    """Return the first step whose value is below a level; inf where none is."""
    found = steps[values < below]
    return float(found[0]) if found.size else inf


def _first_reached(
    steps: ndarray,  # [K]
    ratio: float,
    interpolate: bool,
    new: ndarray,  # [R, K]
    old: ndarray,
) -> tuple[ndarray, ndarray, ndarray]:
    """Return for each pair of curves the step at which one is first `ratio` times the other.

    Between measured steps; then the last measured one before it, and the first at which it holds.
    """
    gap = new - ratio * old
    reached = (gap >= -1e-12) & (new > 0)  # 0.3 reaches 1.5 * 0.2, which rounds to more
    rows = np.arange(len(gap))
    at = reached.argmax(axis=1)
    before = np.maximum(at - 1, 0)
    parent = old[rows, at]
    inside = (at > 0) & (parent > 0)
    inside &= interpolate
    start = gap[rows, before]
    end = gap[rows, at]
    rise = np.where(inside, end - start, 1)
    share = np.where(inside, -start / rise, 1)
    left = steps[before]
    right = steps[at]
    share = share.clip(0, 1)
    step = left + share * (right - left)
    ever = reached.any(axis=1)
    step = np.where(ever, step, inf)
    return step, np.where(ever, left, inf), np.where(ever, right, inf)


def _resampled(
    found: Estimate,
    resamples: int,
    seed: int,
) -> ndarray:
    """Draw the rates again, [resamples, K]: clusters and seeds redrawn with their influence."""
    influences = (found.by_cluster, found.by_seed)
    sizes = tuple(influence.shape[1] for influence in influences)
    drawn = np.tile(found.rate, (resamples, 1))
    draws = _kept_times
    if resamples * sum(sizes) > KEPT:
        draws = _times
    for kind, rows, times in draws(sizes, resamples, seed):
        drawn[rows] += times @ influences[kind].T
    return drawn


def _times(
    sizes: tuple[int, ...],
    resamples: int,
    seed: int,
    block: int | None = None,
) -> Iterator[tuple[int, slice, ndarray]]:
    """Yield how often each unit is drawn, [some resamples, size]: place of the size, resamples."""
    rng = np.random.default_rng(seed)
    for kind, size in enumerate(sizes):
        equal = np.full(size, 1 / size)
        most = max(1, (block or BLOCK) // size)
        for start in range(0, resamples, most):
            end = min(start + most, resamples)
            times = rng.multinomial(size, equal, end - start)
            yield kind, slice(start, end), times.astype(float)  # as the product takes them


@lru_cache(8)
def _kept_times(*given: Any) -> tuple[tuple[int, slice, ndarray], ...]:
    return tuple(_times(*given, block=KEPT))


def _percentiles(values: ndarray, confidence: float) -> list[float]:
    """Return the observed values that hold the middle `confidence` of them between them."""
    edge = (1 - confidence) / 2
    ends = [edge, 1 - edge]
    return np.quantile(values, ends, method="inverted_cdf").tolist()


def _checked_steps(steps: ndarray, n_steps: int) -> ndarray:
    """Return the steps as floats, one per evaluation and increasing."""
    found = np.asarray(steps, dtype=float)
    if found.shape == (n_steps,) and (np.diff(found) > 0).all():
        return found
    message = f"steps are {found.tolist()}. Give {n_steps} of them, increasing."
    raise UsageError("steps_do_not_fit", message)
