"""Comparisons: models are evaluated first, finished runs are compared as they are."""

from __future__ import annotations

import pandas as pd
import pytest
from helpers import raises_code
from small_models import goals, make_model

import ftlab as ft
from ftlab import analysis, runs

ASKED = dict(prompts=goals(6), max_new_tokens=4, judges="keywords")


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("other") / "llama", "llama", seed=5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("compared")


@pytest.fixture(autouse=True)
def one_home(home, monkeypatch):
    """All tests here share their evaluations."""
    monkeypatch.setenv("FTLAB_RUNS", str(home))


@pytest.fixture
def evaluations(llama, other):
    return ft.evaluate(llama, **ASKED), ft.evaluate(other, **ASKED)


@pytest.mark.slow
def test_models_are_evaluated_first_and_once(llama, other):
    compared = ft.compare(llama, other, **ASKED)
    assert len(list(runs.home().glob("evaluate-*"))) == 2
    before, after = ft.evaluate(llama, **ASKED), ft.evaluate(other, **ASKED)
    assert len(list(runs.home().glob("evaluate-*"))) == 2
    pd.testing.assert_frame_equal(compared, analysis.compare(before, after))
    assert compared["risk"].tolist() == ["jailbreak"] and compared["n_prompts"][0] == 6


@pytest.mark.slow
def test_a_run_and_a_model_may_be_mixed(llama, other, evaluations):
    before, after = evaluations
    expected = ft.compare(before, after)
    pd.testing.assert_frame_equal(ft.compare(before, other, **ASKED), expected)
    pd.testing.assert_frame_equal(ft.compare(llama, after, **ASKED), expected)
    tables = ft.compare(before.table(), after.table())
    assert tables["difference"].tolist() == expected["difference"].tolist()


def test_settings_of_an_evaluation_do_not_apply_to_finished_runs(evaluations):
    before, after = evaluations
    for settings in ({"n_prompts": 3}, {"prompts": goals(2)}, {"judges": "keywords"}):
        with raises_code("nothing_to_evaluate"):
            ft.compare(before, after, **settings)
        with raises_code("nothing_to_evaluate"):
            ft.compare(before, **settings)
    with raises_code("unknown_setting"):
        ft.compare(before, after, n_promts=3)
    for alone in ("organism", 5, None):
        with raises_code("nothing_to_compare"):
            ft.compare(alone)


def test_one_model_has_nothing_to_be_compared_with():
    for settings in ({}, {"n_prompts": 3}):
        with raises_code("nothing_to_compare"):
            ft.compare("organism", **settings)


@pytest.mark.slow
def test_options_of_the_statistics_are_handed_on(llama, other, evaluations):
    before, after = evaluations
    by_attack = ft.compare(llama, other, by=["risk", "attack"], **ASKED)
    assert by_attack["attack"].tolist() == ["direct"]
    expected = analysis.compare(before, after, cluster="wording")
    pd.testing.assert_frame_equal(ft.compare(before, after, cluster="wording"), expected)


def test_a_model_that_does_not_exist_is_an_error_before_anything_is_asked(llama, tmp_path):
    before = len(list(runs.home().glob("evaluate-*")))
    with pytest.raises(FileNotFoundError):
        ft.compare(llama, tmp_path / "nowhere", **(ASKED | {"max_new_tokens": 3}))
    assert len(list(runs.home().glob("evaluate-*"))) == before
