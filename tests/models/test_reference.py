"""References to models: what opens, what is refused, what the hash covers, what is kept open."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from helpers import raises_code
from safetensors.torch import load, load_file, save, save_file
from small_models import contents, make_model

from ftlab import runs
from ftlab._core.errors import UsageError
from ftlab.models import (
    Model,
    adapt,
    devices,
    is_reward_model,
    keep_open,
    model,
    open_folder,
    save_adapter,
)


@pytest.fixture
def copied(llama, tmp_path):
    """A copy of the Llama folder that a test may break."""
    return shutil.copytree(llama, tmp_path / "model")


def trained_adapter(base, folder, seed: int = 0):
    """Save a LoRA adapter with random weights on the model of a folder."""
    torch.manual_seed(seed)
    adapted = adapt(model(base).load(training=True, frozen=True), "lora", 2)
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn_like(parameter)
    save_adapter(adapted, folder, base, "lora")
    return folder


def adapter_run(base):
    """Return a finished run that holds an adapter on the model of a folder."""
    run = runs.start("sft", "small", {"parent": model(base).hash})
    trained_adapter(base, run.path / "model")
    return run.complete()


@pytest.mark.parametrize(
    ("name", "hash_of_0_3"),
    [
        ("organism", "acb20b55e187eb99"),
        ("organism:sft", "e323b22eaf91ea80"),
        ("organism:base", "4948032a183a9be2"),
    ],
)
def test_embedded_models_keep_their_hash(name, hash_of_0_3):
    found = model(name)
    assert found.hash == hash_of_0_3
    assert found.is_organism
    assert found.source == {"folder": name.replace(":", "-"), "hash": hash_of_0_3}


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda p: shutil.rmtree(p), "model_folder_not_found"),
        (lambda p: [f.unlink() for f in p.iterdir()], "config_not_found"),
        (lambda p: (p / "model.safetensors").rename(p / "model.bin"), "weights_not_found"),
        (lambda p: (p / "config.json").write_text("{"), "config_unreadable"),
        (lambda p: (p / "config.json").write_text("[1]"), "config_unreadable"),
    ],
    ids=["missing", "empty", "pickled", "broken", "list"],
)
def test_broken_folders_are_refused(copied, damage, code):
    damage(copied)
    with raises_code(code):
        model(copied)


def test_unreadable_weights_and_tokenizers_are_refused(copied):
    (copied / "model.safetensors").write_bytes(b"torn")
    with raises_code("weights_unreadable"):
        model(copied).load()
    (copied / "tokenizer.json").write_text("{}")
    with raises_code("tokenizer_unreadable"):
        model(copied).tokenizer()


def test_missing_weights_are_never_made_up(copied):
    weights = load_file(copied / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with raises_code("weights_missing"):
        model(copied).load()


def test_missing_weights_of_a_classifier_are_never_made_up(llama):
    """Its answers would be random numbers."""
    with raises_code("weights_missing"):
        open_folder(llama, torch.float32, "AutoModelForSequenceClassification")


def test_a_tokenizer_of_another_model_is_refused(copied, folders):
    shutil.copy(folders["gemma"] / "tokenizer.json", copied)
    with raises_code("tokenizer_too_large"):
        model(copied).tokenizer()


def test_a_tokenizer_without_pad_and_eos_is_refused(copied):
    file = copied / "tokenizer_config.json"
    settings = json.loads(file.read_text())
    settings.pop("eos_token")
    file.write_text(json.dumps(settings))
    with raises_code("tokenizer_without_padding"):
        model(copied).tokenizer()


def test_a_model_opens_as_it_was_saved(folder):
    found = model(folder)
    loaded = found.load()
    tokenizer = found.tokenizer()
    assert not loaded.training
    assert all(p.dtype == torch.float32 for p in loaded.parameters())
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id is not None
    assert not found.is_organism and found.parent is None and not is_reward_model(found)
    assert folder.name in found._repr_html_() and found.hash in found._repr_html_()


def test_opening_and_using_a_model_leaves_its_folder_unchanged(folder):
    before = contents(folder)
    found = model(folder)
    ids = found.tokenizer()("Where is my kite?", return_tensors="pt")["input_ids"]
    found.load().generate(ids, max_new_tokens=2)
    assert contents(folder) == before


def test_a_reference_is_accepted_as_its_own_reference(llama):
    found = model(llama)
    assert model(found) is found
    endpoint = model("api:small@http://127.0.0.1:9/v1")
    assert model(endpoint) is endpoint and not endpoint.is_organism


def test_a_reward_model_is_recognised(copied):
    file = copied / "config.json"
    config = json.loads(file.read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    file.write_text(json.dumps(config))
    assert is_reward_model(model(copied))


def test_the_hash_covers_weights_configuration_tokenizer_and_template(copied, tmp_path):
    """The same model at another path is the same; a card changes nothing."""
    found = model(copied)
    seen = {found.hash}
    assert model(shutil.copytree(copied, tmp_path / "moved")).hash in seen
    (copied / "README.md").write_text("a card")
    assert model(copied).hash in seen
    changes = {
        "model.safetensors": lambda b: b[:-1] + bytes([b[-1] ^ 1]),
        "config.json": lambda b: b.replace(b'"rms_norm_eps": 1e-06', b'"rms_norm_eps": 1e-05'),
        "chat_template.jinja": lambda b: b + b" ",
        "tokenizer.json": lambda b: b.replace(b'"type": "BPE"', b'"type":  "BPE"'),
        "generation_config.json": lambda b: b.replace(b'"eos_token_id": 1', b'"eos_token_id": 2'),
    }
    for name, change in changes.items():
        before = (copied / name).read_bytes()
        assert change(before) != before
        (copied / name).write_bytes(change(before))
        assert found.hash not in seen, name
        seen.add(found.hash)


@pytest.mark.slow
def test_a_merged_adapter_is_an_ordinary_model(llama, tmp_path):
    """All weights can be trained, and no trace is left that a second adapter would join."""
    found = model(trained_adapter(llama, tmp_path / "a"))
    merged = found.load(training=True)
    assert all(p.requires_grad for p in merged.parameters())
    assert not getattr(merged, "peft_config", None)
    assert found.tokenizer().chat_template == model(llama).tokenizer().chat_template


def test_a_run_opens_while_its_parent_is_the_same(copied, tmp_path):
    run = adapter_run(copied)
    for ref in (run, run.path, str(run.path)):
        assert model(ref).parent.path == copied
        assert model(ref).source["base"]["hash"] == model(copied).hash
    elsewhere = shutil.copytree(run.path / "model", tmp_path / "elsewhere")
    assert model(elsewhere).hash == model(run).hash
    other_weights(copied)
    with raises_code("adapter_base_changed"):
        model(run)
    shutil.rmtree(copied)
    with raises_code("adapter_base_not_found"):
        model(run)


def test_runs_that_hold_no_model_are_refused():
    run = runs.start("evaluate", "small", {})
    with raises_code("run_not_finished"):
        model(run)
    run.complete()
    with raises_code("run_without_model"):
        model(run)


def test_unknown_names_are_refused(tmp_path, monkeypatch):
    with raises_code("unknown_model"):
        model("organism:huge")
    with raises_code("hub_unavailable"):
        model("nobody/nothing")
    monkeypatch.setenv("FTLAB_ORGANISM", str(tmp_path / "nowhere"))
    with raises_code("organism_not_found"):
        model("organism")


def test_what_is_no_reference_is_refused_in_one_sentence(llama):
    for thing in (model(llama).load(), None, 3, [], b"organism", "", " ", "x" * 300, "a\0b", "+"):
        with raises_code("not_a_model_reference") as info:
            model(thing)
        assert isinstance(info.value, UsageError)
        assert str(info.value).count(". ") == 0 and len(str(info.value)) < 150


def test_a_folder_may_be_called_like_the_organism(copied, monkeypatch):
    copied.rename(copied.with_name("organism-2"))
    monkeypatch.chdir(copied.parent)
    assert model("organism-2").name == "organism-2"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["of a model", "of an adapter"])
def test_what_is_kept_open_is_read_once_and_equals_what_is_opened(
    llama, kind, monkeypatch, tmp_path
):
    import safetensors
    from transformers import AutoTokenizer, modeling_utils

    folder = trained_adapter(llama, tmp_path / "a") if kind == "of an adapter" else llama
    found = model(folder)
    ways = [{}, {"training": True}, {"training": True, "frozen": True}]
    ids = torch.tensor([[5, 9, 2, 14, 3, 7]])
    before = [found.load(**how)(input_ids=ids).logits for how in ways]
    opened = []

    def count(module, name):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, **k: (opened.append(name), real(*a, **k))[1])

    count(modeling_utils, "safe_open")
    count(safetensors, "safe_open")
    count(AutoTokenizer, "from_pretrained")
    with keep_open(found):
        for how in ways:
            found.load(**how)
        found.tokenizer()
        assert {"safe_open", "from_pretrained"} <= set(opened)
        opened.clear()
        after = [found.load(**how)(input_ids=ids).logits for how in ways]
        again = model(folder)
        again.tokenizer()
        again.load()
        assert not opened
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    found.load()
    assert "safe_open" in opened


def test_every_caller_owns_what_is_kept_open(copied):
    found = model(copied)
    with keep_open(found), keep_open(model(copied)):
        one = found.load(training=True, frozen=True)
        two = found.load(training=True, frozen=True)
        assert one.lm_head.weight.data_ptr() == two.lm_head.weight.data_ptr()
        assert one.lm_head is not two.lm_head
        one.requires_grad_(False)
        one.config.use_cache = False
        one.forward = None
        assert two.lm_head.weight.requires_grad and two.config.use_cache and two.forward
        whole = found.load(training=True)
        other = found.load(training=True)
        whole.lm_head.weight.data.zero_()
        assert torch.equal(other.lm_head.weight, two.lm_head.weight) and other.lm_head.weight.any()
        first = found.tokenizer()
        second = found.tokenizer()
        first.padding_side = "right"
        assert second.padding_side == "left" and first("a kite") == second("a kite")


def test_what_is_kept_open_ends_with_the_outermost_block(copied):
    found = model(copied)
    with pytest.raises(KeyError), keep_open(found):
        with keep_open(found):
            inside = found.load().lm_head.weight.data_ptr()
        assert found.load().lm_head.weight.data_ptr() == inside
        raise KeyError
    one, two = found.load(), found.load()
    assert one.lm_head.weight.data_ptr() != two.lm_head.weight.data_ptr()


def test_a_changed_model_is_read_again_although_it_is_kept_open(copied):
    found = model(copied)
    with keep_open(found):
        before = found.load().lm_head.weight.clone()  # the file is mapped into memory
        other_weights(copied)
        assert not torch.equal(found.load().lm_head.weight, before)


def test_the_numbers_of_weights_depend_on_device_and_use(llama, monkeypatch):
    """On a GPU: bf16 to answer and below an adapter, fp32 where all weights train."""
    ways = {"": {}, "full": {"training": True}, "lora": {"training": True, "frozen": True}}
    numbers = {"cpu": [torch.float32] * 3, "cuda": [torch.bfloat16, torch.float32, torch.bfloat16]}
    names = {
        "cpu": ["fp32", "fp32", "fp32"],
        "cuda": ["bf16", "fp32 weights, bf16 autocast", "bf16 weights, fp32 adapter"],
    }
    for there in ("cpu", "cuda"):
        monkeypatch.setattr(devices, "device", lambda there=there: Device(there))
        assert [model(llama).load(**how).dtype for how in ways.values()] == numbers[there]
        kinds = [("", None), ("full", None), ("lora", "lora")]
        found = [devices.precision(bool(way), adapter) for way, adapter in kinds]
        assert found == names[there]
        compute = {"cpu": "nf4, fp32", "cuda": "nf4, bf16"}
        assert devices.precision(True, "qlora") == compute[there]


class Device(str):
    """ "cpu" for torch, and equal to the name it was made of."""

    def __new__(cls, name: str):
        made = super().__new__(cls, "cpu")
        made.name = name
        return made

    __hash__ = str.__hash__

    def __eq__(self, other):
        return other == self.name


def swap(file, content: bytes) -> None:
    """Replace a file in place by content of the same size, under the old times."""
    times = file.stat()
    old = file.read_bytes()
    assert content != old and len(content) == len(old)
    with open(file, "r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def other_weights(folder) -> None:
    (file,) = folder.glob("*.safetensors")
    tensors = {name: t.flip(0).contiguous() for name, t in load(file.read_bytes()).items()}
    swap(file, save(tensors, metadata={"format": "pt"}))


def other_text(folder, name: str, old: bytes, new: bytes) -> None:
    whole = (folder / name).read_bytes()
    swap(folder / name, whole.replace(old, new))


SWAPS = {  # what is done to (base, adapter)
    "weights below": lambda base, adapter: other_weights(base),
    "adapter": lambda base, adapter: other_weights(adapter),
    "alpha": lambda b, a: other_text(
        a, "adapter_config.json", b'"lora_alpha": 4', b'"lora_alpha": 8'
    ),
    "another base": lambda b, a: other_text(a, "adapter_config.json", b"/base", b"/next"),
    "template": lambda b, a: other_text(a, "chat_template.jinja", b"| trim", b"|upper"),
    "tokenizer": lambda b, a: other_text(a, "tokenizer.json", b'"id": 3,', b'"id": 2,'),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SWAPS)
def test_a_swap_in_place_crosses_no_cache(what, llama, tmp_path):
    """Same path, size and times, and the caller may hold the reference: another hash."""
    base = shutil.copytree(llama, tmp_path / "base")
    shutil.copytree(make_model(tmp_path / "other", "llama", seed=9), tmp_path / "next")
    adapter = trained_adapter(base, tmp_path / "adapter")
    model(base).tokenizer().save_pretrained(adapter)
    reference = model(adapter)
    before = reference.hash
    weights_before = {n: t.clone() for n, t in reference.load().state_dict().items()}
    SWAPS[what](base, adapter)
    elsewhere = model(shutil.copytree(adapter, tmp_path / "copy"))
    expected = elsewhere.load().state_dict()
    assert same(expected, weights_before) == (what in ("template", "tokenizer"))
    for now in (reference, model(adapter)):  # held, and opened again
        assert now.hash == elsewhere.hash != before
        assert same(now.load().state_dict(), expected)


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_is_a_plain_value(llama):
    assert model(llama) == Model("llama", llama)


@pytest.mark.parametrize("file", ["additional_chat_templates/default.jinja", "x.spm", "vocab.txt"])
def test_the_hash_covers_what_other_tokenizers_read(copied, file):
    (copied / file).parent.mkdir(exist_ok=True)
    seen = {model(copied).hash}
    for text in ("one", "two"):
        (copied / file).write_text(text)
        seen.add(model(copied).hash)
    assert len(seen) == 3


def test_a_run_stays_itself_in_another_folder(llama, tmp_path, monkeypatch):
    """A relative path would be taken for the id of a model on the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FTLAB_RUNS", "runs")
    run = adapter_run(llama)
    found = model(run).hash
    assert model(run.name).hash == found
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert model(run).hash == found
    with raises_code("model_folder_not_found"):
        model(runs.Run(run.path.parent / "other"))


def test_the_base_that_an_adapter_names_is_taken_before_one_beside_it(copied, llama, tmp_path):
    """A moved folder of runs has its parents beside it; one that is there needs no search."""
    named = shutil.copytree(copied, tmp_path / "other" / "sft-a" / "model")
    run = adapter_run(named)
    shutil.copytree(copied, run.path.parent / "sft-a" / "model")
    assert model(run).parent.path == named
    shutil.rmtree(named)
    assert model(run).parent.path == run.path.parent / "sft-a" / "model"
