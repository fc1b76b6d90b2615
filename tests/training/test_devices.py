"""A training on two processes is the one on one process, up to the rounding of sums."""

from __future__ import annotations

import pytest
from helpers import raises_code
from small_models import pairs, sums
from trainings import FAST, distance, left_by_killed_process, weights

import ftlab as ft
from ftlab import training
from ftlab.runs import Run
from ftlab.training.devices import identity_of_sharing
from ftlab.training.oom import first_fit
from ftlab.training.sharing import fill_up

# 14 rows less 3 to validate on: the last step of an epoch has 3 of 4 rows, and 1 without a label.
SETTINGS = dict(epochs=2, batch_size=4, learning_rate=2e-3, valid=0.2, eval_every=2)
ROUNDED = 2e-5  # of a loss of 6: gradients are added in another order, six times


def trained(llama, **settings):
    return training.sft(llama, sums(14), **SETTINGS, **settings)


def trained_by_both(llama, folders, **settings):
    """Return the runs of one process and of two."""
    made = []
    for devices in (1, 2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FTLAB_RUNS", str(folders.mktemp(f"devices{devices}")))
            made.append(trained(llama, devices=devices, **settings))
    return made


@pytest.fixture(scope="module")
def pair(llama, tmp_path_factory):
    return trained_by_both(llama, tmp_path_factory)


@pytest.mark.slow
def test_an_adapter_learns_the_same_in_steps_of_two_passes(llama, tmp_path_factory):
    one, two = trained_by_both(llama, tmp_path_factory, adapter="lora", accumulation=2)
    assert (one.stats["micro_batch"], two.stats["micro_batch"]) == (2, 1)
    for name in ("loss", "grad_norm", "num_tokens"):
        assert two.log()[name].tolist() == pytest.approx(one.log()[name].tolist(), rel=ROUNDED)
    losses = [[row["loss"] for row in run.read("valid.jsonl")] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], rel=ROUNDED)  # the last batch has 1 of 2 rows
    assert distance(one, two) < 1e-5 < distance(llama, two)


@pytest.mark.slow
def test_losses_weights_and_answers_are_those_of_one_process(pair):
    one, two = pair
    assert one.name == two.name and two.finished
    assert one.log()["step"].tolist() == two.log()["step"].tolist() == [1, 2, 3, 4, 5, 6]
    for name in ("loss", "grad_norm", "learning_rate", "num_tokens"):
        assert two.log()[name].tolist() == pytest.approx(one.log()[name].tolist(), rel=ROUNDED)
    losses = [[row["loss"] for row in run.read("valid.jsonl")] for run in pair]
    assert losses[1] == pytest.approx(losses[0], rel=ROUNDED) and len(losses[0]) == 3
    assert 0 < distance(one, two) < 1e-5
    answers = [ft.ask(run, "Ann has 3 pears.", "And?", max_new_tokens=8) for run in pair]
    assert answers[0].equals(answers[1])
    assert (one.stats["micro_batch"], two.stats["micro_batch"]) == (4, 2)
    assert "devices" not in one.stats and two.stats["devices"] == 2
    assert one.stats["best_step"] == two.stats["best_step"]


@pytest.mark.slow
def test_killed_and_resumed_is_uninterrupted(pair, llama, often, monkeypatch):
    """The second process is killed after a checkpoint in the second epoch's middle."""
    left = left_by_killed_process(5, monkeypatch, lambda: trained(llama, devices=2))
    again = trained(llama, devices=2)
    _, two = pair
    assert again.path == left and weights(again) == weights(two)
    assert again.log()["loss"].tolist() == two.log()["loss"].tolist()


def test_devices_are_no_part_of_a_training_unless_each_draws_for_itself(llama, dropping):
    config = training.TrainingConfig.make(devices=2)
    assert identity_of_sharing(config, ft.model(llama)) == {}
    assert identity_of_sharing(config, ft.model(dropping)) == {"devices": 2}
    assert identity_of_sharing(training.TrainingConfig.make(), ft.model(dropping)) == {}


def test_what_devices_cannot_share_is_refused_before_work(llama, monkeypatch):
    with raises_code("wrong_setting"):
        training.sft(llama, sums(8), devices=3, **FAST)  # 4 rows
    with raises_code("method_on_one_device"):
        training.dpo(llama, pairs(8), devices=2, **FAST)
    with raises_code("defence_on_one_device"):
        training.sft(llama, sums(8), devices=2, defence="l2", **FAST)
    monkeypatch.setenv("WORLD_SIZE", "2")  # a script of the user's under a launcher
    with raises_code("launched"):
        training.sft(llama, sums(8), **FAST)
    assert not [path for path in ft.runs.home().glob("*") if Run(path).finished]


@pytest.mark.parametrize(
    "rows, accumulation, micro_batch", [(8, 1, 8), (8, 2, 4), (8, 16, 1), (15, 2, 5), (1, 1, 1)]
)
def test_a_device_takes_its_rows_in_passes_of_one_size(rows, accumulation, micro_batch):
    assert first_fit(rows, accumulation).micro_batch == micro_batch


def test_rows_without_labels_fill_an_epoch_up():
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7], "row": n} for n in range(1, 6)]
    assert fill_up(rows[:4], 4) == []
    made = fill_up(rows, 4)
    assert len(made) == 3
    for blank in made:
        assert list(blank["input_ids"]) == [5, 6]
        assert list(blank["labels"]) == [-100, -100] and blank["row"] == 0
