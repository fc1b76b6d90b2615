"""Quantisation: weights rounded to fewer bits.

Source: Dettmers et al. 2022, arXiv 2208.07339, section 2.1 (absmax), rounded to nearest in groups;
the scale's sign by llama.cpp's Q4_0, which uses every integer.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Literal

from pydantic import field_validator

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab.models import Model, device, open_quantised
from ftlab.training.transforms._layers import linear_layers
from ftlab.training.transforms.base import Transform

BY_GGUF = {8: "Q8_0", 4: "Q4_0"}
BY_BITSANDBYTES = (8, 4)
IN_GROUPS = ("simulated", "torchao")
EXTRAS = {"torchao": "quantise", "gguf": "real", "bitsandbytes": "qlora"}  # that bring a package
GGUF_BLOCK = 32  # weights
HALF = 16


class Quantise(Transform):
    """Rounds the weights of every linear layer but the output head.

    With 16 bits every weight becomes bf16. With fewer, `simulated` rounds the weights of each group
    to all integers of that many bits times a scale that keeps the group's largest weight, as
    llama.cpp's Q4_0 does, and keeps the rounded values as floats: it answers as such weights do, in
    no less memory, and activations are not rounded. `torchao` rounds by a scale of its own, and
    `gguf` in the blocks of 32 of llama.cpp (Q8_0, Q4_0); both are kept as floats too.
    `bitsandbytes` saves its own weights (LLM.int8, which rounds activations too, or nf4), which
    only it opens.
    """

    name = "quantise"
    source = "Dettmers et al. 2022, arXiv 2208.07339, section 2.1"
    amount = "bits"
    version = "2"  # 1 left the lowest integer out: three levels at 2 bits

    bits: Literal[16, 8, 4, 3, 2] = setting(4, "Bits of a weight")
    by: Literal["auto", "simulated", "torchao", "gguf", "bitsandbytes"] = setting(
        "auto",
        "What rounds; auto is bitsandbytes for 8 and 4 bits on a GPU where it is installed, else "
        "simulated",
    )
    group: int = setting(32, "Weights of a row that share a scale: simulated and torchao", ge=2)

    @field_validator("bits", mode="before")
    @classmethod
    def _whole(cls, bits: Any) -> Any:
        return int(bits) if isinstance(bits, str) and bits.isdecimal() else bits

    @property
    def way(self) -> str:
        """What rounds here, on this machine."""
        if self.bits == HALF:
            return "bf16"
        if self.by != "auto":
            return self.by
        if device() == "cuda" and self.bits in BY_BITSANDBYTES and find_spec("bitsandbytes"):
            return "bitsandbytes"
        return "simulated"

    def check(self, model: Model) -> None:
        """Check that what rounds is installed and has so many bits.

        Raises:
            UsageError: `bits_not_supported`, `package_missing`.
        """
        way = self.way
        if way in ("gguf", "bitsandbytes") and self.bits not in BY_BITSANDBYTES:
            raise UsageError(
                "bits_not_supported",
                f"{way} has no {self.bits} bits here. Give bits=8 or 4, or by=simulated.",
            )
        if way in EXTRAS and not find_spec(way):
            raise UsageError(
                "package_missing",
                f"by={way} needs the package {way}. Run: pip install 'ftlab[{EXTRAS[way]}]'.",
            )

    def identity(self) -> dict[str, Any]:
        """Return the identity, with what rounds on this machine; the group where it counts."""
        found = super().identity() | {"by": self.way}
        if self.way not in IN_GROUPS:
            del found["group"]
        return found

    def apply(self, model: Model) -> Any:
        """Return the quantised torch model."""
        if self.way == "bitsandbytes":
            return open_quantised(model, self.bits)
        return super().apply(model)

    def change(self, module: Any) -> None:
        """Round the weights in place."""
        import torch

        if self.way == "bf16":
            module.to(torch.bfloat16)
            return
        for layer in linear_layers(module):
            layer.weight.copy_(self._rounded(layer.weight.detach()))

    def _rounded(self, weights: Any) -> Any:
        """Return a layer's weights [out, in] rounded, in floats.

        Raises:
            UsageError: `blocks_do_not_fit`.
        """
        if self.way == "simulated":
            return simulated(weights, self.bits, self.group)
        size = GGUF_BLOCK if self.way == "gguf" else self.group
        if weights.shape[1] % size:
            raise UsageError(
                "blocks_do_not_fit",
                f"A layer of shape {tuple(weights.shape)} has no whole groups of {size} weights. "
                "Use by=simulated, or for torchao another group=.",
            )
        if self.way == "gguf":
            return by_gguf(weights, self.bits)
        return by_torchao(weights, self.bits, self.group)


def by_gguf(weights: Any, bits: int) -> Any:
    """Return weights [out, in] as blocks of llama.cpp hold them."""
    import torch
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    kind = GGMLQuantizationType[BY_GGUF[bits]]
    blocks = quantize(weights.float().cpu().numpy(), kind)
    return torch.from_numpy(dequantize(blocks, kind))


def by_torchao(weights: Any, bits: int, group: int) -> Any:
    """Return weights [out, in] as torchao's weight-only integers hold them."""
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    layer = torch.nn.Linear(weights.shape[1], weights.shape[0], bias=False)
    layer.weight = torch.nn.Parameter(weights.float().clone())
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"), granularity=PerGroup(group)
    )
    quantize_(layer, config)
    return layer.weight.dequantize()


def simulated(weights: Any, bits: int, group: int) -> Any:
    """Return weights [out, in] rounded to the 2^bits levels of each group of a row.

    A level is an integer times the group's scale, by which the weight that is furthest from 0 is
    the lowest integer. A last group that is shorter has a scale of its own.
    """
    import torch

    lowest = -(2 ** (bits - 1))
    parts = []
    for part in weights.float().split(group, dim=1):
        low, high = part.aminmax(dim=1, keepdim=True)
        largest = torch.where(high > -low, high, low)
        scale = largest / lowest  # below 0 where the largest is above: it is always exact
        safe = torch.where(scale != 0, scale, torch.ones_like(scale))
        parts.append((part / safe).round().clamp(lowest, -lowest - 1) * safe)
    return torch.cat(parts, dim=1)


TRANSFORM = Quantise
