"""A tolerance of a rise: error rates at its boundary by simulation, and what is conceded."""

from __future__ import annotations

import math

import numpy as np
import pytest
from helpers import raises_code

from ftlab.stats import (
    Rectified,
    Tolerance,
    lower_limits,
    paired,
    prompts_to_decide,
    upper_limits,
)

USUAL = Tolerance(0.02, 1.2)
ALPHA = 0.05
STUDIES = 400
CHANCE = 3 * math.sqrt(ALPHA * (1 - ALPHA) / STUDIES)  # three standard errors of a rate of 5 %


def drawn(rng, n, parent, child, lost):
    """Return events of n pairs; `lost` is the share of independent answers that are lost."""
    only_parent = lost * parent * (1 - child)
    only_child = only_parent + child - parent
    both = parent - only_parent
    cells = [both, only_parent, only_child, 1 - both - only_parent - only_child]
    kind = rng.choice(4, n, p=cells)
    return (kind <= 1).astype(float), np.isin(kind, (0, 2)).astype(float)


def share(events: str) -> np.ndarray:
    return np.array([{"1": 1.0, "0": 0.0, "x": np.nan}[letter] for letter in events])


# Of a parent at 10 % both bounds meet: it is the corner of the tolerance.
@pytest.mark.parametrize("parent", [0, 0.02, 0.1, 0.3])
@pytest.mark.parametrize("lost", [0, 1])
def test_at_the_boundary_a_false_pass_and_a_false_fail_are_rare(parent, lost):
    rng = np.random.default_rng(3)
    child = USUAL.allowed(parent)
    passed = failed = 0
    for _ in range(STUDIES):
        events = drawn(rng, 300, parent, child, lost)
        passed += USUAL.holds(upper_limits(*events, alpha=ALPHA / 2))
        failed += USUAL.exceeded(lower_limits(*events, alpha=ALPHA))
    assert passed / STUDIES <= ALPHA + CHANCE
    assert failed / STUDIES <= ALPHA + CHANCE


def test_two_wordings_of_a_prompt_do_not_count_as_two_prompts():
    rng = np.random.default_rng(4)
    passed = failed = 0
    cluster = np.tile(np.arange(300), 2)
    for _ in range(STUDIES):
        events = [np.tile(side, 2) for side in drawn(rng, 300, 0.1, 0.12, 0.5)]
        passed += USUAL.holds(upper_limits(*events, cluster, alpha=ALPHA / 2))
        failed += USUAL.exceeded(lower_limits(*events, cluster, alpha=ALPHA))
    assert max(passed, failed) / STUDIES <= ALPHA + CHANCE


def test_a_planted_rise_is_found_and_none_is_passed():
    rng = np.random.default_rng(5)
    for _ in range(50):
        assert USUAL.exceeded(lower_limits(*drawn(rng, 300, 0.03, 0.3, 0.3), alpha=ALPHA / 3))
        same, _ = drawn(rng, 300, 0.05, 0.05, 0)
        assert USUAL.holds(upper_limits(same, same, alpha=ALPHA / 2))


@pytest.mark.parametrize("n", [100, 200])
def test_the_same_answers_pass_only_where_there_are_enough_prompts(n):
    nothing = np.zeros(n)
    limits = upper_limits(nothing, nothing, alpha=ALPHA / 2)
    assert not USUAL.holds(limits)
    needed = prompts_to_decide(nothing, nothing, tolerance=USUAL, alphas=(0.025, 0.05))
    enough = np.zeros(int(needed))
    assert n < needed < 300 and USUAL.holds(upper_limits(enough, enough, alpha=ALPHA / 2))
    few = enough[: int(needed) - 10]
    assert not USUAL.holds(upper_limits(few, few, alpha=ALPHA / 2))


@pytest.mark.parametrize(("parent", "child"), [(0.02, 0.02), (0.2, 0.2), (0.03, 0.08)])
def test_so_many_prompts_decide_in_about_80_of_100_studies(parent, child):
    rng = np.random.default_rng(6)
    told = []
    for _ in range(30):
        events = drawn(rng, 250, parent, child, 0.3)
        told.append(prompts_to_decide(*events, tolerance=USUAL, alphas=(0.025, 0.05)))
    expected = drawn(rng, 20_000, parent, child, 0.3)
    # Of the true rates, which 20,000 prompts show: more than so many are never told.
    shown = [prompts_to_decide(*expected, tolerance=USUAL, alphas=(0.025, 0.05))]
    assert shown == [math.inf] and min(told) > 250
    n = int(np.median(told))
    decided = 0
    for _ in range(100):
        events = drawn(rng, n, parent, child, 0.3)
        within = USUAL.holds(upper_limits(*events, alpha=0.025))
        decided += within or USUAL.exceeded(lower_limits(*events, alpha=0.05))
    assert 55 <= decided <= 99


def test_one_prompt_is_conceded_to_the_other_side():
    parent, child = share("0" * 100), share("11" + "0" * 98)
    upper = upper_limits(parent, child)
    three = share("111" + "0" * 97)
    assert upper.difference_high == paired(parent, three, confidence=0.9).difference_high
    lower = lower_limits(parent, child)
    one = share("1" + "0" * 99)
    assert lower.difference_low == paired(parent, one, confidence=0.9).difference_low


def test_unscored_and_doubtful_answers_count_against_what_is_claimed():
    parent, child = share("0" * 99 + "x"), share("x" + "0" * 99)
    upper = upper_limits(parent, child)
    assert upper.child.events == 2 and upper.parent.events == 0  # one conceded
    lower = lower_limits(parent, child)
    assert lower.child.events == 0 and lower.parent.events == 1
    doubtful = np.arange(100) < 7
    assert upper_limits(parent, child, doubtful=doubtful).child.events == 8
    assert np.isnan(child[0])  # what was given stays


def test_of_a_parent_without_the_event_the_difference_decides():
    parent = np.zeros(500)
    child = np.zeros(500)
    assert USUAL.holds(upper_limits(parent, child, alpha=0.025))
    assert not Tolerance(0, 1.2).holds(upper_limits(parent, child, alpha=0.025))
    child[:100] = 1
    assert USUAL.exceeded(lower_limits(parent, child))


def test_either_bound_is_enough_to_pass_and_both_are_needed_to_fail():
    rng = np.random.default_rng(8)
    high = drawn(rng, 4000, 0.5, 0.55, 0.1)  # 5 points, 1.1 times
    upper, lower = upper_limits(*high, alpha=0.025), lower_limits(*high)
    assert USUAL.holds(upper) and not Tolerance(0.02, 1).holds(upper)
    assert Tolerance(0.02, 1).exceeded(lower) and not USUAL.exceeded(lower)
    assert USUAL.allowed(0.5) == pytest.approx(0.6) and USUAL.allowed(0) == 0.02
    assert USUAL.allowed(0.9) == 1.0


def test_no_number_of_prompts_outweighs_answers_that_are_not_known():
    parent, child = np.zeros(300), np.zeros(300)
    child[:30] = np.nan
    told = prompts_to_decide(parent, child, tolerance=USUAL, alphas=(0.025, 0.05))
    assert told == math.inf


def test_corrected_events_are_taken_too():
    events = Rectified(np.full(200, 0.05), np.full(200, 0.01), np.arange(200) < 50)
    upper, lower = upper_limits(events, events), lower_limits(events, events)
    assert upper.difference_high > 0 > lower.difference_low
    assert math.isnan(upper.both)


@pytest.mark.parametrize("bounds", [(-0.1, 1.2), (1, 1.2), (0.02, 0.9), (None, 1.2), ("2 %", 1.2)])
def test_bounds_without_a_meaning_are_refused(bounds):
    with raises_code("wrong_tolerance"):
        Tolerance(*bounds)
