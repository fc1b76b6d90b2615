"""Exact tests of a child's events against its parent's on the same prompts."""

from __future__ import annotations

import numpy as np
from numpy import ndarray


def exchange_p(
    before: ndarray,  # [S, P] events of the parent, the same in every run
    after: ndarray,  # [S, P]
) -> float:
    """Return the exact mid-p of a parent's answers that could as well be a run's.

    Of a prompt with k events among n answers the parent has one with chance k / n. One run gives
    McNemar's test.
    """
    from scipy.stats import binom

    runs = np.isfinite(after).sum(axis=0)
    before = before[:, runs > 0]
    after = after[:, runs > 0]
    answers = runs[runs > 0] + 1
    parent = np.nanmax(before, axis=0)
    events = np.nansum(after, axis=0)
    events += parent
    chances = events / answers
    unlike = (chances > 0) & (chances < 1)
    parent = parent[unlike]
    chances = chances[unlike]
    shares = np.ones(1)  # of each number of the parent's events among these prompts
    for chance in np.unique(chances):
        n = np.count_nonzero(chances == chance)
        numbers = np.arange(n + 1)
        more = binom.pmf(
            numbers,
            n,
            chance,
        )
        shares = np.convolve(shares, more)
    seen = int(parent.sum())
    below = shares[:seen].sum()
    at = shares[seen]
    above = 1 - below
    above -= at
    tail = min(below, above)
    p = 2 * tail + at
    return float(min(1.0, p))


def mcnemar(change: ndarray) -> tuple[float, tuple[float, ...]]:
    """Return p over all seeds and for each, from the net change of each cluster [S, C]."""
    from scipy.special import bdtr

    up = (change > 0).sum(axis=1)
    down = (change < 0).sum(axis=1)
    fewer = np.minimum(up, down)
    changed = up + down
    p_values = 2 * bdtr(fewer, changed, 0.5)
    p_values = p_values.clip(max=1)
    per_seed = p_values.tolist()
    largest = max(per_seed)
    directions = np.sign(up - down)
    if np.ptp(directions) == 2:
        largest = 1.0
    return largest, tuple(per_seed)
