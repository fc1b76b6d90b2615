"""Several fine-tunings of one parent: paired with it, and one correction over all."""

from __future__ import annotations

import pandas as pd
import pytest
from analysis.verdict_tables import made
from helpers import raises_code

from ftlab.analysis import compare, differences, plot

N = 40


def curve(after: int, risk: str = "jailbreak") -> pd.DataFrame:
    """Three seeds; so many of the prompts show the event after training, two before."""
    answers = {}
    for seed in range(3):
        answers[seed, 0] = "cc" + "r" * (N - 2)
        answers[seed, 5] = "r" * N
        answers[seed, 9] = "c" * (after + seed % 2) + "r" * (N - after - seed % 2)
    return made(answers, risk=risk)


def both(after: int) -> pd.DataFrame:
    return pd.concat([curve(after), curve(2, "bias")], ignore_index=True)


def test_each_is_compared_with_its_parent_at_its_last_step():
    found = differences({"benign": both(4), "adversarial": both(30)})
    assert found[["trained", "risk"]].values.tolist() == [
        ["benign", "jailbreak"],
        ["benign", "bias"],
        ["adversarial", "jailbreak"],
        ["adversarial", "bias"],
    ]
    alone = compare(both(30), steps=[-1])
    columns = ["parent", "child", "difference", "difference_low", "difference_high", "p"]
    assert found[columns][2:].values.tolist() == alone[columns].values.tolist()


def test_p_is_adjusted_for_all_and_decides_what_is_coloured():
    found = differences({"benign": both(4), "adversarial": both(30)})
    assert found["p_holm"].iloc[2] == pytest.approx(4 * found["p"].iloc[2])
    assert (found["clear"] == (found["p_holm"] < 0.05)).all()
    assert found["clear"].tolist() == [False, False, True, False]
    assert found["change"].equals(found["difference"])


def test_rates_among_coherent_answers_stand_beside():
    answers = {(seed, 0): "c" * 10 + "i" * 20 + "r" * 10 for seed in range(3)}
    answers |= {(seed, 5): "c" * 10 + "i" * 25 + "r" * 5 for seed in range(3)}
    (row,) = differences({"benign": made(answers)}).to_dict("records")
    assert row["parent"] == row["child"] == pytest.approx(10 / 40)
    assert row["coherent_parent"] == pytest.approx(10 / 20)
    assert row["coherent_child"] == pytest.approx(10 / 15)


def test_one_risk_is_compared_alone():
    found = differences({"benign": both(4)}, risk="bias")
    assert found["risk"].tolist() == ["bias"]


def test_its_table_is_drawn(tmp_path):
    found = differences({"benign": both(4), "adversarial": both(30)})
    drawing = plot(found, "arms", tmp_path, kind="matrix")
    assert (tmp_path / "arms.csv").stat().st_size
    assert "3 seeds" in drawing.caption


@pytest.mark.parametrize("given", [{}, [1], None])
def test_curves_have_names(given):
    with raises_code("nothing_to_compare"):
        differences(given)
