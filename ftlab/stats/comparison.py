"""Child against parent on the same prompts: difference, ratio, the test of no change, Holm."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan, sqrt

import numpy as np
from numpy import ndarray

from ftlab._core.errors import UsageError
from ftlab.stats.events import Events, event_table
from ftlab.stats.exact import exchange_p, mcnemar
from ftlab.stats.rates import Rate, equal_weights, quantile, rates_of, tail, wilson
from ftlab.stats.variance import FEWEST_SEEDS, Estimate, estimate, of_labels


@dataclass(frozen=True)
class Paired:
    """Parent and child over the pairs (seed, prompt) that are scored in both."""

    n_prompts: int  # prompts with at least one such pair
    n_seeds: int
    parent: Rate
    child: Rate
    difference: float  # child - parent, -1 to 1
    difference_low: float
    difference_high: float
    ratio: float  # child / parent; inf if only the parent has no event, nan if neither has one
    ratio_low: float  # a lower bound where ratio_high is inf: the parent has no event
    ratio_high: float
    p: float  # of no change, from the variance over seeds and prompts
    p_of_seeds: float  # the same from the seeds' own differences alone; nan below FEWEST_SEEDS
    mcnemar_p: float  # in every run: the largest of mcnemar_per_seed; 1 where runs disagree
    mcnemar_per_seed: tuple[float, ...]
    both: float  # pairs by the judge, summed over seeds: event in parent and child
    lost: float  # event in the parent only
    gained: float  # event in the child only
    neither: float
    method: str


def paired(
    parent: Events,
    child: Events,
    *,
    cluster: ndarray | None = None,
    confidence: float = 0.95,
) -> Paired:
    """Compare a child with its parent on the same prompts.

    A NaN on either side drops the pair, in its seed only. Of a parent measured once, n counts
    prompts and the rate weights each prompt by its pairs.

    `p` is two-sided. Of one run it is McNemar's exact test, in which a cluster counts once, by the
    sign of its net change. Of several it is Student's t of the difference, and no smaller than if
    every cluster had changed the same way by chance. Its variance is over clusters, and from
    FEWEST_SEEDS on over seeds too; below it is about these runs only. Of a parent measured once it
    is no smaller than the exact mid-p of exchanging the parent's answer to each prompt with those
    of the runs: where the event is rare, Student's t alone calls up to 10 in 100 studies worse in
    which nothing changed (simulated). Where runs differ much three of them are few: at a seed sd of
    1.5 (logits) a p below .05 comes by chance 14 to 18 times in 100 (simulated).
    `p_of_seeds` is Student's t of the differences of single seeds. The larger of the two holds at
    the small levels that Holm asks for over many comparisons, where `p` alone does not: see `holm`.
    `mcnemar_p` is that test for each run, and small only where every run shows the change.
    Of rates that labels corrected no single pair is known: p is always Student's, and the tests
    and counts of pairs are NaN.

    Args:
        parent: Events [P], or [S, P] if measured for each seed; or what `rectify` returns.
        child: Events [P] or [S, P]; or what `rectify` returns.
        cluster: [P] ids; prompts with the same id are not independent.
        confidence: Level of the intervals, between 0 and 1.

    Raises:
        UsageError: As `rate`, and `tables_do_not_pair`.

    Source: one seed and no shared cluster: Newcombe 1998 (Stat. Med. 17:2635), method 10, and
    Bonett & Price 2006 (Stat. Med. 25:3039). Otherwise MOVER on the Wilson limits: difference
    by Zou & Donner 2008, ratio by Fagerland et al. 2014 (Stat. Med. 33:2850). Test: McNemar 1947;
    over seeds and prompts Davison & Hinkley 1997, section 3.8, with Satterthwaite 1946.
    """
    old_arrays, new_arrays = _tables(parent, child)
    parent = old_arrays[0]
    child = new_arrays[0]
    unscored = np.isnan(parent + child)
    prompts = ~unscored.all(axis=0)
    before = np.where(unscored, nan, parent)
    after = np.where(unscored, nan, child)
    found = _estimated(old_arrays, new_arrays, before, after, cluster)
    labels = tuple(found.labels)
    n_pairs = int(found.n[0])
    both, gained, lost = _pairs(before, after) if not any(labels) else [nan] * 3
    if len(parent) == 1:
        once = parent[0, prompts]
        found.events[1] = once.sum()
        found.n[1] = once.size
    new, old = rates_of(found, confidence, found.conditional)
    r = correlation(found)
    with np.errstate(divide="ignore", invalid="ignore"):  # a rate of 0: see below
        difference, ratio = _mover(new, old, r)
        method = "difference and ratio by MOVER"
        if found.plain:
            z = quantile(tail(confidence))
            ratio = _bonett_price(both, gained, lost, z)
            method = "difference by Newcombe's method 10, ratio by Bonett-Price"
    difference_low, difference_high = difference.tolist()
    ratio_low, ratio_high = ratio
    if new.rate == 0:
        ratio_low = 0.0
    if old.rate == 0:
        ratio_high = inf
    mcnemar_p, per_seed = nan, ()
    if not any(labels):
        hits_child, hits_parent = found.hits
        mcnemar_p, per_seed = mcnemar(hits_child - hits_parent)
    p = p_of_change(after - before, found, cluster)
    if len(parent) == 1 < len(after) and cluster is None and not any(labels):
        p = max(p, exchange_p(before, after))
    return Paired(
        n_prompts=int(prompts.sum()),
        n_seeds=len(child),
        parent=old,
        child=new,
        difference=new.rate - old.rate,
        difference_low=difference_low,
        difference_high=difference_high,
        ratio=_ratio(new.rate, old.rate),
        ratio_low=float(ratio_low),
        ratio_high=float(ratio_high),
        p=p,
        p_of_seeds=_p_of_seeds(after - before),
        mcnemar_p=mcnemar_p,
        mcnemar_per_seed=per_seed,
        both=both,
        lost=lost,
        gained=gained,
        neither=n_pairs - both - gained - lost,
        method=f"{method}, {_told(new.method, labels)}",
    )


def _estimated(
    old_arrays: ndarray,
    new_arrays: ndarray,
    before: ndarray,
    after: ndarray,
    cluster: ndarray | None,
) -> Estimate:
    """Estimate both rates over the pairs, child first; a parent measured once has its labels once.

    Args:
        old_arrays, new_arrays: As `_tables` returns them.
        before, after: [S, P] events of the pairs.
        cluster: As in `paired`.
    """
    weights = equal_weights(after)
    of_child = of_labels(new_arrays, weights)
    if old_arrays.shape[1] == 1:
        weights = weights.sum(axis=0, keepdims=True)
    of_parent = of_labels(old_arrays, weights)
    noise, labels = zip(of_child, of_parent, strict=True)
    return estimate(np.stack([after, before]), cluster, noise, labels)


def _told(
    method: str,
    labels: tuple[float, float],
) -> str:
    """Return the child's method with the labels of both."""
    child, _ = labels
    return method.replace(f"by {child:.0f} labels", f"by {sum(labels):.0f} labels")


def _pairs(
    before: ndarray,
    after: ndarray,
) -> list[int]:
    """Return in how many pairs both have the event, only the child, only the parent."""
    both = np.nansum(before * after)
    gained = np.nansum(after) - both
    lost = np.nansum(before) - both
    return [int(both), int(gained), int(lost)]


def holm(p_values: list[float]) -> list[float]:
    """Return p values adjusted for their number, in the order given.

    Of three seeds `Paired.p` is too small in its tail. Simulated without any effect (100 prompts,
    seed sd .3 to .8 in logits): 4 to 13 of 100 families of 6 have a p below .05, 4 to 19 of 12, 3
    to 27 of 48; by the larger of `p` and `p_of_seeds` 2 to 4, 1 to 5, and 0 to 2.

    Source: Holm 1979.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    remaining = np.arange(len(p), 0, -1)
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * remaining).clip(max=1)
    return adjusted.tolist()


def _tables(
    parent: Events,
    child: Events,
) -> list[ndarray]:
    """Return both as arrays [3, 1 or S, P] of the same prompts: table, noise and labels."""
    sides = []
    for name, events in (("parent", parent), ("child", child)):
        arrays = event_table(name, events, "P", "SP").arrays
        sides.append(arrays.reshape(3, -1, arrays.shape[-1]))
    parents, n_prompts = sides[0].shape[1:]
    seeds, n_answered = sides[1].shape[1:]
    if n_prompts != n_answered or parents not in (1, seeds):
        found = f"parent {(parents, n_prompts)} and child {(seeds, n_answered)} do not pair."
        allowed = "Give [P] or [S, P] with the same prompts, and the same seeds or one parent."
        raise UsageError("tables_do_not_pair", f"{found} {allowed}")
    return sides


def _ratio(
    child: float,
    parent: float,
) -> float:
    """Return child / parent; inf over a parent of 0, nan where both are 0."""
    if parent:
        return child / parent
    if child:
        return inf
    return nan


def correlation(found: Estimate) -> float:
    """Return the correlation of two estimates, with Newcombe's continuity correction."""
    child, parent = found.variance
    covariance = found.cov[0, 1]
    scale = sqrt(child * parent)
    if scale == 0:
        return 0.0
    n_pairs = found.n[0]
    correction = 0.5 / (found.clusters[0] * n_pairs)  # Newcombe's .5 / n^2, of n clusters' means
    least = min(covariance, 0)
    covariance = max(covariance - correction, least)
    return min(max(covariance / scale, -1.0), 1.0)


def difference_limits(
    values: tuple[float, float],  # p and q
    first: ndarray,  # limits of p
    second: ndarray,  # limits of q
    r: float,  # correlation of the two
) -> ndarray:
    """Return the limits of p - q by MOVER."""
    p, q = values
    a = np.abs(p - first)
    b = np.abs(second[::-1] - q)
    shared = r * a * b
    squares = a**2 + b**2
    squares -= 2 * shared
    away = np.sqrt(squares.clip(0))
    difference = p - q
    return difference + away * [-1, 1]


def _mover(
    child: Rate,
    parent: Rate,
    r: float,  # correlation of the two rates
) -> tuple[ndarray, list[float]]:
    """Return the limits of child - parent and of child / parent.

    Those of the ratio are the roots R of (p - Rq)^2 = a^2 + R^2 b^2 - 2 R r a b.
    """
    p = child.rate
    q = parent.rate
    x = np.array([child.low, child.high])
    y = np.array([parent.high, parent.low])
    difference = difference_limits((p, q), x, y[::-1], r)
    shared = np.abs(p - x)
    shared *= np.abs(q - y)
    shared *= r
    over = x * (2 * p - x)
    under = y * (2 * q - y)
    middle = p * q - shared
    inside = middle**2
    inside -= over * under
    inside = inside.clip(0)
    root = middle + np.sqrt(inside)
    low = over / root
    high = root / under
    difference = difference.clip(-1, 1)
    ratio = [low[0], high[1]]
    return difference, ratio


def _bonett_price(
    both: int,
    gained: int,
    lost: int,
    z: float,  # quantile of the limits
) -> list[float]:
    """Return the limits of the ratio: Wilson's among the n prompts with any event.

    z is scaled so that the quotient of the limits fits the standard error of the log ratio.
    """
    n = both + gained + lost
    child = both + gained
    parent = both + lost
    events = np.array([child, parent])
    more = events + 1
    shares = more / (n + 2)
    square = (1 - shares) / more
    widths = np.sqrt(square)
    error = gained + lost + 2
    error /= more.prod()
    z = z * np.sqrt(error)
    z /= widths.sum()
    shares = events / n
    low, high = wilson(shares, n, z)
    smallest = low[0] / high[1]
    largest = high[0] / low[1]
    return [smallest, largest]


def _p_of_seeds(change: ndarray) -> float:
    """Return p of no mean change by Student's t over seeds; nan below FEWEST_SEEDS of them.

    Args:
        change: [S, P], NaN where a pair is not scored.
    """
    from scipy.special import stdtr

    by_seed = np.nanmean(change, axis=1)
    if len(by_seed) < FEWEST_SEEDS:
        return nan
    mean = abs(by_seed.mean())
    error = by_seed.std(ddof=1) / sqrt(len(by_seed))
    if mean == 0 or error == 0:
        return float(mean == 0)
    return float(2 * stdtr(len(by_seed) - 1, -mean / error))


def p_of_change(
    change: ndarray,  # [S, P], of each pair
    rates: Estimate,  # of child and parent
    cluster: ndarray | None,
) -> float:
    """Return p of no mean change over seeds and clusters."""
    from scipy.special import stdtr

    labels = rates.labels.any()
    if len(change) == 1 and not labels:
        hits_child, hits_parent = rates.hits
        return mcnemar(hits_child - hits_parent)[0]
    found = estimate(change[None], cluster, rates.noise.sum(), rates.labels.sum())
    mean = abs(found.rate[0])
    variance = found.variance[0]
    if not mean:
        return 1.0
    least = 2 * 0.5 ** float(found.clusters[0])  # all clusters changed the same way
    if not variance:
        return min(1.0, least)
    t = mean / sqrt(variance)
    p = 2 * stdtr(min(found.df[0], 1e12), -t)
    return float(max(p, least))
