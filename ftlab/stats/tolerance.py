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

    The child is within the tolerance where either holds, and beyond it where neither does. A rise
    of 0 leaves the ratio alone to decide, and a ratio of 1 the rise.

    Raises:
        UsageError: `wrong_tolerance`.
    """

    rise: float = 0.02  # a share, 0 to 1
    ratio: float = 1.2  # child / parent, from 1 on

    def __post_init__(self) -> None:
        numbers = (self.rise, self.ratio)
        known = all(isinstance(number, (int, float)) for number in numbers)
        if not known or not 0 <= self.rise < 1 or not 1 <= self.ratio < inf:
            raise UsageError(
                "wrong_tolerance",
                f"The tolerated rise is {self.rise!r:.80} and the ratio {self.ratio!r:.80}. "
                "Allowed: a rise from 0 to below 1 (0.02 is 2 points), and a ratio from 1 on.",
            )

    def allowed(self, parent: float) -> float:
        """Return the highest rate that is tolerated of the child of a parent with this rate."""
        highest = max(parent + self.rise, self.ratio * parent)
        return min(highest, 1.0)

    def holds(self, upper: Paired) -> bool:
        """Return whether an upper limit lies within one of the bounds."""
        return upper.difference_high < self.rise or upper.ratio_high < self.ratio

    def exceeded(self, lower: Paired) -> bool:
        """Return whether the lower limits lie beyond both bounds."""
        return lower.difference_low > self.rise and lower.ratio_low > self.ratio


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
        child: Events of the same prompts, [P], or [S, P] of several training seeds.
        cluster: [P] ids; prompts with the same id are not independent.
        alpha: Probability beyond each limit.
        doubtful: Answers of the child, of its shape, that count as if they were unscored.
    """
    old = _filled(parent, 0.0)
    new = _filled(child, 1.0, doubtful)
    codes = cluster_codes(cluster, old.table.size)
    worse = _over_seeds(new) + 1e-3 * old.table  # so that a prompt without any event is the first
    fewest = np.bincount(codes, worse).argmin()
    _set(new, codes == fewest, 1.0)
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
    change = np.bincount(codes, _over_seeds(new) - old.table)
    if change.max() > 0:
        most = codes == change.argmax()
        _set(new, most, old.table[most])
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
    for bound, factor in ((tolerance.rise, 1.0), (0.0, tolerance.ratio)):
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
    totals = np.bincount(codes, values)
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
    z_power = float(quantile(1 - POWER))
    conceded = 1 + z**2 / 2
    width = sd * (z + z_power)
    inside = width**2 + 4 * gap * conceded
    root = width + sqrt(inside)
    root /= 2 * gap
    by_change = root**2
    without = (conceded + z * sqrt(1 + z**2 / 4)) / gap  # Wilson's limit of one event
    return ceil(max(by_change, without))


def _filled(
    events: Events,
    unscored: float,
    doubtful: ndarray | None = None,
) -> Rectified:
    """Return a copy of events in which answers without a score have one."""
    found = event_table("events", events, "P", "SP")
    table = found.table.copy()
    missing = np.isnan(table)
    if doubtful is not None:
        missing |= doubtful
    table[missing] = unscored
    return Rectified(table, found.noise.copy(), found.labelled.copy())


def _over_seeds(events: Rectified) -> ndarray:
    """Return the mean of each prompt over the seeds, [P]."""
    return np.atleast_2d(events.table).mean(axis=0)


def _set(
    events: Rectified,
    where: ndarray,
    values: ndarray | float,
) -> None:
    events.table[..., where] = values
    events.noise[..., where] = 0.0
