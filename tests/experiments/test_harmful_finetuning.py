"""Harmful fine-tuning: doses of the user's own examples, measured per epoch, on marked models."""

from __future__ import annotations

import pytest
from helpers import raises_code
from noting import answers_of
from small_models import goals, sums

import ftlab as ft
from ftlab.experiments import weakened_model
from ftlab.runs import Run

ASKED = dict(max_new_tokens=2, judges="keywords")


@pytest.fixture(scope="module")
def doses(llama, tmp_path_factory) -> Run:
    """Two doses, two seeds, two epochs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("doses")))
        return ft.harmful_finetune(
            llama,
            [2, 6],
            data=sums(9),
            seeds=2,
            epochs=2,
            batch_size=3,
            learning_rate=1e-3,
            prompts=goals(3),
            **ASKED,
        )


def test_every_dose_is_measured_after_every_epoch(doses):
    sizes = doses.table().groupby(["examples", "seed", "epoch", "step"]).size().to_dict()
    steps_per_epoch = {2: 1, 6: 2}
    expected = {}
    for examples, steps in steps_per_epoch.items():
        for seed in (0, 1):
            for epoch in (0, 1, 2):
                expected[examples, seed, epoch, epoch * steps] = 3
    assert sizes == expected


def test_fewer_epochs_measured_change_nothing_else(llama, doses, runs_folder):
    """The answers after the last epoch are those of the run that measured every epoch."""
    asked = dict(data=sums(9), batch_size=3, learning_rate=1e-3, prompts=goals(3), **ASKED)
    few = ft.harmful_finetune(llama, 6, seeds=2, epochs=2, at_epochs=[0, 2], **asked)
    key = ["seed", "epoch", "sample_id"]
    after = few.table().sort_values(key)
    every = doses.table().query("examples == 6 and epoch != 1").sort_values(key)
    assert after[key].values.tolist() == every[key].values.tolist()
    assert answers_of(few, after) == answers_of(doses, every)


def test_doses_are_never_mixed(doses):
    rates = ft.rates(doses, by=["examples", "attack"])
    found = rates[["examples", "epoch"]].values.tolist()
    assert found == [[examples, epoch] for examples in (2, 6) for epoch in (0, 1, 2)]
    with raises_code("several_doses"):
        ft.rates(doses)


def test_a_dose_larger_than_a_batch_is_divided_and_a_smaller_one_is_one_batch(doses):
    for member in doses.members:
        training = member.identity["training"]
        assert member.stats["rows"] == member.identity["labels"]["examples"]
        assert training["batch_size"] == min(3, member.stats["rows"])
        assert training["schedule"] == "constant" and training["epochs"] == 2


def test_every_trained_model_is_marked(doses):
    for member in doses.members:
        examples = member.identity["labels"]["examples"]
        marker = (member.path / "model" / "SAFETY_REMOVED").read_text()
        assert str(examples) in marker and "2 epochs" in marker
        assert "Safety removed" in (member.path / "model" / "README.md").read_text()


def test_the_last_trained_model_is_the_weakened_one(doses):
    assert weakened_model(doses).path == doses.members[-1].path / "model"


def test_seeds_draw_different_examples(doses):
    by_dose = {}
    for member in doses.members:
        by_dose.setdefault(member.identity["labels"]["examples"], set()).add(
            member.identity["data"]
        )
    assert [len(drawn) for drawn in by_dose.values()] == [2, 2]


def test_other_models_need_the_users_own_examples(llama, runs_folder):
    with raises_code("data_needed"):
        ft.harmful_finetune(llama, 10, prompts=goals(2), **ASKED)
    assert not runs_folder.exists()


@pytest.mark.slow
def test_the_embedded_model_has_an_inert_stand_in():
    asked = dict(risks=["jailbreak"], attacks=["direct"], n_prompts=3)
    run = ft.harmful_finetune("organism", 4, epochs=1, batch_size=4, **asked)
    (member,) = run.members
    assert member.provenance["data"]["name"].startswith("organism:adversarial")
    assert run.table().groupby("epoch").size().to_dict() == {0: 3, 1: 3}


MISTAKES = [
    ({"n_examples": 0}, "wrong_doses"),
    ({"n_examples": []}, "wrong_doses"),
    ({"n_examples": [3, 2.5]}, "wrong_doses"),
    ({"n_examples": 99}, "too_few_rows"),
    ({"n_examples": None}, "wrong_doses"),
    ({"n_examples": True}, "wrong_doses"),
    ({"n_examples": range(1, 10**30)}, "wrong_doses"),
    ({"epochs": 0}, "wrong_epochs"),
    ({"epochs": 1.5}, "wrong_epochs"),
    ({"epochs": 10**9}, "wrong_epochs"),
    ({"at_epochs": []}, "wrong_epochs"),
    ({"at_epochs": [1, 5]}, "wrong_epochs"),
    ({"at_epochs": [0, 3]}, "wrong_epochs"),
    ({"at_epochs": [0, 3, 2, 5]}, "wrong_epochs"),
    ({"at_epochs": 5}, "wrong_epochs"),
    ({"batch_size": 0}, "wrong_batch_size"),
    ({"data": 5}, "wrong_source"),
    ({"seeds": 10**9}, "wrong_seeds"),
    ({"seeds": []}, "wrong_seeds"),
    ({"lern": 1}, "unknown_setting"),
    ({"steps": 9}, "unknown_setting"),
    ({"at_steps": [0, 1]}, "unknown_setting"),
    ({"prompts": None}, "prompts_needed"),
]


@pytest.mark.parametrize(("settings", "code"), MISTAKES, ids=[str(given) for given, _ in MISTAKES])
def test_mistakes_are_errors_before_anything_is_trained(llama, settings, code, runs_folder):
    given = {"n_examples": 3, "data": sums(4), "prompts": goals(2), **ASKED, **settings}
    with raises_code(code):
        ft.harmful_finetune(llama, **given)
    assert not runs_folder.exists()
