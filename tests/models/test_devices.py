"""Device, attention, memory that is released, libraries that stay silent."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from helpers import raises_code
from small_models import make_model, sums

import ftlab
from ftlab.models import clear_error, device, free_memory, model, out_of_memory, precision, released

STATM = Path("/proc/self/statm")


def resident() -> float:
    """Return the MiB of this process in memory."""
    return int(STATM.read_text().split()[1]) * 4096 / 2**20


@pytest.fixture(scope="module")
def heavy(tmp_path_factory):
    """A Llama of 90 MB, which shows next to Python and its libraries."""
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
    folder = tmp_path_factory.mktemp("m") / "heavy"
    return make_model(folder, "llama", num_hidden_layers=6, **shape)


@pytest.mark.perf
@pytest.mark.skipif(not STATM.exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("work", ["answer", "fail", "4 bit", "full", "lora"])
def test_memory_returns_to_within_5_percent_after_a_cell(heavy, llama, work):
    largest = []

    def answer(folder, **how):
        loaded = model(folder).load(**how)
        loaded(input_ids=torch.ones(4, 20, dtype=torch.long))
        largest.append(resident())
        loaded.itself = [loaded]  # a cycle, as trainers make them
        if work == "fail":
            raise KeyError

    def cell(folder):
        if work in ("full", "lora"):
            adapter = "lora" if work == "lora" else None
            settings = {"steps": 1, "batch_size": 2, "learning_rate": 1e-3, "adapter": adapter}
            return ftlab.sft(folder, sums(4), **settings)
        with released():
            answer(folder, four_bit=work == "4 bit")

    kept = []  # as Jupyter keeps the last exception
    for folder in (llama, heavy):  # what the first one imports stays
        before = resident()
        try:
            cell(folder)
        except KeyError as error:
            kept.append(error)
    assert not largest or largest[-1] > 1.05 * before
    assert resident() < 1.05 * before


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_survives_a_cell_not_even_after_an_exception(fails):
    alive = []

    def work():
        network = torch.nn.Linear(2, 2)
        network.itself = [network]  # a cycle, as trainers make them
        alive.append(weakref.ref(network))
        if fails:
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise OSError("outer") from error

    kept = None  # as Jupyter keeps the last exception
    gc.disable()
    try:
        with released():
            work()
    except OSError as error:
        kept = error
    finally:
        gc.enable()
    assert alive[0]() is None
    assert (kept is not None) == fails


def test_a_cleared_error_frees_the_locals_of_its_frames():
    alive = []

    def work():
        network = torch.nn.Linear(2, 2)
        alive.append(weakref.ref(network))
        raise KeyError

    with pytest.raises(KeyError) as info:
        work()
    assert alive[0]() is not None
    clear_error(info.value)
    assert alive[0]() is None
    clear_error(None)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_errors_of_memory_are_recognised(error, expected):
    assert out_of_memory(error) is expected


def test_free_memory_is_what_the_device_has():
    free = free_memory(torch.device(device()))
    assert 2**20 < free < 2**50


def test_attention_is_sdpa_unless_requested(llama, monkeypatch):
    assert model(llama).load().config._attn_implementation == "sdpa"
    plain = precision()
    monkeypatch.setenv("FTLAB_ATTENTION", "eager")
    assert model(llama).load().config._attn_implementation == "eager"
    assert precision() == f"{plain}, eager"  # part of an evaluation's identity
    monkeypatch.setenv("FTLAB_ATTENTION", "kernels-community/flash-attn2")
    with raises_code("unknown_attention"):
        model(llama).load()


def test_flash_attention_is_refused_where_it_would_be_fetched(llama, monkeypatch):
    monkeypatch.setattr("ftlab.models.devices.find_spec", lambda name: None)
    monkeypatch.setenv("FTLAB_ATTENTION", "flash_attention_2")
    with raises_code("flash_attention_unavailable"):
        model(llama).load()


@pytest.mark.slow
def test_bitsandbytes_fetches_no_compiled_code(tmp_path):
    """With the package `kernels` installed, importing bitsandbytes would load code from the hub."""
    (tmp_path / "kernels").mkdir()
    fetching = "def get_kernel(*a, **k):\n    print('FETCHED')\n    raise RuntimeError"
    (tmp_path / "kernels/__init__.py").write_text(fetching)
    (tmp_path / "kernels-1.0.dist-info").mkdir()
    metadata = "Name: kernels\nVersion: 1.0\n"
    (tmp_path / "kernels-1.0.dist-info/METADATA").write_text(metadata)
    code = "from ftlab.models import quiet; quiet(); import sys, bitsandbytes, peft, kernels;"
    code += "print('done', 'kernels' in sys.modules)"
    paths = f"{tmp_path}{os.pathsep}{Path(__file__).parents[2]}"
    environment = {**os.environ, "PYTHONPATH": paths}
    called = [sys.executable, "-c", code]
    done = subprocess.run(called, capture_output=True, text=True, env=environment)
    assert done.stdout == "done True\n", done.stderr[-1000:]
