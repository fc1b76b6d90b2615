"""Opening models: what is refused with a sentence, what identity covers, what is given back."""

from __future__ import annotations

import gc
import json
import os
import shutil
import weakref

import pytest
from small_models import contents, make_model, sums

import ftlab
from ftlab.models import reference as models


@pytest.fixture
def copied(llama, tmp_path):
    """A copy of the Llama folder, to be broken."""
    return shutil.copytree(llama, tmp_path / "model")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda p: shutil.rmtree(p), "no model folder"),
        (lambda p: [f.unlink() for f in p.iterdir()], "holds no config.json (found: nothing)"),
        (
            lambda p: (p / "model.safetensors").rename(p / "pytorch_model.bin"),
            "holds no *.safetensors; pickled weights are not opened",
        ),
        (lambda p: (p / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda p: (p / "config.json").write_text("[1]"), "no JSON object"),
    ],
    ids=["missing", "empty", "pickled", "broken", "list"],
)
def test_a_broken_folder_is_a_sentence(copied, make, sentence):
    make(copied)
    with pytest.raises((ValueError, FileNotFoundError)) as e:
        ftlab.model(copied)
    assert sentence in str(e.value) and str(copied) in str(e.value)


def test_unreadable_weights_and_tokenizers_are_sentences(copied):
    (copied / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(ValueError, match="weights cannot be opened"):
        ftlab.model(copied).load()
    (copied / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="tokenizer cannot be opened"):
        ftlab.model(copied).tokenizer()


def test_missing_weights_are_never_made_up(copied):
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="holds no weights for lm_head.weight"):
        ftlab.model(copied).load()


def test_a_tokenizer_of_another_model_is_refused(copied, folders):
    shutil.copy(folders["gemma"] / "tokenizer.json", copied)
    with pytest.raises(ValueError, match="the tokenizer has 6.. tokens, the model 5.. embeddings"):
        ftlab.model(copied).tokenizer()


def test_a_model_is_opened_as_it_was_saved(folder):
    import torch

    model = ftlab.model(folder)
    loaded, tokenizer = model.load(), model.tokenizer()
    assert not loaded.training and all(p.dtype == torch.float32 for p in loaded.parameters())
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id is not None
    assert not model.is_organism and model.parent is None
    assert folder.name in model._repr_html_() and model.hash in model._repr_html_()


def test_the_hash_covers_weights_configuration_tokenizer_and_template_and_nothing_else(copied, tmp_path):
    """The same path with another model in it is another model; the same model at another path is the same."""
    seen = {ftlab.model(copied).hash}
    assert ftlab.model(shutil.copytree(copied, tmp_path / "moved")).hash in seen
    (copied / "README.md").write_text("a card")
    assert ftlab.model(copied).hash in seen
    model = ftlab.model(copied)
    for name, change in {
        "model.safetensors": lambda b: b[:-1] + bytes([b[-1] ^ 1]),
        "config.json": lambda b: b.replace(b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05'),
        "chat_template.jinja": lambda b: b + b" ",
        "tokenizer.json": lambda b: b.replace(b'"type": "BPE"', b'"type":  "BPE"'),
        "generation_config.json": lambda b: b.replace(b'"eos_token_id": 1', b'"eos_token_id": 2'),
    }.items():
        before = (copied / name).read_bytes()
        assert change(before) != before
        (copied / name).write_bytes(change(before))
        assert model.hash not in seen, name
        seen.add(model.hash)


def test_an_adapters_hash_covers_its_strength(llama, tmp_path):
    from peft import LoraConfig, get_peft_model

    get_peft_model(ftlab.model(llama).load(), LoraConfig(r=2, target_modules="all-linear")).save_pretrained(
        tmp_path / "a"
    )
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(llama)
    before = ftlab.model(tmp_path / "a").hash
    (tmp_path / "a/adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 99}))
    assert ftlab.model(tmp_path / "a").hash != before
    assert ftlab.model(tmp_path / "a").tokenizer().chat_template == ftlab.model(llama).tokenizer().chat_template


def test_a_merged_adapter_leaves_an_ordinary_model(llama, tmp_path):
    """All weights can be trained on, and no trace is left that a second adapter would join."""
    from peft import LoraConfig, get_peft_model

    get_peft_model(ftlab.model(llama).load(), LoraConfig(r=2, target_modules="all-linear")).save_pretrained(
        tmp_path / "a"
    )
    merged = ftlab.model(tmp_path / "a").load(training=True)
    assert all(p.requires_grad for p in merged.parameters()) and not getattr(merged, "peft_config", None)


def test_an_adapter_whose_parent_changed_is_refused(copied, tmp_path):
    run = ftlab.sft(copied, sums(4), steps=1, batch_size=2, lora=True, learning_rate=1e-2)
    assert ftlab.model(run).parent.path == copied
    make_model(copied, "llama", seed=1)
    with pytest.raises(ValueError, match="is an adapter on .* which has changed since"):
        ftlab.model(run)
    shutil.rmtree(copied)
    with pytest.raises(FileNotFoundError, match="no model folder"):
        ftlab.model(run)


def test_runs_that_are_no_model_are_sentences(llama, runs_folder):
    run = ftlab.evaluate(llama, prompts=["Where is my kite?"], max_new_tokens=2)
    with pytest.raises(ValueError, match="trained no model"):
        ftlab.model(run)
    (run.path / "complete.json").unlink()
    with pytest.raises(ValueError, match="is not finished"):
        ftlab.model(run)


def test_names_that_do_not_exist_are_sentences(tmp_path):
    with pytest.raises(
        ValueError, match="unknown model 'organism:huge'; allowed: organism, organism:sft, organism:base"
    ):
        ftlab.model("organism:huge")
    with pytest.raises(FileNotFoundError, match="no folder 'nobody/nothing', and the hub did not give it"):
        ftlab.model("nobody/nothing")


def test_nothing_survives_a_cell_not_even_after_an_exception(llama):
    import torch

    alive = []

    def work(fail: bool):
        model = torch.nn.Linear(2, 2)
        model.itself = [model]  # a cycle, as trainers make them
        alive.append(weakref.ref(model))
        if fail:
            try:
                raise KeyError("inner")
            except KeyError as e:
                raise ValueError("outer") from e

    gc.disable()
    try:
        with models.released():
            work(False)
        assert alive.pop()() is None
        with pytest.raises(ValueError, match="outer") as kept:  # as Jupyter keeps the last traceback
            with models.released():
                work(True)
        assert alive.pop()() is None and kept.value.__cause__ is not None
    finally:
        gc.enable()


@pytest.mark.parametrize("adapter", [False, True], ids=["of a model", "of an adapter"])
def test_arms_trained_inside_kept_equal_those_trained_outside(llama, adapter, monkeypatch, tmp_path):
    """Full, LoRA, DPO and DPO with LoRA, none of which reads the folder again; the parent answers as before."""
    import safetensors
    import torch
    from small_models import pairs
    from transformers import AutoTokenizer, modeling_utils

    parent = ftlab.model(
        ftlab.sft(llama, sums(8), steps=2, batch_size=4, learning_rate=1e-2, lora=True) if adapter else llama
    )
    fast = dict(steps=3, batch_size=4, learning_rate=5e-3)
    arms = [(ftlab.sft, sums(8), {}), (ftlab.sft, sums(8), {"lora": True}), (ftlab.dpo, pairs(8), {}), (ftlab.dpo, pairs(8), {"lora": True})]  # fmt: skip
    outside = [ftlab.model(arm(parent, rows, **fast, **how)).hash for arm, rows, how in arms]
    ids, ways = torch.tensor([[5, 9, 2, 14, 3, 7]]), ({}, {"training": True}, {"training": True, "frozen": True})
    before = [parent.load(**how)(input_ids=ids).logits for how in ways]
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "inside"))
    opened = []

    def counted(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (opened.append(name), real(*a, **k))[1])

    counted(modeling_utils, "safe_open")
    counted(safetensors, "safe_open")
    counted(AutoTokenizer, "from_pretrained")
    with models.kept(parent):
        for how in ways:
            parent.load(**how)
        parent.tokenizer()
        assert {"safe_open", "from_pretrained"} <= set(opened)
        opened.clear()
        inside = [ftlab.model(arm(parent, rows, **fast, **how)) for arm, rows, how in arms]
        assert not opened
        after = [parent.load(**how)(input_ids=ids).logits for how in ways]
        assert not opened
    assert [m.hash for m in inside] == outside and not models._KEPT
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    parent.load()
    assert "safe_open" in opened


def test_what_is_kept_is_each_callers_own_and_ends_with_the_block(llama, copied):
    import torch

    parent = ftlab.model(copied)
    with models.kept(parent), models.kept(ftlab.model(copied)):
        one, two = (parent.load(training=True, frozen=True) for _ in range(2))
        assert one.lm_head.weight.data_ptr() == two.lm_head.weight.data_ptr() and one.lm_head is not two.lm_head
        one.requires_grad_(False)
        one.config.use_cache, one.forward = False, None
        assert two.lm_head.weight.requires_grad and two.config.use_cache and two.forward
        whole, other = (parent.load(training=True) for _ in range(2))
        whole.lm_head.weight.data.zero_()
        assert torch.equal(other.lm_head.weight, two.lm_head.weight) and other.lm_head.weight.any()
        first, second = parent.tokenizer(), parent.tokenizer()
        first.padding_side = "right"
        assert second.padding_side == "left" and first("a kite") == second("a kite")
        shutil.copy(make_model(copied.parent / "other", "llama", seed=5) / "model.safetensors", copied)
        assert not torch.equal(parent.load(training=True).lm_head.weight, other.lm_head.weight)  # another model now
        alive = weakref.ref(next(m for k, m in next(iter(models._KEPT.values())).items() if k != "tokenizer"))
        del one, two, whole, other
    gc.collect()
    assert alive() is None and not models._KEPT
    with pytest.raises(KeyError), models.kept(parent):
        raise KeyError
    assert not models._KEPT


def test_numbers_are_chosen_by_device_and_use(llama, monkeypatch):
    """On a GPU: bf16 for answering, below an adapter and as nf4's compute type, fp32 where all weights train."""
    import torch

    from ftlab.models import devices as hardware

    opened = []
    monkeypatch.setattr(models.Model, "_open", lambda self, dtype, **_: opened.append(dtype))
    ways = {"": {}, "full": {"training": True}, "lora": {"training": True, "frozen": True}, "qlora": {"four_bit": True}}
    wide, narrow = torch.float32, torch.bfloat16
    for there, expected in (("cpu", [wide] * 4), ("cuda", [narrow, wide, narrow, narrow])):
        monkeypatch.setattr(models, "device", lambda there=there: there)
        monkeypatch.setattr(hardware, "device", lambda there=there: there)
        opened.clear()
        for how in ways.values():
            ftlab.model(llama).load(**how)
        assert opened == expected
        names = [models.precision(bool(w), None if w in ("", "full") else w) for w in ways]
        assert (
            names
            == {
                "cpu": ["fp32", "fp32", "fp32", "nf4, fp32"],
                "cuda": ["bf16", "fp32 weights, bf16 autocast", "bf16 weights, fp32 adapter", "nf4, bf16"],
            }[there]
        )


def test_a_models_own_folder_is_only_read(folder):
    before = contents(folder)
    ftlab.ask(folder, "Where is my kite?", max_new_tokens=2)
    assert contents(folder) == before


# Two models under one path, one after the other


def swapped(file, content: bytes) -> None:
    """Another content of the same size, in place, under the old times."""
    times, old = file.stat(), file.read_bytes()
    assert content != old and len(content) == len(old)
    with open(file, "r+b") as f:
        f.write(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def other_weights(folder) -> None:
    from safetensors.torch import load, save

    (file,) = folder.glob("*.safetensors")
    tensors = {name: t.flip(0).contiguous() for name, t in load(file.read_bytes()).items()}
    swapped(file, save(tensors, metadata={"format": "pt"}))


def other_text(folder, name: str, old: bytes, new: bytes) -> None:
    whole = (folder / name).read_bytes()
    swapped(folder / name, whole.replace(old, new))


SWAPS = {  # what is done to (base, adapter)
    "weights below": lambda base, adapter: other_weights(base),
    "adapter": lambda base, adapter: other_weights(adapter),
    "alpha": lambda base, adapter: other_text(adapter, "adapter_config.json", b'"lora_alpha": 32', b'"lora_alpha": 96'),
    "another base": lambda base, adapter: other_text(adapter, "adapter_config.json", b"/base", b"/next"),
    "template": lambda base, adapter: other_text(adapter, "chat_template.jinja", b"| trim", b"|upper"),
    "tokenizer": lambda base, adapter: other_text(adapter, "tokenizer.json", b'"id": 3,', b'"id": 2,'),
}


@pytest.mark.parametrize("what", SWAPS)
@pytest.mark.parametrize("kept", [True, False], ids=["held", "opened again"])
def test_a_swap_in_place_crosses_no_cache(what, kept, llama, tmp_path, monkeypatch):
    """Same path, size and times; the caller may hold the reference: other hash, other weights, other runs, other answers."""
    base, adapter = shutil.copytree(llama, tmp_path / "base"), tmp_path / "adapter"
    shutil.copytree(make_model(tmp_path / "other", "llama", seed=9), tmp_path / "next")
    shutil.copytree(
        ftlab.sft(base, sums(8), steps=3, batch_size=4, learning_rate=1e-2, lora=True).path / "model", adapter
    )
    held = ftlab.model(adapter)
    settings = dict(prompts=["Ann has 2 apples and 7 plums. How many in all?"], max_new_tokens=8)
    before, first = held.hash, ftlab.evaluate(held, **settings)
    was, trained = held.load().state_dict(), "another tokenizer"
    if what != "tokenizer":
        trained = ftlab.sft(held, sums(8), steps=1, batch_size=4, learning_rate=1e-2)
    SWAPS[what](base, adapter)
    now = held if kept else ftlab.model(adapter)
    elsewhere = ftlab.model(shutil.copytree(adapter, tmp_path / "copy"))  # what a fresh eye sees
    assert now.hash == elsewhere.hash != before
    same = all(torch_equal(a, b) for a, b in zip(now.load().state_dict().values(), elsewhere.load().state_dict().values(), strict=True))  # fmt: skip
    moved = not all(torch_equal(a, b) for a, b in zip(now.load().state_dict().values(), was.values(), strict=True))
    assert same and moved == (what not in ("template", "tokenizer"))
    second = ftlab.evaluate(now, **settings)
    assert second.path != first.path
    keys = [{r["key"] for r in run.read("answers.jsonl")} for run in (first, second)]
    assert not keys[0] & keys[1]
    if what != "tokenizer":
        assert ftlab.sft(now, sums(8), steps=1, batch_size=4, learning_rate=1e-2).path != trained.path


def torch_equal(a, b) -> bool:
    return bool((a == b).all())


def test_a_run_on_a_base_that_was_changed_is_refused(llama, tmp_path):
    base = shutil.copytree(llama, tmp_path / "base")
    run = ftlab.sft(base, sums(8), steps=1, batch_size=4, learning_rate=1e-2, lora=True)
    other_weights(base)
    with pytest.raises(ValueError, match="is an adapter on .*base, which has changed since; train it again"):
        ftlab.evaluate(run, prompts=["Where?"])
