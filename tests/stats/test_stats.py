"""Golden values (papers, statsmodels, code written anew here), coverage by simulation, edges, invariances.

python -m pytest tests/test_stats.py
"""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from ftlab.stats import curves
from ftlab.stats import rates as stats

GRID = np.linspace(-7, 7, 401)
WEIGHT = np.exp(-(GRID**2) / 2) / np.exp(-(GRID**2) / 2).sum()


def logistic(x):
    return 1 / (1 + np.exp(-x))


def mean_rate(logit: float, sd: float) -> float:
    return float((WEIGHT * logistic(logit + sd * GRID)).sum())


def logit_for(rate: float, sd: float) -> float:
    low, high = -60.0, 60.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_rate(middle, sd) < rate else (low, middle)
    return low


def drawn(rng, logits) -> np.ndarray:
    return (rng.random(np.shape(logits)) < logistic(logits)).astype(float)


def from_table(both: int, gained: int, lost: int, neither: int):
    sizes = [both, gained, lost, neither]
    return np.repeat([1, 0, 1, 0], sizes), np.repeat([1, 1, 0, 0], sizes)


def covers(low, value, high) -> bool:
    return low <= value <= high


# Golden values


@pytest.mark.parametrize(("events", "n", "confidence"), [(0, 10, 0.95), (37, 99, 0.9), (9, 9, 0.99)])
def test_rate_is_wilson(events, n, confidence):
    from statsmodels.stats.proportion import proportion_confint

    r = stats.rate([1] * events + [0] * (n - events), confidence=confidence)
    want = proportion_confint(events, n, alpha=1 - confidence, method="wilson")
    assert (r.low, r.high) == pytest.approx(want, abs=1e-9)
    assert (r.events, r.n, r.rate) == (events, n, events / n)


def test_hundred_of_hundred_leaves_3_7_points():
    assert stats.rate(np.ones(100)).low == pytest.approx(0.963, abs=5e-4)


# Cavo et al. 2012 (response before and after consolidation), worked example of Fagerland, Lydersen & Laake;
# limits as the tests of their R package contingencytables give them.
CAVO = {"both": 59, "gained": 6, "lost": 16, "neither": 80}


def test_published_paired_example():
    r = stats.paired(*from_table(**CAVO))
    assert (r.both, r.gained, r.lost, r.neither) == (59, 6, 16, 80)
    assert (r.ratio, r.ratio_low, r.ratio_high) == pytest.approx((0.8667, 0.7579, 0.9910), abs=5e-5)
    limits = (r.difference, r.difference_low, r.difference_high)
    assert limits == pytest.approx((-0.0621, -0.1186, -0.0046), abs=5e-5)
    assert r.mcnemar_p == pytest.approx(0.052479, abs=1e-6)


def test_published_mover_ratio():
    r = stats.paired(*from_table(**CAVO))
    phi = (59 * 80 - 16 * 6) / math.sqrt(65 * 96 * 75 * 86)  # theirs has no continuity correction
    assert stats._mover(r.child, r.parent, phi)[1] == pytest.approx((0.7592, 0.9866), abs=5e-5)


def test_mcnemar_is_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar

    for gained, lost in [(0, 0), (1, 0), (5, 5), (9, 2), (3, 40)]:
        want = mcnemar([[7, lost], [gained, 11]], exact=True).pvalue
        assert stats.paired(*from_table(7, gained, lost, 11)).mcnemar_p == pytest.approx(want, abs=1e-12)


def test_clustered_rate_is_the_cluster_robust_regression():
    from scipy.stats import t as student
    from statsmodels.regression.linear_model import OLS

    rng = np.random.default_rng(3)
    cluster = rng.integers(0, 25, 400)  # unequal sizes
    y = drawn(rng, 1.5 * rng.standard_normal(25)[cluster])
    fit = OLS(y, np.ones(400)).fit(cov_type="cluster", cov_kwds={"groups": cluster})
    p, n = y.mean(), y.mean() * (1 - y.mean()) / fit.bse[0] ** 2
    q = student.ppf(0.975, 24)
    half = q * math.sqrt(p * (1 - p) / n + q**2 / 4 / n**2)
    r = stats.rate(y, cluster)
    assert r.low == pytest.approx((p + q**2 / 2 / n - half) / (1 + q**2 / n), abs=1e-9)
    assert r.high == pytest.approx((p + q**2 / 2 / n + half) / (1 + q**2 / n), abs=1e-9)
    assert "25 clusters" in r.method


def test_two_level_variance_is_the_crossed_anova():
    rng = np.random.default_rng(4)
    s, p = 6, 30
    y = drawn(rng, rng.standard_normal(p) + rng.standard_normal((s, 1)))
    grand, seed_mean, prompt_mean = y.mean(), y.mean(axis=1), y.mean(axis=0)
    squares = {"seed": 0.0, "prompt": 0.0, "cell": 0.0}
    for i, j in itertools.product(range(s), range(p)):
        squares["seed"] += (seed_mean[i] - grand) ** 2
        squares["prompt"] += (prompt_mean[j] - grand) ** 2
        squares["cell"] += (y[i, j] - seed_mean[i] - prompt_mean[j] + grand) ** 2
    free = {"seed": s - 1, "prompt": p - 1, "cell": (s - 1) * (p - 1)}
    of_mean = {name: squares[name] / free[name] / (s * p) for name in free}
    variance = of_mean["seed"] + of_mean["prompt"] - of_mean["cell"]
    df = variance**2 / sum(of_mean[name] ** 2 / free[name] for name in free)
    parts = stats._parts(y[None], None)
    assert parts.cov[0, 0] == pytest.approx(variance)
    assert parts.df[0] == pytest.approx(df)
    # The bootstrap draws have that variance and that mean.
    draws = curves._draw(parts, 20000, 0)
    assert draws.var() == pytest.approx(variance, rel=0.05)
    assert draws.mean() == pytest.approx(y.mean(), abs=0.005)


def test_upper_bound_is_clopper_pearson():
    from statsmodels.stats.proportion import proportion_confint

    for n in (1, 20, 100):
        want = proportion_confint(0, n, alpha=0.1, method="beta")[1]
        assert stats.upper_bound_when_none(n) == pytest.approx(want, abs=1e-9)
    assert stats.upper_bound_when_none(100) < 0.03


def test_holm_by_hand():
    assert stats.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm([]) == []


# Coverage: nominal 95 %


def test_repeats_are_not_prompts():
    rng, ours, pooled, n = np.random.default_rng(10), 0, 0, 600
    logit, cluster = logit_for(0.3, 2.0), np.repeat(np.arange(100), 10)
    for _ in range(n):
        y = drawn(rng, np.repeat(logit + 2.0 * rng.standard_normal(100), 10))
        r, naive = stats.rate(y, cluster), stats.rate(y)
        ours, pooled = ours + covers(r.low, 0.3, r.high), pooled + covers(naive.low, 0.3, naive.high)
    assert 0.92 <= ours / n <= 0.97
    assert pooled / n < 0.8


def paired_coverage(rng, parent, child, *, seeds, prompts, sd_seed, sd_prompt=1.5, repeats=1, n=500):
    """Shares of n simulated studies whose intervals hold the true difference, ratio and child's rate."""
    a, b = logit_for(parent, sd_prompt), logit_for(child, math.hypot(sd_prompt, sd_seed))
    cluster, hits = np.repeat(np.arange(prompts // repeats), repeats), np.zeros(3)
    for _ in range(n):
        hard = np.repeat(sd_prompt * rng.standard_normal(prompts // repeats), repeats)
        new = drawn(rng, b + hard + sd_seed * rng.standard_normal((seeds, 1)))
        r = stats.paired(drawn(rng, a + hard), new, cluster=cluster)
        hits += [
            covers(r.difference_low, child - parent, r.difference_high),
            covers(r.ratio_low, child / parent, r.ratio_high),
            covers(r.child.low, child, r.child.high),
        ]
    return hits / n


@pytest.mark.parametrize(("parent", "child"), [(0.007, 0.2), (0.2, 0.5)])
def test_one_seed_covers(parent, child):
    got = paired_coverage(np.random.default_rng(11), parent, child, seeds=1, prompts=100, sd_seed=0)
    assert ((got >= 0.925) & (got <= 0.985)).all()


@pytest.mark.parametrize("sd_seed", [0.5, 0.8])
@pytest.mark.parametrize(("parent", "child", "prompts"), [(0.007, 0.2, 100), (0.1, 0.5, 100), (0.1, 0.5, 300)])
def test_five_seeds_cover(parent, child, prompts, sd_seed):
    rng = np.random.default_rng(12)
    got = paired_coverage(rng, parent, child, seeds=5, prompts=prompts, sd_seed=sd_seed)
    assert ((got >= 0.92) & (got <= 0.98)).all()


def test_clusters_of_prompts_and_seeds_cover():
    got = paired_coverage(np.random.default_rng(13), 0.1, 0.4, seeds=5, prompts=200, sd_seed=0.5, repeats=4)
    assert ((got >= 0.92) & (got <= 0.98)).all()


def test_prompts_alone_do_not_cover_the_fine_tuning():
    rng, n, hits = np.random.default_rng(14), 300, 0
    logit, cluster = logit_for(0.4, math.hypot(1.5, 0.8)), np.tile(np.arange(200), 5)
    for _ in range(n):
        y = drawn(rng, logit + 1.5 * rng.standard_normal(200) + 0.8 * rng.standard_normal((5, 1)))
        r = stats.rate(y.ravel(), cluster)
        hits += covers(r.low, 0.4, r.high)
    assert hits / n < 0.75


def test_band_holds_the_whole_curve_where_pointwise_does_not():
    rng, n, steps = np.random.default_rng(15), 250, 8
    level, rise = np.linspace(-3, 2, steps), np.linspace(0, 1, steps)
    truth = np.array([mean_rate(a, math.hypot(1.5, 0.8 * f)) for a, f in zip(level, rise, strict=True)])
    whole = pointwise = 0
    for _ in range(n):
        run = 0.8 * rng.standard_normal((5, 1, 1)) * rise[None, :, None]
        y = drawn(rng, level[None, :, None] + 1.5 * rng.standard_normal(100) + run)
        y[:, 0] = y[0, 0]  # the parent, measured once
        b = curves.bands(y, resamples=300)
        whole += ((b.low <= truth) & (truth <= b.high)).all()
        pointwise += ((b.low_pointwise <= truth) & (truth <= b.high_pointwise)).all()
    assert whole / n >= 0.91
    assert pointwise / n < 0.88


@pytest.mark.parametrize("seeds", [3, 5])
def test_crossing_covers(seeds):
    rng, n, steps = np.random.default_rng(16), 200, np.array([0, 10, 30, 70, 150, 300])
    rise = np.sqrt(steps / 300)
    level = -2.0 + 3.0 * rise
    truth = np.array([mean_rate(a, math.hypot(1.0, f)) for a, f in zip(level, rise, strict=True)])
    k = int(np.argmax(truth >= 3 * truth[0]))
    part = (3 * truth[0] - truth[k - 1]) / (truth[k] - truth[k - 1])
    where, hits = steps[k - 1] + part * (steps[k] - steps[k - 1]), 0
    for _ in range(n):
        run = rng.standard_normal((seeds, 1, 1)) * rise[None, :, None]
        y = drawn(rng, level[None, :, None] + rng.standard_normal(150) + run)
        y[:, 0] = y[0, 0]  # the parent, measured once
        c = curves.crossing(steps, y[0, 0], y, ratio=3, resamples=300)
        hits += covers(c.low, where, c.high)
    assert hits / n >= 0.91


# Edge tables


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_edge_tables(seeds):
    none, some, all_ = np.zeros(50), np.repeat([1.0, 0.0], 25), np.ones(50)
    for old, new in itertools.product((none, some, all_), repeat=2):
        r = stats.paired(old, np.tile(new, (seeds, 1)))
        assert -1 <= r.difference_low <= r.difference <= r.difference_high <= 1
        assert r.difference_low < r.difference_high, "no table of 50 prompts is certain"
        assert (r.parent.n, r.child.n, r.n_prompts, r.n_seeds) == (50, 50 * seeds, 50, seeds)
        if old is none and new is none:
            assert math.isnan(r.ratio)
            assert (r.ratio_low, r.ratio_high) == (0, math.inf)
        else:
            assert 0 <= r.ratio_low <= r.ratio <= r.ratio_high
            assert math.isinf(r.ratio) == math.isinf(r.ratio_high) == (old is none)
        assert r.both + r.lost + r.gained + r.neither == 50 * seeds


def test_zero_parent_gives_a_real_lower_bound():
    one, five = (stats.paired(np.zeros(100), np.ones((s, 100))) for s in (1, 5))
    for r in (one, five):
        assert 20 < r.ratio_low < 1 / stats.upper_bound_when_none(100)
        assert "ratio >= 2" in stats.describe(r)


def test_all_alike_over_seeds_is_no_better_than_the_prompts():
    r = stats.two_level_rate(np.ones((5, 40)))
    assert (r.low, r.high) == pytest.approx((stats.rate(np.ones(40)).low, 1))
    assert (r.events, r.n) == (200, 200)
    assert "n = 40 clusters" in r.method


def test_one_prompt():
    assert stats.rate([1]).low < 0.25
    repeated = stats.rate([1, 0, 1, 1], ["a"] * 4)
    assert (repeated.events, repeated.n) == (3, 4)
    assert (repeated.low, repeated.high) == pytest.approx((0.1179, 0.9854), abs=1e-4)  # Wilson, 0.75 at n = 1
    for seeds in (1, 2, 5):
        r = stats.paired([0], np.ones((seeds, 1)))
        assert (r.ratio, r.mcnemar_p) == (math.inf, 1)
        assert curves.bands(np.ones((seeds, 2, 1))).low.max() < 0.25


def test_one_seed_says_what_it_is_conditional_on():
    rng = np.random.default_rng(20)
    old, new = rng.integers(0, 2, 60), rng.integers(0, 2, (3, 60))
    assert "conditional on this run" in stats.paired(old, new[0]).method
    assert "conditional on these 2 runs" in stats.paired(old, new[:2]).method
    assert "conditional" not in stats.paired(old, new).method
    assert "3 seeds x 60 clusters" in stats.paired(old, new).method
    assert curves.bands(new[:1, None]).kind == "pointwise, conditional on this run"
    assert curves.bands(np.stack([new, new], axis=1)).kind == "simultaneous"
    one, two_level = stats.rate(new[0]), stats.two_level_rate(new[:1])
    assert (one.low, one.high) == (two_level.low, two_level.high)
    assert "conditional on this run" in two_level.method


def test_mcnemar_over_seeds():
    old, up, down = np.repeat([0, 1], 20), np.ones(40), np.zeros(40)
    r = stats.paired(old, [up, up, np.repeat([0, 1, 1], [15, 5, 20])])
    assert r.mcnemar_per_seed == pytest.approx((2**-19, 2**-19, 2**-4))
    assert r.mcnemar_p == max(r.mcnemar_per_seed)
    assert stats.paired(old, [up, down]).mcnemar_p == 1, "runs that disagree show nothing"
    variants = stats.paired(np.zeros(40), up, cluster=np.repeat(np.arange(4), 10))
    assert variants.mcnemar_p == pytest.approx(2**-3), "four prompts, whatever the number of their variants"


def test_band_at_the_ends_is_bonferroni_on_clusters():
    y = np.zeros((3, 4, 30))
    y[:, 3] = 1
    b = curves.bands(y)
    want = stats.rate(np.zeros(30), confidence=1 - 0.05 / 4)
    assert b.low[:3] == pytest.approx(0)
    assert b.high[:3] == pytest.approx(want.high)
    assert b.high_pointwise[0] == pytest.approx(stats.rate(np.zeros(30)).high)
    assert (b.low[3], b.high[3]) == pytest.approx((1 - want.high, 1))


# Crossing

STEPS = [0, 10, 30, 100]


def curve(*rates) -> np.ndarray:
    """[1, K, 20] with exactly these numbers of events in 20."""
    return np.array([[[1.0] * k + [0.0] * (20 - k) for k in rates]])


def test_crossing_interpolates_and_repeats_per_seed():
    parent = curve(4)[0, 0]
    c = curves.crossing(STEPS, parent, np.concatenate([curve(4, 4, 8, 20), curve(4, 8, 8, 8)]), ratio=1.5)
    assert c.per_seed == pytest.approx([20, 5])  # 6 of 20 is half way from 4 to 8
    assert c.step == pytest.approx(10)  # both together: 4, 6
    assert c.low <= c.step <= c.high
    never = curves.crossing(STEPS, parent, curve(4, 4, 4, 4))
    assert (never.step, never.high, never.per_seed) == (math.inf, math.inf, [math.inf])
    assert never.reached < 0.5
    assert curves.crossing(STEPS, parent, curve(6, 4, 4, 4)).step == 0
    assert curves.crossing(STEPS, parent, curve(4, 4, 4, 6)).step == 100


def test_crossing_over_a_zero_parent_takes_the_first_event():
    c = curves.crossing(STEPS, np.zeros(20), curve(0, 0, 3, 10))
    assert (c.step, c.low, c.per_seed) == (30, 30, [30]), "no event up to step 10"
    rare = curves.crossing(STEPS, np.zeros(20), curve(0, 0, 4, 4))
    assert rare.high == math.inf, "0 of 20 does not exclude a parent whose rate times 1.5 is 4 of 20"
    assert curves.crossing(STEPS, np.zeros(20), curve(0, 0, 0, 0)).reached == 0


def test_first_all():
    done = np.ones((1, 4, 20))
    done[:, :2, 5] = 0
    late = done.copy()
    late[:, 2, 7] = 0
    never = np.zeros((1, 4, 20))
    c = curves.first_all(STEPS, np.concatenate([done, late, never]))
    assert (c.per_seed, c.step, c.low, c.high) == ([30, 100, math.inf], 100, 30, math.inf)
    assert c.reached == pytest.approx(2 / 3)
    five = curves.first_all(STEPS, np.concatenate([done, done, done, done, late]))
    assert (five.step, five.low) == (30, 30)
    assert five.high in (30, 100)
    assert curves.first_all(STEPS, np.concatenate([never, never, done])).step == math.inf
    done[0, 2, 3] = np.nan
    assert curves.first_all(STEPS, done).step == 30, "an unscored prompt neither reaches nor blocks"
    done[0, 2] = np.nan
    assert curves.first_all(STEPS, done).step == 100, "a step without any scored prompt is not reached"


# Invariances


def everything(parent, child, cluster, seed=0):
    """Every number of every estimator on one table [S, K, P]."""
    b = curves.bands(child, cluster=cluster, seed=seed, resamples=200)
    c = curves.crossing(np.arange(child.shape[1]), parent, child, cluster=cluster, seed=seed, resamples=200)
    p = stats.paired(parent, child[:, -1], cluster=cluster)
    r = stats.two_level_rate(child[:, 1], cluster=cluster)
    numbers = [p.difference_low, p.difference_high, p.ratio_low, p.ratio_high, p.mcnemar_p, r.low, r.high]
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


def test_order_of_seeds_does_not_matter_and_clusters_of_one_are_none():
    rng = np.random.default_rng(31)
    parent, child = rng.integers(0, 2, 50), rng.integers(0, 2, (4, 50))
    want = stats.paired(parent, child)
    got = stats.paired(parent, child[::-1], cluster=np.arange(50)[::-1])
    assert (got.ratio_low, got.difference_high) == pytest.approx((want.ratio_low, want.difference_high))
    assert stats.rate(parent, np.arange(50)) == stats.rate(parent)


def test_a_parent_given_once_is_the_same_parent_for_every_seed():
    rng = np.random.default_rng(32)
    parent, child = rng.integers(0, 2, 50), rng.integers(0, 2, (5, 50))
    once, tiled = stats.paired(parent, child), stats.paired(np.tile(parent, (5, 1)), child)
    assert (once.ratio_low, once.difference_low) == pytest.approx((tiled.ratio_low, tiled.difference_low))
    assert (once.parent.n, tiled.parent.n) == (50, 250)


def test_swapping_parent_and_child_turns_the_signs():
    r = stats.paired(*from_table(**CAVO))
    back = stats.paired(*reversed(from_table(**CAVO)))
    assert back.difference_low == pytest.approx(-r.difference_high)
    assert back.difference_high == pytest.approx(-r.difference_low)
    assert (back.ratio_low, back.ratio_high) == pytest.approx((1 / r.ratio_high, 1 / r.ratio_low))


def test_identical_seeds_bring_nothing():
    rng = np.random.default_rng(33)
    y = rng.integers(0, 2, 80).astype(float)
    one, five = stats.rate(y), stats.two_level_rate(np.tile(y, (5, 1)))
    assert (five.low, five.high) == pytest.approx((one.low, one.high), abs=5e-3)


# Unscored answers


def test_unscored_leaves_the_count():
    r = stats.rate([1, np.nan, 0, 0, np.nan])
    assert (r.events, r.n, r.rate) == (1, 3, 1 / 3)
    assert stats.rate([True, None, False]).n == 2


def test_unscored_drops_the_pair_in_its_seed_only():
    nan = np.nan
    r = stats.paired([1, 0, 0, nan], [[1, 1, nan, 1], [1, nan, 0, 1]])
    assert (r.both, r.gained, r.lost, r.neither) == (2, 1, 0, 1)
    assert (r.child.events, r.child.n, r.parent.events, r.parent.n, r.n_prompts) == (3, 4, 1, 3, 3)
    assert r.difference == pytest.approx(r.child.rate - r.parent.rate)


def test_dropping_a_prompt_is_the_same_as_leaving_it_unscored():
    rng = np.random.default_rng(34)
    parent, child = rng.integers(0, 2, 60), rng.integers(0, 2, (5, 60)).astype(float)
    short = stats.paired(parent[:50], child[:, :50])
    child[:, 50:] = np.nan
    long = stats.paired(parent, child)
    assert (long.ratio_low, long.difference_high) == pytest.approx((short.ratio_low, short.difference_high))


# Errors and text


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: stats.rate([]), "no values"),
        (lambda: stats.rate([np.nan]), "no scored answer"),
        (lambda: stats.rate([0, 2, 0.5]), r"\[0.5, 2.0\].*0, 1 and NaN"),
        (lambda: stats.rate(["safe"]), "no table of numbers"),
        (lambda: stats.rate([[0, 1]]), r"shape \(1, 2\)"),
        (lambda: stats.rate([0, 1], ["a"]), "cluster has shape"),
        (lambda: stats.rate([0, 1], confidence=95), "confidence is 95"),
        (lambda: stats.two_level_rate([[0, 1], [np.nan, np.nan]]), r"no scored answer at .*\[\[0, 1\]\]"),
        (lambda: stats.paired([0, 1], [0, 1, 1]), "do not pair"),
        (lambda: stats.paired([[0, 1]] * 2, [[0, 1]] * 3), "do not pair"),
        (lambda: stats.paired([0, np.nan], [np.nan, 1]), "no scored answer"),
        (lambda: curves.bands([0, 1]), "shape"),
        (lambda: curves.crossing([0, 0], [0, 1], np.ones((1, 2, 2))), "increasing"),
        (lambda: curves.crossing([0, 1], [0], np.ones((1, 2, 2))), "parent has 1 prompts"),
        (lambda: curves.crossing([0, 1], [0, 1], np.ones((1, 2, 2)), ratio=0), "positive ratio"),
        (lambda: curves.first_all([0], np.ones((1, 2, 2))), "increasing"),
        (lambda: stats.upper_bound_when_none(0), "at least one"),
    ],
)
def test_errors_say_what_was_found_and_what_is_allowed(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_describe():
    old = np.repeat([1, 0], [17, 183])
    new = np.repeat([1, 0], [143, 57])
    text = stats.describe(stats.paired(old, new), what="jail")
    assert text.startswith("jail 8.5 % -> 71.5 %: ratio 8.4 [")
    assert "difference +63 points [" in text
    assert text.endswith("McNemar p < 0.001 (200 prompts x 1 seed)")
    assert "ratio undefined" in stats.describe(stats.paired([0, 0], [0, 0]))
    assert "p = 1.000 (2 prompts x 3 seeds)" in stats.describe(stats.paired([0, 1], [[0, 1]] * 3))


def test_importing_it_costs_numpy_only():
    code = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('stats', sys.argv[1]); "
        "m = u.module_from_spec(s); sys.modules['stats'] = m; s.loader.exec_module(m); "
        "print({'scipy', 'statsmodels', 'pandas', 'torch'} & set(sys.modules))"
    )
    command = [sys.executable, "-c", code, stats.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_all_or_none_of_n_reaches_the_end_exactly_whatever_the_rounding():
    for n in range(1, 400):
        assert stats.rate(np.ones(n)).high == 1.0 and stats.rate(np.zeros(n)).low == 0.0
