"""Preflight: what of a training fits a device and about how long it takes, from a model's configuration alone.

Parameters and the tensors that the backward pass keeps are counted, not estimated: the architecture is built on
torch's meta device, which holds shapes and no memory. What is assumed is in `ASSUMED` and shown with the result.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ftlab.models import adapters
from ftlab.models.engines.huggingface import TOKENS_A_BATCH
from ftlab.models.folders import from_hub, hub_id
from ftlab.models.reference import device, model, quiet
from ftlab.training import Training

METHODS = ("full", *adapters.KINDS)
GPUS = {  # memory in GiB as the driver shows it; dense bf16 (T4, V100: fp16) TFLOPS of the vendor's data sheet
    "T4": (15, 65), "V100": (32, 125), "L4": (22.5, 121), "A10": (22.5, 125), "A100-40": (39.5, 312), "A100-80": (79.3, 312),
    "RTX3090": (24, 71), "RTX4090": (24, 165), "L40S": (44.5, 362), "H100": (79.3, 989), "H200": (139.8, 989),
}  # fmt: skip
PCIE = {"V100PCIE": 112, "A100PCIE": 312, "H100PCIE": 756}  # of the others only one form is sold
SAME = r"NVIDIA|TESLA|GEFORCE|SXM\d|\d+GB|HBM\d\w?"  # words in a driver's name that do not change the peak
GIB = 2**30
NF4_BYTES = (
    0.5 + 1 / 64 + 4 / (64 * 256)
)  # a weight: 4 bits, an 8-bit scale a block of 64, fp32 a block of 256 scales (arXiv 2305.14314, section 3)
COUNTED = 4  # layers
TILE = 4096, 32768  # tokens, vocabulary: the part of the logits that TRL 1.16 holds at once
SUSTAINED = {"cuda": (0.2, 0.45), "cpu": (0.3, 0.8)}  # share of peak (GPU), of a plain matrix product here (CPU)
RESERVED = {"cuda": 1.5, "cpu": 0.7}  # GiB: CUDA context and allocator's rest; Python with its libraries
USABLE = 0.95  # of what is free
ASSUMED = (
    "Weights fp32 for full training, bf16 (GPU) or fp32 (CPU) below an adapter, adapters fp32, AdamW with two fp32 moments; "
    "activations recomputed on a GPU (checkpointing: off where they fit); sdpa attention; what takes less than a quarter of a "
    "CPU's free memory may hold twice as much, for speed; "
    "time: 6 (adapter 4) FLOPs a parameter and token, 2 more where recomputed, 12 x layers x hidden x length for attention "
    "(arXiv 2204.02311, appendix B), at {low:.0%} to {high:.0%} of {peak}; without padding, evaluation and saving."
)


@dataclass(frozen=True)
class Fit:
    """The answer. `table()` has one row a method, its memory in GiB at `at_once` rows a forward pass; `fits` says if it does."""

    model: str
    where: str  # the device's name
    room: float  # GiB that may be used
    parameters: int
    method: str
    rows: list[dict] = field(repr=False)  # one a method
    answering: dict = field(repr=False)  # GiB of weights and KV cache in an evaluation, and whether it fits
    assumed: str = field(repr=False)
    command: str = ""  # "" where the method does not fit

    @property
    def fits(self) -> bool:
        return bool(self.command)

    def table(self):
        """-> DataFrame: a row a method."""
        import pandas as pd

        return pd.DataFrame(self.rows)

    def to_json(self) -> str:
        """-> every number, as JSON."""
        return json.dumps({**asdict(self), "fits": self.fits}, indent=1)

    def __str__(self) -> str:
        head = f"{self.model}: {self.parameters:,} parameters; {self.where}: {self.room:.1f} GiB usable\n"
        answer = (
            f"evaluation: {self.answering['GiB']:.2f} GiB ({'fits' if self.answering['fits'] else 'does not fit'})\n"
        )
        text = self.table().to_string(index=False, na_rep="?", float_format=lambda x: f"{x:.2f}")
        return f"{head}{text}\n{answer}{self.command or f'{self.method} does not fit here'}\n({self.assumed})"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        import html

        shown = self.table().to_html(index=False, float_format="{:.2f}".format, na_rep="?", border=0)
        head, *_, command, assumed = (html.escape(line) for line in str(self).split("\n"))
        return f"<p>{head}</p>{shown}<p><code>{command}</code></p><p><small>{assumed}</small></p>"


def fit(ref, *, method: str = "lora", rows: int = 1000, length: int = 512, batch: int = 16, epochs: float = 3.0,
        rank: int = 16, gpu: str | float | None = None) -> Fit:  # fmt: skip
    """-> what fits the present device (or `gpu`: a name of `GPUS`, or GB of memory), in GiB and minutes.

    `ref`: anything that `ftlab.model` takes, or a folder with a config.json alone; of a hub id only that file is fetched.
    `length`: tokens a row, `batch`: rows an optimiser step, of which as many go through at once as fit.
    Raises ValueError or FileNotFoundError.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; allowed: {', '.join(METHODS)}")
    if wrong := [n for n, v in {"rows": rows, "length": length, "epochs": epochs}.items() if v <= 0]:
        raise ValueError(f"{', '.join(wrong)}: give a number above 0")
    Training.make(batch_size=batch, lora_rank=rank)
    quiet()
    ref = getattr(ref, "hub", "") or getattr(ref, "path", ref)  # of a Model or a Run: what the command line takes
    config = _config(ref)
    kind, where, room, peak = _device(gpu)
    low, high = SUSTAINED[kind]
    found, every = [], _sizes(config, kind, rank)
    for name in METHODS:
        sizes = every[name]
        fixed = sum(sizes[k] for k in ("weights", "gradients", "optimizer")) + RESERVED[kind] * GIB
        parts = [b for b in range(batch, 0, -1) if batch % b == 0]
        at_once = next((b for b in parts if fixed + _kept(sizes, b * length, kind) <= room), 1)
        kept = _kept(sizes, at_once * length, kind)
        seconds = [
            None if peak is None else _flops(sizes, name, length, kind) * rows * length * epochs / (peak * share)
            for share in (high, low)
        ]
        row = {k: sizes[k] / GIB for k in ("weights", "gradients", "optimizer")}
        row |= {
            "activations": kept / GIB,
            "reserved": RESERVED[kind],
            "total": (fixed + kept) / GIB,
            "at_once": at_once,
        }
        row |= {
            "fits": fixed + kept <= room,
            "minutes_low": seconds[0] and seconds[0] / 60,
            "minutes_high": seconds[1] and seconds[1] / 60,
        }
        found.append({"method": name, "trainable": sizes["trainable"], **row})
    mine = next(r for r in found if r["method"] == method)
    flag = "" if method == "full" else f" --{method}"
    command = f"ftlab sft {ref} DATA{flag} --batch-size {batch} --epochs {epochs:g}"
    need = sizes["all"] * (2 if kind == "cuda" else 4) + _cache(config, kind) + RESERVED[kind] * GIB
    measured = "the data sheet's peak" if kind == "cuda" else "a matrix product measured here"
    return Fit(
        str(ref), where, room / GIB, sizes["all"], method, found, {"GiB": need / GIB, "fits": need <= room},
        ASSUMED.format(low=low, high=high, peak=measured if peak else "a peak that is not known here: name the GPU"),
        command if mine["fits"] else "",
    )  # fmt: skip


def holds(model, method: str, rank: int, tokens: int) -> bool:
    """-> whether the GPU has room to train a loaded torch model with all activations of `tokens` kept, none recomputed."""
    import torch

    free, whole = torch.cuda.mem_get_info()
    try:
        sizes = _sizes(model.config, "cuda", rank)[method]
    except Exception:  # an architecture that cannot be counted
        return False
    need = sizes["gradients"] + sizes["optimizer"] + _kept(sizes, tokens, "cpu") + RESERVED["cuda"] * GIB
    need += max(sizes["weights"] - sum(p.nbytes for p in model.parameters()), 0)
    return need <= free - (1 - USABLE) * whole


def _config(ref):
    """-> transformers' configuration of the whole model at the bottom of `ref`; no weights are read."""
    from transformers import AutoConfig

    folder = Path(str(ref))
    if there := hub_id(str(ref)):
        folder = from_hub(*there, only=["config.json", "adapter_config.json"])
        if not (folder / "config.json").exists() and (folder / "adapter_config.json").exists():
            return _config(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    elif not (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file():
        made = model(ref)
        while made.parent:
            made = made.parent
        folder = made.path
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as e:
        raise ValueError(f"{folder}: config.json is of no model known here ({type(e).__name__}: {e})") from None


def _sizes(config, kind: str, rank: int) -> dict[str, dict]:
    """-> method -> bytes of weights, gradients, optimizer and kept activations (`fixed`, a `token`); what time needs."""
    import torch
    from transformers import AutoModelForCausalLM

    wide = 4 if kind == "cpu" else 2  # bytes of a number in a forward pass
    text, out = config.get_text_config(), {}
    for method in ("full", "lora", "dora"):
        with torch.device("meta"):
            try:
                bare = AutoModelForCausalLM.from_config(config, dtype=torch.float32 if wide == 4 else torch.bfloat16)
            except Exception as e:
                raise ValueError(f"{config.model_type} is no causal language model ({type(e).__name__}: {e})") from None
            head, embeddings = bare.get_output_embeddings(), bare.get_input_embeddings()
            linear = sum(m.weight.numel() for m in bare.modules() if isinstance(m, torch.nn.Linear) and m is not head)
            whole = sum(p.numel() for p in bare.parameters())  # tied ones once
            net = bare if method == "full" else adapters.adapt(bare, method, rank)
        trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
        copies = 2 * linear if kind == "cuda" else 0  # in bf16: autocast keeps what it casts
        layers = text.num_hidden_layers
        looked_up = embeddings.weight.numel() if head is None or head.weight is not embeddings.weight else 0
        stack = next(m for m in bare.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == layers)
        del stack[COUNTED:]  # the layers are alike; counting some takes a second less each time
        scale = layers / len(stack)
        a, b, c = (_saved(net, n) for n in (64, 128, 192))
        square = (a - 2 * b + c) / 2  # grows with the length squared: sdpa never stores it, its meta stand-in does
        token = (b - a - 3 * square) / 64
        out[method] = {
            "weights": 4 * whole + copies if method == "full" else wide * whole + 4 * trained,
            "gradients": 4 * trained, "optimizer": 8 * trained, "trainable": trained, "all": whole, "wide": wide,
            "token": scale * token, "fixed": scale * (a - square - 64 * token), "layers": layers,
            "hidden": text.hidden_size, "vocabulary": text.vocab_size, "worked": whole - looked_up,
        }  # fmt: skip
    four_bit = NF4_BYTES * linear + 4 * (whole - linear + out["lora"]["trainable"])
    return out | {"qlora": out["lora"] | {"weights": four_bit}}


def _saved(net, length: int) -> int:
    """-> bytes that autograd keeps of one row of `length` tokens: every storage once, parameters not counted."""
    import torch

    own = {p.untyped_storage()._cdata for p in net.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage  # held, so that no other gets its address
        return tensor

    bare = net.get_base_model() if hasattr(net, "get_base_model") else net
    dtype = bare.get_input_embeddings().weight.dtype
    rows = torch.empty(
        (1, length, bare.config.get_text_config().hidden_size), device="meta", dtype=dtype, requires_grad=True
    )
    mask = torch.zeros((1, 1, length, length), device="meta", dtype=dtype)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        bare.base_model(inputs_embeds=rows, attention_mask=mask, use_cache=False)
    return sum(s.nbytes() for s in kept.values())


def _kept(sizes: dict, tokens: int, kind: str) -> float:
    """-> bytes of activations of a forward pass over `tokens`, with the tiles of its loss."""
    tiles = 3 * 4 * min(tokens, TILE[0]) * min(sizes["vocabulary"], TILE[1])
    if kind == "cpu":
        return tokens * sizes["token"] + sizes["fixed"] + tiles
    inputs = sizes["layers"] * sizes["hidden"] * sizes["wide"]  # recomputed from each layer's input, a layer at a time
    return tokens * inputs + (tokens * sizes["token"] + sizes["fixed"]) / sizes["layers"] + tiles


def _flops(sizes: dict, method: str, length: int, kind: str) -> float:
    """-> floating-point operations a token."""
    passes = (6 if method == "full" else 4) + (2 if kind == "cuda" else 0)
    return passes * sizes["worked"] + 12 * sizes["layers"] * sizes["hidden"] * length


def _cache(config, kind: str) -> float:
    """-> bytes of keys and values of `TOKENS_A_BATCH`; the sampler takes what a quarter of the free memory holds."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * width * (2 if kind == "cuda" else 4) * TOKENS_A_BATCH


def _device(gpu) -> tuple[str, str, float, float | None]:
    """-> (cuda or cpu, name, bytes that may be used, FLOPS at peak or None)."""
    import torch

    names = {re.sub(r"\W", "", n).lower(): n for n in GPUS}
    if gpu is not None:
        if name := names.get(re.sub(r"\W|gb$", "", str(gpu).lower())):
            return "cuda", name, USABLE * GPUS[name][0] * GIB, GPUS[name][1] * 1e12
        if not (size := re.fullmatch(r"(\d+(\.\d+)?) ?(GB|GiB)?", str(gpu), re.IGNORECASE)) or not float(size[1]):
            raise ValueError(f"gpu {gpu!r} is not known; give its memory, as 24GB, or one of {', '.join(GPUS)}")
        return "cuda", f"a GPU of {size[1]} GB", USABLE * float(size[1]) * GIB, None
    if device() == "cuda":
        there = torch.cuda.get_device_properties(0)
        return "cuda", there.name, USABLE * torch.cuda.mem_get_info()[0], _peak(there.name)
    free = os.sysconf("SC_AVPHYS_PAGES" if not Path("/proc/meminfo").exists() else "SC_PHYS_PAGES") * os.sysconf(
        "SC_PAGE_SIZE"
    )
    if Path("/proc/meminfo").exists():
        free = int(re.search(r"MemAvailable:\s+(\d+)", Path("/proc/meminfo").read_text())[1]) * 1024
    return "cpu", f"{os.cpu_count()} CPU cores", USABLE * free, _rate()


def _peak(name: str) -> float | None:
    """-> FLOPS at peak of a GPU by the driver's name of it; None for one that is not in `GPUS`, or a slice of one (MIG)."""
    known = {n.split("-")[0]: tflops for n, (_, tflops) in GPUS.items()} | PCIE
    words = re.split(r"[\s-]+", name.upper())
    tflops = known.get("".join(w for w in words if not re.fullmatch(SAME, w)))
    return tflops and tflops * 1e12


def _rate() -> float:
    """-> FLOPS of a matrix product in fp32 on this CPU, the best of three."""
    import time

    import torch

    a = torch.ones(1024, 1024)
    took = []
    for _ in range(3):
        start = time.perf_counter()
        a @ a
        took.append(time.perf_counter() - start)
    return 2 * 1024**3 / min(took)
