"""Settings of a training: what is allowed, and the learning rates where nobody gives one."""

from __future__ import annotations

import math

import pytest
from helpers import raises_code

from ftlab._core import plugins
from ftlab.training import TrainingConfig
from ftlab.training.config import FOR_ADAPTERS


@pytest.mark.parametrize("steps", [[0, 0], [10, 3], [0, 5, 5, 6], [-1, 2]])
def test_steps_that_do_not_increase_are_refused(steps):
    with raises_code("wrong_setting") as info:
        TrainingConfig.make(at_steps=steps)
    assert info.value.details["settings"] == ["at_steps"]


@pytest.mark.parametrize("steps", [[], [0], [0, 1, 2], (3, 100)])
def test_steps_that_increase_are_kept(steps):
    assert TrainingConfig.make(at_steps=steps).at_steps == tuple(steps)


@pytest.mark.parametrize("name", ["learning_rate", "epochs", "beta"])
@pytest.mark.parametrize("value", [math.inf, math.nan, 0, -1])
def test_a_rate_is_a_positive_number(name, value):
    config = plugins.get("methods", "dpo").config
    with raises_code("wrong_setting") as info:
        config.make(**{name: value})
    assert info.value.details["settings"] == [name]


@pytest.mark.parametrize("accumulation", [1, 2, 4, 8, 16])
def test_accumulation_divides_the_batch(accumulation):
    assert TrainingConfig.make(accumulation=accumulation).accumulation == accumulation
    with raises_code("wrong_setting"):
        TrainingConfig.make(accumulation=accumulation + 16)


@pytest.mark.parametrize("adapter", ["lora", "dora", "qlora"])
def test_embeddings_are_frozen_without_an_adapter_only(adapter):
    with raises_code("wrong_setting") as info:
        TrainingConfig.make(adapter=adapter, freeze_embeddings=True)
    assert info.value.details["settings"] == ["freeze_embeddings"]


@pytest.mark.parametrize("limits", [{"jailbreak": 1.0}, {"jailbreak": -0.1}, {"jailbreak": "x"}])
def test_a_limit_is_a_share(limits):
    with raises_code("wrong_setting"):
        TrainingConfig.make(stop_above=limits)


def test_rates_by_default_are_those_of_trl_and_ten_times_for_adapters():
    rates = {name: method.learning_rate for name, method in plugins.find("methods").items()}
    expected = {"sft": 2e-5, "dpo": 1e-6, "kto": 1e-6, "reward_model": 1e-4, "rloo": 1e-6}
    assert {name: rates[name] for name in expected} == pytest.approx(expected)
    assert FOR_ADAPTERS == 10
