"""Device, precision and attention of a model; releasing memory; silencing the libraries."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import sys
import traceback
import warnings
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec

from ftlab._core.errors import UsageError
from ftlab._core.text import safe

ATTENTION = ("sdpa", "eager", "flash_attention_2")
# What a RuntimeError says when memory runs out, on GPUs and CPUs.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
# On resuming, the trainer reports the second name of tied weights, which are saved once.
TIED = "missing keys in the checkpoint model loaded: ['lm_head.weight']"
_sharers = 1  # processes of one call that share the memory of this machine


def device() -> str:
    """Return the best device of this machine: "cuda", "mps" or "cpu"."""
    if "torch" not in sys.modules and version("torch").endswith("+cpu"):
        return "cpu"  # known without the seconds that importing torch takes
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def check_devices(wanted: int) -> None:
    """Check that so many processes can each have a device: a GPU, or a share of the CPU.

    Raises:
        UsageError: `too_few_devices`.
    """
    kind = device()
    if wanted == 1 or kind == "cpu":
        return
    import torch

    there = torch.cuda.device_count() if kind == "cuda" else 1
    if wanted > there:
        raise UsageError(
            "too_few_devices",
            f"devices={wanted}, but there are {there} of the kind {kind}. Give devices={there}, or "
            "make more visible (CUDA_VISIBLE_DEVICES).",
        )


def use_device(number: int, processes: int) -> None:
    """Let this process, one of several, use a GPU of its own, or its share of the memory."""
    global _sharers
    _sharers = processes
    if device() == "cuda":
        import torch

        torch.cuda.set_device(number)


def attention() -> str | None:
    """Return the attention that the variable FTLAB_ATTENTION requests.

    Returns:
        "sdpa", "eager" or "flash_attention_2"; None leaves the choice to transformers.

    Raises:
        UsageError: `unknown_attention`, `flash_attention_unavailable` (where transformers would
            run compiled code fetched from the hub).
    """
    requested = os.environ.get("FTLAB_ATTENTION")
    if requested and requested not in ATTENTION:
        message = f"FTLAB_ATTENTION is {requested!r}. Allowed: {', '.join(ATTENTION)}."
        raise UsageError("unknown_attention", message)
    if requested == "flash_attention_2" and not (device() == "cuda" and find_spec("flash_attn")):
        message = "flash_attention_2 needs an NVIDIA GPU and the package flash-attn."
        raise UsageError("flash_attention_unavailable", message)
    return requested or None


def precision(training: bool = False, adapter: str | None = None) -> str:
    """Describe the numbers a model answers in, such as "fp32", for an evaluation's identity.

    Args:
        training: Whether the model answers during its training. The parent of a curve must answer
            in the same numbers as its child does then.
        adapter: The kind of adapter in training, if any.
    """
    cuda = device() == "cuda"
    numbers = "bf16" if cuda else "fp32"
    if adapter == "qlora":
        numbers = f"nf4, {numbers}"
    elif cuda and training and adapter:
        numbers = "bf16 weights, fp32 adapter"
    elif cuda and training:
        numbers = "fp32 weights, bf16 autocast"
    requested = attention()
    return f"{numbers}, {requested}" if requested else numbers


@contextlib.contextmanager
def released():
    """Return the memory of models to the system at the end of a block, also after an exception.

    Models must be local to a function that the block calls: what the frame of the block itself
    refers to cannot be freed here.
    """
    from accelerate.utils.memory import clear_device_cache

    if device() != "cpu":
        gc.collect()  # makes room by freeing what the caller has dropped
    gc.freeze()  # the collection below then skips everything that was imported before
    try:
        yield
    except BaseException as error:
        clear_error(error)  # Jupyter keeps an exception until the next one
        raise
    finally:
        gc.collect()
        gc.unfreeze()
        clear_device_cache()
        with contextlib.suppress(OSError, AttributeError, TypeError):  # only glibc has this
            ctypes.CDLL(None).malloc_trim(0)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on any device."""
    import torch

    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in OUT_OF_MEMORY)


def clear_error(error: BaseException | None) -> None:
    """Free what a caught exception keeps alive: its traceback holds the locals of every frame."""
    while error:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


def free_memory(on) -> int:
    """Return the bytes that this process may still take on a torch device."""
    import torch

    if on.type == "cuda":
        cached = torch.cuda.memory_reserved(on) - torch.cuda.memory_allocated(on)
        return torch.cuda.mem_get_info(on)[0] + cached
    import psutil

    return psutil.virtual_memory().available // _sharers


@cache
def quiet() -> None:
    """Silence progress bars, telemetry and developer advice of the libraries; keep warnings."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # otherwise every later fork warns
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    for handler in logging.getLogger("transformers").handlers:
        handler.addFilter(_escape)
    logging.getLogger("bitsandbytes").setLevel("ERROR")  # it advises to install `kernels`
    _import_bitsandbytes()
    trainer_log = logging.getLogger("transformers.trainer")
    trainer_log.addFilter(lambda record: TIED not in record.getMessage())
    plain = warnings.formatwarning
    warnings.formatwarning = lambda text, *where: plain(safe(text, 10_000), *where)
    deprecated = "`is_gradient_checkpointing` is deprecated"  # called by peft
    warnings.filterwarnings("ignore", deprecated, FutureWarning)


def _escape(record: logging.LogRecord) -> bool:
    """Make what a library reports safe to show: it quotes names from folders of models."""
    record.msg = safe(record.getMessage(), 10_000)
    record.args = ()
    return True


def _import_bitsandbytes() -> None:
    """Import bitsandbytes with `kernels` hidden, with which it would run code from the hub."""
    if not (find_spec("kernels") and find_spec("bitsandbytes")) or "bitsandbytes" in sys.modules:
        return
    known = sys.modules.get("kernels")
    sys.modules["kernels"] = None
    import bitsandbytes  # noqa: F401

    sys.modules.pop("kernels")
    if known:
        sys.modules["kernels"] = known
