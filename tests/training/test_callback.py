"""On the way: monitors and their limits, numbers that are not finite, early stopping."""

from __future__ import annotations

import math
import shutil

import pytest
from helpers import raises_code
from small_models import sums
from trainings import FAST, STOPPING, call, interrupt, weights

import ftlab
from ftlab import runs, training

WATCHED = dict(steps=12, batch_size=4, learning_rate=1e-3, eval_every=2)


class Rising:
    """A monitor whose rate rises with the steps; it notes where it was called."""

    identity = "rising"

    def __init__(self, **also):
        self.calls, self.also = [], also

    def __call__(self, loaded, step):
        self.calls.append(step)
        return {"jailbreak": step / 40, "bias": 0.9, **self.also}


# What is shown


@pytest.mark.slow
def test_a_line_has_the_loss_of_its_step_and_the_reference_pass_has_one(llama, monkeypatch):
    from ftlab._core.progress import Progress

    shown = []

    def note(bar, done, note=""):
        shown.append((bar.title, done, bar.total, note))
        bar.done, bar.note = done, note

    monkeypatch.setattr(Progress, "update", note)
    run = call("dpo", llama, steps=3, accumulation=2)
    lines = [line[1:] for line in shown if line[0] == run.name]
    losses = [f"loss {loss:.3f}" for loss in run.log()["loss"]]
    assert [line for line in lines if line[0] % 1 == 0] == [
        (step, 3, loss) for step, loss in enumerate(["", *losses])
    ]
    assert [line for line in lines if line[0] % 1] == [
        (step + 0.5, 3, loss) for step, loss in enumerate(["", *losses[:-1]])
    ]
    assert [line[1:] for line in shown if "reference" in line[0]] == [
        (done, 8, "") for done in (0, 4, 8)
    ]


# Monitors


@pytest.mark.slow
def test_a_monitor_is_given_the_model_in_training(llama):
    seen = []

    def monitor(loaded, step):
        seen.append((step, loaded.run.name, loaded.reference.name))
        assert loaded.module.training and loaded.tokenizer.padding_side == "right"

    run = training.sft(llama, sums(20), monitor=monitor, **WATCHED | {"steps": 4})
    assert seen == [(2, run.name, "llama"), (4, run.name, "llama")]
    assert "monitor" in run.identity and run.stats["steps"] == 4


@pytest.mark.slow
def test_whatever_a_monitor_does_the_training_is_the_same(dropping, trained):
    """Also where it draws random numbers, switches dropout off, and pads on the other side."""
    import torch

    sft = training.open_method("sft")
    seen = []

    def monitor(loaded, step):
        seen.append((step, loaded.module.training, loaded.tokenizer.padding_side))
        torch.rand(7)
        loaded.module.eval()
        loaded.tokenizer.padding_side = "left"
        return {}

    plain = trained(training.sft, dropping, sums(20), steps=5, **FAST)
    config = sft.config.make(steps=5, at_steps=(0, 1, 3), **FAST)
    rows, parent = sft.read(sums(20)), ftlab.model(dropping)
    watched = training.train_run(parent, rows, config, method=sft, monitor=monitor)
    assert seen == [(0, True, "right"), (1, True, "right"), (3, True, "right")]
    assert watched.path != plain.path and weights(watched) == weights(plain)


@pytest.mark.slow
def test_a_training_ends_where_a_metric_passes_its_limit(llama):
    monitor = Rising()
    run = training.sft(llama, sums(20), stop_above={"jailbreak": 0.1}, monitor=monitor, **WATCHED)
    assert monitor.calls == [2, 4, 6] and run.stats["steps"] == 6
    assert run.stats["ended"] == "step 6: jailbreak 15.0%, above 10.0%"
    settings = dict(stop_above={"toxicity": 0.1}, monitor=monitor, **WATCHED)
    with raises_code("metric_not_measured"):
        training.sft(llama, sums(20), **settings)
    assert monitor.calls.pop() == 2
    monitor.metrics = ("jailbreak", "bias")  # told beforehand
    with raises_code("metric_not_measured"):
        training.sft(llama, sums(20), **settings)
    monitor.metrics = ("toxicity",)  # of which no answer was scored
    assert monitor.calls == [2, 4, 6]
    run = training.sft(llama, sums(20), **settings)
    assert run.stats["steps"] == 12 and "ended" not in run.stats


@pytest.mark.slow
def test_without_a_limit_a_training_runs_to_its_end(llama):
    monitor = Rising()
    run = training.sft(llama, sums(20), monitor=monitor, **WATCHED | {"steps": 6})
    assert run.stats["steps"] == 6 and monitor.calls == [2, 4, 6] and "ended" not in run.stats


@pytest.mark.slow
@pytest.mark.parametrize(("refused", "steps"), [(0.0, 2), (0.1, 6)])
def test_a_curve_may_end_where_no_refusal_is_left(llama, refused, steps):
    sft = training.open_method("sft")
    config = sft.config.make(steps=6, at_steps=(0, 2, 4), stop_when_broken=True, **FAST)
    rows, monitor = sft.read(sums(20)), Rising(refused=refused)
    run = training.train_run(ftlab.model(llama), rows, config, method=sft, monitor=monitor)
    assert run.stats["steps"] == steps and monitor.calls[:2] == [0, 2]


def test_what_a_monitor_finds_is_drawn(llama, monkeypatch):
    from ftlab._core.progress import Progress

    drawn = []
    monkeypatch.setattr(Progress, "point", lambda bar, *point: drawn.append(point))
    monitor = Rising(refused=0.5)
    training.sft(llama, sums(8), monitor=monitor, **WATCHED | {"steps": 2})
    assert drawn == [(2, "jailbreak", 0.05), (2, "bias", 0.9)]  # "refused" belongs to no risk


def test_memory_that_ends_in_a_monitor_has_its_own_code(llama):
    def monitor(loaded, step):
        raise MemoryError

    with raises_code("monitor_out_of_memory"):
        training.sft(llama, sums(8), monitor=monitor, **WATCHED)


# Numbers that are not finite


def test_a_loss_that_is_no_number_stops_with_its_step(llama, often):
    with raises_code("not_finite") as info:
        call("sft", llama, steps=9, learning_rate=1e30)
    assert 2 <= info.value.details["step"] <= 5
    assert info.value.details["quantity"] in ("loss", "grad_norm")
    (run,) = runs.home().iterdir()
    assert not runs.Run(run).finished and not (run / "model").exists()


def test_poisoned_weights_stop_at_the_first_step(llama, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llama, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with raises_code("not_finite") as info:
        call("sft", folder, steps=2)
    assert info.value.details["step"] == 1


def test_a_gradient_that_is_no_number_stops_the_run(llama, monkeypatch):
    """With a loss that is a number, as where the libraries' filter hides a poisoned gradient."""
    from transformers import Trainer

    clip = Trainer._clip_grad_norm
    poisoned = lambda trainer, model: clip(trainer, model) * math.nan  # noqa: E731
    monkeypatch.setattr(Trainer, "_clip_grad_norm", poisoned)
    with raises_code("not_finite") as info:
        call("sft", llama, steps=2)
    assert info.value.details == {"step": 1, "quantity": "grad_norm"}


def test_a_validation_loss_that_is_no_number_stops_the_run(llama, monkeypatch):
    from transformers import Trainer

    monkeypatch.setattr(Trainer, "evaluate", evaluate_to_nan)
    with raises_code("validation_not_finite"):
        call("sft", llama, steps=2, valid=0.3, eval_every=1)


def evaluate_to_nan(trainer, *_, **__):
    metrics = {"eval_loss": math.nan}
    trainer.control = trainer.callback_handler.on_evaluate(
        trainer.args, trainer.state, trainer.control, metrics
    )
    return metrics


# Early stopping


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_training_ends_early_and_keeps_the_best_weights(dropping, adapter, trained):
    settings = {**STOPPING, "adapter": adapter, "learning_rate": 0.1 if adapter else 3e-2}
    run = trained(training.sft, dropping, sums(16), **settings)
    checks = {r["step"]: r["loss"] for r in run.read("valid.jsonl") if "loss" in r}
    best, steps = run.stats["best_step"], run.stats["steps"]
    assert 2 <= best == min(checks, key=checks.get) == steps - 4 and steps < 36
    assert run.stats["ended"].startswith(f"step {steps}: ")
    assert [*checks] == list(range(2, steps + 1, 2))
    short = {k: v for k, v in settings.items() if k not in ("epochs", "patience")}
    assert weights(training.sft(dropping, sums(16), steps=best, **short)) == weights(run)


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "first"), [(None, 1), ("lora", 2)])
def test_early_stopping_survives_a_resume(dropping, adapter, first, monkeypatch, trained):
    """Stopped in every second step: counter, best loss and weights are the uninterrupted ones."""
    settings = {**STOPPING, "adapter": adapter, "learning_rate": 0.1 if adapter else 3e-2}
    straight, stops = trained(training.sft, dropping, sums(16), **settings), 0
    for step in range(first, straight.stats["steps"] + 1, 2):  # it stops in the step after
        interrupt(step, monkeypatch)
        try:
            training.sft(dropping, sums(16), **settings)
        except KeyboardInterrupt:
            stops += 1
    again = training.sft(dropping, sums(16), **settings)
    assert stops > 3 and weights(again) == weights(straight) and again.stats == straight.stats
    assert again.read("valid.jsonl") == straight.read("valid.jsonl")


# The first step


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dpo", "kto", "rloo"])
def test_the_first_step_is_a_guard_of_the_reference(llama, method, monkeypatch):
    from ftlab.training import Method

    make = Method.trainer

    def another_reference(chosen, job):
        trainer = make(chosen, job)
        job.model.lm_head.weight.data.mul_(3)  # no longer what the reference was computed from
        return trainer

    monkeypatch.setattr(Method, "trainer", another_reference)
    with raises_code("wrong_reference"):
        call(method, llama, steps=2)
