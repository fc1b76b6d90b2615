"""Simulated grids: a defence of no effect is seldom called anything else, a planted one is found."""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from simulated_studies import drawn, logit_for

from ftlab import stats
from ftlab.analysis import grid_table, grid_tables
from ftlab.analysis.decisions import MARGIN
from ftlab.analysis.grid_tables import ALPHA, AXES, NO_CHANGE, SAFER, Measured

STUDIES = 200
SEEDS = 3
PROMPTS = 100
OF_PROMPTS = 1.5  # standard deviation of their difficulty, in logits
OF_SEEDS = 0.5
HARMFUL = {"harm": 0.8, "refusal": 0.1, "over_refusal": 0.1, "utility": 0.95, "coherence": 0.97}
# Defences and their rates; the last one lowers harm, and costs as much utility as is not tolerated.
PRICED = HARMFUL | {"harm": 0.1, "refusal": 0.8, "utility": 0.95 - MARGIN}
DEFENCES = {"none": HARMFUL, "idle": HARMFUL, "other": HARMFUL, "priced": PRICED}
logit = functools.cache(logit_for)


def measured(rng, rates: dict[str, float], difficulty: np.ndarray) -> dict[str, Measured]:
    """Return what is measured of trainings that differ between seeds, on prompts of a difficulty."""
    found = {}
    prompts = np.arange(PROMPTS).astype(str)
    for axis, hard in zip(AXES, difficulty, strict=True):
        start = logit(rates[axis.name], math.hypot(OF_PROMPTS, OF_SEEDS))
        seeds = OF_SEEDS * rng.standard_normal((SEEDS, 1, 1))
        events = drawn(rng, start + seeds + OF_PROMPTS * hard)
        nothing = np.zeros_like(events)
        events = stats.Rectified(events, nothing, nothing)
        found[axis.name] = Measured(events, prompts, tuple(prompts), 0.02, 0, "organism")
    return found


@pytest.fixture(scope="module")
def grids():
    """The rows of all simulated grids."""
    rng = np.random.default_rng(11)
    records = [{"defence": name, "adapter": "full", "attack": "poisoned"} for name in DEFENCES]
    about = {"parent": "organism", "left_out": {}}
    run = SimpleNamespace(read=lambda _: records, name="grid", stats=about)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid_tables, "_measured", lambda cell: cell)
        few = functools.partial(stats.bands, resamples=2)  # of bands over steps: a grid has one
        patch.setattr(stats, "bands", few)
        for study in range(STUDIES):
            difficulty = rng.standard_normal((len(AXES), PROMPTS))
            cells = [measured(rng, rates, difficulty) for rates in DEFENCES.values()]
            patch.setattr(grid_tables, "grid_members", lambda _, cells=cells: cells)
            found.append(grid_table(run).raw.assign(study=study))
    return pd.concat(found, ignore_index=True)


def rarely(alpha: float) -> float:
    """Return the largest share that such a chance lets expect: three standard errors above it."""
    return alpha + 3 * math.sqrt(alpha * (1 - alpha) / STUDIES)


@pytest.mark.slow
def test_a_grid_seldom_says_that_a_defence_of_no_effect_changes_anything(grids):
    idle = grids[grids["defence"].isin(["idle", "other"])]
    smallest = idle.groupby(["axis", "study"])["p_holm"].min()
    assert len(smallest) == len(AXES) * STUDIES
    shares = (smallest < ALPHA).groupby("axis").mean()
    assert (shares <= rarely(ALPHA)).all(), shares.to_dict()
    wrong = idle["verdict"].ne(NO_CHANGE).groupby(idle["study"]).any()
    assert wrong.mean() <= rarely(ALPHA)


def family(rng) -> list[stats.Paired]:
    """Return twelve defences of no effect under four attacks, each against its own no defence."""
    found = []
    for rate in (0.4, 0.87, 0.92, 0.02):
        difficulty = OF_PROMPTS * rng.standard_normal(PROMPTS)
        seeds = OF_SEEDS * rng.standard_normal((13, SEEDS, 1))
        start = logit(rate, math.hypot(OF_PROMPTS, OF_SEEDS))
        without, *defended = drawn(rng, start + difficulty + seeds)
        found += [stats.paired(without, one) for one in defended]
    return found


@pytest.mark.slow
def test_over_48_cells_a_defence_of_no_effect_is_seldom_found():
    """By `p` alone, without `p_of_seeds`, 12 of 100 such grids find one."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(STUDIES):
        p_values = [max(cell.p, cell.p_of_seeds) for cell in family(rng)]
        wrong += min(stats.holm(p_values)) < ALPHA
    assert wrong / STUDIES <= rarely(ALPHA)


@pytest.mark.slow
def test_a_grid_finds_a_planted_defence_and_seldom_calls_it_safer_at_its_price(grids):
    planted = grids[(grids["defence"] == "priced") & (grids["axis"] == "harm")]
    assert (planted["p_holm"] < ALPHA).mean() >= 0.8
    assert (planted["verdict"] == SAFER).mean() <= rarely(ALPHA / 2)
