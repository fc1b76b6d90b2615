"""The training cells: explicit arguments, any folder as parent, finished work is found again."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from helpers import raises_code
from small_models import contents, make_model, pairs, sums, write
from trainings import FAST, call, distance, make_trainer, short, weights

import ftlab
from ftlab import runs, training
from ftlab._core.errors import FtlabDeprecationWarning
from ftlab.training import TrainingConfig

CELLS = {
    "sft": training.sft,
    "dpo": training.dpo,
    "kto": training.kto,
    "reward_model": training.train_reward_model,
    "rloo": training.rloo,
}
ONE = dict(steps=1, batch_size=4, learning_rate=1e-3)


# Arguments


@pytest.mark.parametrize("name", CELLS)
def test_a_signature_shows_every_setting_with_type_and_default(name):
    shown = inspect.signature(CELLS[name]).parameters
    config = training.open_method(name).config
    hidden = {"at_steps", "stop_when_broken"}
    if name == "rloo":
        hidden |= {"valid", "patience"}
    for field, info in config.model_fields.items():
        assert (field in shown) == (field not in hidden)
        if field in shown:
            assert shown[field].default == info.default
            assert shown[field].annotation == info.annotation
            assert info.description and f"{field}: " in CELLS[name].__doc__
    assert {"n_rows", "data_seed", "label", "monitor"} <= {*shown}


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"lerning_rate": 1}, "unknown_setting"),
        ({"at_steps": [0, 1]}, "unknown_setting"),  # a curve decides these
        ({"method": "dpo"}, "unknown_setting"),
        ({"steps": 0}, "wrong_setting"),
        ({"batch_size": 8, "accumulation": 3}, "wrong_setting"),
        ({"adapter": "prefix"}, "wrong_setting"),
        ({"valid": 1.5}, "wrong_setting"),
        ({"valid": 5}, "wrong_setting"),
        ({"seed": 10**10}, "wrong_setting"),
        ({"data": 5}, "wrong_source"),
        ({"stop_above": {"jailbreak": 10}}, "wrong_setting"),
        ({"n_rows": 0}, "wrong_setting"),
        ({"epochs": 1, "steps": 2}, "epochs_and_steps"),
        ({"patience": 2}, "patience_without_valid"),
        ({"eval_every": 2}, "nothing_to_evaluate"),
        ({"monitor": short}, "monitor_without_steps"),
        ({"stop_above": {"jailbreak": 0.1}}, "limit_without_monitor"),
    ],
)
def test_mistakes_in_settings_have_codes(llama, settings, code):
    with raises_code(code):
        training.sft(llama, **{"data": sums(2), **settings})
    assert not runs.home().exists()


def test_mistakes_in_methods_and_files_have_codes(llama):
    with raises_code("unknown_method"):
        training.train("sfft", llama, sums(2))
    with raises_code("unknown_method"):
        training.train(["sft"], llama, sums(2))
    with raises_code("wrong_setting"):
        training.rloo(llama, sums(8), short, batch_size=5)  # num_generations does not divide it
    with raises_code("wrong_setting"):
        training.train("rloo", llama, sums(8), reward=short, valid=0.1)
    with raises_code("wrong_setting"):
        training.kto(llama, pairs(8), batch_size=4, accumulation=4)
    with raises_code("reward_not_used"):
        training.train("sft", llama, sums(2), reward=short)
    with pytest.raises(ValueError, match="prompt"):
        training.dpo(llama, sums(2))
    with pytest.raises(FileNotFoundError):
        training.sft(llama, "nowhere.jsonl")
    with pytest.raises(FileNotFoundError):
        training.sft(llama / "nowhere", sums(2))
    with pytest.raises(FileNotFoundError):
        training.sft(llama, sums(2), valid="nowhere.jsonl")


@pytest.mark.slow
def test_names_of_the_last_version_still_work_and_warn(llama):
    def measure(run, model, tokenizer, step, progress):
        assert run.name and model.training and tokenizer
        return {"bias": 0.5}

    with pytest.warns(FtlabDeprecationWarning):
        old = training.sft(llama, sums(8), lora=True, rows=4, measure=measure, eval_every=1, **ONE)
    assert old.stats["rows"] == 4 and ftlab.model(old).adapter
    assert "measure" in str(old.identity["monitor"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", FtlabDeprecationWarning)
        new = training.sft(llama, sums(8), adapter="lora", n_rows=4, **ONE)
    assert weights(new) == weights(old)
    with raises_code("two_adapters"):
        training.sft(llama, sums(8), dora=True, qlora=True)
    assert training.current_settings({"seed": 1}) == {"seed": 1}


# Anyone's folder


@pytest.mark.slow
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_sft_on_any_folder(folder, adapter, tmp_path):
    data, before = write(tmp_path / "qa.jsonl", sums(12)), contents(folder)
    run = training.sft(
        folder, data, steps=4, batch_size=4, learning_rate=3e-3, adapter=adapter,
        schedule="constant",
    )  # fmt: skip
    log = run.log()
    assert log["step"].tolist() == [1, 2, 3, 4] and log["loss"].iloc[-1] < log["loss"].iloc[0]
    assert contents(folder) == before and distance(folder, run) > 1e-4
    assert len([*(run.path / "model").glob("adapter*.safetensors")]) == (adapter is not None)
    assert run.finished and not (run.path / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.needs_data
def test_sft_on_gsm8k(folder, shared):
    run = training.sft(folder, shared("gsm8k/train.jsonl"), n_rows=6, **ONE)
    assert run.log()["loss"].notna().all() and run.stats["rows"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2", "gemma"])  # llama: see test_methods
@pytest.mark.parametrize("adapter", [None, "lora"])
def test_dpo_starts_at_ln_2_also_after_sft_in_the_same_session(family, adapter, folders, trained):
    """The reference is the parent as it is now, not what an older path in its settings holds."""
    other = None if adapter else "lora"
    settings = dict(steps=2, batch_size=4, learning_rate=5e-3)
    first = trained(training.sft, folders[family], sums(8), adapter=other, **settings)
    run = training.dpo(first, pairs(8), adapter=adapter, **settings)
    loss = run.log()["loss"]
    assert loss[0] == pytest.approx(0.693147, abs=1e-5) and loss[1] < loss[0]
    parent = ftlab.model(run).parent
    assert parent is None or parent.path == first.path / "model"


# A run is a model


@pytest.mark.slow
@pytest.mark.parametrize("first", [None, "lora"])
@pytest.mark.parametrize("second", [None, "lora"])
def test_what_was_trained_is_what_is_opened_again(llama, first, second, monkeypatch):
    """Over two generations; no parent is touched."""
    import torch

    from ftlab.training import trainer

    def logits(model):
        with torch.no_grad():
            return model(input_ids=torch.tensor([[5, 9, 2, 14, 3, 7], [1, 2, 3, 4, 5, 6]])).logits

    last, save = [], trainer.save

    def and_look(job, model):
        last.append(logits(model.eval()))
        save(job, model)

    monkeypatch.setattr(trainer, "save", and_look)
    settings = dict(steps=2, batch_size=4, learning_rate=5e-3)
    one = training.sft(llama, sums(8), adapter=first, **settings)
    before = contents(llama) | contents(one.path)
    two = training.sft(one, sums(8, seed=1), adapter=second, **settings)
    assert contents(llama) | contents(one.path) == before
    for run, expected in zip((one, two), last, strict=True):
        found = logits(ftlab.model(run).load())
        assert float((found - expected).abs().max()) < 2e-5
    assert float((last[0] - last[1]).abs().max()) > 1e-2
    assert ftlab.model(two).config["use_cache"] is True  # trainers save it as off


@pytest.mark.slow
def test_a_chain_of_methods_knows_where_it_comes_from(llama):
    """SFT, LoRA SFT, DPO, LoRA KTO: every parent stays as it was, on disk and in name."""
    settings = dict(steps=2, batch_size=4, learning_rate=3e-3)
    chain = [training.sft(llama, sums(8), **settings)]
    steps = [("sft", sums(8, seed=1), "lora"), ("dpo", pairs(8), None), ("kto", pairs(8), "lora")]
    for method, rows, adapter in steps:
        before = [contents(llama), *(contents(run.path) for run in chain)]
        chain.append(training.train(method, chain[-1], rows, adapter=adapter, **settings))
        assert [contents(llama), *(contents(run.path) for run in chain[:-1])] == before
        assert distance(chain[-2], chain[-1]) > 1e-4
    found = chain[-1].lineage
    assert [a["name"] for a in found] == ["llama", *(run.name for run in chain[:-1])]
    hashes = [ftlab.model(model).hash for model in (llama, *chain[:-1])]
    assert [a["hash"] for a in found] == hashes
    assert [a.get("method") for a in found] == [None, "sft", "sft", "dpo"]
    assert [a.get("data_hash") for a in found][1:] == [r.identity["data"] for r in chain[:-1]]
    assert chain[-1].identity["parent"] == found[-1]["hash"] and chain[2].lineage == found[:3]


# Found again


@pytest.mark.slow
def test_the_same_call_finds_the_finished_run_without_torch(llama, tmp_path, trained):
    data = write(tmp_path / "qa.jsonl", sums(8))
    run = training.sft(llama, data, **ONE)
    code = f"""
import sys
from ftlab.training import sft
run = sft({str(llama)!r}, {str(data)!r}, **{ONE!r})
print(run.name, [m for m in ("torch", "transformers", "trl", "pandas") if m in sys.modules])
"""
    root = Path(__file__).parents[2]
    environ = {**os.environ, "PYTHONPATH": str(root)}
    called = [sys.executable, "-c", code]
    done = subprocess.run(called, capture_output=True, text=True, check=True, env=environ)
    name, heavy = done.stdout.split(maxsplit=1)
    assert name == run.name and heavy.strip() == "[]"


def test_the_identity_holds_what_can_change_the_result(llama, trained):
    run = trained(training.sft, llama, sums(8), **ONE)
    identity = {k: v for k, v in run.identity.items() if k not in ("kind", "schema")}
    assert [*identity] == ["parent", "data", "method", "method_version", "training"]
    assert identity["method"] == "sft" and identity["method_version"] == "1"
    assert {*identity["training"]} == {*TrainingConfig.model_fields} - training.NOT_IN_IDENTITY


@pytest.mark.slow
def test_what_changes_the_result_is_another_run(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    run = training.sft(folder, sums(8), **ONE)
    inode = (run.path / "complete.json").stat().st_ino
    assert training.sft(folder, sums(8), **ONE) == run
    assert (run.path / "complete.json").stat().st_ino == inode
    others = [
        training.sft(folder, sums(8), **ONE | {"learning_rate": 2e-3}),
        training.sft(folder, sums(8), seed=1, **ONE),
        training.sft(folder, sums(9), **ONE),
    ]
    make_model(folder, "llama", seed=7)  # another model at the same path
    others.append(training.sft(folder, sums(8), **ONE))
    assert len({r.path for r in (run, *others)}) == 5
    assert len({str(weights(r)) for r in (run, *others)}) == 5


@pytest.mark.slow
def test_another_version_of_a_method_is_another_run(llama):
    class Newer(type(training.open_method("sft"))):
        version = "2"

    one, other = (training.train(m, llama, sums(4), **ONE) for m in ("sft", Newer()))
    assert one.path != other.path and weights(one) == weights(other)


@pytest.mark.slow
def test_a_changed_file_of_a_finished_run_is_made_again(llama):
    run = training.sft(llama, sums(8), **ONE)
    before = weights(run)
    file = run.path / "model/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\0")
    assert weights(training.sft(llama, sums(8), **ONE)) == before


@pytest.mark.slow
def test_the_seed_covers_the_first_weights_of_an_adapter(llama, monkeypatch, tmp_path):
    import torch

    found = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(100 + number)  # what the notebook did before does not matter
        monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / str(number)))
        found.append(weights(training.sft(llama, sums(4), adapter="lora", seed=seed, **ONE)))
    assert found[0] == found[1] != found[2]


def test_a_label_names_the_run_and_changes_nothing_else(llama, trained):
    plain = trained(training.sft, llama, sums(8), **ONE)
    named = training.sft(llama, sums(8), label="my run", **ONE)
    assert named.name.startswith("sft-my-run-") and weights(named) == weights(plain)


def test_a_runs_name_tells_its_parent_and_older_names_are_found(llama, tmp_path):
    parent = shutil.copytree(llama, tmp_path / "Small-3.2-8B")
    run = training.sft(parent, sums(8), **ONE)
    assert run.name.startswith("sft-Small-3.2-8B-rows-")
    later = training.sft(run, sums(8), **ONE)
    assert "sft-Small-3.2-8B-" in later.name and f"-{run.name[-10:-6]}-" in later.name
    older = run.path.with_name(f"sft-Small-rows-s0-{run.name[-10:]}")
    run.path.rename(older)
    found = training.sft(parent, sums(8), **ONE)
    assert found.path == older and found.finished


def test_the_learning_rate_is_the_models_own_else_the_methods(llama, tmp_path, monkeypatch):
    monkeypatch.setattr("ftlab.training.trainer._train", lambda job: None)
    folder = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["ftlab_learning_rate"] = {"sft": 7e-4}
    (folder / "config.json").write_text(json.dumps(config))

    def rate(cell, path, rows, **settings):
        return cell(path, rows, **settings).identity["training"]["learning_rate"]

    assert rate(training.sft, folder, sums(2)) == 7e-4
    assert rate(training.dpo, folder, pairs(2)) == 1e-6
    assert rate(training.sft, llama, sums(2)) == 2e-5
    assert rate(training.sft, llama, sums(2), adapter="lora") == pytest.approx(2e-4)
    assert rate(training.dpo, llama, pairs(2), adapter="lora") == pytest.approx(1e-5)
    assert rate(training.sft, folder, sums(2), learning_rate=3e-3) == 3e-3


# Rows and models that are refused


@pytest.mark.slow
def test_a_model_in_memory_is_refused_and_left_alone(llama, trained):
    """A trainer would change it in place, or, opened read-only, train it for nothing."""
    from peft import PeftModel

    run = trained(training.sft, llama, sums(8), steps=2, adapter="lora", **FAST)
    base = ftlab.model(llama).load()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for method in CELLS:
        with pytest.raises(ValueError, match="LlamaForCausalLM"):
            call(method, base)
    assert all((before[name] == tensor).all() for name, tensor in base.state_dict().items())
    adapter = PeftModel.from_pretrained(base, run.path / "model")
    assert not any(p.requires_grad for p in adapter.parameters())
    with pytest.raises(ValueError, match="PeftModel"):
        training.sft(adapter, sums(8))
    child = training.sft(
        run, sums(8, seed=1), steps=2, adapter="lora", **FAST
    )  # as a run it trains
    assert distance(run, child) > 1e-4


def test_a_reward_model_answers_nothing_and_a_model_scores_nothing(llama, trained):
    run = trained(call, "reward_model", llama, steps=1)
    for method in CELLS:
        with raises_code("is_reward_model"):
            call(method, run)
    with raises_code("not_a_reward_model"):
        training.rloo(llama, sums(4), llama)
    with raises_code("reward_missing"):
        training.rloo(llama, sums(4), None)


def test_a_model_behind_an_endpoint_cannot_be_trained(monkeypatch):
    from ftlab.models.engines import Endpoint

    monkeypatch.setattr("ftlab.training.trainer.open_model", lambda _: Endpoint.__new__(Endpoint))
    monkeypatch.setattr(Endpoint, "name", "far", raising=False)
    with raises_code("endpoint_not_trainable"):
        training.sft("api:m@http://localhost:1", sums(2))


def test_an_overlong_row_is_named_never_cut(llama):
    long = {"question": "Count.", "answer": "one " * 400}
    with pytest.raises(ValueError, match="row 4") as error:
        training.sft(llama, [*sums(3), long, *sums(2), long], max_length=200)
    assert "row 7" in str(error.value) and "row 1:" not in str(error.value)
    pair = {"prompt": "Count.", "chosen": "1", "rejected": "two " * 300}
    with pytest.raises(ValueError, match=r"rejected.*row 2"):
        training.dpo(llama, [*pairs(1), pair], max_length=200)


@pytest.mark.slow
def test_rows_that_are_too_long_are_dropped_when_asked(llama, capsys):
    long = {"prompt": "Count.", "completion": "two " * 300}
    settings = dict(max_length=200, steps=1, batch_size=4)
    run = training.sft(llama, [*sums(6), long], on_too_long="drop", **settings)
    assert run.finished and "1 dropped" in "".join(capsys.readouterr())
    worse = {"prompt": "Count.", "chosen": "1", "rejected": "two " * 300}
    run = training.dpo(llama, [*pairs(4), worse], on_too_long="cut", **settings)
    assert run.finished and "1 dropped" in "".join(capsys.readouterr())


@pytest.mark.slow
def test_nothing_is_cut(llama, tmp_path):
    long = [{"prompt": "Count.", "completion": " ".join(str(n) for n in range(700))}]
    folder = make_model(tmp_path / "long", "llama", max_position_embeddings=4096)
    trainer = make_trainer("sft", folder, long, batch_size=1, max_length=4000)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[1] > 1200
    assert int(batch["labels"][0, -1]) == ftlab.model(folder).tokenizer().eos_token_id
    pair = [{"prompt": long[0]["completion"], "chosen": "Yes.", "rejected": "No."}]
    trainer = make_trainer("dpo", folder, pair, batch_size=1, max_length=4000)
    assert len(trainer.train_dataset) == 1 and len(trainer.train_dataset[0]["prompt_ids"]) > 1200
    with pytest.raises(ValueError, match="row 1"):  # the model's context, whatever was asked
        make_trainer("sft", llama, long, batch_size=1, max_length=4000)


def test_a_template_that_never_ends_a_turn_is_refused(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model")
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|eot_id|>", "\n"))
    with pytest.raises(ValueError, match="row 1"):
        training.sft(folder, sums(2))
    template.unlink()
    with pytest.raises(ValueError, match="chat template"):
        training.sft(folder, sums(2))


# What is printed


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gemma", "mistral"])
def test_the_libraries_print_nothing(family, folders, capfd, recwarn):
    """No bars, no advice to programmers, in either stream; warnings are not switched off."""
    from ftlab.models import quiet

    quiet.cache_clear()  # pytest gives every test its own warning filters
    folder = folders[family]
    first = call("sft", folder, steps=1, adapter="lora")
    call("dpo", first, steps=1, adapter="lora")
    judge = call("reward_model", folder, n=6, steps=1, adapter="lora")
    call("kto", folder, n=6, steps=2, valid=0.3, eval_every=1, adapter="lora")
    call("rloo", folder, n=6, reward=judge, steps=1, max_completion_length=4)
    assert capfd.readouterr() == ("", "")
    assert [str(warning.message) for warning in recwarn] == []
    with pytest.warns(UserWarning, match="real"):
        warnings.warn("real", UserWarning, stacklevel=1)
