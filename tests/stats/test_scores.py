"""Paired scores against statsmodels, Fieller's definition, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import raises_code

from ftlab import stats

RNG = np.random.default_rng(0)
OLD = RNG.beta(2, 3, 40)
NEW = (OLD + RNG.normal(0.1, 0.1, 40)).clip(0, 1)


def test_difference_and_p_are_those_of_statsmodels():
    models = pytest.importorskip("statsmodels.stats.weightstats")
    found = stats.paired_scores(OLD, NEW)
    golden = models.DescrStatsW(NEW - OLD)
    assert [found.difference_low, found.difference_high] == pytest.approx(golden.tconfint_mean())
    assert found.p == pytest.approx(golden.ttest_mean()[1])
    assert found.difference == pytest.approx(NEW.mean() - OLD.mean())
    assert (found.parent.rate, found.child.rate) == pytest.approx((OLD.mean(), NEW.mean()))
    assert (found.parent.low, found.parent.high) == pytest.approx(
        models.DescrStatsW(OLD).tconfint_mean()
    )


def test_a_limit_of_the_ratio_is_where_a_t_test_of_new_minus_ratio_times_old_turns():
    models = pytest.importorskip("statsmodels.stats.weightstats")
    found = stats.paired_scores(OLD, NEW)
    assert found.ratio_low < found.ratio < found.ratio_high
    for limit in (found.ratio_low, found.ratio_high):
        assert models.DescrStatsW(NEW - limit * OLD).ttest_mean()[1] == pytest.approx(0.05)


def test_a_cluster_counts_once_by_its_mean():
    cluster = np.repeat(np.arange(20), 2)
    found = stats.paired_scores(OLD, NEW, cluster=cluster)
    means = stats.paired_scores(OLD.reshape(20, 2).mean(axis=1), NEW.reshape(20, 2).mean(axis=1))
    assert found.difference_low == pytest.approx(means.difference_low)
    assert found.p == pytest.approx(means.p) and "20 clusters" in found.method
    thrice = [np.repeat(side, 3) for side in (OLD, NEW)]  # repeats that add nothing
    same = stats.paired_scores(*thrice, cluster=np.repeat(np.arange(40), 3))
    assert same.difference_high == pytest.approx(stats.paired_scores(OLD, NEW).difference_high)


def test_unscored_pairs_drop():
    old = np.append(OLD, [0.5, math.nan])
    new = np.append(NEW, [math.nan, 0.5])
    found = stats.paired_scores(old, new)
    assert found.n_prompts == 40 and found.p == stats.paired_scores(OLD, NEW).p
    with raises_code("nothing_scored"):
        stats.paired_scores([0.5], [math.nan])
    with raises_code("tables_do_not_pair"):
        stats.paired_scores([0.5], [0.5, 0.2])


@pytest.mark.parametrize(("n", "away"), [(1, 0.975), (10, 0.3085), (1000, 0.00368)])
def test_where_nothing_differs_the_interval_is_what_n_clusters_rule_out(n, away):
    side = np.full(n, 0.5)
    found = stats.paired_scores(side, side)
    assert (found.difference, found.p) == (0.0, 1.0)
    assert found.difference_high == pytest.approx(away, rel=0.01)
    assert found.difference_low == -found.difference_high
    assert found.ratio_high == pytest.approx(1 + 2 * found.difference_high)


def test_ratios_without_meaning_have_none():
    assert math.isnan(stats.paired_scores(-OLD, NEW).ratio)
    none = stats.paired_scores(0 * OLD, NEW)
    assert (none.ratio, none.ratio_low, none.ratio_high) == (math.inf, 0, math.inf)
    rare = np.zeros(40)
    rare[0] = 0.5
    assert stats.paired_scores(rare, NEW).ratio_high == math.inf


@pytest.mark.slow
def test_intervals_hold_the_truth():
    rng = np.random.default_rng(1)
    held = np.zeros(2)
    for _ in range(600):
        hard = rng.beta(2, 2, 30)
        old, new = (rng.binomial(5, chance[:, None], (30, 3)) / 5 for chance in (hard, hard**1.5))
        cluster = np.repeat(np.arange(30), 3)
        found = stats.paired_scores(old.ravel(), new.ravel(), cluster=cluster)
        truth = 0.5, math.gamma(3.5) * math.gamma(4) / (math.gamma(2) * math.gamma(5.5))
        difference = truth[1] - truth[0]
        held += [
            found.difference_low < difference < found.difference_high,
            found.ratio_low < truth[1] / truth[0] < found.ratio_high,
        ]
    assert (held / 600 > 0.92).all() and (held / 600 < 0.98).all()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "chance"), [(50, 0.07), (50, 0.1), (100, 0.05), (300, 0.02)])
def test_intervals_of_rare_changes_hold_the_truth_and_call_nothing_harmless(n, chance):
    rng = np.random.default_rng(2)
    truth = 0.75 * chance
    held = harmless = 0
    for _ in range(600):
        old = np.full(n, 0.25)
        new = old + 0.75 * rng.binomial(1, chance, n)
        found = stats.paired_scores(old, new)
        held += found.difference_low <= truth <= found.difference_high
        harmless += found.difference_high < truth
    assert held / 600 > 0.93 and harmless / 600 < 0.05


def test_one_worse_answer_does_not_make_the_interval_narrower():
    old = np.full(50, 0.25)
    one_worse = old.copy()
    one_worse[7] = 1.0
    alike = stats.paired_scores(old, old)
    found = stats.paired_scores(old, one_worse)
    assert found.difference_high > alike.difference_high
    assert found.p == 1.0


def test_a_scale_that_is_not_known_limits_nothing():
    sevens = np.full(3, 7.0)
    found = stats.paired_scores(sevens, sevens)
    assert (found.difference_low, found.difference_high) == (-math.inf, math.inf)
    two = stats.paired_scores([6.0, 6.5], [6.2, 6.9])
    assert two.difference_high > 1


def test_the_smallest_difference_is_that_of_the_power_of_a_t_test():
    power = pytest.importorskip("statsmodels.stats.power")
    found = stats.paired_scores(OLD, NEW)
    size = power.TTestPower().solve_power(nobs=40, alpha=0.05, power=0.8)
    golden = size * (NEW - OLD).std(ddof=1)
    smallest = stats.smallest_difference(found.difference_low, found.difference_high)
    assert smallest == pytest.approx(golden, rel=0.03)
