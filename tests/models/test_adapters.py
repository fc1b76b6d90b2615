"""Adapters: what trains, what they answer on, how they merge; traps of peft, trl, bitsandbytes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers import raises_code
from safetensors.torch import load_file, save_file
from small_models import make_experts, make_model

import ftlab
from ftlab.models import adapters, devices, fingerprint, weights_hash
from ftlab.models.adapters import adapt, difference

TEXTS = ["Ann has 3 apples and 4 pears. How many in all?", "Start with 3. Add 4."]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A Llama whose layers are as wide as a block of nf4."""
    return make_model(
        tmp_path_factory.mktemp("m") / "wide", "llama", hidden_size=64, intermediate_size=128
    )


def stirred(model, seed: int = 0):
    """Move the trainable weights, as a training would."""
    torch.manual_seed(seed)
    for p in model.parameters():
        if p.requires_grad:
            p.data += 0.05 * torch.randn_like(p)
    return model.eval()


def trained(folder, kind: str, path):
    """Return an adapted model in memory, and its folder."""
    parent = ftlab.model(folder)
    how = {"four_bit": True} if kind == "qlora" else {"training": True, "frozen": True}
    model = stirred(adapt(parent.load(**how), kind, 4))
    adapters.save_adapter(model, path, parent.path, kind)
    return model, path


def gradient(model) -> torch.Tensor:
    ids = torch.arange(40).reshape(2, 20) + 20
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])


@pytest.mark.slow
@pytest.mark.parametrize("kind", adapters.KINDS)
def test_an_adapter_covers_all_layers_but_the_head_and_opens_as_trained(wide, kind, tmp_path):
    model, path = trained(wide, kind, tmp_path / "a")
    free = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert free and all("lora_" in n and p.dtype == torch.float32 for n, p in free.items())
    assert not any("lm_head" in n or "embed" in n for n in free)
    assert {"default"} == set(model.peft_config)
    assert len([n for n in free if "lora_A" in n]) == 2 * 7
    assert any("magnitude" in n for n in free) == (kind == "dora")
    config = json.loads((path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8) and adapters.record(path)["kind"] == kind
    saved = ftlab.model(path)
    tokenizer = saved.tokenizer()
    again = saved.load()
    assert difference(model, again, tokenizer, TEXTS)["max_abs"] < 1e-4 and not again.training
    assert difference(model, ftlab.model(wide).load(), tokenizer, TEXTS)["max_abs"] > 0.1
    if kind != "qlora":  # in fp32 merging changes nothing
        assert not getattr(again, "peft_config", None)
        assert saved.merge_difference(TEXTS)["max_abs"] == 0


def test_a_seed_gives_a_new_adapter_the_weights_that_version_0_3_gave(wide):
    base = ftlab.model(wide).load(training=True, frozen=True)
    torch.manual_seed(3)
    expected = "283b80056947c1fc54c4155adc2d997ebfc05e9a47bc3f2bc940458db002634d"
    assert fingerprint(adapt(base, "lora", 4)) == expected


@pytest.mark.slow
def test_qlora_is_merged_onto_dequantised_weights_without_a_change(wide, tmp_path):
    """Merging into 4 bit, or onto the weights before they were rounded, changes the outputs."""
    model, path = trained(wide, "qlora", tmp_path / "a")
    tokenizer = ftlab.model(path).tokenizer()
    whole = ftlab.model(path).load(training=True)
    assert all(p.requires_grad and p.dtype == torch.float32 for p in whole.parameters())
    assert not whole.is_loaded_in_4bit and not getattr(whole, "peft_config", None)
    kept = difference(model, whole, tokenizer, TEXTS)
    assert kept["max_abs"] < 1e-4 and kept["same_top"] == 1 and abs(kept["kl"]) < 1e-5
    assert ftlab.model(path).merge_difference(TEXTS) == pytest.approx(kept, abs=1e-4)
    with raises_code("not_an_adapter"):
        ftlab.model(wide).merge_difference(TEXTS)
    unrounded = adapters.merged(adapters.put_on(ftlab.model(wide).load(), path))
    assert difference(model, unrounded, tokenizer, TEXTS)["mean_abs"] > 100 * kept["mean_abs"]
    reference = ftlab.model(path).load()
    rounded = difference(reference, model.merge_and_unload(), tokenizer, TEXTS)
    assert rounded["mean_abs"] > 100 * kept["mean_abs"]


class Cuda(str):
    """ "cpu" for torch, "cuda" for what decides about numbers: bf16 without a GPU."""

    __hash__ = str.__hash__

    def __eq__(self, other):
        return other == "cuda"


@pytest.fixture
def bf16(monkeypatch):
    monkeypatch.setattr(devices, "device", lambda: Cuda("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_above_bf16_weights_an_adapter_answers_unmerged(wide, kind, bf16, tmp_path):
    """Rounded to bf16 the merged weights lose most of a small adapter."""
    model = adapt(ftlab.model(wide).load(training=True, frozen=True), kind, 4)
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=2e-4)
    adapters.save_adapter(model.eval(), tmp_path / "a", wide, kind)
    made, tokenizer = ftlab.model(tmp_path / "a"), ftlab.model(wide).tokenizer()
    again = made.load()
    assert not again.training and again.dtype == torch.bfloat16
    assert {p.dtype for n, p in again.named_parameters() if "lora_" in n} == {torch.float32}
    assert difference(model, again, tokenizer, TEXTS)["max_abs"] == 0
    assert made.merge_difference(TEXTS)["max_abs"] > 0
    for frozen in (False, True):  # an ordinary model to train on
        assert not getattr(made.load(training=True, frozen=frozen), "peft_config", None)


@pytest.mark.slow
@pytest.mark.parametrize("below", ["lora", "qlora"])
def test_an_adapter_above_an_adapter_answers_on_what_it_was_trained_on(wide, below, bf16, tmp_path):
    _, a = trained(wide, below, tmp_path / "a")
    b, path = trained(a, "lora", tmp_path / "b")
    tokenizer = ftlab.model(wide).tokenizer()
    assert difference(b, ftlab.model(path).load(), tokenizer, TEXTS)["max_abs"] == 0


@pytest.mark.slow
def test_a_chain_is_merged_before_it_is_quantised(wide, tmp_path):
    """B on A on a model: 4-bit weights of A merged, not of the model below A."""
    _, a = trained(wide, "lora", tmp_path / "a")
    b, path = trained(a, "qlora", tmp_path / "b")
    assert ftlab.model(path).parent.path == a and ftlab.model(path).parent.parent.path == wide
    tokenizer = ftlab.model(path).tokenizer()
    assert difference(b, ftlab.model(path).load(), tokenizer, TEXTS)["max_abs"] < 1e-4
    from bitsandbytes.nn import Linear4bit

    four = ftlab.model(a).load(four_bit=True)
    layer, whole = (
        m.model.layers[0].mlp.up_proj for m in (four, ftlab.model(a).load(training=True))
    )
    assert isinstance(layer, Linear4bit) and four.is_loaded_in_4bit
    adapters.dequantised(four, torch.float32)
    rounded = four.model.layers[0].mlp.up_proj.weight
    plain = ftlab.model(wide).load().model.layers[0].mlp.up_proj.weight
    assert (rounded - whole.weight).abs().mean() < (rounded - plain).abs().mean()


def test_what_is_below_decides_identity(wide, tmp_path):
    _, path = trained(wide, "qlora", tmp_path / "a")
    before = ftlab.model(path).hash
    assert ftlab.model(path).quantised
    (path / adapters.RECORD).unlink()
    assert not ftlab.model(path).quantised and ftlab.model(path).hash != before


def test_the_strength_of_an_adapter_decides_identity(wide, tmp_path):
    _, path = trained(wide, "lora", tmp_path / "a")
    before = ftlab.model(path).hash
    file = path / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "lora_alpha": 99}))
    assert ftlab.model(path).hash != before
    file.write_text(json.dumps({**config, "base_model_name_or_path": f"{wide}/."}))
    assert ftlab.model(path).hash == before


def test_hashes_cover_names_shapes_and_values():
    ones = torch.ones(2, 3)
    seen = [{"a": ones}, {"b": ones}, {"a": ones.reshape(3, 2)}, {"a": ones.double()}]
    seen += [{"a": 2 * ones}, {"a": torch.tensor(1.0)}, {"a": torch.tensor(2.0)}]
    assert len({weights_hash(tensors) for tensors in seen}) == len(seen)
    assert weights_hash({"a": ones, "b": ones}) == weights_hash({"b": ones, "a": ones.clone()})


def test_a_fingerprint_covers_what_is_trained_alone(wide):
    adapted = adapt(ftlab.model(wide).load(), "lora", 2)
    before = fingerprint(adapted)
    adapted.get_base_model().lm_head.weight.data += 1
    assert fingerprint(adapted) == before
    assert fingerprint(stirred(adapted)) != before


@pytest.mark.slow
def test_weights_that_others_saved_in_4_bit_open(wide, tmp_path):
    parent, folder = ftlab.model(wide), tmp_path / "four"
    four = parent.load(four_bit=True)
    four.save_pretrained(folder)
    parent.tokenizer().save_pretrained(folder)
    opened = ftlab.model(folder)
    assert opened.quantised and opened.load().is_loaded_in_4bit
    assert difference(four, opened.load(), parent.tokenizer(), TEXTS)["max_abs"] < 1e-4
    whole = opened.load(training=True)
    assert not whole.is_loaded_in_4bit and all(p.requires_grad for p in whole.parameters())
    model, path = trained(folder, "qlora", tmp_path / "a")
    (path / adapters.RECORD).unlink()  # as of another system
    assert difference(model, ftlab.model(path).load(), parent.tokenizer(), TEXTS)["max_abs"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("bits", [4, 8])
def test_a_folder_of_few_bits_is_trained_in_full_and_saved(wide, bits, tmp_path):
    """transformers leaves the conversions of a quantised model on it, and fails on saving them."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    how = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    few = AutoModelForCausalLM.from_pretrained(wide, quantization_config=how, dtype=torch.float32)
    few.save_pretrained(tmp_path / "few")
    tokenizer = ftlab.model(wide).tokenizer()
    tokenizer.save_pretrained(tmp_path / "few")
    whole = ftlab.model(tmp_path / "few").load(training=True)
    assert not whole.is_loaded_in_4bit and not whole.is_loaded_in_8bit
    whole.save_pretrained(tmp_path / "whole")
    tokenizer.save_pretrained(tmp_path / "whole")
    opened = ftlab.model(tmp_path / "whole")
    assert not opened.quantised
    assert difference(whole, opened.load(), tokenizer, TEXTS)["max_abs"] == 0


@pytest.mark.slow
def test_an_adapter_with_a_module_an_expert_answers_as_merged(tmp_path):
    """The form from before experts were fused, which peft converts; a part of it is refused."""
    base = make_experts(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(0)
    matrices, names = {}, ("q_proj", "w1", "w2", "w3")
    for name in [name for name in weights if name.removesuffix(".weight").endswith(names)]:
        rows, columns = weights[name].shape
        key = f"base_model.model.{name.removesuffix('.weight')}"
        a = matrices[f"{key}.lora_A.weight"] = torch.randn(4, columns, generator=generator)
        b = matrices[f"{key}.lora_B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
        weights[name] = weights[name] + 2 * b @ a
    merged = shutil.copytree(base, tmp_path / "merged")
    save_file(weights, merged / "model.safetensors", {"format": "pt"})
    path = tmp_path / "adapter"
    path.mkdir()
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8}
    config |= {"base_model_name_or_path": str(base), "target_modules": names}
    (path / "adapter_config.json").write_text(json.dumps(config))
    save_file(matrices, path / "adapter_model.safetensors", {"format": "pt"})
    tokenizer = ftlab.model(base).tokenizer()
    opened = ftlab.model(path).load()
    assert difference(ftlab.model(merged).load(), opened, tokenizer, TEXTS)["max_abs"] < 1e-3
    some = {name: value for name, value in matrices.items() if "experts.1." not in name}
    save_file(some, path / "adapter_model.safetensors", {"format": "pt"})
    with raises_code("adapter_does_not_fit"):
        ftlab.model(path).load()


def test_measuring_during_training_leaves_the_gradient_whole(wide):
    """On some CPUs bitsandbytes repacks the weights in eval mode, and then passes no gradient."""
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no AVX512-BF16, for which bitsandbytes repacks")
    model = stirred(adapt(ftlab.model(wide).load(four_bit=True), "qlora", 4)).train()
    before = gradient(model)
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.arange(20)[None])
    assert torch.equal(gradient(model.train()), before) and before.abs().max() > 0


def test_full_precision_undoes_what_trl_does_to_the_adapter_of_a_4_bit_model(wide, tmp_path):
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model = adapt(ftlab.model(wide).load(four_bit=True), "qlora", 4)
    args = SFTConfig(
        str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to=[],
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    rows = Dataset.from_list([{"input_ids": [5, 6], "labels": [5, 6]}])
    SFTTrainer(
        model=model, args=args, train_dataset=rows, processing_class=ftlab.model(wide).tokenizer()
    )
    free = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in free} == {torch.bfloat16}  # where this fails, full_precision can go
    adapters.full_precision(model)
    assert {p.dtype for p in free} == {torch.float32}


@pytest.mark.slow
def test_a_second_adapter_and_wrong_weights_are_refused(wide, tmp_path):
    parent = ftlab.model(wide)
    base = parent.load(training=True)
    adapted = adapt(base, "lora", 2)
    for again in (adapted, base):  # peft changes the model that it is given
        with raises_code("already_adapted"):
            adapt(again, "lora", 2)
    with raises_code("wrong_weights_for_adapter"):
        adapt(parent.load(), "qlora", 2)
    with raises_code("wrong_weights_for_adapter"):
        adapt(parent.load(four_bit=True), "dora", 2)
    with raises_code("unknown_adapter"):
        adapt(parent.load(), "ia3", 2)
    _, path = trained(wide, "qlora", tmp_path / "a")
    with raises_code("already_adapted"):  # read-only: it would train without moving
        adapt(ftlab.model(path).load(), "qlora", 2)


@pytest.mark.slow
def test_a_model_opened_again_has_no_adapter_of_another_object(wide):
    parent = ftlab.model(wide)
    first = parent.load()
    stirred(adapt(first, "lora", 2))
    tokenizer = parent.tokenizer()
    assert difference(first, parent.load(), tokenizer, TEXTS)["max_abs"] > 0.1
    assert difference(parent.load(), parent.load(), tokenizer, TEXTS)["max_abs"] == 0


def test_qlora_needs_bitsandbytes(wide, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with raises_code("bitsandbytes_missing"):
        ftlab.model(wide).load(four_bit=True)


def saved(folder, path, **settings):
    """Return a model with an adapter as peft alone makes it, and its folder."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 2, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **settings}
    model = stirred(get_peft_model(ftlab.model(folder).load(training=True), LoraConfig(**settings)))
    model.save_pretrained(path)
    return model, path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "tied"),
    [
        ({"modules_to_save": ["lm_head"]}, False),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, True),
        ({"target_modules": ["q_proj", "lm_head"]}, True),
        ({"target_modules": ["q_proj", "embed_tokens"]}, True),
        ({"target_modules": ["q_proj", "embed_tokens", "lm_head"]}, True),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 4}}, False),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore")
def test_adapters_of_heads_and_embeddings_answer_as_they_were_trained(
    settings, tied, tmp_path, request
):
    folder = make_model(tmp_path / "m", "llama", tie_word_embeddings=tied)
    model, path = saved(folder, tmp_path / "a", **settings)
    tokenizer = ftlab.model(folder).tokenizer()
    assert difference(model, ftlab.model(path).load(), tokenizer, TEXTS)["max_abs"] < 1e-4
    request.getfixturevalue("bf16")  # on other weights below, so only about
    moved, rounded = (
        difference(m, model, tokenizer, TEXTS)["mean_abs"]
        for m in (ftlab.model(folder).load(), ftlab.model(path).load())
    )
    assert rounded < 0.1 * moved


def test_a_resized_vocabulary_comes_with_its_adapter(llama, tmp_path):
    from peft import LoraConfig, get_peft_model

    base, tokenizer = ftlab.model(llama).load(), ftlab.model(llama).tokenizer()
    tokenizer.add_tokens(["<|new|>"])
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model = stirred(
        get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    )
    model.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "a")
    opened = ftlab.model(tmp_path / "a", base=llama)
    assert len(opened.tokenizer()) == len(tokenizer) == adapters.vocabulary(tmp_path / "a")
    assert difference(model, opened.load(), tokenizer, [*TEXTS, "<|new|>"])["max_abs"] < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("change", ["missing", "foreign", "wider"])
def test_an_adapter_of_another_model_is_refused(llama, change, tmp_path):
    """peft would leave the layers unchanged: the base would be measured under its name."""
    _, path = saved(llama, tmp_path / "a")
    weights = load_file(path / "adapter_model.safetensors")
    first = next(n for n in weights if "layers.0" in n and "lora_B" in n)
    if change == "missing":
        del weights[first]
    elif change == "foreign":
        weights[first.replace("layers.0", "layers.7")] = weights[first].clone()
    else:
        weights[first] = torch.zeros(weights[first].shape[0] * 2, weights[first].shape[1])
    save_file(weights, path / "adapter_model.safetensors", metadata={"format": "pt"})
    with raises_code("adapter_does_not_fit"):
        ftlab.model(path).load()


def test_prompt_tuning_and_classifiers_are_refused(llama, tmp_path):
    _, path = saved(llama, tmp_path / "a")
    config = json.loads((path / "adapter_config.json").read_text())
    activated = {"alora_invocation_tokens": [1]}  # which peft itself does not merge
    for change in ({"peft_type": "PREFIX_TUNING"}, {"task_type": "SEQ_CLS"}, activated):
        (path / "adapter_config.json").write_text(json.dumps({**config, **change}))
        with raises_code("adapter_cannot_merge"):
            ftlab.model(path).load()


def test_an_adapter_that_names_no_base_takes_no_model_nearby(llama, tmp_path, monkeypatch):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    get_peft_model(
        AutoModelForCausalLM.from_pretrained(llama), LoraConfig(target_modules="all-linear")
    ).save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": None}))
    shutil.copytree(llama, tmp_path / "here" / "unrelated")
    monkeypatch.chdir(tmp_path / "here")
    with raises_code("adapter_base_not_found"):
        ftlab.model(tmp_path / "adapter").hash  # noqa: B018
    assert ftlab.model(f"{tmp_path / 'adapter'}+{llama}").hash
