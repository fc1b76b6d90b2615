"""Child against parent: published examples, coverage by simulation, edges, invariances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from helpers import raises_code
from scipy.stats import ttest_1samp
from simulated_studies import covers, drawn, from_table, logit_for

from ftlab import stats
from ftlab.stats.comparison import _mover
from ftlab.stats.exact import exchange_p

# Cavo et al. 2012 (response before and after consolidation), example of Fagerland et al. 2014;
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
    assert _mover(r.child, r.parent, phi)[1] == pytest.approx((0.7592, 0.9866), abs=5e-5)


def test_mcnemar_is_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar

    for gained, lost in [(0, 0), (1, 0), (5, 5), (9, 2), (3, 40)]:
        want = mcnemar([[7, lost], [gained, 11]], exact=True).pvalue
        assert stats.paired(*from_table(7, gained, lost, 11)).mcnemar_p == pytest.approx(
            want, abs=1e-12
        )


def test_mcnemar_over_seeds():
    old, up, down = np.repeat([0, 1], 20), np.ones(40), np.zeros(40)
    r = stats.paired(old, [up, up, np.repeat([0, 1, 1], [15, 5, 20])])
    assert r.mcnemar_per_seed == pytest.approx((2**-19, 2**-19, 2**-4))
    assert r.mcnemar_p == max(r.mcnemar_per_seed)
    assert stats.paired(old, [up, down]).mcnemar_p == 1, "runs that disagree show nothing"
    variants = stats.paired(np.zeros(40), up, cluster=np.repeat(np.arange(4), 10))
    assert variants.mcnemar_p == pytest.approx(2**-3), (
        "four prompts, whatever the number of their variants"
    )


def p_values(parent, child, *, seeds, sd_seed, n=300, prompts=100):
    """Return p over seeds and prompts, and p in every run, of `n` simulated studies."""
    rng = np.random.default_rng(14)
    a, b = logit_for(parent, 1.5), logit_for(child, math.hypot(1.5, sd_seed))
    found = []
    for _ in range(n):
        hard = 1.5 * rng.standard_normal(prompts)
        new = drawn(rng, b + hard + sd_seed * rng.standard_normal((seeds, 1)))
        r = stats.paired(drawn(rng, a + hard), new)
        found.append((r.p, r.mcnemar_p))
    return np.array(found).T


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("rate", [0.06, 0.2])
def test_p_over_seeds_has_its_size(seeds, rate):
    p, _ = p_values(rate, rate, seeds=seeds, sd_seed=0.5)
    assert (p < 0.05).mean() <= 0.085  # .05, Monte-Carlo error 1.3 points
    assert (p < 0.05 / 9).mean() <= 0.025  # of the smallest of nine; where runs differ more: .05


@pytest.mark.slow
def test_p_over_seeds_gains_from_seeds_where_that_of_every_run_loses():
    power = []
    for seeds in (3, 10):
        power.append((p_values(0.06, 0.2, seeds=seeds, sd_seed=0.5) < 0.05).mean(axis=1))
    (few, few_in_every_run), (many, many_in_every_run) = power
    assert many > 0.95 > few > few_in_every_run > many_in_every_run


@pytest.mark.parametrize("seeds", [1, 2, 5])
def test_p_at_the_edges(seeds):
    none, all_ = np.zeros(20), np.ones(20)
    assert stats.paired(none, np.tile(none, (seeds, 1))).p == 1
    assert 0 < stats.paired(none, np.tile(all_, (seeds, 1))).p < 1e-5
    assert stats.paired(none, np.tile(all_, (seeds, 1)), cluster=np.repeat([0, 1], 10)).p == 0.5


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_p_does_not_fall_where_fewer_prompts_change_and_runs_repeated_are_no_evidence(seeds):
    for n in (4, 5, 6, 10):
        found = []
        for changed in (n, n - 1, n - 2):
            child = np.repeat([1, 0], [changed, n - changed])
            found.append(stats.paired(np.zeros(n), np.tile(child, (seeds, 1))).p)
        assert found == sorted(found)
    if seeds == 1:
        child = np.repeat([1, 0], [4, 96])
        assert stats.paired(np.zeros(100), np.tile(child, (seeds, 1))).p == 0.125


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.01, 0.06, 0.2, 0.9])
@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
def test_where_nothing_changed_p_is_rarely_small(rate, seeds):
    """Two runs have a rare event in one of them sooner than the parent has it once."""
    rng = np.random.default_rng(4)
    start = logit_for(rate, 1.5)
    small = worse = 0
    for _ in range(400):
        own, other = 1.5 * rng.standard_normal((2, 300))
        before = rng.random(300) < 1 / (1 + np.exp(-start - own))
        logits = start + 0.9 * own + math.sqrt(1 - 0.9**2) * other
        after = rng.random((seeds, 300)) < 1 / (1 + np.exp(-logits))
        found = stats.paired(before, after)
        small += found.p < 0.05
        worse += found.p < 0.05 and found.difference > 0
    assert small / 400 < 0.085  # three standard errors above .05
    assert worse / 400 < 0.05  # and above .025


def test_exchanging_one_run_with_its_parent_is_mcnemars_mid_p():
    from scipy.stats import binom

    before, after = (np.atleast_2d(side) for side in from_table(**CAVO))
    n = CAVO["gained"] + CAVO["lost"]
    p = 2 * (binom.cdf(CAVO["gained"], n, 0.5) - binom.pmf(CAVO["gained"], n, 0.5) / 2)
    assert exchange_p(before, after) == pytest.approx(p)
    missing = np.full(after.shape, math.nan)
    both = np.vstack([after, missing])
    assert exchange_p(np.vstack([before, missing]), both) == pytest.approx(p)


def test_p_of_one_run_is_mcnemars():
    r = stats.paired(*from_table(**CAVO))
    assert r.p == r.mcnemar_p


@pytest.mark.slow
def test_holm_by_hand():
    assert stats.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm([]) == []


def paired_coverage(
    rng, parent, child, *, seeds, prompts, sd_seed, sd_prompt=1.5, repeats=1, n=400
):
    """Return how often the intervals hold the true difference, ratio and child's rate.

    The Monte-Carlo error of a share of 95 % is 1.1 points.
    """
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


@pytest.mark.slow
@pytest.mark.parametrize(("parent", "child"), [(0.007, 0.2), (0.2, 0.5)])
def test_one_seed_covers(parent, child):
    got = paired_coverage(np.random.default_rng(11), parent, child, seeds=1, prompts=100, sd_seed=0)
    assert ((got >= 0.925) & (got <= 0.985)).all()


@pytest.mark.slow
@pytest.mark.parametrize("sd_seed", [0.5, 0.8])
@pytest.mark.parametrize(("parent", "child", "prompts"), [(0.007, 0.2, 100), (0.1, 0.5, 300)])
def test_five_seeds_cover(parent, child, prompts, sd_seed):
    rng = np.random.default_rng(12)
    got = paired_coverage(rng, parent, child, seeds=5, prompts=prompts, sd_seed=sd_seed)
    assert ((got >= 0.92) & (got <= 0.98)).all()


@pytest.mark.slow
def test_clusters_of_prompts_and_seeds_cover():
    got = paired_coverage(
        np.random.default_rng(13), 0.1, 0.4, seeds=5, prompts=200, sd_seed=0.5, repeats=4
    )
    assert ((got >= 0.92) & (got <= 0.98)).all()


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
        assert 20 < r.ratio_low < 1 / (1 - 0.05 ** (1 / 100))


def test_order_of_seeds_does_not_matter_and_clusters_of_one_are_none():
    rng = np.random.default_rng(31)
    parent, child = rng.integers(0, 2, 50), rng.integers(0, 2, (4, 50))
    want = stats.paired(parent, child)
    got = stats.paired(parent, child[::-1], cluster=np.arange(50)[::-1])
    assert (got.ratio_low, got.difference_high) == pytest.approx(
        (want.ratio_low, want.difference_high)
    )
    assert stats.rate(parent, np.arange(50)) == stats.rate(parent)


def test_a_parent_given_once_is_the_same_parent_for_every_seed():
    rng = np.random.default_rng(32)
    parent, child = rng.integers(0, 2, 50), rng.integers(0, 2, (5, 50))
    once, tiled = stats.paired(parent, child), stats.paired(np.tile(parent, (5, 1)), child)
    assert (once.ratio_low, once.difference_low) == pytest.approx(
        (tiled.ratio_low, tiled.difference_low)
    )
    assert (once.parent.n, tiled.parent.n) == (50, 250)


def test_swapping_parent_and_child_turns_the_signs():
    r = stats.paired(*from_table(**CAVO))
    back = stats.paired(*reversed(from_table(**CAVO)))
    assert back.difference_low == pytest.approx(-r.difference_high)
    assert back.difference_high == pytest.approx(-r.difference_low)
    assert (back.ratio_low, back.ratio_high) == pytest.approx((1 / r.ratio_high, 1 / r.ratio_low))


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
    assert (long.ratio_low, long.difference_high) == pytest.approx(
        (short.ratio_low, short.difference_high)
    )


@pytest.mark.parametrize(
    ("parent", "child", "code"),
    [
        ([0, 1], [0, 1, 1], "tables_do_not_pair"),
        ([[0, 1]] * 2, [[0, 1]] * 3, "tables_do_not_pair"),
        ([0, np.nan], [np.nan, 1], "nothing_scored"),
    ],
)
def test_tables_that_do_not_pair(parent, child, code):
    with raises_code(code):
        stats.paired(parent, child)


def test_p_of_seeds_is_students_t_of_the_seeds_own_differences():
    rng = np.random.default_rng(4)
    before = (rng.random((4, 60)) < 0.3).astype(float)
    after = (rng.random((4, 60)) < [[0.4], [0.5], [0.6], [0.7]]).astype(float)
    after[2, :5] = np.nan
    found = stats.paired(before, after)
    differences = [np.nanmean(after[seed] - before[seed]) for seed in range(4)]
    assert found.p_of_seeds == pytest.approx(ttest_1samp(differences, 0).pvalue)
    assert math.isnan(stats.paired(before[:2], after[:2]).p_of_seeds)
    assert stats.paired(before, before).p_of_seeds == 1
