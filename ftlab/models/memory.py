"""Estimate the memory of a training from a model's configuration alone; no weights are read.

Parameters are counted on torch's meta device, which holds shapes and no memory. Activations follow
a formula in the manner of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1), without dropout
and attention scores, which sdpa does not store: a layer keeps `(8 hidden + 4 intermediate)` numbers
per token times a factor for what autocast and adapters keep on top (`FACTORS`).
"""

from __future__ import annotations

import copy
import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ftlab._core.errors import UsageError
from ftlab.models import adapters, devices, reference
from ftlab.models.folders import from_hub, hub_id

METHODS = ("full", *adapters.KINDS)
GIB = 2**30
# Memory of well-known GPUs in GiB, as the driver reports it.
GPUS = {"T4": 15, "V100": 32, "L4": 22.5, "A10": 22.5, "A100-40": 39.5, "A100-80": 79.3}
GPUS |= {"RTX3090": 24, "RTX4090": 24, "L40S": 44.5, "H100": 79.3, "H200": 139.8}
USABLE = 0.95  # share of free memory
# GiB: the CUDA context and the allocator's rest; Python with its libraries.
RESERVED = {"cuda": 1.5, "cpu": 0.7}
WIDTH = {"cuda": 2, "cpu": 4}  # bytes of a number in a forward pass: bf16, fp32
# Within a fifth of what saved-tensor hooks count on the shapes of Llama, Qwen2 and GPT-2.
FACTORS = {
    "cuda": {"full": 1.4, "lora": 1.9, "dora": 3.5, "qlora": 1.9},
    "cpu": {"full": 1.2, "lora": 1.1, "dora": 2.1, "qlora": 1.1},
}
# Bytes of a weight in doubly quantised nf4: 4 bits, 8 bits per block of 64 weights, 32 bits per
# 256 blocks (arXiv 2305.14314, section 3).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
TILE = (4096, 32768)  # tokens, vocabulary: the part of the logits that TRL 1.16 holds at a time
ASSUMED = (
    "Assumed: weights fp32 for full training, otherwise bf16 (GPU) or fp32 (CPU); adapters fp32; "
    "AdamW with two fp32 moments; sdpa attention; activations recomputed on a GPU."
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory that training a model needs, by method.

    Args:
        model: Name of the model.
        device: Name of the device.
        available: Usable memory of the device, GiB.
        parameters: Parameters of the model.
        method: The method that was asked for.
        rows: One dict per method: `trainable` parameters; GiB of `weights`, `gradients`,
            `optimizer`, `activations`, `reserved` and in `total`; `rows_per_pass`, the most rows
            that fit into one forward pass; whether it `fits`.
    """

    model: str
    device: str
    available: float
    parameters: int
    method: str
    rows: list[dict] = field(repr=False)

    @property
    def fits(self) -> bool:
        """Whether the device can train the model by the method that was asked for."""
        return any(row["fits"] for row in self.rows if row["method"] == self.method)

    def table(self):
        """Return a DataFrame with one row per method."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def to_json(self) -> str:
        """Return every number as JSON."""
        return json.dumps({**asdict(self), "fits": self.fits}, indent=1)

    def _head(self) -> str:
        verdict = "fits" if self.fits else "does not fit"
        return (
            f"{self.model}: {self.parameters:,} parameters. {self.device}: "
            f"{self.available:.1f} GiB usable. Training by {self.method} {verdict}."
        )

    def __str__(self) -> str:
        shown = self.table().to_string(index=False, float_format="{:.2f}".format)
        return f"{self._head()}\n{shown}\n{ASSUMED}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        import html

        shown = self.table().to_html(index=False, float_format="{:.2f}".format, border=0)
        return f"<p>{html.escape(self._head())}</p>{shown}<p><small>{ASSUMED}</small></p>"


def estimate_memory(
    model,
    *,
    method: str = "lora",
    length: int = 512,
    batch_size: int = 16,
    lora_rank: int = 16,
    gpu: str | float | None = None,
) -> MemoryEstimate:
    """Estimate the memory that training needs, by four methods, and whether a device has it.

    Args:
        model: Anything that `ftlab.model` accepts, or a folder with a config.json alone. Only that
            file is fetched of a hub id.
        method: "full", "lora", "dora" or "qlora"; decides `fits` of the result.
        length: Tokens per row.
        batch_size: Rows per optimiser step; as many as fit go through the model at a time.
        lora_rank: Rank of an adapter.
        gpu: A name such as "A100-80", or a memory size such as "24GB"; None takes this machine.

    Raises:
        UsageError: `unknown_method`, `unknown_gpu`, `invalid_size`, `endpoint_without_weights`,
            `unknown_architecture`, `not_a_language_model`.
        NotFoundError: What `ftlab.model` raises.
    """
    if method not in METHODS:
        allowed = ", ".join(METHODS)
        raise UsageError("unknown_method", f"Unknown method {method!r}. Allowed: {allowed}.")
    sizes = {"length": length, "batch_size": batch_size, "lora_rank": lora_rank}
    for name, value in sizes.items():
        if value < 1:
            raise UsageError("invalid_size", f"{name} is {value}. It must be at least 1.")
    devices.quiet()
    kind, where, available = _device(gpu)
    config = _configuration(model)
    network = _on_meta(config, kind)
    parts = [size for size in range(batch_size, 0, -1) if batch_size % size == 0]
    rows = []
    for each in METHODS:
        row, fixed = _fixed(network, each, kind, lora_rank)
        for at_once in parts:
            kept = _activations(network, each, kind, at_once * length, recomputed=kind == "cuda")
            if fixed + kept <= available:
                break
        row["activations"] = kept / GIB
        row["reserved"] = RESERVED[kind]
        row["total"] = (fixed + kept) / GIB
        row["rows_per_pass"] = at_once
        row["fits"] = fixed + kept <= available
        rows.append(row)
    name = getattr(model, "name", None) or str(model)
    return MemoryEstimate(name, where, available / GIB, network.num_parameters(), method, rows)


def holds_activations(model, method: str, tokens: int) -> bool:
    """Whether the GPU has room to train a loaded model without recomputing activations.

    Args:
        model: A torch model on the GPU, with its adapter if it is to have one.
        method: "full", "lora", "dora" or "qlora".
        tokens: Tokens of a forward pass.

    Returns:
        False too where the architecture is unknown.
    """
    import torch

    free, total = torch.cuda.mem_get_info()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    need = 12 * trainable + RESERVED["cuda"] * GIB  # gradients, two moments
    if method == "full":
        need += 2 * _linear_parameters(model)  # autocast keeps its bf16 copies
    try:
        need += _activations(model, method, "cuda", tokens, recomputed=False)
    except AttributeError:
        return False
    return need <= free - (1 - USABLE) * total


def _fixed(network, method: str, kind: str, rank: int) -> tuple[dict, float]:
    """Return the table row of a method so far, and the bytes that do not depend on the batch."""
    trained = network
    if method != "full":
        shape = "lora" if method == "qlora" else method
        trained = adapters.adapt(copy.deepcopy(network), shape, rank)
    trainable = sum(p.numel() for p in trained.parameters() if p.requires_grad)
    parameters = network.num_parameters()
    linear = _linear_parameters(network)
    weights = WIDTH[kind] * parameters + 4 * trainable
    if method == "full":
        weights = 4 * parameters
        if kind == "cuda":
            weights += 2 * linear  # autocast keeps its bf16 copies
    elif method == "qlora":
        weights = NF4_BYTES * linear + 4 * (parameters - linear + trainable)
    row = {
        "method": method,
        "trainable": trainable,
        "weights": weights / GIB,
        "gradients": 4 * trainable / GIB,
        "optimizer": 8 * trainable / GIB,
    }
    return row, weights + 12 * trainable + RESERVED[kind] * GIB


def _activations(network, method: str, kind: str, tokens: int, recomputed: bool) -> float:
    """Return the bytes of activations of a forward pass over `tokens`, its loss included."""
    shape = network.config.get_text_config()
    hidden = shape.hidden_size
    intermediate = getattr(shape, "intermediate_size", None) or 4 * hidden
    numbers = FACTORS[kind][method] * (8 * hidden + 4 * intermediate)
    layer = WIDTH[kind] * numbers * tokens
    if method == "dora":  # norms of the adapted weights, in fp32
        layer += 4 * _linear_parameters(network) / shape.num_hidden_layers
    # Logits, their softmax and its gradient in fp32.
    loss = 3 * 4 * min(tokens, TILE[0]) * min(shape.vocab_size, TILE[1])
    if recomputed:  # from the input of each layer, one layer at a time
        inputs = WIDTH[kind] * hidden * tokens
        return shape.num_hidden_layers * inputs + layer + loss
    return shape.num_hidden_layers * layer + loss


def _linear_parameters(network) -> int:
    """Count the weights of all linear layers except the output head."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = network.get_output_embeddings()
    modules = [m for m in network.modules() if isinstance(m, (torch.nn.Linear, Conv1D))]
    return sum(module.weight.numel() for module in modules if module is not head)


def _on_meta(config, kind: str):
    """Build the architecture of a configuration without memory for its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:
        raise UsageError(
            "not_a_language_model",
            f"{config.model_type} is not a causal language model ({error}).",
        ) from None


def _configuration(model):
    """Return transformers' configuration of the model below all adapters."""
    from transformers import AutoConfig

    folder = _config_folder(model)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise UsageError(
            "unknown_architecture",
            f"{folder}: transformers does not know the model of config.json "
            f"({type(error).__name__}: {error}).",
        ) from None


def _config_folder(model) -> Path:
    """Return the folder of the configuration; of a hub model only that file is fetched."""
    if isinstance(model, (str, os.PathLike)):
        folder = Path(model)
        hub = hub_id(str(model))
        if hub:
            folder = from_hub(*hub, only=["config.json", "adapter_config.json"])
        if not (folder / "adapter_config.json").exists() and (folder / "config.json").exists():
            return folder
        if hub and not (folder / "config.json").exists():
            adapter = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
            return _config_folder(adapter["base_model_name_or_path"])
    found = reference.model(model)
    if not isinstance(found, reference.Model):
        raise UsageError("endpoint_without_weights", "An endpoint's model cannot be trained here.")
    while found.parent:
        found = found.parent
    return found.path


def _device(gpu: str | float | None) -> tuple[str, str, float]:
    """Return the kind of a device ("cuda" or "cpu"), its name, and its usable bytes."""
    import torch

    if gpu is not None:
        return "cuda", *_named_gpu(str(gpu))
    if devices.device() == "cuda":
        name = torch.cuda.get_device_properties(0).name
        return "cuda", name, USABLE * devices.free_memory(torch.device("cuda"))
    free = devices.free_memory(torch.device("cpu"))
    return "cpu", f"{os.cpu_count()} CPU cores", USABLE * free


def _named_gpu(text: str) -> tuple[str, float]:
    """Return name and usable bytes of a GPU given by name or by its memory."""
    short = re.sub(r"\W|gb$", "", text.lower())
    for name, size in GPUS.items():
        if short == name.replace("-", "").lower():
            return name, USABLE * size * GIB
    size = re.fullmatch(r"(\d+(\.\d+)?) ?(GB|GiB)?", text, re.IGNORECASE)
    if size and float(size[1]) > 0:
        return f"a GPU of {size[1]} GB", USABLE * float(size[1]) * GIB
    allowed = ", ".join(GPUS)
    raise UsageError(
        "unknown_gpu", f"Unknown GPU {text!r}. Pass its memory, such as 24GB, or one of {allowed}."
    )


def fit(ref, *, rows=None, epochs=None, batch: int = 16, rank: int = 16, **settings):  # transition
    return estimate_memory(ref, batch_size=batch, lora_rank=rank, **settings)


def holds(model, method: str, rank: int, tokens: int) -> bool:  # transition
    return holds_activations(model, method, tokens)
