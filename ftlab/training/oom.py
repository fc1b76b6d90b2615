"""Repeats a training in smaller parts where memory runs out.

The pattern of accelerate's `find_executable_batch_size`, except that the effective batch never
changes: activations are recomputed first, then the same rows are split over more forward passes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

from ftlab._core.errors import TrainingFailed
from ftlab._core.files import storage
from ftlab.models import out_of_memory, released
from ftlab.runs import Run
from ftlab.training.padding import score_labelled_positions_only


@dataclass(frozen=True)
class Fit:
    """How an optimiser step is made to fit into memory.

    Args:
        micro_batch: Rows of one forward pass.
        recompute: Compute activations again in the backward pass instead of keeping them.
    """

    micro_batch: int
    recompute: bool = False


def first_fit(rows: int, accumulation: int) -> Fit:
    """Return the fit that is tried first.

    Args:
        rows: Of an optimiser step, on one device.
        accumulation: Forward passes for them, at least.
    """
    most = max(rows // accumulation, 1)
    sizes = [n for n in range(1, most + 1) if rows % n == 0]
    return Fit(sizes[-1])


def next_fit(fit: Fit, batch_size: int, fewest_rows: int) -> Fit | None:
    """Return the next way that takes less memory, or None."""
    if not fit.recompute:
        return Fit(fit.micro_batch, recompute=True)
    sizes = [n for n in range(fewest_rows, fit.micro_batch) if batch_size % n == 0]
    return Fit(sizes[-1], recompute=True) if sizes else None


def fit_into_memory(
    run: Run, first: Fit, batch_size: int, fewest_rows: int, attempt: Callable[[Fit], None]
) -> None:
    """Call `attempt(fit)` until it fits into memory.

    Everything a failed attempt held is released before the next one; its traceback alone would
    keep the model alive.
    """
    fit = first
    while True:
        try:
            with released(), score_labelled_positions_only(), storage(run.path):
                return attempt(fit)
        except Exception as error:
            if not out_of_memory(error):
                raise
            found = str(error)
        smaller = next_fit(fit, batch_size, fewest_rows)
        failed = f"{run.name}: out of memory with {fit.micro_batch} rows per forward pass"
        if smaller is None:
            raise TrainingFailed(
                "out_of_memory", f"{failed} ({found}). Train an adapter or use shorter rows."
            )
        passes = batch_size // smaller.micro_batch
        how = f"{smaller.micro_batch} rows x {passes} forward passes, activations recomputed"
        print(f"{failed}. Continuing with {how}.", file=sys.stderr)
        fit = smaller
