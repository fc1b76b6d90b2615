"""Agreement of judges with labels, with a reference judge and with each other."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from helpers import raises_code

from ftlab import stats
from ftlab.judges import confusion, describe, human_agreement, judge_agreement

OUTCOMES = [
    "refused",
    "error",
    "unparsed",
    "complied",
    "partial",
    "complied_wrong",
    "incoherent",
    "refused",
]


def verdicts(judge: str, outcomes: list[str], **columns) -> pd.DataFrame:
    """A table of one judge's verdicts, one row per sample."""
    table = pd.DataFrame({"sample_id": range(1, len(outcomes) + 1), **columns})
    return table.assign(judge=judge, outcome=outcomes)


def test_unscored_answers_leave_the_numbers_and_are_counted():
    people = ["0", "0", "5", "5", "0", "5", "0", None]
    table = verdicts("x", OUTCOMES, human=people)
    found = human_agreement(table, label="human", refused=["0"]).set_index("definition")
    counts = found[["n", "unscored", "unlabelled"]]
    assert counts.to_numpy().tolist() == [[5, 2, 1], [5, 2, 1]]
    # The judge's partial refusal is first a success, then a refusal.
    assert found["accuracy"].tolist() == pytest.approx([4 / 5, 1])
    none = human_agreement(table[1:3], label="human", refused=["0"])
    assert none["n"].tolist() == [0]


def test_estimates_are_those_of_stats():
    table = verdicts("x", ["refused", "complied"] * 3 + ["complied"], human=[*"nynyyyn"])
    [row] = human_agreement(table, label="human", refused="n").to_dict("records")
    human = np.array([0.0, 1, 0, 1, 1, 1, 0])
    found = np.array([0.0, 1, 0, 1, 0, 1, 1])
    pair = stats.paired(human, found)
    assert row["accuracy"] == pytest.approx(5 / 7)
    assert (row["sensitivity"], row["specificity"]) == pytest.approx((2 / 3, 3 / 4))
    assert (row["bias"], row["bias_low"]) == (pair.difference, pair.difference_low)
    assert row["specificity_low"] == stats.rate(np.array([1.0, 1, 0, 1])).low


def test_labels_may_be_numbers_and_must_exist():
    table = verdicts("x", ["refused", "complied"] * 2, human=[0, 5.0, math.nan, 5])
    found = human_agreement(table, label="human", refused=["0"])
    assert found[["n", "unlabelled", "accuracy"]].to_numpy().tolist() == [[3, 1, 1.0]]
    for refused in (["1"], []):
        with raises_code("unknown_label"):
            human_agreement(table, label="human", refused=refused)
    with raises_code("unknown_column"):
        human_agreement(table, label="gold", refused=["1"])
    with raises_code("not_verdicts"):
        human_agreement(table.drop(columns="judge"), label="human", refused=["0"])
    for compare in (confusion, human_agreement):
        with raises_code("not_verdicts"):
            compare(5, label="human")


def test_answers_to_one_sample_are_one_cluster():
    outcomes = ["refused", "complied", "complied", "refused"] * 9
    people = ["no", "yes"] * 18
    apart = verdicts("x", outcomes, human=people)
    shared = apart.assign(sample_id=[number // 6 for number in range(36)])
    once, clustered = (
        human_agreement(table, label="human", refused="no").iloc[0] for table in (apart, shared)
    )
    assert once["kappa"] == clustered["kappa"]
    assert once["kappa_low"] != clustered["kappa_low"]
    named = human_agreement(shared, label="human", refused="no", cluster="judge")
    assert named["kappa"].iloc[0] == once["kappa"]


def run_table() -> pd.DataFrame:
    """Verdicts of two judges on two steps of a run, the rows of one judge in another order."""
    exact = ["refused", "complied", "complied_wrong", "refused", "error", "complied"]
    other = ["refused", "complied", "complied", "complied", "complied", "unparsed"]
    where = {"attack": "direct", "step": [0, 0, 0, 10, 10, 10], "sample_id": [1, 2, 3] * 2}
    first = pd.DataFrame({**where, "judge": "organism", "outcome": exact, "event": 0.0})
    second = pd.DataFrame({**where, "judge": "keywords", "outcome": other, "event": 1.0})
    return pd.concat([first, second.iloc[::-1]])


def test_a_judge_can_be_the_reference():
    [row] = human_agreement(run_table(), label="organism").to_dict("records")
    assert row["judge"] == "keywords"
    assert (row["n"], row["unscored"], row["unlabelled"]) == (4, 1, 1)
    assert (row["accuracy"], row["sensitivity"], row["specificity"]) == (0.75, 0.5, 1)
    # A wrong answer counts as kept where the labels say so.
    kept = ["refused", "complied_wrong"]
    [row] = human_agreement(run_table(), label="organism", refused=kept).to_dict("records")
    assert (row["accuracy"], row["unlabelled"]) == (0.5, 1)


def test_confusion_counts_outcomes_by_label():
    counts = confusion(run_table(), label="organism").set_index("organism")
    assert set(counts["judge"]) == {"keywords"}
    assert counts.loc["refused", ["refused", "complied", "unparsed"]].tolist() == [1, 1, 0]
    assert counts.loc["complied", "unparsed"] == 1
    table = verdicts("x", ["refused", "complied"], human=["no", None])
    labelled = confusion(table, label="human").set_index("human")
    assert labelled.loc["(none)", "complied"] == 1


def test_judges_among_themselves():
    one = verdicts("x", ["refused", "complied", "error", "refused"])
    other = verdicts("y", ["refused", "refused", "complied", "partial"])
    found = judge_agreement(pd.concat([one, other]))
    assert found.n == 3 and found.low <= found.value <= found.high
    assert found.disagreements["sample_id"].tolist() == [2, 4]
    assert found.disagreements["y"].tolist() == ["refused", "partial"]
    with raises_code("one_judge"):
        judge_agreement(one)
    steps = judge_agreement(run_table()).disagreements
    assert steps[["step", "sample_id"]].to_numpy().tolist() == [[0, 3], [10, 1]]


def test_a_description_shows_no_text():
    table = verdicts("refusal", OUTCOMES, human=[*"00550500"], answer="secret text")
    both = pd.concat([table, table.assign(judge="keywords", outcome="refused")])
    text = describe(both, label="human", refused=["0"])
    assert "secret" not in text and "XSTest" in text and "alpha" in text
