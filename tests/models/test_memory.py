"""What fits: counts that are exact, an estimate that holds against a real training, sentences for what is not known."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_models import make_model

import ftlab
from ftlab.models import adapters
from ftlab.models import memory as preflight
from ftlab.models.memory import GIB, METHODS

COUNTED: dict = {}
count = preflight._sizes


@pytest.fixture(autouse=True)
def counted_once(monkeypatch):
    """What the tests count again and again of the same configuration is counted once."""

    def sizes(config, kind, rank):
        key = config.to_json_string(), kind, rank
        return COUNTED[key] if key in COUNTED else COUNTED.setdefault(key, count(config, kind, rank))

    monkeypatch.setattr(preflight, "_sizes", sizes)


def row(found, method: str) -> dict:
    return next(r for r in found.rows if r["method"] == method)


@pytest.fixture(scope="module")
def seven(tmp_path_factory):
    """The configuration of a Llama of 7 billion parameters, alone."""
    from transformers import LlamaConfig

    shape = dict(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32000
    )
    LlamaConfig(**shape, architectures=["LlamaForCausalLM"]).save_pretrained(
        folder := tmp_path_factory.mktemp("c") / "seven"
    )
    return folder


def test_parameters_and_adapters_are_counted_as_they_are(folder):
    """Every family: tied and untied heads, grouped heads, an own head width."""
    parent = ftlab.model(folder)
    whole = parent.load()
    found = ftlab.fit(folder, rank=4)
    assert found.parameters == whole.num_parameters() == row(found, "full")["trainable"]
    for kind in adapters.KINDS:
        model = adapters.adapt(parent.load(training=True, four_bit=kind == "qlora"), kind, 4)
        assert row(found, kind)["trainable"] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_7b_needs_what_its_numbers_say(seven):
    """Full: 16 bytes a parameter and autocast's copies; LoRA 2; QLoRA about half, embeddings and head in fp32."""
    found = ftlab.fit(seven, gpu="80GB")
    n = 6_738_415_616
    assert found.parameters == n
    state = {m: sum(row(found, m)[k] for k in ("weights", "gradients", "optimizer")) * GIB for m in METHODS}
    assert 17 * n < state["full"] < 18 * n and 2 * n < state["lora"] < 2.2 * n and 0.6 * n < state["qlora"] < 0.8 * n
    assert row(found, "lora")["trainable"] == 32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert [m for m in METHODS if row(found, m)["fits"]] == ["lora", "dora", "qlora"]
    assert [m for m in METHODS if row(ftlab.fit(seven, gpu="12GB"), m)["fits"]] == ["qlora"]
    assert not ftlab.fit(seven, gpu=4, method="qlora").fits


def test_longer_rows_go_through_in_smaller_parts(seven):
    """Activations grow with the tokens; rows a forward pass shrink, the rows a step do not."""
    sizes = [row(ftlab.fit(seven, gpu="24GB", length=n), "qlora") for n in (512, 2048, 8192)]
    assert [s["at_once"] for s in sizes] == sorted((s["at_once"] for s in sizes), reverse=True)
    assert sizes[0]["at_once"] == 16 > sizes[2]["at_once"]
    one, two = (row(ftlab.fit(seven, gpu="H200", batch=1, length=n), "full")["activations"] for n in (1024, 2048))
    assert 1.8 < two / one < 2.01


def test_time_is_a_range_from_operations(seven):
    """Llama 7B, full: 8 FLOPs a parameter and token (2 of them recomputed) of a known peak."""
    found = row(ftlab.fit(seven, gpu="A100-80", rows=1000, length=512, epochs=1), "full")
    simple = 8 * 6.6e9 * 512_000 / 312e12 / 60  # minutes at the peak
    assert 0.9 < found["minutes_high"] * 0.2 / simple < 1.2 and 0.9 < found["minutes_low"] * 0.45 / simple < 1.2
    assert row(ftlab.fit(seven, gpu="80GB"), "full")["minutes_low"] is None
    assert "name the GPU" in ftlab.fit(seven, gpu="80GB").assumed


NAMED = {  # as torch.cuda.get_device_name gives them: TFLOPS of the data sheet, None: no estimate of time
    "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100-SXM4-40GB": 312, "A100-SXM4-40GB": 312, "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312, "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H200": 989,
    "NVIDIA L4": 121, "NVIDIA L40S": 362, "NVIDIA A10": 125, "Tesla T4": 65, "Tesla V100-SXM2-16GB": 125,
    "Tesla V100-PCIE-32GB": 112, "NVIDIA GeForce RTX 4090": 165, "NVIDIA GeForce RTX 3090": 71,
    "NVIDIA A10G": None, "NVIDIA A16": None, "NVIDIA RTX A1000": None, "NVIDIA RTX A6000": None, "NVIDIA L40": None,
    "NVIDIA H20": None, "NVIDIA H100 NVL": None, "NVIDIA GH200 480GB": None, "NVIDIA GeForce RTX 3090 Ti": None,
    "NVIDIA GeForce RTX 4090 Laptop GPU": None, "NVIDIA A100-SXM4-40GB MIG 1g.5gb": None, "Quadro T400": None,
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_the_peak_is_that_of_the_gpu_that_is_there_or_none(name, seven, monkeypatch):
    import torch

    monkeypatch.setattr(preflight, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda n: SimpleNamespace(name=name))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (40 * GIB, 48 * GIB))
    found, tflops = ftlab.fit(seven), NAMED[name]
    assert (found.where, found.room) == (name, pytest.approx(0.95 * 40))
    assert preflight._device(None)[3] == (tflops and tflops * 1e12)
    assert (row(found, "lora")["minutes_low"] is None) == ("name the GPU" in found.assumed) == (tflops is None)


MEASURED = """
import sys
from pathlib import Path
from ftlab.data.encoding import encode_rows
from ftlab.data.dataset import read
from ftlab.models import devices as hardware
hardware.SCARCE = 10**9  # as where the model takes much of the memory
import ftlab
small, large = map(Path, sys.argv[1:])
def rows(n):
    text = " ".join("Add 4." for _ in range(60))
    return [{"messages": [{"role": "user", "content": f"Ann has {i}"}, {"role": "assistant", "content": text}]} for i in range(n)]
def status(key):
    return int(next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith(key)).split()[1]) / 2**20
def train(folder, n, kind):
    ftlab.sft(folder, rows(2 * n), steps=2, batch_size=n, learning_rate=1e-4, lora=kind == "lora")
length = len(encode_rows(read(rows(1)), ftlab.model(large).tokenizer(), max_length=1024)[0]["input_ids"])
for kind in ("full", "lora"):
    train(small, 2, kind)  # imports
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    train(large, 4, kind)
    found = next(r for r in ftlab.fit(large, method=kind, batch=4, length=length).rows if r["method"] == kind)
    print(status("VmHWM") - before, found["total"] - found["reserved"])
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from /proc")
def test_memory_of_a_real_training_is_as_estimated(llama, tmp_path):
    shape = dict(
        hidden_size=512, intermediate_size=1536, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=8
    )
    large = make_model(tmp_path / "large", "llama", **shape)
    paths = os.pathsep.join(str(p) for p in (Path(__file__).parents[1], Path(__file__).parents[2]))
    called = [sys.executable, "-c", MEASURED, str(llama), str(large)]
    done = subprocess.run(called, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr[-2000:]
    for line in done.stdout.splitlines()[-2:]:
        measured, estimated = map(float, line.split())
        assert 0.75 < estimated / measured < 1.35, (measured, estimated)


def test_activations_are_kept_where_what_is_free_holds_them(llama, monkeypatch):
    """By `fit`'s arithmetic: what it says of a GPU, without recomputing, is the limit; of an unknown architecture: no."""
    import torch

    net, tokens = ftlab.model(llama).load(training=True), 4096
    config, whole = net.config, 8 * GIB
    for method in METHODS:
        sizes = preflight._sizes(config, "cuda", 16)[method]
        there = sum(p.nbytes for p in net.parameters())
        fixed = max(sizes["weights"] - there, 0) + sizes["gradients"] + sizes["optimizer"]
        need = fixed + preflight._kept(sizes, tokens, "cpu") + preflight.RESERVED["cuda"] * GIB
        assert need > fixed + preflight._kept(sizes, tokens, "cuda")  # recomputing saves memory
        for share, expected in ((1.01, True), (0.99, False)):
            free = share * need + (1 - preflight.USABLE) * whole
            monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, whole))
            assert preflight.holds(net, method, 16, tokens) is expected
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (80 * GIB, 80 * GIB))
    assert preflight.holds(net, "full", 16, tokens)
    net.config = SimpleNamespace(model_type="unknown")
    assert not preflight.holds(net, "full", 16, tokens)


def test_the_configuration_alone_suffices(seven, llama, tmp_path):
    assert [p.name for p in seven.iterdir()] == ["config.json"]
    from peft import LoraConfig, get_peft_model

    get_peft_model(ftlab.model(llama).load(), LoraConfig(target_modules="all-linear")).save_pretrained(tmp_path / "a")
    assert ftlab.fit(tmp_path / "a").parameters == ftlab.fit(llama).parameters  # of the model below
    assert ftlab.fit("organism").parameters == ftlab.model("organism").load().num_parameters()


def test_of_the_hub_only_the_configuration_is_fetched(seven, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **how: asked.append((name, how)) or seven)
    ftlab.fit("org/seven@v1", gpu="A100-40GB")
    assert {(name, how["revision"], *how["allow_patterns"]) for name, how in asked} == {
        ("org/seven", "v1", "config.json", "adapter_config.json")
    }


def test_what_is_not_known_is_a_sentence(seven, tmp_path):
    for call, sentence in {
        lambda: ftlab.fit(seven, method="ppo"): "unknown method 'ppo'; allowed: full, lora, dora, qlora",
        lambda: ftlab.fit(seven, gpu="TPU"): "gpu 'TPU' is not known; give its memory, as 24GB, or one of T4",
        lambda: ftlab.fit(seven, rows=0, length=-1): "rows, length: give a number above 0",
        lambda: ftlab.fit(seven, batch=0): "batch_size = 0",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            call()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mine"}))
    with pytest.raises(ValueError, match="config.json is of no model known here"):
        ftlab.fit(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match="vit is no causal language model"):
        ftlab.fit(tmp_path)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_command_shown_is_one_that_runs(method, llama, monkeypatch):
    from ftlab import cli

    calls = []
    monkeypatch.setattr(ftlab, "sft", lambda *a, **k: calls.append((a, k)) or ftlab.model(llama))
    words = ftlab.fit(llama, method=method, batch=8).command.split()
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as e:
        cli.main()
    (model, _), settings = calls[0]
    assert not e.value.code and model == str(llama)
    assert (settings["batch_size"], settings["epochs"], settings["lora"]) == (8, 3, method == "lora")


def test_it_shows_itself_and_exits_1_where_it_does_not_fit(seven, monkeypatch, capsys):
    from ftlab import cli

    found = ftlab.fit(seven, gpu="24GB", method="qlora")
    assert "ftlab sft" in repr(found) and "ftlab sft" in found._repr_html_() and "<table" in found._repr_html_()
    codes = {}
    for method in ("full", "qlora"):
        monkeypatch.setattr(sys, "argv", ["ftlab", "fit", str(seven), "--method", method, "--gpu", "24GB", "--json"])
        with pytest.raises(SystemExit) as e:
            cli.main()
        shown = json.loads(capsys.readouterr().out)
        codes[method] = e.value.code or 0
        assert shown["fits"] == (codes[method] == 0) and shown["parameters"] == 6_738_415_616
    assert codes == {"full": 1, "qlora": 0}
