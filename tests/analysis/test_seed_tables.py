"""How much training seeds decide."""

from __future__ import annotations

import math

import numpy as np
import pytest
from analysis.verdict_tables import CURVE, made
from helpers import raises_code
from simulated_studies import drawn, logit_for

from ftlab import analysis, stats


def test_runs_that_are_alike_and_runs_that_are_not():
    alike = stats.seed_spread(np.tile([0, 1, 1, 0, 1], (4, 1)))
    assert (alike.sd, alike.share) == pytest.approx((0, 0)) and alike.least == alike.most == 0.6
    unlike = stats.seed_spread(np.repeat([[0], [1], [0], [1]], 20, axis=1))
    assert unlike.share > 0.9 and (unlike.least, unlike.most) == (0, 1)
    assert unlike.sd == pytest.approx(np.std([0, 1, 0, 1], ddof=1), rel=0.05)
    nothing = stats.seed_spread(np.zeros((3, 9)))
    assert math.isnan(nothing.share) and math.isinf(stats.logit_sd(0, nothing.sd))
    assert math.isnan(stats.seed_spread([[0, 1], [1, 1]]).sd), "two seeds say nothing"


@pytest.mark.slow
@pytest.mark.parametrize("sd", [0.0, 0.5, 1.0])
def test_the_spread_in_logits_is_found(sd):
    rng = np.random.default_rng(7)
    found = []
    for _ in range(60):
        logits = logit_for(0.4, 1.0) + rng.standard_normal(200) + sd * rng.standard_normal((8, 1))
        spread = stats.seed_spread(drawn(rng, logits))
        found.append(stats.logit_sd(spread.rate, spread.sd, 1.0))
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(sd, abs=0.15)


def test_a_table_says_where_it_rests_on_few_seeds():
    table = analysis.seed_table(made(CURVE))
    assert table["step"].tolist() == [10, 30]
    assert (table["least"].iloc[0], table["most"].iloc[0]) == (0.4, 0.6)
    assert all("2 seeds" in warning for warning in table["warning"])
    three = {(seed, step): "r" * 10 for seed in range(3) for step in (0, 10)}
    quiet = analysis.seed_table(made({**three, (0, 10): "crrrrrrrrr"}))
    assert quiet["warning"].tolist() == [""]
    loud = analysis.seed_table(made({**three, (0, 10): "c" * 10}))
    assert loud["warning"].tolist() == ["rests on 3 seeds"]


def test_a_parent_alone_has_no_later_step():
    parent = made({(0, 0): "rrrc"})
    for function in (analysis.seed_table, analysis.first_step):
        with raises_code("no_later_step"):
            function(parent)
