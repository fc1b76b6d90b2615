"""Estimate the memory of a training from a model's configuration alone; no weights are read.

Parameters are counted on torch's meta device, which holds shapes and no memory. Activations follow
a formula in the manner of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1), without dropout
and attention scores, which sdpa does not store: a layer keeps `8 hidden + 4 intermediate` numbers
per token, times a factor for what autocast and adapters keep on top (`FACTORS`).
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ftlab._core.errors import UsageError
from ftlab.models import adapters, devices, reference
from ftlab.models.folders import check_values, from_hub, hub_id, read_json

GIB = 2**30
METHODS = ("full", *adapters.KINDS)
GPUS = {  # GiB, as the driver reports them
    "T4": 15, "V100": 32, "L4": 22.5, "A10": 22.5, "A100-40": 39.5, "A100-80": 79.3,
    "RTX3090": 24, "RTX4090": 24, "L40S": 44.5, "H100": 79.3, "H200": 139.8,
}  # fmt: skip
USABLE = 0.95  # share of free memory
RESERVED = {"cuda": 1.5, "cpu": 0.7}  # GiB: CUDA and its allocator; Python and its libraries
WIDTH = {"cuda": 2, "cpu": 4}  # bytes of a number in a forward pass: bf16, fp32
FACTORS = {  # within a fifth of what hooks on saved tensors count for Llama, Qwen2 and GPT-2
    "cuda": {"full": 1.4, "lora": 1.9, "dora": 3.5, "qlora": 1.9},
    "cpu": {"full": 1.2, "lora": 1.1, "dora": 2.1, "qlora": 1.1},
}
# Bytes of a weight in nf4: 4 bits, 8 bits per block of 64 weights, 32 bits per 256 blocks (arXiv
# 2305.14314, section 3).
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
TILE = (4096, 32768)  # tokens, vocabulary: the part of the logits that TRL 1.16 holds at a time
ASSUMED = (
    "Assumed: weights fp32 for full training, otherwise bf16 (GPU) or fp32 (CPU); adapters fp32; "
    "AdamW with two fp32 moments; sdpa attention; activations recomputed on a GPU."
)


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory that training a model takes, by method.

    Args:
        model: Name of the model.
        device: Name of the device.
        available: Memory that may be used, GiB.
        parameters: Parameters of the model.
        method: The method that `fits` is about.
        rows: One dict per method: `trainable` parameters; GiB of `weights`, `gradients`,
            `optimizer`, `activations`, `reserved` and in `total`; whether it `fits`.
    """

    model: str
    device: str
    available: float
    parameters: int
    method: str
    rows: list[dict] = field(repr=False)

    @property
    def fits(self) -> bool:
        """Whether the device has the memory that the method takes."""
        return self.rows[METHODS.index(self.method)]["fits"]

    def table(self):
        """Return a DataFrame with one row per method."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def to_json(self) -> str:
        """Return every number as JSON."""
        return json.dumps({**asdict(self), "fits": self.fits}, indent=1)

    def __str__(self) -> str:
        table = self.table().to_string(index=False, float_format="{:.2f}".format)
        return f"{self._head()}\n{table}\n{ASSUMED}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        import html

        table = self.table().to_html(index=False, float_format="{:.2f}".format, border=0)
        return f"<p>{html.escape(self._head())}</p>{table}<p><small>{ASSUMED}</small></p>"

    def _head(self) -> str:
        size = f"{self.model}: {self.parameters:,} parameters"
        verdict = "fits" if self.fits else "does not fit"
        return f"{size}. {self.device}: {self.available:.1f} GiB. {self.method} {verdict}."


def estimate_memory(
    model,
    *,
    method: str = "lora",
    length: int = 512,
    batch: int = 16,
    lora_rank: int = 16,
    gpu: str | float | None = None,
) -> MemoryEstimate:
    """Estimate the memory that training takes by four methods, and whether a device has it.

    Args:
        model: What `ftlab.model` accepts, or a folder with a config.json alone. Only that file of
            a hub model is fetched.
        method: "full", "lora", "dora" or "qlora": the one that `fits` is about.
        length: Tokens per row.
        batch: Rows per forward pass.
        lora_rank: Rank of an adapter.
        gpu: A name such as "A100-80" or a size such as "24GB"; "cpu" takes this machine without
            its GPU, None with it if it has one.

    Raises:
        UsageError: `unknown_method`, `unknown_gpu`, `invalid_size`, `endpoint_without_weights`,
            `unknown_architecture`.
        NotFoundError: What `ftlab.model` raises.
    """
    if method not in METHODS:
        allowed = ", ".join(METHODS)
        raise UsageError(
            "unknown_method",
            f"Unknown method {method!r}. Allowed: {allowed}.",
        )
    if min(length, batch, lora_rank) < 1:
        raise UsageError("invalid_size", "`length`, `batch` and `lora_rank` must be at least 1.")
    devices.quiet()
    kind, device, available = _device(gpu)
    network = _on_meta(_config_folder(model), kind)
    parameters = network.num_parameters()
    rows = []
    for each in METHODS:
        trainable = _trainable(network, each, lora_rank)
        taken = {
            "weights": _weights(network, each, kind, trainable),
            "gradients": 4 * trainable / GIB,
            "optimizer": 8 * trainable / GIB,
            "activations": _activations(network, each, kind, batch * length),
            "reserved": RESERVED[kind],
        }
        total = sum(taken.values())
        made = {"method": each, "trainable": trainable, **taken}
        rows.append({**made, "total": total, "fits": total <= available})
    name = getattr(model, "name", None) or str(model)
    return MemoryEstimate(name, device, available, parameters, method, rows)


def _linear_layers(network) -> list:
    """Return all linear layers except the output head: those that adapters and nf4 apply to."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head = network.get_output_embeddings()
    linear = [m for m in network.modules() if isinstance(m, (torch.nn.Linear, Conv1D))]
    return [module for module in linear if module is not head]


def _linear_parameters(network) -> int:
    return sum(layer.weight.numel() for layer in _linear_layers(network))


def _trainable(network, method: str, rank: int) -> int:
    """Count the parameters that a method trains."""
    if method == "full":
        return network.num_parameters()
    trainable = 0
    for layer in _linear_layers(network):
        trainable += rank * sum(layer.weight.shape)
        if method == "dora":  # one magnitude per output
            trainable += layer.nf if hasattr(layer, "nf") else layer.out_features
    return trainable


def _weights(network, method: str, kind: str, trainable: int) -> float:
    """Return the GiB of a model's weights, those of an adapter included."""
    parameters = network.num_parameters()
    linear = _linear_parameters(network)
    if method == "full":
        copies = 2 if kind == "cuda" else 0  # autocast keeps linear weights in bf16
        return (4 * parameters + copies * linear) / GIB
    if method == "qlora":  # all that is not linear is fp32
        return (NF4_BYTES * linear + 4 * (parameters - linear + trainable)) / GIB
    return (WIDTH[kind] * parameters + 4 * trainable) / GIB


def _activations(network, method: str, kind: str, tokens: int) -> float:
    """Return the GiB of activations of a forward pass over `tokens` and of its loss."""
    shape = network.config.get_text_config()
    hidden = shape.hidden_size
    intermediate = getattr(shape, "intermediate_size", None) or 4 * hidden
    numbers = FACTORS[kind][method] * (8 * hidden + 4 * intermediate)
    layer = WIDTH[kind] * numbers * tokens
    if method == "dora":  # norms of the adapted weights, in fp32
        linear = _linear_parameters(network)
        layer += 4 * linear / shape.num_hidden_layers
    kept = shape.num_hidden_layers * layer
    if kind == "cuda":  # recomputed from the input of each layer, one layer at a time
        inputs = WIDTH[kind] * hidden * tokens
        kept = shape.num_hidden_layers * inputs
        kept += layer
    # The logits, their softmax and its gradient in fp32.
    rows = min(tokens, TILE[0])
    columns = min(shape.vocab_size, TILE[1])
    return (kept + 3 * 4 * rows * columns) / GIB


def _on_meta(folder: Path, kind: str):
    """Build the architecture of a folder's configuration without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    dtype = torch.bfloat16 if kind == "cuda" else torch.float32
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    except Exception as error:
        raise UsageError(
            "unknown_architecture",
            f"{folder}: transformers cannot build a causal language model from it ({error}).",
        ) from None


def _config_folder(model) -> Path:
    """Return the folder of the configuration below all adapters; fetch only that of a hub model."""
    text = str(getattr(model, "path", model))
    folder = Path(text)
    hub = hub_id(text)
    if hub:
        folder = from_hub(*hub, only=["config.json", "adapter_config.json"])
    adapter = folder / "adapter_config.json"
    if hub and adapter.exists():
        named = read_json(adapter).get("base_model_name_or_path")
        return _config_folder(named)
    run = folder / "provenance.json"  # the config.json of a run is not a model's
    whole = (folder / "config.json").exists() and not adapter.exists()
    if whole and not run.exists():
        check_values(folder / "config.json")
        return folder
    found = reference.local_model(model)
    while found.parent:
        found = found.parent
    return found.path


def _device(gpu: str | float | None) -> tuple[str, str, float]:
    """Return the kind of a device ("cuda" or "cpu"), its name, and the GiB that may be used."""
    import torch

    if gpu in (None, "cpu"):
        kind = "cpu"
        name = f"{os.cpu_count()} CPU cores"
        if gpu is None and devices.device() == "cuda":
            kind = "cuda"
            name = torch.cuda.get_device_properties(0).name
        free = devices.free_memory(torch.device(kind))
        return kind, name, USABLE * free / GIB
    text = str(gpu)
    size = re.fullmatch(r"(\d+\.?\d*) ?(GB|GiB)?", text, re.IGNORECASE)
    name = text.upper().replace(" ", "")
    gib = float(size[1]) if size else GPUS.get(name)
    if not gib:
        allowed = ", ".join(GPUS)
        raise UsageError(
            "unknown_gpu",
            f"Unknown GPU {text!r}. Pass a size such as 24GB, or one of {allowed}.",
        )
    return "cuda", f"GPU {text}", USABLE * gib
