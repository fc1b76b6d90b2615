"""A comparison of two sides decides by an interval and a margin which is worse."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from analysis.verdict_tables import made
from helpers import raises_code

from ftlab.analysis import compare
from ftlab.analysis.decisions import decide

DECISIONS = [  # limits of the difference, what higher means, the decision at a margin of .05
    ((-0.2, 0.049), "worse", "no worse"),
    ((0.01, 0.049), "worse", "no worse"),  # wholly below the margin
    ((0.01, 0.2), "worse", "worse"),
    ((0.06, 0.2), "worse", "worse"),
    ((-0.01, 0.06), "worse", "not enough evidence"),
    ((0.0, 0.05), "worse", "not enough evidence"),
    ((-0.2, -0.1), "better", "worse"),
    ((-0.04, 0.2), "better", "no worse"),
    ((-0.1, 0.1), "better", "not enough evidence"),
    ((math.nan, math.nan), "worse", "not enough evidence"),
]


@pytest.mark.parametrize(("limits", "higher", "decision"), DECISIONS)
def test_decisions(limits, higher, decision):
    table = pd.DataFrame([limits], columns=["difference_low", "difference_high"])
    table = table.assign(pairs=100, dropped=0)
    decide(table, 0.05, higher)
    assert table["decision"].tolist() == [decision] and table["higher"].tolist() == [higher]


@pytest.mark.parametrize(
    ("dropped", "unpaired", "decision"), [(1, 0, "no worse"), (3, 0, ""), (0, 3, "")]
)
def test_answers_that_are_missing_count_as_worse(dropped, unpaired, decision):
    table = pd.DataFrame({"difference_low": [-0.1], "difference_high": [0.03]})
    table = table.assign(pairs=100, dropped=dropped)
    decide(table, 0.05, "worse", unpaired)
    assert table["decision"].tolist() == [decision or "not enough evidence"]


def test_missing_scores_worsen_by_the_range_of_the_scores():
    table = pd.DataFrame({"difference_low": [-1.0], "difference_high": [1.0]})
    table = table.assign(pairs=100, dropped=10)
    decide(table, 5, "worse", 0, 10.0)
    assert table["decision"].tolist() == ["no worse"]
    decide(table, 5, "worse", 0, 60.0)
    assert table["decision"].tolist() == ["not enough evidence"]


def test_a_margin_that_no_rate_exceeds_is_refused():
    parent, child = made({(0, 0): "r" * 30}), made({(0, 0): "c" * 20 + "r" * 10})
    with raises_code("wrong_margin"):
        compare(parent, child, margin=5)


def test_two_runs_and_two_tables_are_decided_too():
    parent, child = made({(0, 0): "r" * 30}), made({(0, 0): "c" * 20 + "r" * 10})
    found = compare(parent, child)
    assert found["decision"].tolist() == ["worse"] and found["higher"].tolist() == ["worse"]
    assert compare(child, parent)["decision"].tolist() == ["no worse"]
    utility = [table.assign(risk="utility") for table in (parent, child)]
    assert compare(*utility)["decision"].tolist() == ["no worse"]
    assert "decision" not in compare(made({(0, 0): "rrr", (0, 1): "ccc"}))
