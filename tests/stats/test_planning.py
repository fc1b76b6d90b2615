"""Plans: the formula against simulation, what more prompts and seeds do, edges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from analysis.verdict_tables import CURVE, made, saved
from helpers import raises_code
from simulated_studies import logit_for

from ftlab import analysis, stats
from ftlab.experiments.curves import foreseen
from ftlab.stats.planning import _power, _variance, _world


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("sd", [0.1, 0.5])
def test_the_formula_is_near_the_simulation_from_a_parent_at_20_percent(seeds, sd):
    found = stats.plan(0.2, 1.5, prompts=150, seeds=seeds, seed_sd=sd)
    formula = _power(_world(0.2, 1.5, sd, 1.5, 0.9), 150, seeds)
    assert found.power == pytest.approx(formula, abs=0.08)


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.5, 1.5])
@pytest.mark.parametrize("seeds", [1, 2, 3, 6])
def test_the_prompts_needed_see_the_change_in_80_of_100_studies(seeds, ratio):
    needed = stats.plan(0.2, ratio, seeds=seeds, seed_sd=0.2, simulated=False).prompts_needed
    found = stats.plan(0.2, ratio, seeds=seeds, seed_sd=0.2, prompts=int(needed))
    assert found.studies == 400
    assert found.power == pytest.approx(0.8, abs=0.09)


@pytest.mark.slow
def test_few_seeds_that_differ_limit_what_more_prompts_show():
    """One run shows its own change, which may be none, however many prompts it answers."""
    for seeds in (1, 2):
        power = [_power(_world(0.06, 1.5, 0.6, 1.5, 0.9), n, seeds) for n in (2000, 20_000)]
        assert 0.5 < power[0] < power[1] < 0.85
    assert stats.plan(0.2, prompts=20_000, seeds=2).studies == 100


@pytest.mark.slow
def test_the_variance_is_that_of_drawn_studies():
    rng = np.random.default_rng(2)
    world = _world(0.2, 1.5, 0.5, 1.5, 0.9)
    start, end = logit_for(0.2, 1.5), logit_for(0.3, math.hypot(1.5, 0.5))
    own, other = 1.5 * rng.standard_normal((2, 4000, 100))
    hard = 0.9 * own + math.sqrt(1 - 0.9**2) * other
    before = rng.random(own.shape) < 1 / (1 + np.exp(-start - own))
    logits = end + hard[:, None] + 0.5 * rng.standard_normal((4000, 5, 1))
    after = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    change = after.mean(axis=(1, 2)) - before.mean(axis=1)
    assert before.mean() == pytest.approx(0.2, abs=0.01)
    assert after.mean() == pytest.approx(0.3, abs=0.01)
    assert change.var() == pytest.approx(_variance(world, 100, 5)[0], rel=0.08)


@pytest.mark.slow
def test_more_prompts_and_seeds_show_more_and_unlike_seeds_set_a_limit():
    small, large = (stats.plan(0.2, prompts=n, seeds=5) for n in (50, 500))
    assert small.power < large.power and small.half_width > large.half_width
    assert small.smallest_ratio > large.smallest_ratio
    assert small.prompts_needed == large.prompts_needed < 500
    assert stats.plan(0.2, 0.5, prompts=300).smallest_ratio < 1
    assert math.isinf(stats.plan(0.06, prompts=100, seeds=3, seed_sd=0.3).prompts_needed)
    assert stats.plan(0.06, prompts=100, seeds=3, seed_sd=0.3).seeds_needed > 3


def test_every_wrong_number_is_told_at_once():
    with raises_code("wrong_plan") as info:
        stats.plan(1.2, prompts=1, seeds=0, seed_sd=-1, correlation=2)
    assert str(info.value).count("allowed is") == 5
    for given in ({"ratio": 1}, {"ratio": 6}, {"prompts": 2.5}, {"seeds": 500}):
        with raises_code("wrong_plan"):
            stats.plan(0.2, **given)
    with raises_code("nothing_to_plan"):
        analysis.plan()
    with raises_code("risk_without_pilot"):
        analysis.plan(0.1, risk="bias")


@pytest.mark.slow
def test_a_pilot_gives_rate_and_spread():
    row = analysis.plan(pilot=saved(CURVE), prompts=50).iloc[0]
    assert (row["parent_rate"], row["seed_sd"]) == (0.2, 0.3), "two seeds say nothing of spread"
    unlike = {(seed, 0): "r" * 8 + "cc" for seed in range(3)}
    unlike |= {(seed, 5): "c" * (2 + 4 * seed) + "r" * (8 - 4 * seed) for seed in range(3)}
    assert analysis.plan(pilot=saved(unlike), prompts=50).iloc[0]["seed_sd"] > 1
    with raises_code("step_not_measured"):
        analysis.plan(pilot=saved({(0, 5): "rrcc"}))


@pytest.mark.slow
def test_a_curve_that_asks_for_minutes_says_first_what_it_can_show():
    parent = {(0, 0): "r" * 36 + "c" * 4}
    (line,) = foreseen(made(parent), "keywords", 3)
    assert "40 prompts and 3 seeds" in line
    assert foreseen(made({(0, 0): "rrrr"}), "keywords", 3) == []  # nothing to multiply
    assert foreseen(made({(0, 0): "ccccr"}), "keywords", 3) == []  # no room for 1.5 times
