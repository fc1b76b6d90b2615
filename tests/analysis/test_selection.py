"""Choosing what a table or a figure shows: risks, attacks, several evaluations, kinds of a run."""

from __future__ import annotations

import pandas as pd
import pytest
from analysis.verdict_tables import CURVE, made, saved
from helpers import raises_code

from ftlab.analysis import compare, plot, rates, record

ONE = {(0, 0): "rrrrrrrrcc"}
OTHER = {(0, 0): "ccccrrrrcc"}


def curve(**columns) -> pd.DataFrame:
    """A curve of two risks under two attacks."""
    parts = [
        made(CURVE, risk=risk, attack=attack)
        for risk in ("jailbreak", "bias")
        for attack in ("direct", "templates")
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.mark.slow
@pytest.mark.parametrize("table_of", [rates, compare])
def test_risk_and_attack_select_rows(table_of):
    chosen = table_of(curve(), by=["risk", "attack"], risk="bias", attack="direct")
    whole = table_of(curve(), by=["risk", "attack"])
    same = whole.query("risk == 'bias' and attack == 'direct'")
    assert set(chosen["risk"]) == {"bias"}
    assert set(chosen["attack"]) == {"direct"}
    columns = [name for name in chosen if name != "p_holm"]  # for the number of rows
    pd.testing.assert_frame_equal(chosen[columns], same[columns].reset_index(drop=True))


def test_what_was_not_measured_is_refused():
    with raises_code("nothing_selected"):
        rates(curve(), risk="toxicity")
    assert set(rates(curve(), risk=["bias", "toxicity"])["risk"]) == {"bias"}


def test_several_evaluations_stand_in_one_table():
    table = rates({"before": made(ONE), "after": made(OTHER)})
    assert list(table["model"]) == ["before", "after"]
    assert list(table["rate"]) == [0.2, 0.6]
    assert plot(table, kind="bars").caption


def test_a_comparison_names_the_epoch_of_harmful_fine_tuning():
    doses = made(CURVE, examples=10)
    table = compare(doses.assign(epoch=doses["step"] // 10), by="examples")
    assert list(table["epoch"]) == [1, 3]
    assert "epoch" not in compare(curve())


def test_the_first_judge_of_a_table_is_recorded(tmp_path):
    both = pd.concat([made(CURVE, judge="keywords"), made(OTHER, judge="refusal")])
    given = {"published": "kumar_chain", "model": "organism", "out": tmp_path}
    (found,) = record(compare(both), "03", "raises the rate", **given)
    assert found["measured"] == 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["curve", "ratio", "outcomes"])
def test_a_curve_is_drawn_in_several_kinds(kind):
    assert plot(saved(CURVE), kind=kind).image("png")


@pytest.mark.slow
def test_a_training_is_drawn_as_its_loss():
    table = pd.DataFrame({"step": [1, 2, 3], "loss": [0.69, 0.5, 0.4]})
    assert plot(table, kind="loss").image("png")
