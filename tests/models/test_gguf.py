"""GGUF files: opened as any other model, dequantised once, refused in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import raises_code

import ftlab as ft
from ftlab.models import gguf as module

gguf = pytest.importorskip("gguf", reason="the extra real is not installed")
WIDTH, HEADS, WORDS = 64, 2, 288
TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)
LAYER = {  # GGUF's names: shape, rows first
    "attn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (WIDTH, WIDTH),
    "attn_v": (WIDTH, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_norm": (WIDTH,),
    "ffn_gate": (2 * WIDTH, WIDTH), "ffn_up": (2 * WIDTH, WIDTH), "ffn_down": (WIDTH, 2 * WIDTH),
}  # fmt: skip


def write_gguf(file, architecture="llama"):
    """Write a random Llama of one layer in Q8_0; return its embedding as it was before."""
    from tokenizers.pre_tokenizers import ByteLevel

    writer = gguf.GGUFWriter(file, architecture)
    writer.add_license("apache-2.0")
    for name, value in dict(
        block_count=1, context_length=128, embedding_length=WIDTH, feed_forward_length=2 * WIDTH,
        head_count=HEADS, head_count_kv=HEADS, layer_norm_rms_eps=1e-5, vocab_size=WORDS,
        rope_dimension_count=WIDTH // HEADS, rope_freq_base=1e4,
    ).items():  # fmt: skip
        getattr(writer, f"add_{name}")(value)
    tokens = ["<|endoftext|>", "<s>", "</s>", *sorted(ByteLevel.alphabet()), "so"]
    tokens += [f"<{number}>" for number in range(WORDS - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["s o"])
    writer.add_token_types([3] * 3 + [1] * (WORDS - 3))
    for name, number in (("bos", 1), ("eos", 2), ("unk", 0), ("pad", 2)):
        getattr(writer, f"add_{name}_token_id")(number)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    tensors = {"token_embd": (WORDS, WIDTH), "output_norm": (WIDTH,), "output": (WORDS, WIDTH)}
    tensors |= {f"blk.0.{name}": shape for name, shape in LAYER.items()}
    weights = {}
    for name, shape in tensors.items():
        weights[name] = values = random.normal(size=shape).astype(np.float32) / 8
        kind = gguf.GGMLQuantizationType.Q8_0 if len(shape) > 1 else None
        packed = gguf.quants.quantize(values, kind) if kind else values
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "packed"
    folder.mkdir()
    return folder / "tiny.Q8_0.gguf"


def test_a_gguf_file_and_its_folder_are_one_model(tiny, cache):
    weights = write_gguf(tiny)
    found = ft.model(str(tiny))
    embedding = found.load().get_input_embeddings().weight.detach().numpy()
    step = np.abs(weights["token_embd"]).max() / 127  # of Q8_0, at most
    assert np.abs(embedding - weights["token_embd"]).max() <= step
    assert ft.model(str(tiny.parent)) == found and ft.model(tiny.parent).hash == found.hash
    (folder,) = (path for path in cache.iterdir() if path.is_dir())
    record = json.loads((folder / "gguf.json").read_text())
    assert record["licence"] == "apache-2.0" and len(record["sha256"]) == 64
    assert not found.quantised and ft.ask(found, "Why?", max_new_tokens=2).shape[0] == 1


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "chat_template.jinja"])
def test_a_damaged_copy_in_the_cache_is_made_again(tiny, name):
    write_gguf(tiny)
    found = ft.model(tiny)
    before = found.hash
    file = found.path / name
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert ft.model(tiny).hash == before
    stamp = file.stat().st_mtime_ns
    assert ft.model(tiny).hash == before and file.stat().st_mtime_ns == stamp


def test_what_is_trained_from_it_is_a_model(tiny, runs_folder):
    write_gguf(tiny)
    rows = [{"prompt": "Why?", "response": "So."}] * 4
    settings = dict(steps=2, batch_size=2, max_length=64, seed=0)
    run = ft.sft(tiny, rows, adapter="lora", **settings)
    assert ft.model(run).parent.hash == ft.model(tiny).hash
    first, second = (ft.model(each).load().model.layers[0] for each in (run, tiny))
    assert not torch.equal(first.self_attn.q_proj.weight, second.self_attn.q_proj.weight)


def test_a_file_that_lacks_weights_is_refused(tiny, cache, monkeypatch):
    monkeypatch.setitem(LAYER, "attn_q", LAYER["attn_q"])
    del LAYER["attn_q"]
    write_gguf(tiny)
    with raises_code("gguf_unreadable"):
        ft.model(tiny)


def test_a_cache_that_cannot_be_made_is_named(tiny, tmp_path, monkeypatch):
    write_gguf(tiny)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTLAB_CACHE", str(tmp_path / "file"))
    with raises_code("cache_not_writable"):
        ft.model(tiny)


def test_what_cannot_be_dequantised_is_refused(tiny, tmp_path, cache):
    write_gguf(tiny, architecture="nosuch")
    for file, text in ((tiny, None), (tmp_path / "torn.gguf", b"GGUF\3\0\0\0"),
                       (tmp_path / "a-00001-of-00002.gguf", b"GGUF")):  # fmt: skip
        if text:
            file.write_bytes(text)
        with raises_code("gguf_unreadable"):
            ft.model(file)
    assert [path.name for path in cache.iterdir() if path.is_dir()] == []
    (tiny.parent / "tiny.Q4_0.gguf").write_bytes(b"")
    with raises_code("several_models"):
        ft.model(tiny.parent)


def test_a_missing_package_is_named_with_its_command(tiny, monkeypatch):
    tiny.write_bytes(b"GGUF")
    here = module.PACKAGED["smollm2-135m"]
    monkeypatch.setitem(module.PACKAGED, "smollm2-135m", replace(here, module="no_such_module"))
    with raises_code("packaged_model_missing"):
        ft.model("smollm2-135m")
    monkeypatch.setitem(
        module.PACKAGED, "smollm2-135m", replace(here, module="json", file="tool.py")
    )
    with raises_code("packaged_model_changed"):
        ft.model("smollm2-135m")
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with raises_code("gguf_missing"):
        ft.model(tiny)
