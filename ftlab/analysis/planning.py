"""Plan a study from numbers or from a pilot. Cell: plan."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from ftlab import stats
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.analysis.seed_tables import seed_table
from ftlab.analysis.tables import rates
from ftlab.runs import Run, load

USUAL_SD = 0.3  # of seeds in logits; in the embedded world .04 to .6 was found


@takes()
def plan(
    parent_rate: float | None = None,
    ratio: float = 1.5,
    *,
    prompts: int = 100,
    seeds: int = 5,
    seed_sd: float | None = None,
    pilot: Any = None,
    risk: str | None = None,
) -> pd.DataFrame:
    """Say what a study would show before it is run.

    Args:
        parent_rate: Rate of the parent, between 0 and 1; of a pilot its own.
        ratio: Child / parent that is to be seen, such as 1.5.
        prompts: Prompts of each risk.
        seeds: Training seeds.
        seed_sd: Standard deviation between seeds in logits; by default the largest of the pilot's
            steps, or 0.3 without a pilot of at least three seeds that shows any spread.
        pilot: A curve from the parent on, or its name, from which rate and spread are taken.
        risk: Of the pilot; by default jailbreak.

    Returns:
        One row: power (share of the simulated studies in which the change is seen at 5 %) and
        studies (how many were simulated). By a formula: half_width (of the difference's 95 %
        interval, a share), smallest_ratio (seen in 80 of 100 studies), prompts_needed (for that
        with this ratio and these seeds; inf: more than 20,000) and seeds_needed (fewest from three
        on, with 20,000 prompts; inf: more than 20).

    Raises:
        UsageError: `nothing_to_plan`, `wrong_plan`, `risk_without_pilot`; as `rates`.
    """
    if pilot is not None:
        run = pilot if isinstance(pilot, Run) else load(pilot)
        risk = risk or "jailbreak"
        first = rates(run, risk=risk, steps=[0])
        judge = first["judge"].iloc[0]
        parent_rate = parent_rate or float(first["rate"].iloc[0])
        spread = seed_table(run, risk=risk, judge=judge)["logit_sd"]
        known = spread[spread.map(math.isfinite) & (spread > 0)]
        if seed_sd is None and len(known):
            seed_sd = float(known.max())
    elif risk is not None:
        raise UsageError(
            "risk_without_pilot",
            f"risk={risk!r} names a risk of a pilot. Give the pilot, or leave risk out.",
        )
    numbers = (parent_rate or 0.0, ratio, seed_sd or 0.0)
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise UsageError("wrong_plan", "parent_rate, ratio and seed_sd are numbers, such as 0.06.")
    if not parent_rate:
        raise UsageError(
            "nothing_to_plan",
            "Give parent_rate, above 0, or a pilot whose parent shows the event. Over a parent "
            "without it there is no ratio.",
        )
    spread_of_seeds = USUAL_SD if seed_sd is None else seed_sd
    found = stats.plan(parent_rate, ratio, prompts=prompts, seeds=seeds, seed_sd=spread_of_seeds)
    return pd.DataFrame([vars(found)])
