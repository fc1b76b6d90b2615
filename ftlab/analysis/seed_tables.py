"""How much the training seeds decide: a table of spread. Cell: seed_table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ftlab import stats
from ftlab._core.config import takes
from ftlab.analysis import verdicts
from ftlab.analysis.short_tables import Table
from ftlab.runs import Run

MUCH = 0.5  # share of the variance from which on an interval rests on its seeds
NEAR_END = 0.1  # rates closer than this to 0 or 1
UNLIKE = 1.0  # sd of seeds in logits; near 0 or 1 intervals are then too narrow (simulated)


@takes()
def seed_table(
    source: Run | pd.DataFrame,
    *,
    by: str | Sequence[str] = "risk",
    risk: str | Sequence[str] | None = None,
    judge: str | None = None,
    steps: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Return how much each rate differs between training seeds.

    Args:
        source: A run of a curve, or its verdict table.
        by: Columns to group by.
        risk: Only this risk, or these.
        judge: Whose verdicts count; by default the first judge's.
        steps: Only these steps after 0; negative numbers count from the last.

    Returns:
        One row per group and step: rate, seed_sd (between seeds, beyond what single answers vary;
        nan below three seeds), logit_sd (the same in logits, as `plan` takes it), least and most
        (of the seeds' own rates), share_of_seeds (of the variance behind the interval), n_seeds,
        and in words a warning where the interval rests on so few seeds.

    Raises:
        UsageError: as `rates`; `no_later_step`.
    """
    table = verdicts.of_judge(verdicts.prepare(source), judge)
    table = verdicts.select(table, risk=risk)
    verdicts.refuse_parent_alone(table)
    columns = verdicts.columns_of(table, by)
    rows = []
    for group, part in verdicts.groups(table, columns):
        at = [step for step in verdicts.steps_of(part, steps) if step]
        events, clusters = verdicts.cube_of(part, at)
        for number, step in enumerate(at):
            spread = _spread(events[:, number], clusters)
            rows.append({**group, "step": step, **spread})
    return Table(rows)


def _spread(events: np.ndarray, clusters: np.ndarray) -> dict[str, Any]:
    found = stats.seed_spread(events, clusters)
    n_seeds = len(events)
    logit_sd = stats.logit_sd(found.rate, found.sd)
    near_end = min(found.rate, 1 - found.rate) < NEAR_END
    few = found.share > MUCH or (near_end and UNLIKE < logit_sd < math.inf)
    warning = f"rests on {n_seeds} seeds" if few else ""
    if n_seeds < stats.FEWEST_SEEDS:
        warning = f"says nothing of other runs: {n_seeds} seeds"
    return {
        "rate": found.rate,
        "seed_sd": found.sd,
        "logit_sd": logit_sd,
        "least": found.least,
        "most": found.most,
        "share_of_seeds": found.share,
        "n_seeds": n_seeds,
        "warning": warning,
    }
