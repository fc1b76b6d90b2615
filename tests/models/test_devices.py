"""What a cell leaves behind, and what decides the numbers a model answers in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from small_models import make_model, sums

import ftlab
from ftlab.models import devices as hardware
from ftlab.models import reference as models
from ftlab.models.engines.huggingface import answers

STATM = Path("/proc/self/statm")


def resident() -> float:
    """-> MiB of this process in memory."""
    return int(STATM.read_text().split()[1]) * 4096 / 2**20


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """A Llama of 90 MB: enough to show beside Python and its libraries."""
    shape = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=6, num_attention_heads=8)
    return make_model(tmp_path_factory.mktemp("m") / "heavy", "llama", **shape)


@pytest.mark.skipif(not STATM.exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("work", ["answer", "fail", "4 bit", "full", "lora"])
def test_memory_returns_to_within_5_percent_after_a_cell(heavy, llama, work):
    """Also after an exception. Without `released` 13 to 50 % stay (measured): Python's cycles, then glibc's free lists."""
    largest = []

    def asked(folder, **how):
        reference = models.model(folder)
        model = reference.load(**how)
        answers(model, reference.tokenizer(), ["Ann has 3 apples"] * 4, max_new_tokens=2)
        largest.append(resident())
        model.itself = [model]  # a cycle, as trainers make them
        if work == "fail":
            raise KeyError

    def cell(folder):
        if work in ("full", "lora"):
            settings = dict(steps=1, batch_size=2, learning_rate=1e-3, lora=work == "lora")
            return ftlab.sft(folder, sums(4), **settings)
        with hardware.released():
            asked(folder, **({"four_bit": True} if work == "4 bit" else {}))

    kept = []  # as Jupyter keeps the last exception
    for folder in (llama, heavy):  # what is imported and compiled stays; that is no model
        before = resident()
        try:
            cell(folder)
        except KeyError as e:
            kept.append(e)
    assert not largest or largest[-1] > 1.05 * before
    assert resident() < 1.05 * before


def test_large_blocks_leave_no_holes():
    """glibc raises its threshold as blocks are freed, and the holes among those below it are lost to the next step."""
    code = """
import torch, sys
from ftlab.models.devices import spare_memory
def work():
    torch.empty(7_000_000).fill_(1)  # freed: from now on glibc keeps blocks of up to 28 MB
    blocks = [torch.ones(1_000_000) for _ in range(100)]
    del blocks[:-1]  # the last is on top of the heap
    print(int(open('/proc/self/statm').read().split()[1]) * 4096 >> 20)
before = int(open('/proc/self/statm').read().split()[1]) * 4096 >> 20
spare_memory(int(sys.argv[1]))
work()
print(before)
"""
    if not (STATM.exists() and sys.platform == "linux"):
        pytest.skip("memory is read from /proc")
    grown = {}
    for way in ("500_000_000_000", "1_000_000"):  # a small model keeps them: page faults would cost it much of its time
        done = subprocess.run(
            [sys.executable, "-c", code, way], capture_output=True, text=True, cwd=Path(__file__).parents[2]
        )
        after, before = map(int, done.stdout.split())
        grown[way] = after - before
    large, small = grown.values()
    assert large < 60 and small > large + 200  # MiB


def test_memory_is_spared_where_a_training_would_take_much_of_it(heavy, llama, monkeypatch):
    import psutil

    calls = []
    monkeypatch.setattr(hardware, "_glibc", lambda name, *_: calls.append(name))
    monkeypatch.setattr(hardware, "_spared", False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    ftlab.model(llama).load()
    assert not calls
    ftlab.model(heavy).load()
    ftlab.model(heavy).load()
    assert calls == ["mallopt"] and hardware._spared


def test_attention_is_sdpa_unless_asked(llama, monkeypatch):
    assert ftlab.model(llama).load().config._attn_implementation == "sdpa"
    plain = models.precision()
    monkeypatch.setenv("FTLAB_ATTENTION", "eager")
    assert ftlab.model(llama).load().config._attn_implementation == "eager"
    assert models.precision() != plain and "eager" in models.precision()  # part of a run's identity
    monkeypatch.setenv("FTLAB_ATTENTION", "flash_attention_2")  # transformers would fetch compiled code for it
    with pytest.raises(ValueError, match="needs an NVIDIA GPU and the package flash-attn; unset it for sdpa"):
        ftlab.model(llama).load()
    monkeypatch.setenv("FTLAB_ATTENTION", "kernels-community/flash-attn2")
    with pytest.raises(ValueError, match="allowed: sdpa, eager, flash_attention_2"):
        ftlab.model(llama).load()


def test_bitsandbytes_fetches_no_compiled_code(tmp_path):
    """With the package `kernels` installed, importing bitsandbytes would download and load code from the hub."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels/__init__.py").write_text(
        "def get_kernel(*a, **k):\n    print('FETCHED')\n    raise RuntimeError"
    )
    (tmp_path / "kernels-1.0.dist-info").mkdir()
    (tmp_path / "kernels-1.0.dist-info/METADATA").write_text("Name: kernels\nVersion: 1.0\n")
    code = "from ftlab.models.devices import quiet; quiet(); import sys, bitsandbytes, peft; import kernels; print('done', 'kernels' in sys.modules)"
    path = f"{tmp_path}:{Path(__file__).parents[2]}"
    import os

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    assert done.stdout == "done True\n", done.stderr[-1000:]
