"""What differs between methods: rows, reference, first step, and what each leaves behind."""

from __future__ import annotations

import math
import shutil

import pytest
from helpers import raises_code
from small_models import FAMILIES, make_model, pairs, sums
from trainings import (
    END_OF_TURN,
    FAST,
    call,
    chats,
    distance,
    judged,
    make_trainer,
    short,
)

import ftlab
from ftlab import training
from ftlab.data import Data, encode, encode_rows, strip_answers
from ftlab.models import render
from ftlab.training import function_identity, open_method
from ftlab.training.methods import sft as sft_module
from ftlab.training.padding import keeps_rows_apart, padding_free_is_cheaper

IGNORED = -100


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "dora", "qlora"])
@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "reward_model", "rloo"])
def test_every_method_with_every_adapter(llama, method, adapter):
    if adapter == "qlora":
        pytest.importorskip("bitsandbytes")
        if method == "reward_model":
            with raises_code("wrong_setting"):
                call(method, llama, steps=1, adapter="qlora")
            return
    run = call(method, llama, steps=1, adapter=adapter)
    names = {path.name for path in (run.path / "model").iterdir()}
    if method == "reward_model":  # merged: anyone's tools open it
        assert "model.safetensors" in names and "adapter_config.json" not in names
    else:  # without TRL's copy of the start, which would be a folder `ref`
        assert "adapter_model.safetensors" in names
        assert not {name for name in names if "ref" in name}
        assert ftlab.model(run).adapter["use_dora"] == (adapter == "dora")


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
@pytest.mark.parametrize("method", ["dpo", "kto", "rloo"])
def test_the_reference_is_the_parent_also_where_that_is_an_adapter(llama, trained, method, adapter):
    """Of a merged parent no folder exists: TRL would read the model below it instead."""
    for first in (None, "lora"):
        settings = dict(steps=2, batch_size=4, learning_rate=2e-2, adapter=first)
        parent = trained(training.sft, llama, sums(8), **settings)
        run = call(method, parent, steps=2, adapter=adapter, learning_rate=1e-2)
        check = open_method(method).first_step_check
        logged = run.log()[check.metric]
        assert logged[0] == pytest.approx(check.value, abs=1e-4) and logged[1] != logged[0]


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
@pytest.mark.parametrize("method", ["dpo", "kto", "reward_model"])
def test_every_answer_is_learned_with_its_end_of_turn(family, method, folders):
    trainer = make_trainer(method, folders[family], pairs(3))
    rows, answers = open_method(method).read(pairs(3)).rows, open_method(method).answers
    tokenizer = trainer.processing_class
    for row in trainer.train_dataset:
        given = rows[row["row"] - 1]
        for side in answers:
            said = tokenizer.decode(row[f"{side}_ids"]).lstrip()
            expected = given[side][0]["content"] + END_OF_TURN[family]
            assert said.rstrip().endswith(expected)
            assert method == "reward_model" or said == expected  # the answer alone
        if "prompt_ids" in row:
            assert tokenizer.decode(row["prompt_ids"]) == render(
                tokenizer, given["prompt"], ask=True
            )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sft", "dpo", "kto"])
def test_answers_begin_and_end_at_the_same_tokens_in_every_method(method, folders, tmp_path):
    """They follow the prompt's tokens and end with the end of turn, also where newlines merge."""
    folder = shutil.copytree(folders["qwen2"], tmp_path / "merging")
    tokenizer = ftlab.model(folder).tokenizer()
    model = ftlab.model(folder).load()
    tokenizer.add_tokens(["\n\n"])
    model.resize_token_embeddings(len(tokenizer))
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    given = [row | {"rejected": "\n" + row["rejected"]} for row in pairs(3)]
    kind, answers = open_method(method).kind, open_method(method).answers or ("messages",)
    if method == "sft":
        given = [{"prompt": row["prompt"], "completion": row["rejected"]} for row in given]
    data = strip_answers(open_method(method).read(given))
    assert data.made["stripped"] == 3 and strip_answers(data) is data and data.kind == kind
    trainer = make_trainer(method, folder, data)
    for row in trainer.train_dataset:
        turns = data.rows[row["row"] - 1]
        for side in answers:
            asked = turns.get("prompt") or turns["messages"][:-1]
            prompt = tokenizer(render(tokenizer, asked, ask=True))["input_ids"]
            if method == "sft":
                start = next(i for i, label in enumerate(row["labels"]) if label != IGNORED)
                row["prompt_ids"] = row["input_ids"][:start]
                row["messages_ids"] = [label for label in row["labels"] if label != IGNORED]
            assert row["prompt_ids"] == prompt
            said = tokenizer.decode(row[f"{side}_ids"])
            assert said == turns[side][-1]["content"] + END_OF_TURN["qwen2"]
    raw = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "\nYes"}]
    assert tokenizer.convert_tokens_to_ids("\n\n") in encode(raw, tokenizer)[0]  # hence all this


@pytest.mark.slow
@pytest.mark.parametrize("cell", [training.dpo, training.kto, training.train_reward_model])
def test_white_space_before_answers_changes_no_training_and_is_recorded(cell, llama):
    given = [row | {"rejected": " \n" + row["rejected"]} for row in pairs(4)]
    settings = dict(steps=1, batch_size=4, learning_rate=1e-3)
    run = cell(llama, given, **settings)
    assert run.stats["stripped"] == 4 and run.provenance["data"]["made"]["stripped"] == 4
    assert cell(llama, pairs(4), **settings) == run


@pytest.mark.slow
def test_a_seed_is_idle_where_every_step_has_all_rows(llama, dropping):
    sft, settings = open_method("sft"), dict(steps=3, learning_rate=1e-2)
    rows, parent = sft.read(sums(4)), ftlab.model(llama)

    def idle(method="sft", model=parent, **given):
        method = open_method(method)
        config = method.config.make(**{"batch_size": 4, **given})
        return method.seed_is_idle(rows, config, model)

    assert idle() and idle("dpo") and idle(batch_size=9, valid="rows.jsonl")
    assert not any((
        idle(batch_size=3), idle(adapter="lora"), idle(valid=0.5), idle("kto"),
        idle("reward_model"), idle("rloo"), idle(model=ftlab.model(dropping)),
    ))  # fmt: skip
    for adapter, size, same in ((None, 4, True), (None, 2, False), ("lora", 4, False)):
        given = dict(adapter=adapter, batch_size=size, **settings)
        found = [training.sft(llama, sums(4), seed=seed, **given) for seed in (0, 1)]
        assert (distance(*found) < 1e-4) == same


# Supervised


@pytest.mark.slow
def test_the_loss_is_on_the_assistants_tokens_alone(llama):
    """The first logged loss against its definition; the labels survive the trainer's columns."""
    import torch

    trainer = make_trainer("sft", llama, sums(6), batch_size=6)
    tokenizer = trainer.processing_class
    batch = next(iter(trainer.get_train_dataloader()))
    rows = encode_rows(Data("rows", chats(6)), tokenizer, max_length=1024)
    expected = sorted([t for t in row["labels"] if t != IGNORED] for row in rows)
    labels = [[int(t) for t in row if t != IGNORED] for row in batch["labels"]]
    assert sorted(labels) == expected
    assert all(tokenizer.decode(tokens).endswith("<|eot_id|>") for tokens in expected)
    total = tokens = 0
    model = ftlab.model(llama).load()
    for row in rows:
        with torch.no_grad():
            found = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)
        for place, token in enumerate(row["labels"][1:]):
            if token != IGNORED:
                total -= float(found[place, token])
                tokens += 1
    settings = dict(steps=1, batch_size=6, accumulation=3, learning_rate=1e-3)
    run = training.sft(llama, sums(6), **settings)
    assert run.stats["first_loss"] == pytest.approx(total / tokens, abs=1e-4)


@pytest.mark.slow
def test_positions_without_a_label_are_not_scored(llama, monkeypatch, tmp_path):
    """TRL alone scores all on a CPU; the losses are the same. Another TRL just runs slower."""
    from trl.trainer import utils

    settings, scored = dict(steps=2, batch_size=4, learning_rate=1e-3), []
    known, inner = utils._use_triton, utils._ChunkedLogProbFunction

    class Noted:
        @staticmethod
        def apply(hidden, *rest):
            scored.append(len(hidden))
            return inner.apply(hidden, *rest)

    monkeypatch.setattr(utils, "_ChunkedLogProbFunction", Noted)
    run = training.sft(llama, sums(4), **settings)
    rows = encode_rows(Data("", chats(4)), ftlab.model(llama).tokenizer(), max_length=1024)
    labelled = sum(token != IGNORED for row in rows for token in row["labels"])
    assert scored == [labelled] * 2 and utils._use_triton is known
    monkeypatch.setattr(utils, "_use_triton", known)
    monkeypatch.setattr("ftlab.training.padding.getattr", lambda *_: None, raising=False)
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "all"))
    other = training.sft(llama, sums(4), **settings)
    assert scored[2] > 2 * scored[0]
    assert other.stats["last_loss"] == pytest.approx(run.stats["last_loss"], abs=1e-5)


def gradients(trainer) -> tuple:
    """Return the first batch, its loss and the gradients."""
    model, batch = trainer.model.train(), next(iter(trainer.get_train_dataloader()))
    labelled = (batch["labels"] != IGNORED).sum()
    trainer.compute_loss(model, dict(batch), num_items_in_batch=labelled).backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return batch, trainer.compute_loss(model, dict(batch)).item(), grads


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
@pytest.mark.parametrize("family", [*FAMILIES, "mistral"])
def test_padding_free_rows_give_the_same_gradients(family, adapter, folders, monkeypatch, tmp_path):
    """Mistral with a window shorter than its rows."""
    folder = folders[family]
    if family == "mistral":
        folder = make_model(tmp_path / "m", "mistral", sliding_window=8)
    found = []
    for free in (False, True):
        monkeypatch.setattr(sft_module, "padding_free_is_cheaper", lambda *_, free=free: free)
        trainer = make_trainer("sft", folder, sums(6), batch_size=6, adapter=adapter)
        found.append(gradients(trainer))
    (padded, loss, wanted), (batch, free_loss, grads) = found
    assert "attention_mask" in padded and padded["input_ids"].shape[0] == 6
    assert "attention_mask" not in batch
    assert batch["input_ids"].shape == (1, int(padded["attention_mask"].sum()))
    assert free_loss == pytest.approx(loss, rel=1e-5) and grads.keys() == wanted.keys()
    assert sum(bool(g.any()) for g in wanted.values()) > len(wanted) / 3
    for name, grad in wanted.items():
        allowed = 1e-4 * float(grad.abs().max()) + 1e-7
        assert float((grads[name] - grad).abs().max()) <= allowed, name


@pytest.mark.slow
def test_models_that_cannot_keep_rows_apart_stay_padded(folders, monkeypatch):
    """A state that runs on, and an attention that would not see where a row begins."""
    import torch
    from transformers import AutoModelForCausalLM, MambaConfig, masking_utils

    rows = [list(range(5, 25)), list(range(30, 55))]
    models = [ftlab.model(folder).load(training=True) for folder in folders.values()]
    assert all(keeps_rows_apart(model, rows) for model in models)
    torch.manual_seed(0)
    mamba = MambaConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, state_size=8)
    assert not keeps_rows_apart(AutoModelForCausalLM.from_config(mamba), rows)
    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda _: None)
    assert not any(keeps_rows_apart(model, rows) for model in models)
    monkeypatch.setattr(sft_module, "padding_free_is_cheaper", lambda *_: True)
    assert not make_trainer("sft", folders["llama"], sums(6)).args.padding_free


def test_padding_free_is_chosen_by_counting(llama):
    """Where padding costs more than attention between rows; one, equal or long rows: no."""
    from types import SimpleNamespace

    shape = SimpleNamespace(
        num_hidden_layers=8, hidden_size=512, to_dict=lambda: {"attention_dropout": 0.0}
    )
    config = SimpleNamespace(get_text_config=lambda: shape, _attn_implementation="sdpa")
    wide = SimpleNamespace(config=config, num_parameters=lambda exclude_embeddings: 25_000_000)
    ragged, settings = [20, 30, 40, 120] * 20, training.TrainingConfig()
    long = [20 * tokens for tokens in ragged]

    def cheaper(lengths, rows=16, model=wide):
        return padding_free_is_cheaper(model, settings, lengths, rows)

    assert cheaper(ragged) and not cheaper(ragged, rows=1)
    assert not cheaper([60] * 80) and not cheaper(long)
    assert not cheaper(ragged, model=ftlab.model(llama).load())  # hardly any parameters
    shape.to_dict = lambda: {"attention_dropout": 0.1}
    assert not cheaper(ragged)
    shape.to_dict, config._attn_implementation = lambda: {}, "eager"
    assert not cheaper(ragged)
    config._attn_implementation = "flash_attention_2"  # pays for no pair of two rows
    assert cheaper(long)


# Preferences


@pytest.mark.slow
def test_the_reference_is_computed_in_larger_parts_than_training(llama):
    for method in ("dpo", "kto"):
        args = make_trainer(method, llama, batch_size=16, accumulation=8).args
        assert (args.per_device_train_batch_size, args.precompute_ref_batch_size) == (2, 8)


def test_rows_of_kto_are_its_own_or_pairs_taken_apart():
    read = open_method("kto").read
    own, pair = read(judged(3)), read(pairs(3))
    assert own.rows == pair.rows and [r["label"] for r in own.rows] == [True, False] * 3
    assert own.rows[0]["prompt"][0]["role"] == "user"
    assert own.rows[0]["completion"][0]["role"] == "assistant"
    bad = [
        {"prompt": "a", "completion": "b"},
        {"prompt": "a", "completion": "b", "label": "yes"},
        {"prompt": "a", "completion": " ", "label": True},
    ]
    with pytest.raises(ValueError, match="row 1") as error:
        read(bad)
    assert "row 2" in str(error.value) and "row 3" in str(error.value)


@pytest.mark.slow
def test_kto_shuffles_by_the_seed_and_shows_the_label_to_the_loss(llama):
    """TRL keeps the order of the rows; what is liked gains probability, the rest loses it."""
    seeds = (0, 0, 1)
    orders = [make_trainer("kto", llama, judged(6), seed=s).train_dataset["row"] for s in seeds]
    assert orders[0] == orders[1] != orders[2] and sorted(orders[0]) == list(range(1, 13))
    log = call("kto", llama, steps=12, learning_rate=3e-3, schedule="constant").log()
    assert log["rewards/margins"].dropna().iloc[-1] > 0.1 and log["loss"].iloc[-1] < 0.5


# Reward model, RLOO


@pytest.fixture
def judge(llama, trained):
    """A reward model that likes sums and not shrugs."""
    settings = dict(epochs=6, batch_size=4, learning_rate=3e-3)
    return trained(training.train_reward_model, llama, pairs(16), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_a_reward_model_tells_the_better_answer_and_opens_anywhere(llama, trained, adapter):
    import torch
    from transformers import AutoModelForSequenceClassification

    settings = dict(epochs=6, batch_size=4, learning_rate=3e-3, adapter=adapter)
    run = trained(training.train_reward_model, llama, pairs(16), **settings)
    assert run.log()["accuracy"].iloc[-4:].mean() == 1.0
    model = AutoModelForSequenceClassification.from_pretrained(run.path / "model").eval()
    tokenizer, scores, pair = ftlab.model(run).tokenizer(), [], pairs(40)[39]
    for side in ("chosen", "rejected"):
        turns = [
            {"role": "user", "content": pair["prompt"]},
            {"role": "assistant", "content": pair[side]},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            scores.append(float(model(**ids).logits[0, 0]))
    assert scores[0] > scores[1]


@pytest.mark.slow
def test_rloo_raises_the_reward_of_a_model_or_of_a_function(llama, judge, trained):
    rows = []
    for number, pair in enumerate(pairs(16)):
        side = "chosen" if number % 2 else "rejected"
        rows.append({"prompt": pair["prompt"], "completion": pair[side]})
    settings = dict(epochs=20, batch_size=8, learning_rate=5e-3)
    parent = trained(training.sft, llama, rows, **settings)  # gives either answer
    settings = dict(
        steps=20, batch_size=16, learning_rate=2e-3, max_completion_length=10, beta=0.01,
        schedule="constant",
    )  # fmt: skip
    runs = [training.rloo(parent, pairs(16), reward, **settings) for reward in (judge, short)]
    for run in runs:
        log = run.log()["reward"]
        assert log.iloc[-5:].mean() > log.iloc[:5].mean() + 0.3
    by_path = training.rloo(parent, pairs(16), judge.path, **settings)
    assert by_path.path == runs[0].path != runs[1].path


@pytest.mark.slow
def test_rloo_samples_from_the_policy_alone(llama):
    """Penalties of the model's own settings would make the samples another policy's."""
    seen = []

    def note(prompts, completions, completion_ids, **_):
        seen.extend(completion_ids)
        return [float(number % 2) for number in range(len(prompts))]

    run = training.rloo(llama, sums(8), note, steps=1, max_completion_length=64, **FAST)
    assert any(len(set(ids)) < len(ids) for ids in seen)  # its no_repeat_ngram_size is 1
    kept = (run.path / "model/generation_config.json").read_bytes()
    assert kept == (llama / "generation_config.json").read_bytes()


def test_rloo_ends_an_answer_where_the_template_does(folders):
    trainer = make_trainer("rloo", folders["gemma"])
    ends = trainer.processing_class.convert_tokens_to_ids(["<end_of_turn>", "<eos>"])
    assert {*ends} <= {*trainer.eos_token_ids}
    assert {*ends} <= {*trainer.generation_config.eos_token_id}


def test_rloo_reads_pairs_and_chats_without_their_answers():
    read = open_method("rloo").read
    assert len(read(Data("rows", tuple(pairs(3))))) == 3
    assert [set(row) for row in read(sums(2), n_rows=1).rows] == [{"prompt"}]


# Functions of the user


def test_a_function_is_known_by_its_parsed_source():
    def other(prompts, completions, **_):
        return [1.0 for _ in prompts]

    plain = function_identity(other)
    first = function_identity(short)
    assert first == function_identity(short) != plain and plain == function_identity(other)
    other.version = "2"
    assert function_identity(other) != plain and function_identity(other).endswith(":2")
    other.identity = {"prompts": "ab"}
    assert function_identity(other) == {"prompts": "ab"}
    with raises_code("function_without_source"):
        function_identity(eval("lambda prompts, **_: [1]"))


def test_comments_and_docstrings_are_not_part_of_a_function(tmp_path, monkeypatch):
    import importlib

    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for number, lines in enumerate((
        "def reward(prompts, **_):\n    return [1.0]\n",
        'def reward(prompts, **_):\n    """New words."""\n    # and a remark\n    return [ 1.0 ]\n',
        "def reward(prompts, **_):\n    return [2.0]\n",
    )):  # fmt: skip
        (tmp_path / f"rewards_{number}.py").write_text(lines)
        found.append(function_identity(importlib.import_module(f"rewards_{number}").reward))
    assert found[0] == found[1] != found[2]


def test_a_partial_function_or_a_lambda_in_a_call_needs_a_version():
    import functools

    part = functools.partial(short, 1)
    with raises_code("function_without_source"):
        function_identity(part)
    part.version = "1"
    assert function_identity(part)


# Held-out rows


@pytest.mark.slow
def test_held_out_rows_share_no_prompt_with_the_others(llama):
    trainer = make_trainer("kto", llama, judged(10), valid=0.2)
    assert len(trainer.eval_dataset) == 4 and len(trainer.train_dataset) == 16
    parts = (trainer.train_dataset, trainer.eval_dataset)
    asked = [{str(row["prompt"]) for row in part} for part in parts]
    assert not asked[0] & asked[1]
    assert trainer.args.prediction_loss_only  # else the logits of all rows would be kept
    held = []
    for seed in (0, 0, 1):
        trainer = make_trainer("sft", llama, sums(20), valid=0.2, seed=seed)
        held.append(sorted(trainer.eval_dataset["row"]))
    assert held[0] == held[1] != held[2] and len(held[0]) == 4
    twice = make_trainer("sft", llama, [*sums(5), *sums(5)], valid=0.3)
    parts = (twice.train_dataset, twice.eval_dataset)
    asked = [{tuple(row["input_ids"]) for row in part} for part in parts]
    assert not asked[0] & asked[1]


# The embedded model


@pytest.mark.slow
def test_the_embedded_model_takes_every_method(monkeypatch):
    settings = dict(n_rows=16, steps=1, batch_size=4)
    liked = training.kto("organism", "organism:preferences", **settings)
    judge = training.train_reward_model("organism", "organism:preferences", **settings)
    run = training.rloo(liked, "organism:preferences", judge, max_completion_length=8, **settings)
    assert ftlab.model(run).is_organism and math.isfinite(run.stats["last_loss"])
    assert [a.get("method") for a in run.lineage] == [None, "kto"]
