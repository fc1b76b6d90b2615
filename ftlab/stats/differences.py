"""Whether a difference of child and parent has changed: a difference of differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from ftlab.stats.comparison import Paired, correlation, difference_limits, p_of_change, paired
from ftlab.stats.variance import estimate

Sides = tuple[ndarray, ndarray]  # events of parent and child
MOST = 2.0  # a difference from -1 to 1, less another one


@dataclass(frozen=True)
class Shift:
    """By how much a difference of child and parent changed."""

    shift: float  # difference after - difference before, -2 to 2
    low: float
    high: float
    p: float  # of no shift, from the variance over seeds and prompts
    n_prompts: int  # prompts that are scored in all four
    n_seeds: int
    method: str


def shift(
    before: Sides,
    after: Sides,
    *,
    cluster: ndarray | None = None,
    confidence: float = 0.95,
) -> Shift:
    """Compare a difference of child and parent with what it was, on the same prompts and seeds.

    Such as what a fine-tuning changed, before and after both models were quantised. A NaN drops the
    pair before and after. `p` is two-sided: of several runs Student's t of the shift of each pair,
    as in `paired`; of one run the exact sign test of each cluster's net shift.

    Args:
        before: Events of parent and child: each [P], or [S, P] for each seed; the parent may be
            measured once for all seeds.
        after: The same after both were changed.
        cluster: [P] ids; prompts with the same id are not independent.
        confidence: Level of the interval, between 0 and 1.

    Raises:
        UsageError: As `paired`.

    Source: MOVER on the limits of both differences, with their correlation (Zou & Donner 2008).
    """
    parents, children = map(_masked, zip(before, after, strict=True))
    old, new = (
        paired(parent, child, cluster=cluster, confidence=confidence)
        for parent, child in zip(parents, children, strict=True)
    )
    was, now = (child - parent for parent, child in zip(parents, children, strict=True))
    found = estimate(np.stack([now, was]), cluster)
    low, high = difference_limits(
        (new.difference, old.difference),
        _limits(new),
        _limits(old),
        correlation(found),
    ).clip(-MOST, MOST)
    return Shift(
        shift=new.difference - old.difference,
        low=float(low),
        high=float(high),
        p=p_of_change(now - was, found, cluster),
        n_prompts=new.n_prompts,
        n_seeds=new.n_seeds,
        method=f"MOVER of two differences: {new.method}",
    )


def _masked(sides: Sides) -> list[ndarray]:
    """Return the events of a model before and after, [1 or S, P]; NaN where either is."""
    tables = [np.atleast_2d(np.asarray(side, float)) for side in sides]
    missing = np.isnan(sum(tables))
    return [np.where(missing, np.nan, table) for table in tables]


def _limits(found: Paired) -> ndarray:
    return np.array([found.difference_low, found.difference_high])
