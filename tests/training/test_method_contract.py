"""What every training method must keep, whoever wrote it: run over everything found by place."""

from __future__ import annotations

import inspect
import math
import signal

import pytest
from helpers import raises_code
from small_models import contents, pairs
from trainings import (
    ROWS,
    call,
    every_second,
    interrupt,
    living,
    make_trainer,
    needs_reward,
    weights,
)

import ftlab
from ftlab import training
from ftlab._core import plugins
from ftlab.training import Method, TrainingConfig, open_method

METHODS = plugins.names("methods")


@pytest.fixture(params=METHODS)
def method(request) -> Method:
    return open_method(request.param)


def test_the_methods_are_found_by_their_place():
    assert METHODS == ["dpo", "kto", "reward_model", "rloo", "sft"]


def test_a_method_declares_what_others_rely_on(method):
    assert method.name in METHODS and open_method(method.name) is method
    assert method.kind in ROWS and method.version and method.learning_rate > 0
    assert issubclass(method.config, TrainingConfig)
    assert all(field.description for field in method.config.model_fields.values())
    assert method.config.make().batch_size >= method.fewest_rows
    assert method.__doc__ and {*method.answers} <= {*method.columns}


def test_trls_classes_fit_together(method):
    trainer, config = method.trl_class()
    taken = inspect.signature(trainer.__init__).parameters
    assert {"model", "args", "train_dataset", "processing_class"} <= {*taken}
    assert issubclass(config, __import__("transformers").TrainingArguments)


def test_one_of_several_visible_gpus_is_used(method, llama, monkeypatch):
    import torch

    monkeypatch.setattr(training.methods.base, "device", lambda: "several")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    trainer = make_trainer(method, llama)
    assert trainer.args.n_gpu == 1
    assert trainer._train_batch_size == trainer.args.per_device_train_batch_size


@pytest.mark.slow
def test_a_method_trains_any_folder_and_leaves_it_alone(method, folder):
    before = contents(folder)
    run = call(method, folder, steps=2)
    assert run.log()["step"].tolist() == [1, 2] and math.isfinite(run.stats["last_loss"])
    if method.first_step_check:
        check = method.first_step_check
        assert run.log()[check.metric][0] == pytest.approx(check.value, abs=1e-4)
    assert run.finished and not (run.path / "checkpoints").exists()
    assert contents(folder) == before and run.stats["micro_batch"] == 4
    assert run.identity["method"] == method.name
    if not method.new_head:
        assert ftlab.model(run).load().num_parameters()


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_a_method_resumes_as_if_never_stopped(method, adapter, dropping, monkeypatch, trained):
    settings = dict(steps=4, adapter=adapter, learning_rate=2e-3)
    if needs_reward(method):
        settings["reward"] = every_second
    straight = trained(call, method, dropping, 16, **settings)
    handler = signal.getsignal(signal.SIGINT)
    interrupt(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="step 3"):
        call(method, dropping, 16, **settings)
    assert signal.getsignal(signal.SIGINT) is handler
    again = call(method, dropping, 16, **settings)
    assert weights(again) == weights(straight)
    logs = []
    for run in (again, straight):
        records = run.read("train.jsonl")
        logs.append([{k: v for k, v in r.items() if k != "step_time"} for r in records])
    assert again.log()["step"].tolist() == [1, 2, 3, 4]
    assert logs[0] == logs[1]  # also what TRL counts over the whole training


@pytest.mark.slow
def test_no_model_survives_a_training_not_even_a_failed_one(llama):
    for name in METHODS:
        call(name, llama, steps=1, adapter="lora")  # what libraries keep for good
    before = living()
    kept = []  # Jupyter keeps the last exception
    for name in METHODS:
        call(name, llama, steps=2, adapter="lora")
        with raises_code("no_weight_moved") as info:
            call(name, llama, steps=1, learning_rate=1e-30)
        kept.append(info)
    assert living() == before and len(kept) == len(METHODS)


@pytest.mark.slow
def test_an_overlong_row_is_named_never_cut(method, llama):
    if method.kind == "chats":
        pytest.skip("chats have their own test")
    rows = pairs(4)
    rows[2]["prompt"] += " and one apple" * 200
    settings = {"max_length": 200, "steps": 1, "batch_size": 4}
    if needs_reward(method):
        settings["reward"] = every_second
    with pytest.raises(ValueError, match=r"row [356]:") as error:
        training.train(method, llama, rows, **settings)
    assert "row 1:" not in str(error.value)


# A method of a third party


def half_speed_sft() -> Method:
    """A whole extension: SFT with a trainer class and a setting of its own."""
    from ftlab._core.config import setting
    from ftlab.training import TrainingConfig, open_method

    class HalfSpeedConfig(TrainingConfig):
        share: float = setting(0.5, "Share of the learning rate", gt=0, le=1)

    class HalfSpeed(type(open_method("sft"))):
        """SFT at a share of the learning rate."""

        name = "half_speed"
        config = HalfSpeedConfig

        def trl_class(self):
            trainer, config = super().trl_class()

            class HalfSpeedTrainer(trainer):
                """Counts its steps."""

            return HalfSpeedTrainer, config

        def settings(self, job, rows):
            rate = job.config.learning_rate * job.config.share
            return super().settings(job, rows) | {"weight_decay": 0.0, "adam_epsilon": rate}

    return HalfSpeed()


def test_a_third_party_overrides_one_thing_of_a_method(llama, monkeypatch):
    assert len(inspect.getsource(half_speed_sft).splitlines()) < 30
    third_party = half_speed_sft()
    point = type("EntryPoint", (), {"load": lambda self: third_party})()
    monkeypatch.setattr(plugins, "_third_party", lambda place: {"half_speed": point})
    run = training.train("half_speed", llama, ROWS["chats"](8), share=0.25, steps=1, batch_size=4)
    assert run.name.startswith("half_speed-") and run.identity["training"]["share"] == 0.25
    with raises_code("wrong_setting"):
        training.train(third_party, llama, ROWS["chats"](8), share=2.0)
