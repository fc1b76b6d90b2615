"""Tables of events, and the correction of a judge's events by labels of a drawn part of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from ftlab._core.errors import UsageError


@dataclass(
    frozen=True,
    eq=False,
)
class Rectified:
    """A judge's events after the correction by labels; all arrays have the shape of the events."""

    table: ndarray  # their mean estimates the rate of the labels; NaN where unscored
    noise: ndarray  # variance by which a stratum's labels may be too alike by chance
    labelled: ndarray  # 1.0 where the label counts

    @property
    def arrays(self) -> ndarray:
        """Table, noise and labels as one array [3, ...]."""
        return np.stack([self.table, self.noise, self.labelled])

    @property
    def once(self) -> bool:
        """Whether all seeds have the same answers, such as those of a parent measured once."""
        arrays = self.arrays
        first = np.broadcast_to(arrays[:, :1], arrays.shape)
        return np.array_equal(arrays, first, equal_nan=True)

    @property
    def n_labels(self) -> int:
        """Number of labels; those of answers that all seeds share count once."""
        counted = self.labelled[:1] if self.once else self.labelled
        return int(counted.sum())

    def part(self, *index: Any) -> Rectified:
        """Return the events at an index of the table."""
        return Rectified(self.table[index], self.noise[index], self.labelled[index])


Events = ndarray | Rectified


def uncorrected(name: str, events: Events, *shapes: str) -> ndarray:
    """Return the table of events that no labels correct.

    Raises:
        UsageError: `labels_not_used`; as `event_table`.
    """
    found = event_table(name, events, *shapes)
    if found.labelled.any():
        raise UsageError("labels_not_used", f"Labels cannot correct {name} here. Give events.")
    return found.table


def event_table(name: str, events: Events, *shapes: str) -> Rectified:
    """Return events as floats, checked for their shape ("SP": two axes) and their values."""
    given = events.table if isinstance(events, Rectified) else events
    try:
        table = np.asarray(given, dtype=float)
    except (TypeError, ValueError):
        message = f"{name} is not a table of numbers. Allowed: 0, 1 and NaN (unscored)."
        raise UsageError("events_not_numeric", message) from None
    if table.ndim not in map(len, shapes):
        axes = " or ".join(shapes)
        message = f"{name} has shape {table.shape}. Allowed axes: {axes}."
        raise UsageError("events_shape", message)
    if not table.size:
        raise UsageError("events_empty", f"{name} is empty. At least one answer is needed.")
    if isinstance(events, Rectified):
        return events
    _refuse_others(name, table)
    nothing = np.zeros_like(table)
    return Rectified(table, nothing, nothing)


def _refuse_others(
    name: str,
    table: ndarray,
) -> None:
    scored = table[~np.isnan(table)]
    other = np.setdiff1d(scored, [0, 1])
    if other.size:
        message = f"{name} contains {other[0]:g}. Allowed: 0, 1 and NaN (unscored)."
        raise UsageError("events_values", message)


def rectify(
    events: ndarray,
    labels: ndarray,
    inclusion: ndarray,
) -> Rectified:
    """Correct a judge's events by the labels of answers that were drawn by lot.

    Each answer counts as m + 1[labelled] (Y - m) / pi, with Y the label, pi the probability with
    which the answer was drawn, and m the mean label of its stratum, the answers with one verdict
    and one pi. The mean of these is the stratified estimate of the rate of the labels, whatever
    the judge's errors, also where they differ between parent and child. Pass the result to
    `rate`, `paired` or `bands` instead of events.

    Labels of a stratum may all be alike by chance. Its variance is therefore at least that of
    (events + 1) / (labels + 2); otherwise 25 labels without an error would make the judge one that
    never errs.

    Args:
        events: The judge's events: 1, 0, or NaN where it could not decide.
        labels: The labels' events, of the same shape; NaN where none was asked for.
        inclusion: Probability, above 0 to 1, with which each answer was drawn.

    Of a stratum without a label the judge's verdicts stand, with the most variance that a share
    can have. That can be where answers are grouped otherwise than they were drawn.

    Raises:
        UsageError: `events_values`, `labels_do_not_pair`, `wrong_inclusion`, `no_label_here`.

    Source: Egami et al. 2023 (arXiv 2306.04746), equation 2, with the judge recalibrated in each
    stratum (Neyman 1934); Agresti & Coull 1998 for the least variance.
    """
    judged = np.asarray(events, dtype=float)
    truth = np.asarray(labels, dtype=float)
    drawn = np.asarray(inclusion, dtype=float)
    if not judged.shape == truth.shape == drawn.shape:
        found = f"{judged.shape}, {truth.shape} and {drawn.shape}"
        message = f"Events, labels and inclusion have the shapes {found}. Give one of each."
        raise UsageError("labels_do_not_pair", message)
    _refuse_others("events", judged)
    _refuse_others("labels", truth)
    scored = ~np.isnan(judged)
    probabilities = drawn[scored]
    if not ((probabilities > 0) & (probabilities <= 1)).all():
        message = "An answer was drawn with a probability outside 0 to 1, or with none."
        raise UsageError("wrong_inclusion", message)
    labelled = scored & ~np.isnan(truth)
    if scored.any() and not labelled.any():
        raise UsageError(
            "no_label_here",
            "None of these answers has a label. Draw more, or group by fewer columns.",
        )
    table = judged.copy()
    noise = np.zeros_like(table)
    strata = np.stack([judged[scored], probabilities], axis=1)
    found, member = np.unique(
        strata,
        axis=0,
        return_inverse=True,
    )
    member = member.ravel()
    for number, (verdict, pi) in enumerate(found):
        inside = np.zeros_like(scored)
        inside[scored] = member == number
        known = labelled & inside
        n = known.sum()
        mean = truth[known].mean() if n else verdict
        table[inside] = mean
        table[known] += (truth[known] - mean) / pi
        noise[inside] = _unseen(mean, n) * (1 - pi) / pi
    return Rectified(table, noise, labelled.astype(float))


def _unseen(
    share: float,
    n: int,
) -> float:
    """Return by how much the variance of n labels of a stratum is larger than they show."""
    if not n:
        return 0.25  # the most that a share can vary
    seen = share * (1 - share)
    likely = (share * n + 1) / (n + 2)
    unbiased = seen * n / max(n - 1, 1)
    return max(likely * (1 - likely), unbiased) - seen
