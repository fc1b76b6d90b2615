"""What a model runs on: device, precision, attention; memory given back; the libraries' noise switched off."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import sys
import traceback
import warnings
from functools import cache
from importlib.util import find_spec

M_TRIM_THRESHOLD = -1  # of glibc's malloc.h: so many free bytes at the end of the heap are kept
M_MMAP_THRESHOLD = -3  # of glibc's malloc.h: blocks of so many bytes are given back as soon as they are freed
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")  # in a RuntimeError's text
_spared = False  # whether `spare_memory` has taken effect
SCARCE = 4  # memory is scarce where a training's weights, gradients and moments take more than a fourth of what is free


def device() -> str:
    """-> cuda, mps or cpu: the best there is."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def attention() -> str | None:
    """-> what `FTLAB_ATTENTION` asks for; None: transformers' choice, sdpa where the architecture has it.

    Raises ValueError for another name, and where flash attention is not installed: transformers would then run on
    compiled code that it fetches from the hub.
    """
    asked = os.environ.get("FTLAB_ATTENTION", "")
    if asked not in ("", "sdpa", "eager", "flash_attention_2"):
        raise ValueError(f"FTLAB_ATTENTION={asked}: allowed: sdpa, eager, flash_attention_2")
    if asked == "flash_attention_2" and not (device() == "cuda" and find_spec("flash_attn")):
        raise ValueError(f"FTLAB_ATTENTION={asked} needs an NVIDIA GPU and the package flash-attn; unset it for sdpa")
    return asked or None


def precision(training: bool = False, adapter: str | None = None) -> str:
    """-> in what numbers a model answers: on a GPU a curve's parent must answer as its child does while it trains.

    `adapter`: the kind that is trained, whose frozen weights below are bf16 on a GPU and nf4 for qlora.
    """
    cuda = device() == "cuda"
    numbers = "bf16" if cuda else "fp32"
    if adapter == "qlora":
        numbers = f"nf4, {numbers}"
    elif cuda and training:
        numbers = "bf16 weights, fp32 adapter" if adapter else "fp32 weights, bf16 autocast"
    return ", ".join(filter(None, [numbers, attention()]))


@contextlib.contextmanager
def released():
    """Gives the memory of models back at the end of a cell, also after an exception.

    The block must leave the models to a function that has returned: what its own frame holds cannot be freed here.
    """
    import torch

    if torch.cuda.is_available():
        gc.collect()  # what the caller has dropped makes room
    gc.freeze()  # searched are only objects of this block, not the 0.2 s of everything imported before
    try:
        yield
    except BaseException as e:
        clear(e)  # in Jupyter it would last until the next exception
        raise
    finally:
        gc.collect()
        gc.unfreeze()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        _glibc("malloc_trim", 0)  # else it keeps what training freed


def labels_alone():
    """-> a context in which TRL's loss on a CPU scores the positions with a label alone: the same loss, up to rounding. TRL 1.16
    scores all where it has no Triton, for compilers' sake: a seventh of a step of the organism."""
    from unittest.mock import patch

    from trl.trainer import utils

    known = utils._use_triton
    return patch.object(utils, "_use_triton", lambda where: where.type == "cpu" or known(where))


def spare_memory(parameters: int) -> None:
    """Where training so many parameters in fp32 (16 bytes each) takes much of the memory: freed blocks of 1 MiB go back at once,
    in this process from now on.

    Else glibc's holes between them double a training's peak on a CPU (57 M parameters: 1.13 instead of 0.64 GB). The page
    faults cost a quarter of a training's time (25 M) and more of an evaluation's.
    """
    global _spared
    import psutil

    if not _spared and 16 * parameters * SCARCE > psutil.virtual_memory().available:
        _spared = True
        _glibc("mallopt", M_MMAP_THRESHOLD, 2**20)


@contextlib.contextmanager
def blocks_kept():
    """Inside, freed blocks stay for the next ones also where `spare_memory` was asked for: answering takes the same blocks at
    every token, and new ones cost a fifth of its CPU time in page faults (25 M parameters)."""
    if not _spared:
        yield
        return
    _glibc("mallopt", M_MMAP_THRESHOLD, 2**25)  # the most that glibc takes
    _glibc("mallopt", M_TRIM_THRESHOLD, 2**29)
    try:
        yield
    finally:
        _glibc("mallopt", M_MMAP_THRESHOLD, 2**20)
        _glibc("mallopt", M_TRIM_THRESHOLD, 2**17)  # glibc's default
        _glibc("malloc_trim", 0)


def out_of_memory(error: BaseException) -> bool:
    import torch

    known = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    return known or (isinstance(error, RuntimeError) and any(t in str(error) for t in OUT_OF_MEMORY))


def clear(error: BaseException | None) -> None:
    """Frees what a caught exception keeps alive: its traceback holds every local of every frame."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def free_memory(on) -> int:
    """-> bytes that a model on the device `on` may still take."""
    import torch

    if on.type == "cuda":
        return torch.cuda.mem_get_info(on)[0] + torch.cuda.memory_reserved(on) - torch.cuda.memory_allocated(on)
    import psutil

    return psutil.virtual_memory().available


def _glibc(function: str, *arguments: int) -> None:
    """Calls a function of the C library where there is one of that name (Linux)."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        getattr(ctypes.CDLL(None), function)(*arguments)


@cache
def quiet() -> None:
    """Switches off, before the libraries' first use, their bars, telemetry and advice to programmers; warnings stay."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else every later fork warns
    warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's, on import; no bar of it is shown
    import logging as python_logging

    from transformers.utils import logging

    logging.disable_progress_bar()
    python_logging.getLogger("bitsandbytes").setLevel("ERROR")  # misses a package that would fetch compiled code,
    if (
        find_spec("kernels") and find_spec("bitsandbytes") and "bitsandbytes" not in sys.modules
    ):  # and, where it is there, must not fetch it
        kept, sys.modules["kernels"] = sys.modules.get("kernels"), None
        import bitsandbytes  # noqa: F401

        sys.modules.pop("kernels")
        if kept:
            sys.modules["kernels"] = kept
    # Tied weights are saved once; on a resume the trainer reports the other name as missing.
    tied = "missing keys in the checkpoint model loaded: ['lm_head.weight']"
    python_logging.getLogger("transformers.trainer").addFilter(lambda record: tied not in record.getMessage())
    warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft's own call
