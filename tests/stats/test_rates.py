"""Rates: golden values, coverage by simulation, edges, unscored answers."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from helpers import raises_code
from simulated_studies import covers, drawn, logit_for

from ftlab import stats
from ftlab.stats.curves import _resampled
from ftlab.stats.variance import estimate


@pytest.mark.parametrize(
    ("events", "n", "confidence"), [(0, 10, 0.95), (37, 99, 0.9), (9, 9, 0.99)]
)
def test_rate_is_wilson(events, n, confidence):
    from statsmodels.stats.proportion import proportion_confint

    r = stats.rate([1] * events + [0] * (n - events), confidence=confidence)
    want = proportion_confint(events, n, alpha=1 - confidence, method="wilson")
    assert (r.low, r.high) == pytest.approx(want, abs=1e-9)
    assert (r.events, r.n, r.rate) == (events, n, events / n)


def test_hundred_of_hundred_leaves_3_7_points():
    assert stats.rate(np.ones(100)).low == pytest.approx(0.963, abs=5e-4)


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
    parts = estimate(y[None])
    assert parts.cov[0, 0] == pytest.approx(variance)
    assert parts.df[0] == pytest.approx(df)
    # The bootstrap draws have that variance and that mean.
    draws = _resampled(parts, 20000, 0)
    assert draws.var() == pytest.approx(variance, rel=0.05)
    assert draws.mean() == pytest.approx(y.mean(), abs=0.005)


@pytest.mark.slow
def test_repeats_are_not_prompts():
    rng, ours, pooled, n = np.random.default_rng(10), 0, 0, 400  # Monte-Carlo error 1.1 points
    logit, cluster = logit_for(0.3, 2.0), np.repeat(np.arange(100), 10)
    for _ in range(n):
        y = drawn(rng, np.repeat(logit + 2.0 * rng.standard_normal(100), 10))
        r, naive = stats.rate(y, cluster), stats.rate(y)
        ours, pooled = (
            ours + covers(r.low, 0.3, r.high),
            pooled + covers(naive.low, 0.3, naive.high),
        )
    assert 0.92 <= ours / n <= 0.97
    assert pooled / n < 0.8


def test_prompts_alone_do_not_cover_the_fine_tuning():
    rng, n, hits = np.random.default_rng(14), 200, 0
    logit, cluster = logit_for(0.4, math.hypot(1.5, 0.8)), np.tile(np.arange(200), 5)
    for _ in range(n):
        y = drawn(rng, logit + 1.5 * rng.standard_normal(200) + 0.8 * rng.standard_normal((5, 1)))
        r = stats.rate(y.ravel(), cluster)
        hits += covers(r.low, 0.4, r.high)
    assert hits / n < 0.75


def test_all_alike_over_seeds_is_no_better_than_the_prompts():
    r = stats.rate(np.ones((5, 40)))
    assert (r.low, r.high) == pytest.approx((stats.rate(np.ones(40)).low, 1))
    assert (r.events, r.n) == (200, 200)
    assert "n = 40 clusters" in r.method


def test_none_and_all_of_n_reach_the_ends_exactly_whatever_the_rounding():
    n = np.arange(1, 400)
    assert (stats.wilson(np.zeros(399), n, 1.96)[0] == 0).all()
    assert (stats.wilson(np.ones(399), n, 1.96)[1] == 1).all()
    assert stats.rate(np.ones(37)).high == 1.0


def test_identical_seeds_bring_nothing():
    rng = np.random.default_rng(33)
    y = rng.integers(0, 2, 80).astype(float)
    one, five = stats.rate(y), stats.rate(np.tile(y, (5, 1)))
    assert (five.low, five.high) == pytest.approx((one.low, one.high), abs=5e-3)


def test_unscored_leaves_the_count():
    r = stats.rate([1, np.nan, 0, 0, np.nan])
    assert (r.events, r.n, r.rate) == (1, 3, 1 / 3)
    assert stats.rate([True, None, False]).n == 2


@pytest.mark.parametrize(
    ("events", "cluster", "code"),
    [
        ([], None, "events_empty"),
        ([np.nan], None, "nothing_scored"),
        ([0, 2, 0.5], None, "events_values"),
        (["safe"], None, "events_not_numeric"),
        ([[[0, 1]]], None, "events_shape"),
        ([0, 1], ["a"], "cluster_shape"),
        ([[0, 1], [np.nan, np.nan]], None, "nothing_scored"),
    ],
)
def test_wrong_events(events, cluster, code):
    with raises_code(code):
        stats.rate(events, cluster)


def test_wrong_levels_and_sizes():
    with raises_code("wrong_confidence"):
        stats.rate([0, 1], confidence=95)


def test_importing_costs_numpy_only():
    code = (
        "import sys; from ftlab.stats import rate, paired, bands, kappa; "
        "print({'scipy', 'statsmodels', 'pandas', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
