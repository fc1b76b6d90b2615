"""A trial knows which rows were planted, and measures what leaving rows out does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import raises_code
from small_models import sums

import ftlab as ft
from ftlab.experiments import audit_trials

SMALL = {"n_rows": 30, "n_planted": 4, "seeds": 2}


@pytest.fixture(scope="module")
def trial():
    return ft.experiments.plant_and_audit(by=["loss", "refusal"], **SMALL)


def test_the_planted_rows_are_those_that_were_drawn_and_each_seed_has_its_own(trial):
    drawn = set()
    for planting in trial.plantings:
        assert len(planting.data) == 30 and len(planting.planted) == 4
        told = {
            place for place, row in enumerate(planting.data.rows, 1) if row["risk"] != "utility"
        }
        assert told == planting.planted
        drawn.add(planting.data.hash)
    assert len(drawn) == 2


def test_a_ranking_is_that_of_the_seed_s_own_rows(trial):
    for planting, ranked in zip(trial.plantings, trial.rankings["loss"], strict=True):
        alone = ft.evals.audit(planting.data, "organism", by="loss")
        assert list(ranked) == alone["row"].tolist()


@pytest.mark.parametrize("perfect", [True, False])
def test_precision_and_recall_of_a_known_ranking(trial, perfect):
    rankings = []
    for planting in trial.plantings:
        places = range(1, 31)
        order = sorted(places, key=lambda place: (place in planting.planted) != perfect)
        rankings.append(tuple(order))
    table = replace(trial, rankings={"known": tuple(rankings)}).table()
    assert table["rate"].tolist() == [float(perfect)] * 3
    assert table[["measure", "k"]].values.tolist() == [
        ["precision", 2],
        ["precision", 4],
        ["recall", 8],
    ]
    assert table["chance"].tolist() == pytest.approx([4 / 30, 4 / 30, 8 / 30])
    assert table["of"].tolist() == [4, 8, 8]
    assert (table["low"] < table["high"]).all()
    (axes,) = ft.plot(table, kind="bars").figure.axes
    assert axes.get_xlabel() == "share of rows (%)"


def test_mistakes(llama, trial):
    with raises_code("data_needed"):
        ft.experiments.plant_and_audit(llama)
    for wrong in ({"n_planted": 0}, {"n_planted": 16}, {"n_rows": 2.5}):
        with raises_code("wrong_planting"):
            ft.experiments.plant_and_audit(by=["loss"], **{**SMALL, **wrong})
    with raises_code("anchors_needed"):
        ft.experiments.plant_and_audit(
            llama, benign=sums(8), planted=sums(8, seed=1), n_rows=6, n_planted=2, seeds=1
        )
    with raises_code("not_audited"):
        ft.experiments.remove_and_retrain(trial, ["gradient"])
    for wrong in (0, 30):
        with raises_code("wrong_n_removed"):
            ft.experiments.remove_and_retrain(trial, ["loss"], n_removed=wrong)


@pytest.mark.slow
def test_arms_leave_out_what_they_say_and_are_compared_with_random_rows(trial):
    removals = audit_trials._removals(trial, ["loss"], 4)
    assert list(removals) == ["nothing", "random", "loss", "planted"]
    for number, planting in enumerate(trial.plantings):
        assert removals["loss"][number] == set(trial.rankings["loss"][number][:4])
        assert removals["planted"][number] == planting.planted
        assert len(removals["random"][number]) == 4
    small = {"steps": 2, "n_prompts": 12, "attacks": ["direct"]}
    table = ft.experiments.remove_and_retrain(trial, ["loss"], **small).set_index("removed")
    assert table["left"].to_dict()["nothing"] == 4 and table["left"].to_dict()["planted"] == 0
    assert table["rate"].between(0, 1).all() and (table["n_seeds"] == 2).all()
    change = table["rate"] - table["rate"]["random"]
    assert table["difference"].drop("random").tolist() == pytest.approx(
        change.drop("random").tolist()
    )
    assert table["p_holm"].notna().to_dict() == {
        "nothing": True,
        "random": False,
        "loss": True,
        "planted": False,
    }
    ft.plot(table.reset_index(), kind="bars")
