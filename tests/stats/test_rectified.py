"""Rates corrected by labels: coverage by simulation, and exact cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import raises_code
from simulated_studies import covers, drawn, logit_for, mean_rate

from ftlab import stats

# Share of compliant and of refusing answers that the judge calls compliant, of parent and child:
# its card on XSTest (model left out), trained without XSTest, and Do-Not-Answer; and a judge whose
# errors change with the child.
JUDGES = {
    "perfect": ((1.0, 0.0), (1.0, 0.0)),
    "XSTest": ((0.94, 0.05), (0.94, 0.05)),
    "without XSTest": ((0.93, 0.09), (0.93, 0.09)),
    "Do-Not-Answer": ((0.61, 0.19), (0.61, 0.19)),
    "changing": ((0.94, 0.05), (0.80, 0.30)),
}


def labelled(rng, truth, judged, n_labels):
    """Return the judge's events after correction by labels that are drawn as `evals.draw` does."""
    inclusion = np.ones(truth.shape)
    labels = np.full(truth.shape, np.nan)
    halves = [np.argwhere(judged == value) for value in (0, 1)]
    first = min(len(halves[0]), max(n_labels - n_labels // 2, n_labels - len(halves[1])))
    for half, size in zip(halves, (first, n_labels - first), strict=True):
        size = min(size, len(half))
        if not len(half):
            continue
        inclusion[tuple(half.T)] = size / len(half)
        chosen = tuple(half[rng.permutation(len(half))[:size]].T)
        labels[chosen] = truth[chosen]
    return stats.rectify(judged, labels, inclusion)


def judged_by(rng, truth, errors):
    found, invented = errors
    return (rng.random(truth.shape) < np.where(truth == 1, found, invented)).astype(float)


def study(rng, judge, parent, child, *, seeds, prompts, sd_seed, n_labels):
    """Return a paired comparison by labels, one by the judge alone, and what is true of it."""
    a, b = logit_for(parent, 1.5), logit_for(child, math.hypot(1.5, sd_seed * (seeds > 1)))
    hard = rng.standard_normal((2, prompts))
    before = 1.5 * hard[0]
    after = 1.5 * (0.7 * hard[0] + math.sqrt(1 - 0.7**2) * hard[1])
    of_seed = sd_seed * rng.standard_normal((seeds, 1))
    truth = [drawn(rng, a + before)[None], drawn(rng, b + after + of_seed)]
    rate = child
    if seeds == 1:  # the interval is conditional on the run
        rate = mean_rate(b + of_seed[0, 0], 1.5)
    judged = [judged_by(rng, one, errors) for one, errors in zip(truth, JUDGES[judge], strict=True)]
    corrected = [labelled(rng, *pair, n_labels) for pair in zip(truth, judged, strict=True)]
    return stats.paired(*corrected), stats.paired(*judged), rate


def coverage(judge, parent, child, *, n=300, seed=5, **design):
    """Return how often the true rate, difference and ratio are held: by labels, by the judge."""
    rng = np.random.default_rng(seed)
    hits = np.zeros((2, 3))
    for _ in range(n):
        *found, rate = study(rng, judge, parent, child, **design)
        for number, r in enumerate(found):
            hits[number] += [
                covers(r.child.low, rate, r.child.high),
                covers(r.difference_low, rate - parent, r.difference_high),
                covers(r.ratio_low, rate / parent, r.ratio_high),
            ]
    return hits / n


DESIGNS = [  # seeds, prompts, sd of seeds, labels of each model
    (1, 100, 0.5, 50),
    (1, 500, 0.5, 200),
    (3, 100, 0.5, 100),
    (5, 100, 0.3, 100),
    (5, 500, 0.5, 200),
    (10, 50, 0.5, 100),
]


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["XSTest", "without XSTest", "Do-Not-Answer", "changing"])
def test_corrected_intervals_hold_the_truth_whatever_the_judge(judge):
    """The Monte-Carlo error of a share of 95 % is .013; few labels make intervals too wide."""
    found = []
    for seeds, prompts, sd_seed, n_labels in DESIGNS:
        design = dict(seeds=seeds, prompts=prompts, sd_seed=sd_seed, n_labels=n_labels)
        found.append(coverage(judge, 0.06, 0.3, **design))
    corrected, by_the_judge = np.transpose(found, (1, 0, 2))
    assert corrected.min() >= 0.91 and corrected.mean() >= 0.94
    if judge in ("Do-Not-Answer", "changing"):
        assert by_the_judge.min() < 0.3, "what the correction is for"


@pytest.mark.slow
def test_a_perfect_judge_costs_little_with_200_labels_and_more_with_50():
    rng = np.random.default_rng(3)
    widths = {50: [], 200: []}
    for n_labels, ratios in widths.items():
        for _ in range(60):
            design = dict(seeds=5, prompts=100, sd_seed=0.5, n_labels=n_labels)
            corrected, judged, _ = study(rng, "perfect", 0.06, 0.3, **design)
            wide = corrected.child.high - corrected.child.low
            ratios.append(wide / (judged.child.high - judged.child.low))
    assert 1 <= np.mean(widths[200]) < np.mean(widths[50]) < 1.6


def test_with_every_answer_labelled_the_rates_are_those_of_the_labels():
    rng = np.random.default_rng(1)
    truth, judged = rng.integers(0, 2, (2, 3, 40)).astype(float)
    found = stats.rate(stats.rectify(judged, truth, np.ones((3, 40))))
    want = stats.rate(truth)
    assert (found.rate, found.n) == (want.rate, want.n)
    assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=0.01)


def test_the_estimate_is_the_stratified_one():
    judged = np.repeat([1.0, 0.0], [20, 60])
    labels = np.full(80, np.nan)
    labels[:10] = [1] * 7 + [0] * 3
    labels[20:30] = [1] + [0] * 9
    inclusion = np.repeat([0.5, 1 / 6], [20, 60])
    found = stats.rate(stats.rectify(judged, labels, inclusion))
    assert found.rate == pytest.approx((20 * 0.7 + 60 * 0.1) / 80)
    assert found.n == 80 and found.low < found.rate < found.high


def test_labels_without_an_error_do_not_make_a_judge_infallible():
    judged = np.repeat([1.0, 0.0], [10, 190])
    labels = np.where(np.arange(200) % 8 == 0, judged, np.nan)
    labels[:10] = judged[:10]
    inclusion = np.where(np.arange(200) < 10, 1, 0.125)
    found = stats.rate(stats.rectify(judged, labels, inclusion))
    alone = stats.rate(judged)
    assert found.rate == alone.rate and found.high > alone.high + 0.02


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_labels_that_are_all_alike_have_an_interval(share):
    judged = np.tile([0.0, 1.0], (3, 50))
    labels = np.where(np.arange(100) % 5 < 2, share, np.nan) * np.ones((3, 1))
    found = stats.rate(stats.rectify(judged, labels, np.full((3, 100), 0.4)))
    assert found.rate == share
    assert 0.03 < found.high - found.low < 0.12


def test_a_parent_measured_once_has_its_labels_once():
    rng = np.random.default_rng(8)
    judged, truth = rng.integers(0, 2, (2, 1, 60)).astype(float)
    labels = np.where(np.arange(60) < 30, truth, np.nan)
    parent = stats.rectify(judged, labels, np.full((1, 60), 0.5))
    child = rng.integers(0, 2, (5, 60)).astype(float)
    tiled = stats.Rectified(*np.repeat(parent.arrays, 5, axis=1))
    once, five = (stats.paired(one, child) for one in (parent, tiled))
    assert (parent.n_labels, tiled.n_labels) == (30, 30)
    limits = ("ratio_low", "ratio_high", "difference_low", "difference_high", "p")
    assert [getattr(once, name) for name in limits] == pytest.approx(
        [getattr(five, name) for name in limits]
    )


def test_p_and_the_interval_say_the_same():
    rng = np.random.default_rng(12)
    apart = []
    for _ in range(60):
        design = dict(seeds=3, prompts=100, sd_seed=0.3, n_labels=50)
        found, _, _ = study(rng, "XSTest", 0.1, 0.3, **design)
        excludes = found.difference_low > 0 or found.difference_high < 0
        apart.append(excludes != (found.p < 0.05))
    assert np.mean(apart) < 0.1


def test_where_nothing_is_labelled_nothing_is_corrected():
    with raises_code("no_label_here"):
        stats.rectify([0, 1], [np.nan] * 2, [0.5] * 2)
    some = stats.rectify([0.0, 1.0], [0, 1], [1.0, 1.0])
    with raises_code("labels_not_used"):
        stats.seed_spread(stats.Rectified(*some.arrays[:, None]))


def test_bands_take_labels_and_counts_of_pairs_are_not_known():
    rng = np.random.default_rng(9)
    truth = rng.integers(0, 2, (4, 3, 80)).astype(float)
    judged = np.where(rng.random(truth.shape) < 0.2, 1 - truth, truth)
    labels = np.where(rng.random(truth.shape) < 0.5, truth, np.nan)
    events = stats.rectify(judged, labels, np.full(truth.shape, 0.5))
    band = stats.bands(events)
    assert (band.low < band.estimate).all() and (band.estimate < band.high).all()
    found = stats.paired(events.part(slice(None), 0), events.part(slice(None), 1))
    assert math.isnan(found.mcnemar_p) and math.isnan(found.gained) and 0 <= found.p <= 1


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (([0, 1], [0, 1, 1], [1, 1]), "labels_do_not_pair"),
        (([0, 2], [0, 1], [1, 1]), "events_values"),
        (([0, 1], [0, 3], [1, 1]), "events_values"),
        (([0, 1], [0, 1], [1, 0]), "wrong_inclusion"),
        (([0, 1], [0, 1], [1, np.nan]), "wrong_inclusion"),
    ],
)
def test_what_is_no_draw_is_refused(given, code):
    with raises_code(code):
        stats.rectify(*given)
