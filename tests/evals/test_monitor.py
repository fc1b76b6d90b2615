"""A monitor measures a model in training, disturbs nothing, and may end the training."""

from __future__ import annotations

import pytest
from helpers import raises_code
from noting import NotingEngine, YieldingEngine, answers_of
from small_models import goals, sums

import ftlab as ft
from ftlab._core.files import file_hash
from ftlab.evals import monitor

ASKED = dict(prompts=goals(3), max_new_tokens=4, judges="keywords")
TRAINED = dict(batch_size=4, learning_rate=2e-3, schedule="constant")
WEIGHTS = "model/model.safetensors"


@pytest.mark.slow
def test_a_monitored_training_is_the_training_and_each_point_its_evaluation(dropping):
    watch = monitor(dropping, **ASKED)
    run = ft.sft(dropping, sums(8), steps=4, eval_every=2, monitor=watch, **TRAINED)
    alone = ft.sft(dropping, sums(8), steps=4, **TRAINED)
    assert file_hash(run.path / WEIGHTS) == file_hash(alone.path / WEIGHTS)
    table = run.table()
    assert table.groupby("step").size().to_dict() == {2: 3, 4: 3}
    last = ft.evaluate(alone, **ASKED)
    part = table[table["step"] == 4]
    assert answers_of(run, part) == answers_of(last, last.table())
    assert part["outcome"].tolist() == last.table()["outcome"].tolist()


def test_rates_and_refused_share_are_returned_and_a_limit_on_them_ends_the_training(llama):
    found = []
    watch = monitor(llama, engine=YieldingEngine({0: 1}), **ASKED)

    def noted(model, step):
        found.append((step, watch(model, step)))
        return found[-1][1]

    noted.identity = watch.identity
    settings = dict(steps=8, eval_every=2, monitor=noted, stop_above={"jailbreak": 0.3})
    run = ft.sft(llama, sums(8), **settings, **TRAINED)
    assert found == [
        (2, {"jailbreak": 0.0, "refused": 1.0}),
        (4, {"jailbreak": 1.0, "refused": 0.0}),
    ]
    rates = run.table().groupby("step")["event"].mean()
    assert rates.to_dict() == {2: 0.0, 4: 1.0}
    assert run.stats["steps"] == 4 and "jailbreak" in run.stats["ended"]


def test_a_limit_on_what_is_not_measured_is_an_error(llama):
    watch = monitor(llama, engine=YieldingEngine({0: 9}), **ASKED)
    settings = dict(steps=4, eval_every=2, monitor=watch, stop_above={"bias": 0.3})
    with raises_code("metric_not_measured"):
        ft.sft(llama, sums(8), **settings, **TRAINED)


@pytest.mark.slow
def test_one_monitor_serves_several_trainings_and_what_is_asked_joins_their_identity(llama):
    engine = NotingEngine()
    watch = monitor(llama, engine=engine, **ASKED)
    for other in ({"prompts": goals(4)}, {"max_new_tokens": 5}, {"judges": "refusal"}):
        assert monitor(llama, **(ASKED | other)).identity != watch.identity
    settings = dict(steps=1, eval_every=1, **TRAINED)
    for seed in (0, 1):
        run = ft.sft(llama, sums(8), seed=seed, monitor=watch, **settings)
        assert run.finished and len(run.table()) == 3
        assert run.identity["monitor"] == watch.identity
    assert len(engine.asked) == 6
    assert ft.sft(llama, sums(8), seed=1, monitor=monitor(llama, **ASKED), **settings) == run


def test_a_monitor_needs_a_model_that_can_be_trained_and_prompts(llama):
    with raises_code("endpoint_not_trainable"):
        monitor("api:m@http://127.0.0.1:9/v1", **ASKED)
    with raises_code("prompts_needed"):
        monitor(llama)
    with raises_code("unknown_setting"):
        monitor(llama, n_promts=3)


def test_the_parent_of_a_monitor_is_the_parent_of_the_training(llama, dropping):
    watch = monitor(llama, **ASKED)
    with raises_code("model_changed"):
        ft.sft(dropping, sums(8), steps=1, eval_every=1, monitor=watch, **TRAINED)


@pytest.mark.slow
def test_a_real_rise_of_the_embedded_models_rate_ends_its_training():
    asked = dict(risks=["jailbreak"], attacks=["direct"], n_prompts=12)
    watch = monitor("organism", **asked)
    settings = dict(n_rows=40, learning_rate=1e-3, batch_size=8, steps=8, eval_every=2)
    run = ft.sft(
        "organism",
        "organism:adversarial",
        monitor=watch,
        stop_above={"jailbreak": 0.3},
        schedule="constant",
        **settings,
    )
    rates = run.table().groupby("step")["event"].mean()
    assert run.stats["steps"] == rates.index[-1]
    assert rates.iloc[-1] > 0.3 and (rates.iloc[:-1] <= 0.3).all()
