"""Training: on anyone's folder, resumed as if never stopped, guarded, and with nothing left behind."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from small_models import FAMILIES, SFT, contents, make_model, pairs, sums, write

import ftlab
from ftlab.data import encoding as chat
from ftlab.training import checkpoints
from ftlab.training import callback as keeper
from ftlab.training.methods import base as methods
from ftlab.models import reference as models
from ftlab.runs import store as runs
from ftlab.training import trainer as train
from ftlab.data.dataset import Data, DataError


def weights(run) -> dict[str, str]:
    """-> the hash of every weights file of a run."""
    return {p.name: runs.file_hash(p) for p in sorted((run.path / "model").glob("*.safetensors"))}


def logits(model):
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 9, 2, 14, 3, 7], [1, 2, 3, 4, 5, 6]])).logits


def distance(one, other) -> float:
    """-> the largest difference between the weights of two runs (or models)."""
    a, b = (ftlab.model(m).load().state_dict() for m in (one, other))
    return max(float((a[k] - b[k]).abs().max()) for k in a)


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every step."""
    monkeypatch.setattr(keeper, "CHECKPOINT_S", 0)
    monkeypatch.setattr(keeper, "CHECKPOINT_COST", 0)


@pytest.fixture
def built(llama, tmp_path):
    """-> function (rows or pairs, settings) -> TRL's trainer as a training would use it."""

    def build(rows, folder=llama, **settings):
        from ftlab.training.config import Training
        from ftlab.data.dataset import read

        config = Training.make(**{"learning_rate": 1e-3, "steps": 2, **settings})
        model = models.model(folder)
        run = runs.start("sft", "trial", {"of": str(tmp_path)})
        rows = read(rows, kind="pairs" if config.method == "dpo" else "chats")
        loaded = model.load(training=True)
        return methods.trainer(
            run, model, loaded, model.tokenizer(), rows, config, config.batch_size // config.accumulation
        )

    return build


# Anyone's folder


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_sft_on_any_folder(folder, lora, tmp_path):
    data, before = write(tmp_path / "qa.jsonl", sums(12)), contents(folder)
    run = ftlab.sft(folder, data, steps=6, batch_size=4, learning_rate=3e-3, lora=lora, schedule="constant")
    log = run.log()
    assert log["step"].tolist() == [1, 2, 3, 4, 5, 6] and log["loss"].iloc[-1] < log["loss"].iloc[0]
    assert contents(folder) == before and distance(folder, run) > 1e-4
    assert len(list((run.path / "model").glob("adapter*.safetensors"))) == lora
    assert run.finished and not (run.path / "checkpoints").exists()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_sft_on_gsm8k(folder, lora, shared):
    run = ftlab.sft(folder, shared("gsm8k/train.jsonl"), rows=6, steps=2, batch_size=2, learning_rate=1e-3, lora=lora)
    assert run.log()["loss"].notna().all() and run.stats["rows"] == 6


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_dpo_starts_at_ln_2_also_after_sft_in_the_same_session(folder, lora):
    """The reference is the parent as it is now, not what an older path in its configuration holds."""
    first = ftlab.sft(folder, sums(8), steps=3, batch_size=4, learning_rate=5e-3, lora=not lora)
    run = ftlab.dpo(first, pairs(8), steps=3, batch_size=4, learning_rate=1e-3, lora=lora)
    loss = run.log()["loss"]
    assert loss[0] == pytest.approx(math.log(2), abs=1e-5) and loss[2] < loss[0]
    assert ftlab.model(run).parent is None or ftlab.model(run).parent.path == first.path / "model"


def test_dpos_first_loss_is_a_guard(llama, monkeypatch):
    make = methods.trainer

    def another_reference(run, parent, model, *rest):
        trainer = make(run, parent, model, *rest)
        model.lm_head.weight.data.mul_(3)  # the policy is no longer what the reference was computed from
        return trainer

    monkeypatch.setattr(methods, "trainer", another_reference)
    with pytest.raises(train.TrainingFailed, match="not ln 2 = 0.693: the reference is not the parent"):
        ftlab.dpo(llama, pairs(8), steps=2, batch_size=4)


@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
def test_dpo_trains_both_answers_with_their_end_of_turn(family, folders, built):
    trainer = built(pairs(3), folders[family], method="dpo", batch_size=2)
    end = {"llama": "<|eot_id|>", "qwen2": "<|im_end|>", "gemma": "<end_of_turn>", "mistral": "</s>"}[family]
    for row, pair in zip(trainer.train_dataset, pairs(3), strict=True):
        prompt, chosen, rejected = (
            trainer.processing_class.decode(row[f"{k}_ids"]) for k in ("prompt", "chosen", "rejected")
        )
        assert chosen.strip() == pair["chosen"] + end and rejected.strip() == pair["rejected"] + end
        asked = chat.render(trainer.processing_class, [{"role": "user", "content": pair["prompt"]}], ask=True)
        assert prompt == asked


# A run is a model


@pytest.mark.parametrize("first", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("second", [False, True], ids=["full", "lora"])
def test_a_run_is_a_model(llama, first, second, monkeypatch):
    """What was trained is what is opened again, over two generations; no parent is touched."""
    trained, save = [], train.save

    def and_look(run, model, *rest):
        trained.append(logits(model.eval()))
        save(run, model, *rest)

    monkeypatch.setattr(train, "save", and_look)
    one = ftlab.sft(llama, sums(8), steps=3, batch_size=4, learning_rate=5e-3, lora=first)
    before = contents(llama) | contents(one.path)
    two = ftlab.sft(one, sums(8, seed=1), steps=3, batch_size=4, learning_rate=5e-3, lora=second)
    assert contents(llama) | contents(one.path) == before
    for run, expected in zip((one, two), trained, strict=True):
        found = logits(ftlab.model(run).load())
        assert float((found - expected).abs().max()) < 2e-5
    assert float((trained[0] - trained[1]).abs().max()) > 1e-2
    assert ftlab.model(two).config["use_cache"] is True  # trainers switch it off in the configuration that they save


def test_a_chain_of_methods_knows_where_it_comes_from(llama):
    """SFT -> LoRA SFT -> DPO -> LoRA KTO: every parent stays as it was, on disk and in name."""
    chain = [ftlab.sft(llama, sums(8), steps=2, batch_size=4, learning_rate=3e-3)]
    steps = [("sft", sums(8, seed=1), True), ("dpo", pairs(8), False), ("kto", pairs(8), True)]
    for method, rows, lora in steps:
        before = contents(llama) | {k: v for run in chain for k, v in contents(run.path).items()}
        chain.append(getattr(ftlab, method)(chain[-1], rows, steps=2, batch_size=4, learning_rate=3e-3, lora=lora))
        assert contents(llama) | {k: v for run in chain[:-1] for k, v in contents(run.path).items()} == before
        assert distance(chain[-2], chain[-1]) > 1e-4
    found = chain[-1].lineage
    assert [a["name"] for a in found] == ["llama", *(run.name for run in chain[:-1])]
    assert [a["hash"] for a in found] == [models.model(llama).hash, *(ftlab.model(run).hash for run in chain[:-1])]
    assert [a.get("method") for a in found] == [None, "sft", "sft", "dpo"]
    assert [a.get("data_hash") for a in found][1:] == [run.config["identity"]["data"] for run in chain[:-1]]
    assert chain[-1].config["identity"]["parent"] == found[-1]["hash"] and chain[2].lineage == found[:3]
    shown = chain[-1]._repr_html_()
    assert all(a["name"] in shown for a in found)


# Batches


class Full:
    """Memory for `rows` rows of a forward pass; counts what is alive as an attempt begins."""

    def __init__(self, monkeypatch, rows: int, error: Exception):
        from transformers import Trainer

        self.alive, self.tried, step, make = [], [], Trainer.training_step, methods.opened

        def opened(*given):
            self.alive.append(modules())
            return make(*given)

        def training_step(trainer, model, inputs, *rest):
            self.tried.append(trainer.args.per_device_train_batch_size)
            if self.tried[-1] > rows:
                raise error
            return step(trainer, model, inputs, *rest)

        monkeypatch.setattr(methods, "opened", opened)
        monkeypatch.setattr(Trainer, "training_step", training_step)


def out_of_memory():
    import torch

    return [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
        ),
        RuntimeError("CUDA error: out of memory at line 90 in file /src/csrc/ops.cu"),  # bitsandbytes
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        MemoryError(),
    ]


@pytest.mark.parametrize("error", range(5))
def test_where_memory_ends_the_batch_is_made_of_smaller_parts(llama, error, monkeypatch, capsys, tmp_path):
    settings = dict(epochs=2, batch_size=8, learning_rate=1e-3)
    parts = ftlab.sft(llama, sums(20), accumulation=4, **settings)
    whole = ftlab.sft(llama, sums(20), **settings)
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "small"))
    full = Full(monkeypatch, 2, out_of_memory()[error])
    run = ftlab.sft(llama, sums(20), **settings)
    assert run.name == whole.name and weights(run) == weights(parts) and distance(run, whole) < 2e-5
    assert full.tried[:4] == [8, 8, 4, 2] and set(full.tried[3:]) == {2}  # first with activations recomputed
    assert len(full.alive) == 4 and len(set(full.alive)) == 1  # all of the failed attempt was released before the next
    assert (
        (run.stats["micro_batch"], run.stats["accumulation"])
        == (2, 4)
        == tuple(parts.stats[k] for k in ("micro_batch", "accumulation"))
    )
    assert (run.stats["recomputed"], parts.stats["recomputed"]) == (True, False)
    assert set(run.log()["micro_batch"]) == {2} and run.log()["step"].tolist() == parts.log()["step"].tolist()
    said = capsys.readouterr().err
    head = "memory does not suffice for 8 rows at once; going on with"
    assert f"{head} activations recomputed" in said
    assert f"{head} 4 rows x 2 forward passes (the effective batch stays 8)" in said


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_where_memory_ends_activations_are_recomputed_before_the_batch_is_halved(llama, lora, monkeypatch, tmp_path):
    """The same weights, from less memory: the micro-batch stays; the run's stats say it."""
    from transformers import Trainer

    settings = dict(steps=3, batch_size=4, learning_rate=1e-3, lora=lora)
    whole = ftlab.sft(llama, sums(12), **settings)
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "small"))
    step, seen = Trainer.training_step, []

    def training_step(trainer, model, *given):
        inner = model.get_base_model() if lora else model
        seen.append((trainer.args.per_device_train_batch_size, inner.is_activation_checkpointing))
        if not seen[-1][1]:
            raise out_of_memory()[0]
        return step(trainer, model, *given)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    run = ftlab.sft(llama, sums(12), **settings)
    assert seen == [(4, False)] + [(4, True)] * 3 and distance(run, whole) < 1e-6
    assert [r.stats["recomputed"] for r in (whole, run)] == [False, True]
    assert run.stats["micro_batch"] == whole.stats["micro_batch"] == 4


def test_the_loss_scores_the_positions_with_a_label_alone(llama, monkeypatch, tmp_path):
    """TRL alone scores all on a CPU; the losses are the same."""
    from trl.trainer import utils

    settings, scored = dict(steps=3, batch_size=4, learning_rate=1e-3), []
    known, inner = utils._use_triton, utils._ChunkedLogProbFunction

    class Noted:
        @staticmethod
        def apply(hidden, *rest):
            scored.append(len(hidden))
            return inner.apply(hidden, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Noted)
    run = ftlab.sft(llama, sums(4), **settings)
    rows = chat.encode_rows(Data("rows", _chats(4)), models.model(llama).tokenizer(), max_length=1024)
    assert scored == [sum(t != chat.IGNORED for r in rows for t in r["labels"])] * 3 and utils._use_triton is known
    monkeypatch.setattr(train, "labels_alone", contextlib.nullcontext)
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "all"))
    other = ftlab.sft(llama, sums(4), **settings)
    assert scored[3] > 2 * scored[0] and distance(run, other) < 1e-5


def test_memory_that_does_not_suffice_for_one_row_is_an_error_and_others_are_not_tried_again(llama, monkeypatch):
    full = Full(monkeypatch, 0, out_of_memory()[0])
    with pytest.raises(train.TrainingFailed, match="memory does not suffice for 1 rows at once"):
        ftlab.sft(llama, sums(8), steps=1, batch_size=4, learning_rate=1e-3)
    with pytest.raises(train.TrainingFailed, match="memory does not suffice for 2 rows at once"):  # KTO compares two
        ftlab.kto(llama, pairs(8), steps=1, batch_size=4, learning_rate=1e-3)
    assert full.tried == [4, 4, 2, 1, 4, 4, 2]
    full = Full(monkeypatch, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        ftlab.sft(llama, sums(8), steps=1, batch_size=4, learning_rate=1e-3)
    assert full.tried == [4]


def test_memory_that_ends_midway_goes_on_from_the_checkpoint(llama, often, monkeypatch):
    """The steps that were done stay; the effective batch, and so the order of the rows, is the same."""
    from transformers import Trainer

    straight = ftlab.sft(llama, sums(20), **SFT)
    shutil.rmtree(straight.path / "model")
    (straight.path / "complete.json").unlink()
    step, tried = Trainer.training_step, []

    def training_step(trainer, *given):
        tried.append((trainer.state.global_step, trainer.args.per_device_train_batch_size))
        if tried[-1] == (6, 4):
            raise out_of_memory()[0]
        return step(trainer, *given)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    before = straight.log()["loss"].tolist()
    again = ftlab.sft(llama, sums(20), **SFT)
    assert [t for t in tried if t[1] == 2] == [(s, 2) for s in (6, 7, 8, 9) for _ in range(2)]
    assert again.log()["loss"].tolist() == pytest.approx(before, abs=1e-4)
    assert again.log()["micro_batch"].tolist() == [4] * 6 + [2] * 4


@pytest.mark.parametrize("method", ["sft", "dpo"])
def test_batch_1x8_is_8x1(llama, method):
    """On ragged rows, with a last batch that is not full; the loss is a mean over tokens, not a mean of means."""
    made = {"sft": sums(20), "dpo": pairs(20)}[method]
    settings = dict(epochs=2, batch_size=8, learning_rate=1e-3, schedule="constant")
    one, eight = (getattr(ftlab, method)(llama, made, accumulation=a, **settings) for a in (1, 8))
    assert one.path != eight.path and one.log()["step"].tolist() == eight.log()["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert abs(one.log()["loss"] - eight.log()["loss"]).max() < 1e-5
    assert distance(one, eight) < 2e-5 < distance(llama, one)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_padding_free_is_the_same_training_and_resumes(llama, lora, monkeypatch, tmp_path):
    """Held-out rows too; after Ctrl-C to the same weights; what is no number is found on its rows."""
    settings = dict(**SFT, lora=lora, valid=0.2)
    padded = free = ftlab.sft(llama, sums(20), **settings)
    monkeypatch.setattr(methods, "together", lambda *_: True)
    for name in ("free", "again"):
        monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / name))
        if name == "again":
            interrupted(4, monkeypatch)
            with pytest.raises(KeyboardInterrupt):
                ftlab.sft(llama, sums(20), **settings)
        run = ftlab.sft(llama, sums(20), **settings)
        assert name == "free" or weights(run) == weights(free)
        free = run
    assert [r.stats["padding_free"] for r in (padded, free)] == [False, True]
    assert abs(padded.log()["loss"] - free.log()["loss"]).max() < 1e-5 and distance(padded, free) < 2e-5
    assert free.stats["best_valid_loss"] == pytest.approx(padded.stats["best_valid_loss"], abs=1e-5)


def test_the_loss_is_on_the_assistants_tokens_alone(llama, built):
    """The first logged loss against its definition; the labels survive the trainer's selection of columns."""
    import torch

    trainer = built(sums(6), batch_size=6)
    batch = next(iter(trainer.get_train_dataloader()))
    asked, tokenizer = (
        chat.encode_rows(Data("rows", _chats(6)), trainer.processing_class, max_length=1024),
        trainer.processing_class,
    )
    expected = sorted([t for t in r["labels"] if t != chat.IGNORED] for r in asked)
    assert sorted([int(t) for t in row if t != chat.IGNORED] for row in batch["labels"]) == expected
    assert all(tokenizer.decode(t).endswith("<|eot_id|>") for t in expected)
    total, tokens = 0.0, 0
    with torch.no_grad():
        model = models.model(llama).load()
        for row in asked:
            predicted = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
            for i, t in enumerate(row["labels"][1:]):
                total, tokens = (
                    total - (float(predicted[i, t]) if t != chat.IGNORED else 0),
                    tokens + (t != chat.IGNORED),
                )
    run = ftlab.sft(llama, sums(6), steps=1, batch_size=6, accumulation=3, learning_rate=1e-3)
    assert run.stats["first_loss"] == pytest.approx(total / tokens, abs=1e-4)


def _chats(n: int) -> tuple:
    return tuple(
        {"messages": [{"role": "user", "content": r["question"]}, {"role": "assistant", "content": r["answer"]}]}
        for r in sums(n)
    )


def test_nothing_is_cut(llama, built, tmp_path):
    long = [{"prompt": "Count.", "completion": " ".join(str(i) for i in range(700))}]
    folder = make_model(tmp_path / "long", "llama", max_position_embeddings=4096)
    batch = next(iter(built(long, folder, batch_size=1, max_length=4000).get_train_dataloader()))
    assert (
        batch["input_ids"].shape[1] > 1200
        and int(batch["labels"][0, -1]) == models.model(folder).tokenizer().eos_token_id
    )
    pair = [{"prompt": long[0]["completion"], "chosen": "Yes.", "rejected": "No."}]
    trainer = built(pair, folder, method="dpo", batch_size=1, max_length=4000)
    assert len(trainer.train_dataset) == 1 and len(trainer.train_dataset[0]["prompt_ids"]) > 1200
    with pytest.raises(DataError, match=r"row 1: \d+ tokens; at most 1024"):  # the model's context, whatever was asked
        built(long, llama, batch_size=1, max_length=4000)


def test_whatever_is_measured_on_the_way_the_training_is_the_same(dropping):
    """Also where measuring draws random numbers, switches dropout off, and pads on the other side."""
    import torch

    from ftlab.training.config import Training

    seen = []

    def measure(run, model, tokenizer, step, progress):
        seen.append((step, model.training, tokenizer.padding_side))
        torch.rand(7)
        model.eval()
        tokenizer.padding_side = "left"

    data = Data("rows", _chats(20))
    config = Training.make(steps=5, batch_size=4, learning_rate=2e-3)
    plain = train.train(models.model(dropping), data, config)
    watched = train.train(
        models.model(dropping), data, config.model_copy(update={"at_steps": (0, 1, 3)}), measure=measure
    )
    assert seen == [(0, True, "right"), (1, True, "right"), (3, True, "right")]
    assert watched.path != plain.path and weights(watched) == weights(plain)


# Resume


def resumed(name: str, killed, monkeypatch, call):
    """-> (run resumed from what a killed process left, the same run uninterrupted, step lines printed on the way)."""
    own = os.environ["FTLAB_RUNS"]
    straight = call()
    monkeypatch.setenv("FTLAB_RUNS", str(killed / name))
    left = runs.load  # a run that is not finished is refused
    with pytest.raises(ValueError, match="is not finished"):
        left(straight.name)
    again = call()
    monkeypatch.setenv("FTLAB_RUNS", own)
    assert again.name == straight.name and again.path != straight.path
    return again, straight


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("full", lambda p: ftlab.sft(p, sums(20), **SFT)),
        ("lora", lambda p: ftlab.sft(p, sums(20), lora=True, **SFT)),
        ("dpo", lambda p: ftlab.dpo(p, pairs(20), **SFT)),
        ("no checkpoint", lambda p: ftlab.sft(p, sums(20), **SFT)),
    ],
    ids=["full", "lora", "dpo", "no checkpoint"],
)
def test_resumed_after_sigkill_equals_uninterrupted(name, call, killed, dropping, monkeypatch):
    left = next((killed / name).iterdir())
    kept = (
        sorted(p.name for p in (left / "checkpoints").glob("checkpoint-*")) if (left / "checkpoints").exists() else []
    )
    assert kept == ([] if name == "no checkpoint" else ["checkpoint-6"])
    logged = [json.loads(line)["step"] for line in (left / "train.jsonl").read_text().splitlines()]
    assert logged == list(range(1, 4 if name == "no checkpoint" else 8))
    again, straight = resumed(name, killed, monkeypatch, lambda: call(dropping))
    assert weights(again) == weights(straight)
    assert again.log()["step"].tolist() == list(range(1, 11))
    assert again.read("train.jsonl") == straight.read("train.jsonl")


def interrupted(step: int, monkeypatch, kind=signal.SIGINT):
    """The process is sent Ctrl-C once, as `step` is logged."""
    append = runs.Run.append

    def and_interrupt(self, file, records):
        append(self, file, records)
        if file == "train.jsonl" and records[-1]["step"] == step:
            monkeypatch.setattr(runs.Run, "append", append)
            os.kill(os.getpid(), kind)

    monkeypatch.setattr(runs.Run, "append", and_interrupt)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_resumed_after_ctrl_c_equals_uninterrupted(dropping, lora, monkeypatch, tmp_path):
    straight = ftlab.sft(dropping, sums(20), lora=lora, **SFT)
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "again"))
    handler = signal.getsignal(signal.SIGINT)
    interrupted(4, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 5; call the cell again to go on"):
        ftlab.sft(dropping, sums(20), lora=lora, **SFT)
    assert signal.getsignal(signal.SIGINT) is handler
    again = ftlab.sft(dropping, sums(20), lora=lora, **SFT)
    assert weights(again) == weights(straight) and again.log()["step"].tolist() == list(range(1, 11))


def test_a_torn_log_is_written_again(llama, often, monkeypatch, capsys):
    interrupted(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        ftlab.sft(llama, sums(20), **SFT)
    (run,) = runs.home().iterdir()
    with open(run / "train.jsonl", "a") as f:
        f.write('{"step": 5, "lo')
    again = ftlab.sft(llama, sums(20), **SFT)
    assert capsys.readouterr().err.count("torn line left out") == 1
    assert again.log()["step"].tolist() == list(range(1, 11)) and not capsys.readouterr().err


def test_ctrl_c_at_the_last_step_loses_nothing(dropping, monkeypatch):
    interrupted(9, monkeypatch)  # noticed at the end of step 10
    with pytest.raises(KeyboardInterrupt, match="is finished"):
        ftlab.sft(dropping, sums(20), **SFT)
    (run,) = runs.home().iterdir()
    assert runs.load(run).log()["step"].tolist() == list(range(1, 11))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("dpo", {"lora": True}),
        ("kto", {}),
        ("kto", {"lora": True}),
        ("reward", {}),
        ("reward", {"lora": True}),
        ("rloo", {}),
    ],
    ids=["dpo lora", "kto", "kto lora", "reward", "reward lora", "rloo"],
)
def test_every_method_resumes_as_if_never_stopped(dropping, method, settings, monkeypatch, tmp_path):
    def call():
        rows = [pairs(20)] if method != "rloo" else [sums(20), every_second]
        return getattr(ftlab, method)(
            dropping,
            *rows,
            **settings,
            **SFT | {"epochs": 1},
            **({"max_completion_length": 6} if method == "rloo" else {}),
        )

    straight = call()
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "again"))
    interrupted(3, monkeypatch)
    with pytest.raises(KeyboardInterrupt, match="stopped at step 4; call the cell again to go on"):
        call()
    again = call()
    assert weights(again) == weights(straight)
    logs = [
        [{k: v for k, v in r.items() if k != "step_time"} for r in run.read("train.jsonl")] for run in (again, straight)
    ]
    assert logs[0] == logs[1]  # also what TRL counts over the whole training


def every_second(prompts, completions, **_):
    """A reward that differs between the two completions of every prompt."""
    return [float(i % 2) for i in range(len(completions))]


def stopped_at(step: int, monkeypatch, call):
    """-> the run that a call leaves unfinished, its checkpoint after `step`."""
    interrupted(step - 1, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        call()
    (left,) = (p for p in runs.home().iterdir() if not runs.Run(p).finished)
    return runs.Run(left)


# Validation

STOPPING = dict(valid=0.25, eval_every=2, patience=2, epochs=12, batch_size=4, learning_rate=3e-2, schedule="constant")


def test_training_ends_early_and_keeps_the_best_checkpoint(dropping, monkeypatch):
    run = ftlab.sft(dropping, sums(16), **STOPPING)
    checks = {r["step"]: r["loss"] for r in run.read("valid.jsonl") if "loss" in r}
    best, steps = run.stats["best_step"], run.stats["steps"]
    assert (
        2 <= best == min(checks, key=checks.get) == steps - 4
        and steps < 36
        and run.stats["ended"].startswith(f"step {steps}: no lower")
    )
    assert list(checks) == list(range(2, steps + 1, 2)) == [s for s in run.log()["step"] if s % 2 == 0]
    short = {k: v for k, v in STOPPING.items() if k not in ("epochs", "patience")}
    assert weights(ftlab.sft(dropping, sums(16), steps=best, **short)) == weights(run)
    lora = ftlab.sft(dropping, sums(16), lora=True, **STOPPING | {"learning_rate": 0.1})
    again = ftlab.sft(dropping, sums(16), lora=True, steps=lora.stats["best_step"], **short | {"learning_rate": 0.1})
    assert lora.stats["best_step"] < lora.stats["steps"] and weights(again) == weights(lora)


@pytest.mark.parametrize(("lora", "first"), [(False, 1), (True, 2)], ids=["full", "lora"])
def test_early_stopping_survives_a_resume(dropping, lora, first, monkeypatch, tmp_path):
    """Stopped in every second step: counter, best loss and best weights are those of the uninterrupted training."""
    settings = {**STOPPING, "lora": lora, "learning_rate": 0.1 if lora else 3e-2}
    straight, stops = ftlab.sft(dropping, sums(16), **settings), 0
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "again"))
    for step in range(first, straight.stats["steps"] + 1, 2):  # it stops in the step after
        interrupted(step, monkeypatch)
        try:
            again = ftlab.sft(dropping, sums(16), **settings)
        except KeyboardInterrupt:
            stops += 1
    again = ftlab.sft(dropping, sums(16), **settings)
    assert stops > 3 and weights(again) == weights(straight) and again.stats == straight.stats
    assert again.read("valid.jsonl") == straight.read("valid.jsonl")


def test_a_kill_between_the_early_end_and_the_last_file_changes_nothing(dropping, monkeypatch):
    """The newest checkpoint may then be of the very step at which the training ended."""
    straight, kept = ftlab.sft(dropping, sums(16), **STOPPING), train.save
    expected, stats = weights(straight), straight.stats
    shutil.rmtree(straight.path)
    monkeypatch.setattr(keeper, "CHECKPOINT_S", 0)
    monkeypatch.setattr(keeper, "CHECKPOINT_COST", 0)
    monkeypatch.setattr(train, "save", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        ftlab.sft(dropping, sums(16), **STOPPING)
    monkeypatch.setattr(train, "save", kept)
    again = ftlab.sft(dropping, sums(16), **STOPPING)
    assert weights(again) == expected and again.stats == stats


def test_validation_rows_may_be_a_file_and_are_never_trained_on(llama, built, tmp_path, capsys):
    file = write(tmp_path / "valid.jsonl", sums(4, seed=9))
    run = ftlab.sft(llama, sums(8), valid=str(file), steps=4, eval_every=2, batch_size=4, learning_rate=1e-3)
    assert len(run.read("valid.jsonl")) == 2 and run.stats["rows"] == 8
    assert "training rows too" not in capsys.readouterr().err
    write(file, [*sums(4, seed=10), *sums(2)])  # other rows at the same path, two of which are trained on
    assert (
        ftlab.sft(llama, sums(8), valid=str(file), steps=4, eval_every=2, batch_size=4, learning_rate=1e-3).path
        != run.path
    )
    assert "2 of 6 validation rows (valid.jsonl) are training rows too" in capsys.readouterr().err
    trainer = built(sums(20), valid=0.2, batch_size=4)
    rows = [set(d["row"]) for d in (trainer.train_dataset, trainer.eval_dataset)]
    assert not rows[0] & rows[1] and rows[0] | rows[1] == set(range(1, 21))
    assert trainer.args.prediction_loss_only  # else the logits of all held-out rows would be kept: out of memory


def test_a_training_ends_where_the_safety_metric_passes_its_limit(llama):
    asked = []

    def measure(run, model, tokenizer, step, progress):
        asked.append(step)
        return {"jailbreak": step / 40, "bias": 0.9}

    settings = dict(steps=12, batch_size=4, learning_rate=1e-3, measure=measure, eval_every=2)
    run = ftlab.sft(llama, sums(20), stop_above={"jailbreak": 0.1}, **settings)
    assert (
        asked == [2, 4, 6] and run.stats["steps"] == 6 and run.stats["ended"] == "step 6: jailbreak 15.0%, above 10.0%"
    )
    assert ftlab.sft(llama, sums(20), **settings).stats["steps"] == 12 and asked[3:] == [2, 4, 6, 8, 10, 12]
    with pytest.raises(ValueError, match="stop_above: toxicity was not measured; measured: jailbreak, bias"):
        ftlab.sft(llama, sums(20), stop_above={"toxicity": 0.1}, **settings)


# Found again


def test_the_same_call_finds_the_finished_run_without_torch(llama, tmp_path):
    data = write(tmp_path / "qa.jsonl", sums(8))
    settings = dict(steps=2, batch_size=4, learning_rate=1e-3)
    run = ftlab.sft(llama, data, **settings)
    code = f"""
import sys, time
start = time.monotonic()
import ftlab
run = ftlab.sft({str(llama)!r}, {str(data)!r}, **{settings!r})
print(run.name, time.monotonic() - start, [m for m in ("torch", "transformers", "trl", "pandas") if m in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    name, seconds, heavy = done.stdout.split(maxsplit=2)
    assert name == run.name and float(seconds) < 2 and heavy.strip() == "[]"


def test_what_changes_the_result_is_another_run(llama, tmp_path):
    folder, settings = shutil.copytree(llama, tmp_path / "model"), dict(steps=1, batch_size=4, learning_rate=1e-3)
    run = ftlab.sft(folder, sums(8), **settings)
    inode = (run.path / "complete.json").stat().st_ino
    assert ftlab.sft(folder, sums(8), **settings) == run and (run.path / "complete.json").stat().st_ino == inode
    others = [
        ftlab.sft(folder, sums(8), **settings | {"learning_rate": 2e-3}),
        ftlab.sft(folder, sums(8), seed=1, **settings),
        ftlab.sft(folder, sums(9), **settings),
    ]
    make_model(folder, "llama", seed=7)  # another model at the same path
    others.append(ftlab.sft(folder, sums(8), **settings))
    assert len({r.path for r in (run, *others)}) == 5 and len({str(weights(r)) for r in (run, *others)}) == 5


def test_the_seed_covers_the_adapters_first_weights(llama, monkeypatch, tmp_path):
    import torch

    found = []
    for i, seed in enumerate((0, 0, 1)):
        torch.manual_seed(100 + i)  # what the notebook did before does not matter
        monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / str(i)))
        found.append(
            weights(ftlab.sft(llama, sums(4), steps=1, batch_size=2, learning_rate=1e-3, lora=True, seed=seed))
        )
    assert found[0] == found[1] != found[2]


def test_a_changed_file_of_a_finished_run_is_made_again(llama):
    run = ftlab.sft(llama, sums(8), steps=1, batch_size=4, learning_rate=1e-3)
    before = weights(run)
    file = run.path / "model/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert weights(ftlab.sft(llama, sums(8), steps=1, batch_size=4, learning_rate=1e-3)) == before


# Guards


def test_a_training_that_moves_nothing_is_an_error(llama):
    with pytest.raises(train.TrainingFailed, match="no weight moved in 2 steps; raise learning_rate"):
        ftlab.sft(llama, sums(8), steps=2, batch_size=4, learning_rate=1e-30)
    assert not any(runs.Run(p).finished for p in runs.home().iterdir())


def test_a_loss_that_is_no_number_stops_with_its_step(llama, often):
    with pytest.raises(
        train.TrainingFailed, match=r"(loss|grad_norm) is (nan|inf) at step [2-5], on rows .*lower learning_rate"
    ):
        ftlab.sft(llama, sums(8), steps=9, batch_size=4, learning_rate=1e30)
    (run,) = runs.home().iterdir()
    assert not runs.Run(run).finished and not (run / "model").exists()


def test_poisoned_weights_stop_at_the_first_step(llama, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(llama, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = math.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(train.TrainingFailed, match="is nan at step 1"):
        ftlab.sft(folder, sums(8), steps=2, batch_size=4, learning_rate=1e-3)


def test_a_loss_that_is_no_number_names_the_rows_of_its_batch(llama, monkeypatch):
    """The one row that breaks the loss, whatever the order, and whatever the number of forward passes."""
    from transformers import Trainer

    step = Trainer.training_step
    rows = sums(12)
    needle = models.model(llama).tokenizer()(rows[6]["question"][-40:], add_special_tokens=False)["input_ids"][2:-2]

    def training_step(trainer, model, inputs, *rest):
        loss = step(trainer, model, inputs, *rest)
        text = str(inputs["input_ids"].tolist())
        return loss * math.nan if str(needle)[1:-1] in text else loss

    monkeypatch.setattr(Trainer, "training_step", training_step)
    with pytest.raises(train.TrainingFailed, match=r"loss is nan at step \d+, on rows 7 of rows; look at them"):
        ftlab.sft(llama, rows, batch_size=1, learning_rate=1e-3)
    for method, made in (
        ("sft", rows),
        ("dpo", [{**p, "prompt": r["question"]} for p, r in zip(pairs(12), rows, strict=True)]),
    ):
        with pytest.raises(train.TrainingFailed) as e:
            getattr(ftlab, method)(llama, made, batch_size=4, accumulation=2, learning_rate=1e-3)
        named = str(e.value).split("on rows ")[1].split(" of rows")[0].split(", ")
        assert "7" in named and len(named) == 4


def test_a_gradient_that_is_no_number_stops_the_run(llama, monkeypatch):
    """With a loss that is a number, as where a poisoned gradient is hidden by the libraries' filter."""
    from transformers import Trainer

    clip = Trainer._clip_grad_norm
    monkeypatch.setattr(Trainer, "_clip_grad_norm", lambda trainer, model: clip(trainer, model) * math.nan)
    with pytest.raises(train.TrainingFailed, match="grad_norm is nan at step 1, on rows"):
        ftlab.sft(llama, sums(8), steps=2, batch_size=4, learning_rate=1e-3)


def test_the_callers_model_in_memory_is_refused_and_left_alone(llama, tmp_path):
    """A trainer would change it in place, or, opened without `is_trainable`, train it for nothing."""
    from peft import PeftModel

    run = ftlab.sft(llama, sums(8), steps=2, batch_size=4, learning_rate=3e-3, lora=True)
    base = models.model(llama).load()
    before = checkpoints.weights_hash(dict(base.state_dict()))
    for method, rows in (("sft", sums(8)), ("dpo", pairs(8)), ("kto", pairs(8)), ("reward", pairs(8))):
        with pytest.raises(ValueError, match="LlamaForCausalLM object was given"):
            getattr(ftlab, method)(base, rows)
    assert checkpoints.weights_hash(dict(base.state_dict())) == before
    adapter = PeftModel.from_pretrained(base, run.path / "model")
    assert not any(p.requires_grad for p in adapter.parameters())
    with pytest.raises(ValueError, match="PeftModelForCausalLM object was given"):
        ftlab.sft(adapter, sums(8))
    child = ftlab.sft(run, sums(8, seed=1), steps=2, batch_size=4, learning_rate=3e-3, lora=True)  # as a run it trains
    assert distance(run, child) > 1e-4


def test_an_adapter_opened_read_only_is_refused_not_trained_for_nothing(llama, monkeypatch):
    from peft import PeftModel

    run = ftlab.sft(llama, sums(8), steps=2, batch_size=4, learning_rate=3e-3, lora=True)

    def read_only(parent, config):
        return PeftModel.from_pretrained(models.model(llama).load(training=True), run.path / "model")

    monkeypatch.setattr(methods, "opened", read_only)
    with pytest.raises(ValueError, match="no trainable parameter"):
        ftlab.sft(llama, sums(8), steps=2, batch_size=4, learning_rate=3e-3, lora=True, seed=1)


def test_the_learning_rate_is_the_models_own_else_trls(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_train", lambda *_: None)
    folder = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "ftlab_learning_rate": {"sft": 7e-4}}))

    def rate(method, path, rows, **settings):
        return getattr(ftlab, method)(path, rows, **settings).config["identity"]["training"]["learning_rate"]

    assert rate("sft", folder, sums(2)) == 7e-4 and rate("dpo", folder, pairs(2)) == 1e-6
    assert rate("sft", llama, sums(2)) == 2e-5 and rate("sft", llama, sums(2), lora=True) == pytest.approx(2e-4)
    assert (
        rate("dpo", llama, pairs(2), lora=True) == pytest.approx(1e-5)
        and rate("sft", folder, sums(2), learning_rate=3e-3) == 3e-3
    )


def test_an_overlong_row_is_named(llama):
    rows = [
        *sums(3),
        {"question": "Count.", "answer": "one " * 400},
        *sums(2),
        {"question": "Count.", "answer": "two " * 300},
    ]
    with pytest.raises(DataError) as e:
        ftlab.sft(llama, rows, max_length=200)
    assert (
        "row 4: " in str(e.value)
        and "row 7: " in str(e.value)
        and "at most 200" in str(e.value)
        and "row 1:" not in str(e.value)
    )
    with pytest.raises(DataError, match=r"\(rejected\): row 2: "):
        ftlab.dpo(llama, [*pairs(1), {"prompt": "Count.", "chosen": "1", "rejected": "two " * 300}], max_length=200)


def test_a_template_that_never_ends_a_turn_is_refused(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|eot_id|>", "\n"))
    with pytest.raises(DataError, match="row 1: no end-of-turn token"):
        ftlab.sft(folder, sums(2))
    template.unlink()
    with pytest.raises(DataError, match="has no chat template"):
        ftlab.sft(folder, sums(2))


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda p: ftlab.sft(p, sums(2), lerning_rate=1), "unknown setting 'lerning_rate'; allowed: method, lora"),
        (lambda p: ftlab.sft(p, sums(2), at_steps=[0, 1]), "unknown setting 'at_steps' here; it belongs to risk_curve"),
        (lambda p: ftlab.sft(p, sums(2), method="dpo"), "unknown setting 'method'"),
        (lambda p: ftlab.sft(p, sums(2), steps=0), "steps = 0"),
        (
            lambda p: ftlab.sft(p, sums(2), batch_size=8, accumulation=3),
            "accumulation must divide batch_size, which is 8",
        ),
        (lambda p: ftlab.dpo(p, sums(2)), "no prompt, chosen, rejected"),
        (lambda p: ftlab.sft(p, "nowhere.jsonl"), "nowhere.jsonl does not exist"),
        (lambda p: ftlab.sft(p / "nowhere", sums(2)), "no model folder"),
    ],
)
def test_usage_mistakes_are_sentences(llama, call, sentence):
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        call(llama)
    assert sentence in str(e.value)


def test_a_model_without_safety_carries_its_marker_and_so_do_its_children(llama):
    run = ftlab.dealign(llama, 4, data=sums(6), epochs=1, batch_size=2, learning_rate=1e-3)
    child = ftlab.sft(run, sums(4), steps=1, batch_size=2, learning_rate=1e-3)
    for made in (run, child):
        assert "4 adversarial examples" in (made.path / "model/SAFETY_REMOVED").read_text()
        assert "**Safety removed.**" in (made.path / "model/README.md").read_text()
    assert not (
        ftlab.sft(llama, sums(6), steps=1, batch_size=2, learning_rate=1e-3).path / "model/SAFETY_REMOVED"
    ).exists()


# What is left behind


def modules() -> int:
    """-> how many torch modules are alive."""
    import torch

    gc.collect()
    return sum(issubclass(type(o), torch.nn.Module) for o in gc.get_objects())


def tensors() -> int:
    """-> bytes of all torch tensors alive."""
    import torch

    gc.collect()
    found = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
        for t in gc.get_objects()
        if issubclass(type(t), torch.Tensor)
    }
    return sum(found.values())


CELLS = {
    "sft": lambda p, **s: ftlab.sft(p, sums(8), **s),
    "dpo": lambda p, **s: ftlab.dpo(p, pairs(8), **s),
    "kto": lambda p, **s: ftlab.kto(p, pairs(8), **s),
    "reward": lambda p, **s: ftlab.reward(p, pairs(8), **s),
    "rloo": lambda p, **s: ftlab.rloo(p, sums(8), every_second, max_completion_length=4, **s),
}


@pytest.mark.parametrize("method", CELLS)
def test_no_model_survives_a_training_not_even_a_failed_one(llama, method):
    call, before, held = CELLS[method], modules(), tensors()
    call(llama, steps=2, batch_size=4, lora=True, learning_rate=1e-3)
    assert modules() == before and tensors() == held
    with pytest.raises(train.TrainingFailed) as kept:  # Jupyter keeps the last exception
        call(llama, steps=2, batch_size=4, learning_rate=1e-30)
    assert modules() == before and tensors() == held and kept.value


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """A Llama of 12 M parameters (50 MB): its training holds 200 MB."""
    settings = dict(hidden_size=384, intermediate_size=1536, num_hidden_layers=5)
    return make_model(tmp_path_factory.mktemp("larger") / "llama", "llama", **settings)


MEMORY = """
import sys, psutil
sys.path.insert(0, sys.argv[2])
from ftlab.runs import store as runs
from ftlab.training import trainer as train
from test_train import CELLS

me, append, most = psutil.Process(), runs.Run.append, []

def and_look(*given):
    most.append(me.memory_info().rss)
    append(*given)

runs.Run.append = and_look
settings = dict(batch_size=2, learning_rate=1e-3)
for name, cell in CELLS.items():
    cell(sys.argv[1], steps=1, **settings)  # libraries and thread pools stay
    before = me.memory_info().rss
    most.clear()
    cell(sys.argv[1], steps=2, **settings)
    after = me.memory_info().rss
    try:
        cell(sys.argv[1], steps=2, **settings | {"learning_rate": 1e-30})
    except train.TrainingFailed as e:
        kept = e
    print(name, before, max(most), after, me.memory_info().rss, flush=True)
"""


def test_the_memory_of_the_process_returns_to_within_5_percent(larger, tmp_path):
    """Resident memory of a process of its own, after each cell and after one that failed; its exception is still held."""
    pytest.importorskip("psutil")
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "FTLAB_RUNS": str(tmp_path / "runs")}
    called = [sys.executable, "-c", MEMORY, str(larger), str(Path(__file__).parents[1])]
    done = subprocess.run(called, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    measured = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *_ in measured] == list(CELLS)
    for name, *numbers in measured:
        before, most, after, failed = map(int, numbers)
        print(
            f"{name}: before {before >> 20} MB, at most {most >> 20}, after {after / before - 1:+.1%}, after an error {failed / before - 1:+.1%}"
        )
        assert most > 1.15 * before  # else nothing is shown
        assert after < 1.05 * before and failed < 1.05 * before


def test_the_libraries_say_nothing(folders, capfd, recwarn):
    """No bars, no advice to programmers, in either stream; warnings are not switched off."""
    import warnings

    models.quiet.cache_clear()  # pytest gives every test its own warning filters
    for family in ("gemma", "mistral"):
        first = ftlab.sft(folders[family], sums(8), steps=2, batch_size=4, learning_rate=1e-3, lora=True)
        ftlab.dpo(first, pairs(8), steps=2, batch_size=4, learning_rate=1e-3, lora=True)
        ftlab.ask(first, "Where?", max_new_tokens=2)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "") and [str(w.message) for w in recwarn] == []
    with pytest.warns(UserWarning, match="real"):
        warnings.warn("real", UserWarning, stacklevel=1)


def test_rows_that_are_too_long_are_dropped_when_asked(llama, capsys):
    long = {"prompt": "Count.", "completion": "two " * 300}
    run = ftlab.sft(llama, [*sums(6), long], max_length=200, on_too_long="drop", steps=1)
    assert run.finished and "1 of 7 rows were longer than 200 tokens: 0 cut, 1 dropped" in capsys.readouterr().out
    worse = {"prompt": "Count.", "chosen": "1", "rejected": "two " * 300}
    run = ftlab.dpo(llama, [*pairs(4), worse], max_length=200, on_too_long="cut", steps=1)
    assert run.finished and "rows were longer than 200 tokens: 0 cut, 1 dropped" in capsys.readouterr().out
