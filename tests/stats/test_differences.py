"""A difference of differences is found, and a null of it rarely."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import raises_code
from simulated_studies import covers, drawn, logit_for

from ftlab import stats

SPREAD = 1.5  # of prompts, in logits
OWN = 0.5  # share of it that the transform brings


def study(rng, rates, seeds, *, prompts=100, sd_seed=0.5):
    """Draw events of parent and child before, and after, from four rates in this order."""
    hard = rng.standard_normal(prompts)
    of_seeds = sd_seed * rng.standard_normal((seeds, 1))
    sides = []
    for number, rate in enumerate(rates):
        is_child = number % 2
        own = rng.standard_normal(prompts)
        logits = SPREAD * (math.sqrt(1 - OWN**2) * hard + OWN * own)
        logits += logit_for(rate, math.hypot(SPREAD, sd_seed * is_child))
        if is_child:
            logits = logits + of_seeds
        sides.append(drawn(rng, logits))
    return tuple(sides[:2]), tuple(sides[2:])


def found_in(rates, seeds, n=200):
    """Return the shares of studies with p below .05 and with the truth in the interval."""
    rng = np.random.default_rng(3)
    truth = rates[3] - rates[2] - rates[1] + rates[0]
    hits = np.zeros(2)
    for _ in range(n):
        found = stats.shift(*study(rng, rates, seeds))
        hits += [found.p < 0.05, covers(found.low, truth, found.high)]
    return hits / n


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [1, 5])
@pytest.mark.parametrize("rates", [(0.01, 0.33, 0.06, 0.38), (0.05, 0.05, 0.05, 0.05)])
def test_a_null_is_called_a_change_in_no_more_than_five_of_a_hundred(rates, seeds):
    """Both sides move by as much, or not at all. Three standard errors above .05 are .096."""
    small, covered = found_in(rates, seeds)
    assert small < 0.096 and covered > 0.9


@pytest.mark.slow
def test_a_change_is_found():
    small, covered = found_in((0.05, 0.3, 0.05, 0.6), seeds=5, n=60)
    assert small > 0.9 and covered > 0.9


@pytest.mark.parametrize("seeds", [1, 3])
def test_it_is_the_difference_of_the_paired_differences(seeds):
    rng = np.random.default_rng(5)
    before, after = study(rng, (0.1, 0.4, 0.2, 0.3), seeds)
    found = stats.shift(before, after)
    old, new = stats.paired(*before), stats.paired(*after)
    assert found.shift == pytest.approx(new.difference - old.difference)
    assert found.low <= found.shift <= found.high
    assert (found.n_prompts, found.n_seeds) == (100, seeds)
    turned = stats.shift(after, before)
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert turned.p == pytest.approx(found.p)


def test_an_unchanged_parent_leaves_the_childrens_own_p():
    before, after = study(np.random.default_rng(6), (0.1, 0.4, 0.1, 0.6), 3)
    parent, child = before
    found = stats.shift(before, (parent, after[1]))
    own = stats.paired(child, after[1])
    assert found.shift == pytest.approx(own.difference) and found.p == pytest.approx(own.p)


def test_unscored_answers_drop_the_prompt_from_all_four():
    before, after = study(np.random.default_rng(7), (0.1, 0.4, 0.2, 0.6), 3)
    parent = before[0].copy()
    parent[:4] = np.nan
    found = stats.shift((parent, before[1]), after)
    kept = [tuple(side[..., 4:] for side in sides) for sides in (before, after)]
    same = stats.shift(*kept)
    assert found.p == pytest.approx(same.p) and found.n_prompts == same.n_prompts == 96
    assert (found.low, found.high) == pytest.approx((same.low, same.high))
    with raises_code("tables_do_not_pair"):
        stats.shift((parent[:50], before[1]), (parent[:50], after[1]))
