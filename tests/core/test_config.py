from __future__ import annotations

import math

import pytest

from ftlab._core.config import ATTACKS, RISKS
from ftlab.evals.config import Evaluation
from ftlab.training.config import Training


def problems(config, **values) -> str:
    with pytest.raises(ValueError) as e:
        config.make(**values)
    return str(e.value)


@pytest.mark.parametrize("config", [Training, Evaluation])
def test_an_unknown_key_is_refused_with_every_allowed_name(config):
    said = problems(config, learning_rat=1)
    assert "'learning_rat'" in said and all(name in said for name in config.model_fields)


def test_all_problems_are_reported_at_once():
    said = problems(Training, epochs=-1, batch_size=10, accumulation=3, at_steps=[3, 2], typo=0)
    assert all(
        part in said for part in ("epochs = -1", "accumulation = 3", "which is 10", "at_steps = [3, 2]", "'typo'")
    )
    said = problems(Evaluation, risks=["jailbrake"], attacks=["gcg"], n_prompts=0)
    assert all(part in said for part in ("'jailbrake'", *RISKS, "'gcg'", *ATTACKS, "n_prompts = 0"))


@pytest.mark.parametrize("steps", [[0, 0], [10, 3], [0, 5, 5, 6], [-1, 2]])
def test_steps_that_do_not_increase_are_refused(steps):
    assert "increasing" in problems(Training, at_steps=steps)


@pytest.mark.parametrize("steps", [[], [0], [0, 1, 2], (3, 100)])
def test_steps_that_increase_are_kept(steps):
    assert Training.make(at_steps=steps).at_steps == tuple(steps)


@pytest.mark.parametrize("name", ["learning_rate", "epochs", "beta"])
@pytest.mark.parametrize("value", [math.inf, math.nan, 0, -1])
def test_a_rate_is_a_positive_number(name, value):
    assert name in problems(Training, **{name: value})


@pytest.mark.parametrize("accumulation", [1, 2, 4, 8, 16])
def test_accumulation_divides_the_batch(accumulation):
    assert Training.make(accumulation=accumulation).accumulation == accumulation
    assert "divide batch_size" in problems(Training, accumulation=accumulation + 16)


@pytest.mark.parametrize(("field", "names"), [("risks", RISKS), ("attacks", ATTACKS)])
def test_names_are_checked_and_count_once(field, names):
    assert getattr(Evaluation.make(**{field: [*names, names[0]]}), field) == names
    for wrong in ([], [names[0].upper()], [names[0], ""]):
        assert names[0] in problems(Evaluation, **{field: wrong})


def test_none_means_the_default_and_a_config_does_not_change():
    assert Training.make(epochs=None, lora=None) == Training()
    with pytest.raises(ValueError):
        Training().epochs = 5


def test_default_rates_are_those_of_trl_and_ten_times_for_lora():
    methods = ("sft", "dpo", "kto", "reward", "rloo")
    rates = [Training(method=m, lora=lora).default_rate() for m in methods for lora in (False, True)]
    assert rates == pytest.approx([2e-5, 2e-4, 1e-6, 1e-5, 1e-6, 1e-5, 1e-4, 1e-3, 1e-6, 1e-5])
    assert [Training(**{k: True}).adapter for k in ("lora", "dora", "qlora")] == ["lora", "dora", "qlora"]
    assert Training(dora=True).default_rate() == Training(qlora=True).default_rate() == pytest.approx(2e-4)
