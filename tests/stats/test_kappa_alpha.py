"""Agreement of raters: golden values, coverage by simulation, the errors of a judge."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import raises_code

from ftlab import stats
from ftlab.stats import alpha, kappa


def labels(table) -> tuple[list[int], list[int]]:
    """Return the two raters' labels of a table of counts."""
    cells = [(i, j) for i, row in enumerate(table) for j, n in enumerate(row) for _ in range(n)]
    return [i for i, _ in cells], [j for _, j in cells]


@pytest.mark.parametrize(
    "table", [[[88, 14, 18], [10, 40, 10], [2, 6, 12]], [[20, 5], [10, 15]], [[1, 9], [2, 88]]]
)
def test_kappa_and_its_error_are_those_of_statsmodels(table):
    from statsmodels.stats.inter_rater import cohens_kappa

    golden, found = cohens_kappa(np.array(table)), kappa(*labels(table))
    assert (found.value, found.se) == pytest.approx((golden.kappa, golden.std_kappa), abs=1e-12)
    assert found.low < found.value < found.high <= 1


def test_kappa_as_published():
    """Fleiss, Cohen & Everitt 1969, table 1 (as counts of 200): kappa .492, error .051."""
    assert kappa(*labels([[88, 14, 18], [10, 40, 10], [2, 6, 12]])).value == pytest.approx(
        0.4915, abs=5e-5
    )
    assert kappa(*labels([[88, 14, 18], [10, 40, 10], [2, 6, 12]])).se == pytest.approx(
        0.051, abs=5e-4
    )


def test_kappa_at_its_ends():
    same = kappa(["a", "b"] * 10, ["a", "b"] * 10)
    assert (same.value, same.high) == (1, 1) and 0.5 < same.low < 0.8
    assert kappa([0, 1] * 10, [1, 0] * 10).value == pytest.approx(-1)
    assert math.isnan(kappa(["a"] * 5, ["a"] * 5).value)
    one = kappa([0, 1, 0, 1], [0, 1, 1, 1], ["p"] * 4)  # one cluster tells nothing of the others
    assert one.low <= one.value <= one.high


def test_rows_said_three_times_add_nothing():
    a, b = labels([[40, 6], [4, 30]])
    once, thrice = kappa(a, b), kappa(a * 3, b * 3, [*range(80)] * 3)
    assert thrice.value == pytest.approx(once.value)
    assert thrice.se == pytest.approx(once.se * math.sqrt(80 / 79))
    assert thrice.low < once.low and kappa(a * 3, b * 3).se < once.se


def test_order_does_not_matter():
    rng = np.random.default_rng(1)
    a, b, ids = rng.integers(0, 2, 90), rng.integers(0, 3, 90), rng.integers(0, 20, 90).astype(str)
    turn = rng.permutation(90)
    first, second = kappa(a, b, ids), kappa(b[turn], a[turn], ids[turn])
    assert (first.value, first.low, first.high) == pytest.approx(
        (second.value, second.low, second.high)
    )


def test_its_interval_covers_also_where_prompts_repeat():
    """Prompts hard for the judge under every model; estimate +- 1.96 errors is too short near 1."""
    rng = np.random.default_rng(0)

    def draw(clusters: int, models: int):
        size = (clusters, models)
        shared = rng.random(size) < 0.7
        human = np.where(shared, rng.random((clusters, 1)) < 0.5, rng.random(size) < 0.5)
        wrong = np.where(rng.random((clusters, 1)) < 0.2, 0.4, 0.025)
        judged = human ^ (rng.random(size) < wrong)
        return human.ravel(), judged.ravel(), np.repeat(np.arange(clusters), models)

    a, b, _ = draw(100_000, 3)
    true = kappa(a, b).value
    covered = blind = 0
    for _ in range(300):
        a, b, ids = draw(60, 3)
        with_, without = kappa(a, b, ids), kappa(a, b)
        covered += with_.low <= true <= with_.high
        blind += without.low <= true <= without.high
    # Monte-Carlo error 1.3 points
    assert 0.92 <= covered / 300 <= 0.98 and blind < covered - 10


def test_alpha_as_published():
    """Krippendorff 2011, examples A, B and C: .095, .692, .743."""
    n = None
    assert alpha(
        [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    ).value == pytest.approx(0.095, abs=5e-4)
    assert alpha([list("aabbdcccedda"), list("babbbccceddd")]).value == pytest.approx(
        0.692, abs=5e-4
    )
    four = [[1, 2, 3, 3, 2, 1, 4, 1, 2, n, n, n], [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, n, 3],
            [n, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, n], [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, n]]  # fmt: skip
    found = alpha(four)
    assert (
        found.value == pytest.approx(0.743, abs=5e-4)
        and found.n == 11
        and found.low < found.value <= found.high
    )
    assert alpha([list("aabb"), list("aabb")]).value == 1
    assert math.isnan(alpha([["a", "a"], ["a", "a"]]).value)
    assert math.isnan(alpha([["a", None], [None, "a"]]).value)


def test_alphas_interval_is_over_prompts():
    rng = np.random.default_rng(2)
    a = rng.integers(0, 2, 100)
    b = np.where(rng.random(100) < 0.15, 1 - a, a)
    once, thrice = alpha([a, b]), alpha([[*a] * 3, [*b] * 3], [*range(100)] * 3)
    assert (
        thrice.se == pytest.approx(once.se, rel=0.15)
        and alpha([[*a] * 3, [*b] * 3]).se < 0.75 * once.se
    )
    assert alpha([a, b]) == once  # seeded


def test_alpha_is_that_of_the_package_krippendorff():
    import krippendorff

    rng = np.random.default_rng(3)
    for n, values in [(4, 2), (30, 3), (200, 5)]:
        labels = rng.integers(0, values, (3, n)).astype(float)
        labels[rng.random(labels.shape) < 0.2] = np.nan
        golden = krippendorff.alpha(reliability_data=labels, level_of_measurement="nominal")
        table = np.where(np.isnan(labels), None, labels)
        assert alpha(table).value == pytest.approx(golden, abs=1e-12)


def test_a_judges_errors():
    truth = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    judged = [1, 1, 1, 0, 0, 0, 0, 0, 1, 1]
    found = stats.judge_errors(truth, judged)
    assert (found.accuracy.events, found.accuracy.n) == (7, 10)
    assert (found.sensitivity.rate, found.specificity.rate) == (3 / 4, 4 / 6)
    assert (found.bias.parent.rate, found.bias.child.rate) == (0.4, 0.5)
    assert found.kappa == kappa(truth, judged)
    turned = stats.judge_errors(truth, judged, positive=0)
    assert (turned.sensitivity, turned.specificity) == (found.specificity, found.sensitivity)
    assert stats.judge_errors([1, 1], [1, 0]).specificity is None


def test_raters_need_a_label_for_each_item():
    with raises_code("labels_do_not_pair"):
        kappa([0, 1], [0])
    with raises_code("cluster_shape"):
        kappa([0, 1], [0, 1], ["a"])
    with raises_code("cluster_shape"):
        alpha([[0, 1], [0, 1]], ["a"])


def test_agreement_has_bounds_where_raters_never_or_always_differ():
    same = ["a", "b"] * 15
    found = alpha([same, same])
    assert found.value == 1 and 0.7 < found.low < 0.9, "30 answers do not show perfect judges"
    more = alpha([same * 10, same * 10])
    assert found.low < more.low < 1
    rare = kappa([0] * 49 + [1], [1] + [0] * 49)
    assert -1 <= rare.low <= rare.value
    opposite = alpha([["a"] * 20, ["b"] * 20])
    assert -1 <= opposite.low <= opposite.value
