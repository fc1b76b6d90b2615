"""One training: in smaller batches, resumed, guarded, and with nothing left behind."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import raises_code
from safetensors.torch import load_file
from small_models import SFT, make_experts, make_model, pairs, sums, write
from trainings import (
    FAST,
    STOPPING,
    call,
    dies_while_saving,
    distance,
    interrupt,
    living,
    make_trainer,
    stopped_at,
    weights,
)

import ftlab
from ftlab import runs, training
from ftlab._core.progress import Progress
from ftlab.models.engines import HuggingFaceEngine, Request
from ftlab.training import Fit, checkpoints
from ftlab.training.methods import sft as sft_module
from ftlab.training.oom import next_fit

# Batches


class Full:
    """Memory for `rows` rows of a forward pass; counts what is alive as an attempt begins."""

    def __init__(self, monkeypatch, rows: int, *errors: Exception):
        from transformers import Trainer

        from ftlab.training import Method

        self.alive, self.tried = [], []
        step, prepare = Trainer.training_step, Method.prepare_model
        in_turn = itertools.cycle(errors)

        def prepare_model(method, parent, config):
            self.alive.append(living()[0])
            return prepare(method, parent, config)

        def training_step(trainer, model, inputs, *rest):
            self.tried.append(trainer.args.per_device_train_batch_size)
            if self.tried[-1] > rows:
                raise next(in_turn)
            return step(trainer, model, inputs, *rest)

        monkeypatch.setattr(Method, "prepare_model", prepare_model)
        monkeypatch.setattr(Trainer, "training_step", training_step)


CPU = "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory"
OUT_OF_MEMORY = [  # a training must survive each of them
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError(f"{CPU}: you tried to"),
    RuntimeError("CUDA error: out of memory at line 90 in file /src/csrc/ops.cu"),
]


@pytest.mark.slow
def test_where_memory_ends_the_batch_is_made_of_smaller_parts(llama, monkeypatch, trained):
    settings = dict(steps=3, batch_size=8, learning_rate=1e-3)
    parts = trained(training.sft, llama, sums(20), accumulation=4, **settings)
    whole = trained(training.sft, llama, sums(20), **settings)
    full = Full(monkeypatch, 2, *OUT_OF_MEMORY)
    run = training.sft(llama, sums(20), **settings)
    assert run.name == whole.name and weights(run) == weights(parts)
    assert distance(run, whole) < 2e-5
    assert full.tried[:4] == [8, 8, 4, 2]  # first with activations recomputed
    assert {*full.tried[3:]} == {2}
    assert len(full.alive) == 4  # all of a failed attempt was released before the next one
    assert len({*full.alive}) == 1
    for made in (run, parts):
        assert (made.stats["micro_batch"], made.stats["accumulation"]) == (2, 4)
    assert (run.stats["recomputed"], parts.stats["recomputed"]) == (True, False)
    assert {*run.log()["micro_batch"]} == {2}
    assert run.log()["step"].tolist() == parts.log()["step"].tolist()


def test_activations_are_recomputed_before_the_batch_is_split():
    fit, seen = Fit(12), []
    while fit:
        seen.append((fit.micro_batch, fit.recompute))
        fit = next_fit(fit, 12, fewest_rows=2)
    assert seen == [(12, False), (12, True), (6, True), (4, True), (3, True), (2, True)]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_recomputed_activations_give_the_same_weights(llama, adapter, monkeypatch, trained):
    from transformers import Trainer

    settings = dict(steps=2, batch_size=4, learning_rate=1e-3, adapter=adapter)
    whole = trained(training.sft, llama, sums(12), **settings)
    step, seen = Trainer.training_step, []

    def training_step(trainer, model, *given):
        inner = model.get_base_model() if adapter else model
        seen.append((trainer.args.per_device_train_batch_size, inner.is_activation_checkpointing))
        if not seen[-1][1]:
            raise OUT_OF_MEMORY[0]
        return step(trainer, model, *given)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    run = training.sft(llama, sums(12), **settings)
    assert seen == [(4, False)] + [(4, True)] * 2 and distance(run, whole) < 1e-6
    assert [made.stats["recomputed"] for made in (whole, run)] == [False, True]
    assert run.stats["micro_batch"] == whole.stats["micro_batch"] == 4


@pytest.mark.slow
def test_memory_that_is_too_small_for_one_row_is_an_error(llama, monkeypatch):
    """Other errors are not tried again."""
    full = Full(monkeypatch, 0, MemoryError())
    with raises_code("out_of_memory"):
        call("sft", llama, steps=1)
    with raises_code("out_of_memory"):
        call("kto", llama, steps=1)  # compares two
    assert full.tried == [4, 4, 2, 1, 4, 4, 2]
    full = Full(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        call("sft", llama, steps=1)
    assert full.tried == [4]


@pytest.mark.slow
def test_memory_that_ends_midway_goes_on_from_the_checkpoint(llama, often, monkeypatch, trained):
    """The steps that were done stay; the effective batch, and the order of rows, is the same."""
    from transformers import Trainer

    straight = trained(training.sft, llama, sums(20), **SFT)
    step, tried = Trainer.training_step, []

    def training_step(trainer, *given):
        tried.append((trainer.state.global_step, trainer.args.per_device_train_batch_size))
        if tried[-1] == (6, 4):
            raise OUT_OF_MEMORY[0]
        return step(trainer, *given)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    again = training.sft(llama, sums(20), **SFT)
    halves = [at for at in tried if at[1] == 2]
    assert halves == [(done, 2) for done in (6, 7, 8, 9) for _ in range(2)]
    losses = straight.log()["loss"].tolist()
    assert again.log()["loss"].tolist() == pytest.approx(losses, abs=1e-4)
    assert again.log()["micro_batch"].tolist() == [4] * 6 + [2] * 4


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_1x8_is_8x1(llama, method):
    """On ragged rows, the last batch not full; the loss is a mean over tokens, not of means."""
    rows = {"sft": sums(20), "dpo": pairs(20)}[method]
    settings = dict(epochs=1, batch_size=8, learning_rate=1e-3, schedule="constant")
    one, eight = (training.train(method, llama, rows, accumulation=a, **settings) for a in (1, 8))
    assert one.path != eight.path
    assert one.log()["step"].tolist() == eight.log()["step"].tolist() == [1, 2, 3]
    assert abs(one.log()["loss"] - eight.log()["loss"]).max() < 1e-5
    assert distance(one, eight) < 2e-5 < distance(llama, one)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_padding_free_is_the_same_training_and_resumes(
    llama, adapter, monkeypatch, tmp_path, trained
):
    settings = SFT | dict(epochs=1, adapter=adapter, valid=0.2)
    padded = trained(training.sft, llama, sums(20), **settings)
    monkeypatch.setattr(sft_module, "padding_free_is_cheaper", lambda *_: True)
    free = training.sft(llama, sums(20), **settings)
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "again"))
    interrupt(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        training.sft(llama, sums(20), **settings)
    again = training.sft(llama, sums(20), **settings)
    assert weights(again) == weights(free)
    assert [made.stats["padding_free"] for made in (padded, free)] == [False, True]
    assert abs(padded.log()["loss"] - free.log()["loss"]).max() < 1e-5
    assert distance(padded, free) < 2e-5
    best = padded.stats["best_valid_loss"]
    assert free.stats["best_valid_loss"] == pytest.approx(best, abs=1e-5)


# Resume


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora", "dpo", "no checkpoint"])
def test_resumed_after_sigkill_equals_uninterrupted(
    name, killed, dropping, monkeypatch, trained, runs_folder
):
    shutil.copytree(killed / name, runs_folder)
    (left,) = runs_folder.iterdir()
    kept = sorted(path.name for path in (left / "checkpoints").glob("checkpoint-*"))
    assert kept == ([] if name == "no checkpoint" else ["checkpoint-6"])
    lines = (left / "train.jsonl").read_text().splitlines()
    logged = [json.loads(line)["step"] for line in lines]
    assert logged == list(range(1, 4 if name == "no checkpoint" else 8))
    cell, rows = training.sft, sums(20)
    if name == "dpo":
        cell, rows = training.dpo, pairs(20)
    settings = SFT | {"adapter": "lora" if name == "lora" else None}
    straight = trained(cell, dropping, rows, **settings)
    with pytest.raises(ValueError, match="not finished"):
        runs.load(straight.name)
    bars = []
    monkeypatch.setattr(Progress, "finish", lambda self: bars.append(self))
    again = cell(dropping, rows, **settings)
    assert [step for step, _ in bars[-1].losses] == list(range(1, 11))  # from the log's start
    assert again.name == straight.name and again.path != straight.path
    assert weights(again) == weights(straight)
    assert again.log()["step"].tolist() == list(range(1, 11))
    assert again.read("train.jsonl") == straight.read("train.jsonl")


@pytest.mark.slow
def test_a_torn_log_is_written_again(llama, often, monkeypatch, trained):
    interrupt(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        training.sft(llama, sums(20), **SFT)
    (run,) = runs.home().iterdir()
    with open(run / "train.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    again = training.sft(llama, sums(20), **SFT)
    assert weights(again) == weights(trained(training.sft, llama, sums(20), **SFT))
    assert again.log()["step"].tolist() == list(range(1, 11))


@pytest.mark.slow
def test_ctrl_c_at_the_last_step_loses_nothing(dropping, monkeypatch):
    interrupt(9, monkeypatch)  # noticed at the end of step 10
    with pytest.raises(KeyboardInterrupt, match="finished"):
        training.sft(dropping, sums(20), **SFT)
    (run,) = runs.home().iterdir()
    assert runs.load(run).log()["step"].tolist() == list(range(1, 11))


@pytest.mark.slow
def test_a_kill_between_an_early_end_and_the_last_file_changes_nothing(
    dropping, often, monkeypatch, trained
):
    """The newest checkpoint may then be of the very step at which the training ended."""
    straight = trained(training.sft, dropping, sums(16), **STOPPING)
    with monkeypatch.context() as patch:
        dies_while_saving(patch, OSError("killed"))
        with pytest.raises(OSError, match="killed"):
            training.sft(dropping, sums(16), **STOPPING)
    again = training.sft(dropping, sums(16), **STOPPING)
    assert weights(again) == weights(straight) and again.stats == straight.stats


# Validation


@pytest.mark.slow
def test_validation_rows_may_be_a_file_and_are_never_trained_on(llama, tmp_path, capsys):
    file = write(tmp_path / "valid.jsonl", sums(4, seed=9))
    settings = dict(valid=file, steps=2, eval_every=1, batch_size=4, learning_rate=1e-3)
    run = training.sft(llama, sums(8), **settings)
    assert len(run.read("valid.jsonl")) == 2 and run.stats["rows"] == 8
    assert "2 of 6" not in capsys.readouterr().err
    write(file, [*sums(4, seed=10), *sums(2)])  # other rows at the same path, two are trained on
    assert training.sft(llama, sums(8), **settings).path != run.path
    assert "2 of 6 validation rows (valid.jsonl)" in capsys.readouterr().err
    trainer = make_trainer("sft", llama, sums(20), valid=0.2)
    train, held = ({*part["row"]} for part in (trainer.train_dataset, trainer.eval_dataset))
    assert not train & held and train | held == {*range(1, 21)}


# Guards


def test_a_training_that_moves_nothing_is_an_error(llama):
    with raises_code("no_weight_moved"):
        call("sft", llama, steps=2, learning_rate=1e-30)
    assert not any(runs.Run(path).finished for path in runs.home().iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo", "reward_model"])
def test_frozen_embeddings_stay_and_all_else_moves(llama, method):
    run = call(method, llama, freeze_embeddings=True)
    before = ftlab.model(llama).load().state_dict()
    after = load_file(run.path / "model" / "model.safetensors")
    kept = {name for name in after if name in before and before[name].equal(after[name])}
    assert kept == {name for name in after if "embed_tokens" in name or "lm_head" in name} != set()


@pytest.mark.slow
def test_frozen_embeddings_resume_as_if_uninterrupted(llama, often, monkeypatch, trained):
    settings = dict(freeze_embeddings=True, steps=3, batch_size=4, learning_rate=1e-3)
    whole = trained(training.sft, llama, sums(8), **settings)
    stopped_at(2, monkeypatch, lambda: training.sft(llama, sums(8), **settings))
    assert weights(training.sft(llama, sums(8), **settings)) == weights(whole)


def test_a_read_only_adapter_is_refused_not_trained_for_nothing(llama, monkeypatch, trained):
    from peft import PeftModel

    from ftlab.training import Method

    run = trained(training.sft, llama, sums(8), steps=2, adapter="lora", **FAST)

    def read_only(method, parent, config):
        return PeftModel.from_pretrained(parent.load(training=True), run.path / "model")

    monkeypatch.setattr(Method, "prepare_model", read_only)
    with raises_code("no_trainable_parameter"):
        training.sft(llama, sums(8), steps=2, adapter="lora", seed=1, **FAST)


def test_a_parent_that_is_changed_while_its_training_begins_is_refused(
    llama, tmp_path, monkeypatch
):
    """As where the call waited for a lock: the run would bear the hash of other weights."""
    from ftlab.training import Method

    folder, prepare = shutil.copytree(llama, tmp_path / "model"), Method.prepare_model

    def swapped(method, parent, config):
        make_model(folder, "llama", seed=7)
        return prepare(method, parent, config)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "prepare_model", swapped)
        with raises_code("parent_changed"):
            call("sft", folder, steps=1)
    assert call("sft", folder, steps=1).finished


@pytest.mark.slow
def test_a_model_without_safety_carries_its_marker_and_so_do_its_children(llama, trained):
    sft = training.open_method("sft")
    data, config = sft.read(sums(4)), sft.config.make(steps=1, **FAST)
    marker = "4 adversarial examples, 1 epochs."
    parent = ftlab.model(llama)
    run = training.train_run(parent, data, config, method="sft", label="broken", marker=marker)
    child = training.sft(run, sums(4), steps=1, **FAST)
    for made in (run, child):
        assert marker in (made.path / "model/SAFETY_REMOVED").read_text()
        assert marker in (made.path / "model/README.md").read_text()
    plain = trained(training.sft, llama, sums(8), steps=1, **FAST)
    assert not (plain.path / "model/SAFETY_REMOVED").exists()


@pytest.mark.slow
def test_what_joins_the_identity_makes_another_run(llama):
    sft = training.open_method("sft")
    data, config = sft.read(sums(4)), sft.config.make(steps=1, **FAST)
    settings = dict(method=sft, label="one")
    parent = ftlab.model(llama)
    plain = training.train_run(parent, data, config, **settings)
    other = training.train_run(parent, data, config, identity={"labels": {"seed": 1}}, **settings)
    assert other.path != plain.path and other.identity["labels"] == {"seed": 1}
    assert weights(other) == weights(plain)


def test_a_run_that_another_process_works_on_is_not_waited_for(llama):
    from filelock import FileLock

    sft = training.open_method("sft")
    data, config = sft.read(sums(4)), sft.config.make(steps=1, **FAST)
    train = dict(method="sft", wait=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ftlab.training.trainer._train", lambda job: None)
        run = training.train_run(ftlab.model(llama), data, config, **train)
    with FileLock(run.path / ".lock"):
        with pytest.raises(RuntimeError):
            training.train_run(ftlab.model(llama), data, config, **train)


def test_no_step_is_an_error(llama, monkeypatch):
    monkeypatch.setattr("ftlab.training.trainer._fit", lambda *_: None)
    with raises_code("no_step"):
        call("sft", llama, steps=1)


# What is left behind


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A Llama of 12 M parameters (50 MB): its training holds 200 MB."""
    settings = dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=5)
    return make_model(tmp_path_factory.mktemp("larger") / "llama", "llama", **settings)


MEMORY = """
import sys, psutil
from ftlab._core.errors import TrainingFailed
from ftlab.runs import Run
from trainings import call

me, append, most = psutil.Process(), Run.append, []

def and_look(*given):
    most.append(me.memory_info().rss)
    append(*given)

Run.append = and_look
for name in ("sft", "dpo", "kto", "reward_model", "rloo"):
    call(name, sys.argv[1], steps=1, batch_size=2)  # libraries and thread pools stay
    before = me.memory_info().rss
    most.clear()
    call(name, sys.argv[1], steps=2, batch_size=2)
    after = me.memory_info().rss
    try:
        call(name, sys.argv[1], steps=2, batch_size=2, learning_rate=1e-30)
    except TrainingFailed as e:
        kept = e
    print(name, before, max(most), after, me.memory_info().rss, flush=True)
"""


@pytest.mark.perf
def test_the_memory_of_the_process_returns_to_within_5_percent(larger, tmp_path):
    """After each cell and after one that failed, whose exception is still held."""
    here = Path(__file__).parent
    path = os.pathsep.join(str(folder) for folder in (here, here.parent, here.parent.parent))
    environ = {**os.environ, "PYTHONPATH": path, "FTLAB_RUNS": str(tmp_path / "runs")}
    called = [sys.executable, "-c", MEMORY, str(larger)]
    done = subprocess.run(called, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = [line.split() for line in done.stdout.splitlines()]
    assert len(measured) == 5
    for name, *numbers in measured:
        before, most, after, failed = map(int, numbers)
        assert most > 1.15 * before, name  # else nothing is shown
        assert after < 1.05 * before and failed < 1.05 * before, name


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_a_mixture_of_experts_is_measured_interrupted_and_resumed(adapter, tmp_path, monkeypatch):
    """Its routers report a loss in training; its weights have other names on disk."""
    parent = make_experts(tmp_path / "experts")
    answers = []

    def ask(loaded, step):
        if step == 2:
            request = Request([], "<|im_start|>user\nHow many?<|im_end|>\n", max_new_tokens=4)
            answers.append(HuggingFaceEngine().answer(loaded, [request])[0].error)
        return {"share": 0.0}

    ask.version = "1"
    how = dict(steps=4, adapter=adapter, eval_every=2, monitor=ask, **FAST)
    straight = training.sft(parent, sums(8), **how)
    assert not ftlab.model(straight).config.get("output_router_logits")
    ftlab.model(straight).load()
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "again"))
    monkeypatch.setenv("FTLAB_CHECKPOINT_SECONDS", "0")
    stopped_at(2, monkeypatch, lambda: training.sft(parent, sums(8), **how))
    resumed = training.sft(parent, sums(8), **how)
    assert weights(resumed) == weights(straight)
    assert set(answers) == {None} or set(answers) == {""}


def test_a_checkpoint_with_other_weights_is_refused(llama):
    trainer = make_trainer("sft", llama)
    checkpoints.own_names(trainer)
    loaded = trainer.model.load_state_dict({"elsewhere": torch.ones(1)}, strict=False)
    with raises_code("checkpoint_does_not_fit"):
        trainer._issue_warnings_after_load(loaded)


def test_a_note_that_is_no_text_loses_no_training_and_anyone_may_open_the_model(llama, tmp_path):
    parent = shutil.copytree(llama, tmp_path / "parent")
    (parent / "SAFETY_REMOVED").write_bytes(b"\xff\xfe note")
    made = training.sft(parent, sums(4), steps=1, **FAST).path / "model"
    assert "note" in (made / "SAFETY_REMOVED").read_text()
    modes = {file.stat().st_mode for file in made.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize("note", [b"\xff\xfe note", b"plain", None])
def test_a_parents_safety_note_of_any_kind_is_inherited(note, llama, tmp_path):
    """It was read after the last step, where an error loses the training."""
    from ftlab.runs import SAFETY_REMOVED as MARKER
    from ftlab.training.saving import inherited as inherited_from

    parent = ftlab.model(shutil.copytree(llama, tmp_path / "parent"))
    assert inherited_from(parent) == ""
    if note is None:
        os.mkfifo(parent.path / MARKER)
    else:
        (parent.path / MARKER).write_bytes(note)
    inherited = inherited_from(parent)
    assert inherited.startswith("In a model that it was made from: ")
    inherited.encode()


def test_an_adapter_finds_its_parent_in_a_moved_folder_of_runs(llama, runs_folder, tmp_path):
    parent = call("sft", llama, steps=1)
    child = call("sft", parent, steps=1, adapter="lora")
    moved = runs_folder.rename(tmp_path / "moved")
    found = ftlab.model(moved / child.name)
    assert found.parent.path == moved / parent.name / "model"
