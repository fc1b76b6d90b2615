"""Bands and first steps: coverage by simulation, edges, invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import raises_code
from simulated_studies import covers, drawn, mean_rate

from ftlab import stats


@pytest.mark.slow
def test_band_holds_the_whole_curve_where_pointwise_does_not():
    rng, n, steps = np.random.default_rng(15), 200, 8  # error 1.5 points
    level, rise = np.linspace(-3, 2, steps), np.linspace(0, 1, steps)
    truth = np.array(
        [mean_rate(a, math.hypot(1.5, 0.8 * f)) for a, f in zip(level, rise, strict=True)]
    )
    whole = pointwise = 0
    for _ in range(n):
        run = 0.8 * rng.standard_normal((5, 1, 1)) * rise[None, :, None]
        y = drawn(rng, level[None, :, None] + 1.5 * rng.standard_normal(100) + run)
        y[:, 0] = y[0, 0]  # the parent, measured once
        b = stats.bands(y, resamples=200)
        whole += ((b.low <= truth) & (truth <= b.high)).all()
        pointwise += ((b.low_pointwise <= truth) & (truth <= b.high_pointwise)).all()
    assert whole / n >= 0.91
    assert pointwise / n < 0.88


def test_band_at_the_ends_is_bonferroni_on_clusters():
    y = np.zeros((3, 4, 30))
    y[:, 3] = 1
    b = stats.bands(y)
    want = stats.rate(np.zeros(30), confidence=1 - 0.05 / 4)
    assert b.low[:3] == pytest.approx(0)
    assert b.high[:3] == pytest.approx(want.high)
    assert b.high_pointwise[0] == pytest.approx(stats.rate(np.zeros(30)).high)
    assert (b.low[3], b.high[3]) == pytest.approx((1 - want.high, 1))


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "start"), [(3, -2.0), (5, -2.0), (1, -4.8), (5, -4.8)])
def test_crossing_covers(seeds, start):
    """From a parent at 15 % and from one at 1 %, of which often no event is seen."""
    rng, n, steps = np.random.default_rng(16), 160, np.array([0, 10, 30, 70, 150, 300])
    rise = np.sqrt(steps / 300) * (seeds > 1)
    level = start + 3.0 * np.sqrt(steps / 300)
    truth = np.array([mean_rate(a, math.hypot(1.0, f)) for a, f in zip(level, rise, strict=True)])
    k = int(np.argmax(truth >= 3 * truth[0]))
    part = (3 * truth[0] - truth[k - 1]) / (truth[k] - truth[k - 1])
    where, hits = steps[k - 1] + part * (steps[k] - steps[k - 1]), 0
    for _ in range(n):
        run = rng.standard_normal((seeds, 1, 1)) * rise[None, :, None]
        y = drawn(rng, level[None, :, None] + rng.standard_normal(150) + run)
        y[:, 0] = y[0, 0]  # the parent, measured once
        c = stats.crossing(steps, y[0, 0], y, ratio=3, resamples=200)
        hits += covers(c.low, where, c.high)
    assert hits / n >= 0.91  # Monte-Carlo error 1.7 points


STEPS = [0, 10, 30, 100]


def curve(*rates) -> np.ndarray:
    """[1, K, 20] with exactly these numbers of events in 20."""
    return np.array([[[1.0] * k + [0.0] * (20 - k) for k in rates]])


def test_crossing_interpolates_and_repeats_per_seed():
    parent = curve(4)[0, 0]
    c = stats.crossing(
        STEPS, parent, np.concatenate([curve(4, 4, 8, 20), curve(4, 8, 8, 8)]), ratio=1.5
    )
    assert c.per_seed == pytest.approx([20, 5])  # 6 of 20 is half way from 4 to 8
    assert c.step == pytest.approx(10)  # both together: 4, 6
    assert c.low <= c.step <= c.high
    never = stats.crossing(STEPS, parent, curve(4, 4, 4, 4))
    assert (never.step, never.high, never.per_seed) == (math.inf, math.inf, [math.inf])
    assert never.reached < 0.5
    assert stats.crossing(STEPS, parent, curve(6, 4, 4, 4)).step == 0
    assert stats.crossing(STEPS, parent, curve(4, 4, 4, 6)).step == 100


def test_crossing_over_a_zero_parent_takes_the_first_event():
    c = stats.crossing(STEPS, np.zeros(20), curve(0, 0, 3, 10))
    assert (c.step, c.low, c.per_seed) == (30, 10, [30]), "no event up to step 10"
    rare = stats.crossing(STEPS, np.zeros(20), curve(0, 0, 4, 4))
    assert rare.high == math.inf, (
        "0 of 20 does not exclude a parent whose rate times 1.5 is 4 of 20"
    )
    assert stats.crossing(STEPS, np.zeros(20), curve(0, 0, 0, 0)).reached == 0


def test_first_below():
    refused = curve(20, 8, 1, 0)
    found = stats.first_below(STEPS, np.concatenate([refused] * 3), below=0.1)
    assert (found.step, found.per_seed, found.reached) == (30, [30, 30, 30], 1)
    assert (found.low, found.high) == (10, math.inf)  # 0 of 20 leaves more than 10 %
    assert stats.first_below(STEPS, np.tile(refused, (3, 1, 20)), below=0.1).high == 30
    never = stats.first_below(STEPS, curve(20, 20, 20, 20))
    assert (never.step, never.low, never.high, never.reached) == (math.inf, 100, math.inf, 0)
    at_once = stats.first_below(STEPS, curve(0, 0, 0, 0))
    assert (at_once.step, at_once.low) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "sd_seed"), [(1, 0.0), (3, 0.5), (5, 0.8)])
def test_the_step_of_few_events_is_held(seeds, sd_seed):
    rng, n, hits = np.random.default_rng(23), 150, 0
    steps, level = np.array([0, 3, 10, 30, 100]), np.array([2.0, 0.0, -2.6, -4.5, -7.0])
    sd = math.hypot(1.0, sd_seed)
    truth = np.array([mean_rate(a, sd if k else 1.0) for k, a in enumerate(level)])
    first = int(np.argmax(truth < 0.1))
    for _ in range(n):
        run = sd_seed * rng.standard_normal((seeds, 1, 1))
        y = drawn(rng, level[None, :, None] + rng.standard_normal(150) + run)
        y[:, 0] = y[0, 0]
        found = stats.first_below(steps, y, below=0.1, resamples=200)
        hits += found.low <= steps[first - 1] and steps[first] <= found.high
    assert hits / n >= 0.93


def test_one_prompt():
    assert stats.rate([1]).low < 0.25
    repeated = stats.rate([1, 0, 1, 1], ["a"] * 4)
    assert (repeated.events, repeated.n) == (3, 4)
    assert (repeated.low, repeated.high) == pytest.approx(
        (0.1179, 0.9854), abs=1e-4
    )  # Wilson, 0.75 at n = 1
    for seeds in (1, 2, 5):
        r = stats.paired([0], np.ones((seeds, 1)))
        assert (r.ratio, r.mcnemar_p) == (math.inf, 1)
        assert stats.bands(np.ones((seeds, 2, 1))).low.max() < 0.25


def test_one_seed_says_what_it_is_conditional_on():
    rng = np.random.default_rng(20)
    old, new = rng.integers(0, 2, 60), rng.integers(0, 2, (3, 60))
    assert "conditional on this run" in stats.paired(old, new[0]).method
    assert "conditional on these 2 runs" in stats.paired(old, new[:2]).method
    assert "conditional" not in stats.paired(old, new).method
    assert "3 seeds x 60 clusters" in stats.paired(old, new).method
    assert stats.bands(new[:1, None]).kind == "pointwise, conditional on this run"
    assert stats.bands(np.stack([new, new], axis=1)).kind == "simultaneous"
    one, two_level = stats.rate(new[0]), stats.rate(new[:1])
    assert (one.low, one.high) == (two_level.low, two_level.high)
    assert "conditional on this run" in two_level.method


def everything(parent, child, cluster, seed=0):
    """Every number of every estimator on one table [S, K, P]."""
    b = stats.bands(child, cluster=cluster, seed=seed, resamples=200)
    c = stats.crossing(
        np.arange(child.shape[1]), parent, child, cluster=cluster, seed=seed, resamples=200
    )
    p = stats.paired(parent, child[:, -1], cluster=cluster)
    r = stats.rate(child[:, 1], cluster=cluster)
    numbers = [
        p.difference_low,
        p.difference_high,
        p.ratio_low,
        p.ratio_high,
        p.mcnemar_p,
        r.low,
        r.high,
    ]
    return np.array([*b.low, *b.high, *b.low_pointwise, c.step, c.low, c.high, c.reached, *numbers])


def test_order_of_prompts_and_names_of_clusters_do_not_matter():
    rng = np.random.default_rng(30)
    cluster = rng.integers(0, 40, 120)
    parent, child = drawn(rng, np.full(120, -2.0)), drawn(rng, rng.standard_normal((5, 4, 120)))
    child[rng.random(child.shape) < 0.05] = np.nan
    want = everything(parent, child, cluster)
    order = rng.permutation(120)
    names = np.array([f"prompt {i}" for i in rng.permutation(40)])
    assert everything(parent, child, cluster, seed=0) == pytest.approx(want, abs=0)
    got = everything(parent[order], child[..., order], names[cluster][order])
    assert got == pytest.approx(want, rel=1e-12)
    assert not np.array_equal(everything(parent, child, cluster, seed=1), want)


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda: stats.bands([0, 1]), "events_shape"),
        (lambda: stats.crossing([0, 0], [0, 1], np.ones((1, 2, 2))), "steps_do_not_fit"),
        (lambda: stats.crossing([0, 1], [0], np.ones((1, 2, 2))), "parent_does_not_fit"),
        (lambda: stats.crossing([0, 1], [0, 1], np.ones((1, 2, 2)), ratio=0), "wrong_ratio"),
        (lambda: stats.first_below([0], np.ones((1, 2, 2))), "steps_do_not_fit"),
        (lambda: stats.first_below([0, 1], np.ones((1, 2, 2)), below=0), "wrong_level"),
    ],
)
def test_wrong_curves(call, code):
    with raises_code(code):
        call()
