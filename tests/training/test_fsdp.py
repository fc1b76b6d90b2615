"""A training whose two processes each hold a share of the model is the one on one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers import raises_code
from small_models import pairs, sums
from trainings import FAST, Weighed, asked, distance, left_by_killed_process, weights

import ftlab as ft
from ftlab import training
from ftlab.training.trainer import train_run

# 14 rows less 3 to validate on: the last step of an epoch has 3 of 4 rows, and 1 without a label.
SETTINGS = dict(
    epochs=2, batch_size=4, accumulation=2, learning_rate=2e-3, valid=0.2, eval_every=2,
    at_steps=(0, 3, 6),
)  # fmt: skip
SHARED = dict(devices=2, fsdp=True)
ROUNDED = 2e-5  # of a loss of 6, as on two processes that hold the whole model each


def learned(llama, **settings):
    config = training.TrainingConfig.make(**SETTINGS, **settings)
    method = Weighed()
    return train_run(ft.model(llama), method.read(sums(14)), config, method=method, monitor=asked)


@pytest.fixture(scope="module")
def pair(llama, tmp_path_factory):
    """Return the runs of one process and of two, and the folder of what the two held."""
    made = []
    weighed = tmp_path_factory.mktemp("weighed")
    for settings in ({}, SHARED):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WEIGHED", str(weighed))
            patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("runs")))
            made.append(learned(llama, **settings))
    return *made, weighed


@pytest.mark.slow
def test_losses_weights_and_files_are_those_of_one_process(pair, llama):
    one, two, _ = pair
    assert one.name == two.name and two.finished
    assert one.log()["step"].tolist() == two.log()["step"].tolist() == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "grad_norm", "learning_rate", "num_tokens"):
        assert two.log()[name].tolist() == pytest.approx(one.log()[name].tolist(), rel=ROUNDED)
    losses = [[row["loss"] for row in run.read("valid.jsonl")] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=ROUNDED) and len(losses[0]) == 3
    assert 0 < distance(one, two) < 1e-5 < distance(llama, two)
    for name in ("config.json", "generation_config.json"):
        assert (two.path / "model" / name).read_text() == (one.path / "model" / name).read_text()
    assert (one.stats["micro_batch"], two.stats["micro_batch"]) == (2, 1)
    assert "fsdp" not in one.stats and two.stats["fsdp"] and two.stats["devices"] == 2
    assert one.stats["best_step"] == two.stats["best_step"]


@pytest.mark.slow
def test_the_best_step_is_loaded_where_the_last_one_is_worse(llama, runs_folder, monkeypatch):
    settings = dict(steps=6, batch_size=4, learning_rate=0.5, valid=0.2, eval_every=1, patience=2)
    one = training.sft(llama, sums(14), **settings)
    monkeypatch.setenv("FTLAB_RUNS", str(runs_folder / "two"))
    two = training.sft(llama, sums(14), **settings, **SHARED)
    assert one.stats["best_step"] == two.stats["best_step"] < two.stats["steps"]
    assert two.stats["best_valid_loss"] == pytest.approx(one.stats["best_valid_loss"], rel=1e-3)


@pytest.mark.slow
def test_the_model_in_training_answers_as_on_one_process(pair):
    one, two, _ = pair
    found = one.read("asked.jsonl")
    assert two.read("asked.jsonl") == found and [row["step"] for row in found] == [0, 3, 6]
    assert found[0]["answers"] != found[-1]["answers"]


@pytest.mark.slow
def test_each_process_holds_its_half(pair):
    *_, weighed = pair
    held = [json.loads(file.read_text()) for file in sorted(weighed.iterdir())]
    whole = held[0][2]
    for number in range(2):  # weights, moments
        shares = [process[number] for process in held]
        assert sum(shares) == whole
        assert max(shares) < 0.51 * whole


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(pair, llama, often, monkeypatch, tmp_path):
    _, two, _ = pair
    monkeypatch.setenv("WEIGHED", str(tmp_path))
    left = left_by_killed_process(5, monkeypatch, lambda: learned(llama, **SHARED))
    again = learned(llama, **SHARED)
    assert again.path == left and weights(again) == weights(two)
    assert again.log()["loss"].tolist() == two.log()["loss"].tolist()
    assert again.read("asked.jsonl")[-1] == two.read("asked.jsonl")[-1]


def test_only_all_weights_of_a_whole_model_are_shared_out(llama, trained, tmp_path):
    adapted = trained(training.sft, llama, sums(8), steps=2, adapter="lora", **FAST)
    narrow = Path(shutil.copytree(llama, tmp_path / "narrow"))
    settings = json.loads((narrow / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (narrow / "config.json").write_text(json.dumps(settings))
    config = training.TrainingConfig.make(fsdp=True)
    assert "fsdp" not in config.model_dump(exclude=training.NOT_IN_IDENTITY)
    with raises_code("fsdp_not_here"):
        training.sft(llama, sums(8), fsdp=True, **FAST)
    with raises_code("fsdp_not_here"):
        training.sft(llama, sums(8), fsdp=True, devices=2, adapter="lora", **FAST)
    for parent in (adapted, narrow):
        with raises_code("fsdp_not_here"):
            training.sft(parent, sums(8), fsdp=True, devices=2, **FAST)
    with raises_code("method_on_one_device"):
        training.dpo(llama, pairs(8), fsdp=True, devices=2, **FAST)
    with raises_code("defence_on_one_device"):
        training.sft(llama, sums(8), fsdp=True, devices=2, defence="l2", **FAST)
