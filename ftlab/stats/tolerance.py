"""Whether a child's rate has risen beyond what is tolerated, relative to its parent's."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, sqrt

import numpy as np
from numpy import ndarray

from ftlab._core.errors import UsageError
from ftlab.stats.comparison import Paired, paired
from ftlab.stats.events import Events, Rectified, event_table
from ftlab.stats.planning import MOST_PROMPTS
from ftlab.stats.rates import quantile
from ftlab.stats.variance import cluster_codes

POWER = 0.8  # of the number of prompts that would suffice


@dataclass(frozen=True)
class Tolerance:
    """How far a child's rate may rise: child <= parent + rise, or child <= ratio * parent.

    The child is within the tolerance where either holds, and beyond it where neither does.

    Raises:
        UsageError: `wrong_tolerance`.
    """

    rise: float | None = 0.02  # a share, 0 to 1
    ratio: float | None = 1.2  # child / parent, from 1 on

    def __post_init__(self) -> None:
        problems = []
        if not _is_between(self.rise, 0, 1):
            problems.append(f"rise is {self.rise!r:.80}, allowed is above 0 and below 1")
        if not _is_between(self.ratio, 1, inf):
            problems.append(f"ratio is {self.ratio!r:.80}, allowed is above 1")
        if self.rise is None and self.ratio is None:
            problems.append("neither a rise nor a ratio is given")
        if problems:
            raise UsageError("wrong_tolerance", f"Of a tolerance {'; '.join(problems)}.")

    @property
    def contrasts(self) -> list[tuple[float, float]]:
        """Return (bound, factor) of each bound: child - factor * parent <= bound."""
        found = []
        if self.rise is not None:
            found.append((self.rise, 1.0))
        if self.ratio is not None:
            found.append((0.0, self.ratio))
        return found

    def allowed(self, parent: float) -> float:
        """Return the highest rate that is tolerated of the child of a parent with this rate."""
        return min(1.0, max(bound + factor * parent for bound, factor in self.contrasts))

    def holds(self, upper: Paired) -> bool:
        """Return whether an upper limit lies within one of the bounds."""
        found = False
        if self.rise is not None:
            found = upper.difference_high < self.rise
        if self.ratio is not None:
            found = found or upper.ratio_high < self.ratio
        return bool(found)

    def exceeded(self, lower: Paired) -> bool:
        """Return whether the lower limits lie beyond every bound."""
        found = True
        if self.rise is not None:
            found = lower.difference_low > self.rise
        if self.ratio is not None:
            found = found and lower.ratio_low > self.ratio
        return bool(found)


def _is_between(value: float | None, low: float, high: float) -> bool:
    number = isinstance(value, (int, float))
    return value is None or (number and low < value < high)


def upper_limits(
    parent: Events,
    child: Events,
    cluster: ndarray | None = None,
    *,
    alpha: float = 0.05,
    doubtful: ndarray | None = None,
) -> Paired:
    """Return the comparison whose upper limits count against a claim of no rise.

    Every unscored answer counts against the child, and one more prompt than it did has worsened:
    limits of few events are otherwise too low.

    Args:
        parent: Events [P], or what `rectify` returns.
        child: Events of the same prompts.
        cluster: [P] ids; prompts with the same id are not independent.
        alpha: Probability beyond each limit.
        doubtful: [P] answers of the child that count as if they were unscored.
    """
    old = _filled(parent, 0.0)
    new = _filled(child, 1.0, doubtful)
    codes = cluster_codes(cluster, old.table.size)
    worse = _totals(new.table, codes) + 1e-3 * _totals(old.table, codes)
    _set(new, codes == worse.argmin(), 1.0)
    return paired(old, new, cluster=cluster, confidence=1 - 2 * alpha)


def lower_limits(
    parent: Events,
    child: Events,
    cluster: ndarray | None = None,
    *,
    alpha: float = 0.05,
) -> Paired:
    """Return the comparison whose lower limits count against a claim of a rise.

    Every unscored answer counts for the child, and one prompt less than it did has worsened.

    Args:
        parent: As in `upper_limits`.
        child: As there.
        cluster: As there.
        alpha: As there.
    """
    old = _filled(parent, 1.0)
    new = _filled(child, 0.0)
    codes = cluster_codes(cluster, old.table.size)
    change = _totals(new.table - old.table, codes)
    if change.max() > 0:
        first = codes == change.argmax()
        _set(new, first, old.table[first])
    return paired(old, new, cluster=cluster, confidence=1 - 2 * alpha)


def prompts_to_decide(  # noqa: PLR0913
    parent: Events,
    child: Events,
    cluster: ndarray | None = None,
    *,
    tolerance: Tolerance,
    alphas: tuple[float, float],
    doubtful: ndarray | None = None,
) -> float:
    """Return how many prompts would decide in 80 of 100 studies, if the rates are those found.

    Args:
        parent: As in `upper_limits`.
        child: As there.
        cluster: As there.
        tolerance: What is tolerated.
        alphas: Probability beyond each upper and each lower limit.
        doubtful: As in `upper_limits`.

    Returns:
        More than there are, if these were too few by chance. inf: more than 20,000, or no number,
        such as where unscored answers could tip the scales.

    Source: the normal approximation of power, (z_alpha + z_.8) standard errors (Cohen 1988), plus
    what Wilson's limit of few events and the one prompt conceded add.
    """
    codes = cluster_codes(cluster, len(event_table("events", parent, "P").table))
    worst = _filled(parent, 0.0), _filled(child, 1.0, doubtful)
    best = _filled(parent, 1.0), _filled(child, 0.0)
    within = []
    beyond = []
    for bound, factor in tolerance.contrasts:
        mean, sd = _contrast(*worst, codes, factor)
        within.append(_needed(bound - mean, sd, alphas[0]))
        mean, sd = _contrast(*best, codes, factor)
        beyond.append(_needed(mean - bound, sd, alphas[1]))
    found = max(min(*within, max(beyond)), codes.max() + 2)
    return found if found <= MOST_PROMPTS else inf


def _contrast(
    parent: Rectified,
    child: Rectified,
    codes: ndarray,
    factor: float,
) -> tuple[float, float]:
    """Return mean and standard deviation over clusters of child - factor * parent."""
    values = child.table - factor * parent.table
    totals = _totals(values, codes)
    totals *= totals.size / values.size
    return float(values.mean()), float(totals.std())


def _needed(
    gap: float,
    sd: float,
    alpha: float,
) -> float:
    """Return n at which limits leave a gap, in 80 of 100 studies; without any change at least."""
    if gap <= 0:
        return inf
    z = float(quantile(alpha))
    conceded = 1 + z**2 / 2
    width = sd * (z + float(quantile(1 - POWER)))
    root = width + sqrt(width**2 + 4 * gap * conceded)
    by_change = (root / (2 * gap)) ** 2
    without = (conceded + z * sqrt(1 + z**2 / 4)) / gap  # Wilson's limit of one event
    return ceil(max(by_change, without))


def _filled(
    events: Events,
    unscored: float,
    doubtful: ndarray | None = None,
) -> Rectified:
    """Return a copy of events in which answers without a score have one."""
    found = event_table("events", events, "P")
    table = found.table.copy()
    missing = np.isnan(table)
    if doubtful is not None:
        missing |= doubtful
    table[missing] = unscored
    return Rectified(table, found.noise.copy(), found.labelled.copy())


def _totals(values: ndarray, codes: ndarray) -> ndarray:
    return np.bincount(codes, values)


def _set(
    events: Rectified,
    where: ndarray,
    values: ndarray | float,
) -> None:
    events.table[where] = values
    events.noise[where] = 0.0
