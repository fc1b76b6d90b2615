"""Simulated studies: prompts differ in difficulty and seeds in what they learned (logits)."""

from __future__ import annotations

import numpy as np

GRID = np.linspace(-7, 7, 401)
WEIGHT = np.exp(-(GRID**2) / 2) / np.exp(-(GRID**2) / 2).sum()


def logistic(x):
    return 1 / (1 + np.exp(-x))


def mean_rate(logit: float, sd: float) -> float:
    """Return the rate over a normal population around this logit."""
    return float((WEIGHT * logistic(logit + sd * GRID)).sum())


def logit_for(rate: float, sd: float) -> float:
    """Return the logit whose population has this rate."""
    low, high = -60.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_rate(middle, sd) < rate else (low, middle)
    return low


def drawn(rng, logits) -> np.ndarray:
    """Draw one event for each logit."""
    return (rng.random(np.shape(logits)) < logistic(logits)).astype(float)


def from_table(both: int, gained: int, lost: int, neither: int):
    """Return the parent's and the child's events of a table of pairs."""
    sizes = [both, gained, lost, neither]
    return np.repeat([1, 0, 1, 0], sizes), np.repeat([1, 1, 0, 0], sizes)


def covers(low, value, high) -> bool:
    return low <= value <= high
