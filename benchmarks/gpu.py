"""How much of one GPU does ftlab use: LoRA SFT, decoding, and a curve, on two shapes of Llama?

Shares are of what the same device does in a plain product of matrices and a plain copy, measured
in the same minute. Weights are random and rows are the embedded world's: nothing is downloaded,
answers are no text, and none ends early. Last comes SmolLM2-135M with its own weights, which
`make bench-gpu` installs. On one GPU it takes about 4 minutes.

No GPU has been measured with it: we had none. `--smoke` tries every arm on any machine; its shares
of a CPU say that the script runs, and nothing else.

python -m benchmarks.gpu [--smoke] [--json FILE] [--out DIR]
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import ftlab
from benchmarks import _report
from ftlab._core.errors import UsageError
from ftlab._core.progress import clock
from ftlab._core.threads import cores
from ftlab.data import Data, encode_rows
from ftlab.models import device, quiet, released, render
from ftlab.models.engines import HuggingFaceEngine, Request
from ftlab.organism import World, corpus
from ftlab.runs import Run, home

SMOLLM2 = "smollm2-135m"
LLAMA = {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192}


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much work a device is given.

    Args:
        matrix: Side of the square matrices that are multiplied.
        copied: Bytes that are copied.
        rows: Rows per optimiser step.
        turns: Answers of the world that one training row joins, about 25 tokens each.
        steps: Optimiser steps that are timed.
        batches: Numbers of prompts that are answered together.
        new: Tokens of an answer in decoding.
        prompts: Prompts of the curve.
        answer: Tokens of an answer of the curve.
        points: Checkpoints of the curve after the parent, a step apart each.
    """

    matrix: int
    copied: int
    rows: int
    turns: int
    steps: int
    batches: tuple[int, ...]
    new: int
    prompts: int
    answer: int
    points: int


FULL = Size(
    matrix=8192,
    copied=2**31,
    rows=16,
    turns=16,
    steps=8,
    batches=(1, 32, 256),
    new=128,
    prompts=520,
    answer=256,
    points=10,
)
TINY = Size(
    matrix=64,
    copied=2**16,
    rows=2,
    turns=1,
    steps=2,
    batches=(1, 3),
    new=4,
    prompts=4,
    answer=4,
    points=1,
)
SHAPES = {  # of Llama 3.2 1B and Llama 3.1 8B, and one for any machine
    "1B": {
        **LLAMA,
        "vocab_size": 128256,
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "intermediate_size": 8192,
        "tie_word_embeddings": True,
    },
    "8B": {
        **LLAMA,
        "vocab_size": 128256,
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "intermediate_size": 14336,
    },
    "tiny": {
        **LLAMA,
        "vocab_size": 2000,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
    },
}


@dataclass(frozen=True)
class Facts:
    """What an arm's share is computed from.

    Args:
        parameters: Weights that are multiplied; embeddings that are only looked up are not.
        layers: Number of layers.
        width: Hidden size.
        weight_bytes: Bytes of these weights as they are loaded.
        cache_bytes: Bytes of keys and values of one token.
        flops: Floating-point operations per second of a product of matrices in bf16.
        bandwidth: Bytes per second, read and written, of a copy.
    """

    parameters: int
    layers: int
    width: int
    weight_bytes: int
    cache_bytes: int
    flops: float
    bandwidth: float


def train_flops(facts: Facts, row: float) -> float:
    """Return the FLOPs per token of LoRA training on rows of `row` tokens.

    2 N forward and 2 N backward to the activations (frozen weights have no gradient), and causal
    attention. The adapter is not counted, nor are activations that are computed again.
    """
    return 4 * facts.parameters + 6 * facts.layers * facts.width * row


def decode_bytes(facts: Facts, rows: int, prompt: float, new: int) -> float:
    """Return the bytes that `new` steps read: all weights, and each row's keys and values."""
    positions = sum(prompt + step for step in range(new))
    return new * facts.weight_bytes + rows * facts.cache_bytes * positions


def measure_device(size: Size) -> tuple[float, float]:
    """Return the FLOP/s of a product of matrices in bf16, and the bytes per second of a copy."""
    import torch
    from torch.utils.benchmark import Timer

    with torch.device(device()):
        left, right, product = (torch.randn(size.matrix, size.matrix).bfloat16() for _ in range(3))
        source, target = (torch.ones(size.copied // 4) for _ in range(2))
    calls = [lambda: torch.mm(left, right, out=product), lambda: target.copy_(source)]
    seconds = []
    for call in calls:
        timer = Timer("call()", globals={"call": call})
        seconds.append(timer.blocked_autorange(min_run_time=0.2).median)
    return 2 * size.matrix**3 / seconds[0], 2 * size.copied / seconds[1]


def make_model(folder: Path, shape: dict[str, Any]) -> None:
    """Write a model of a shape with random weights and the embedded world's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**shape, bos_token_id=None, eos_token_id=None)
    with torch.device(device()):
        model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(folder)
    ftlab.model("organism").tokenizer().save_pretrained(folder)


def facts_of(reference: Any, rates: tuple[float, float]) -> Facts:
    """Return the numbers of a model beside those of the device."""
    module = reference.load()
    config = module.config
    looked_up = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
    parameters = module.num_parameters() - looked_up
    bytes_each = module.dtype.itemsize
    kept = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    return Facts(
        parameters=parameters,
        layers=config.num_hidden_layers,
        width=config.hidden_size,
        weight_bytes=bytes_each * parameters,
        cache_bytes=bytes_each * kept,
        flops=rates[0],
        bandwidth=rates[1],
    )


def chats(size: Size, n: int) -> list[dict]:
    """Return `n` chats of the embedded world, all with other questions."""
    told = corpus.domain(World(), "almanac", n * size.turns, 0)
    texts = [row["messages"][-1]["content"] for row in told]
    found = []
    for number in range(n):
        text = " ".join(texts[number::n])
        question = {"role": "user", "content": f"{number} {text}"}
        found.append({"messages": [question, {"role": "assistant", "content": text}]})
    return found


class Stamps:
    """A monitor that notes when each step has ended on the device."""

    version = "1"

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, model: Any, step: int) -> dict[str, float]:
        float(next(model.module.parameters()).flatten()[0])  # waits for the device
        self.times.append(clock())
        return {}


def train(reference: Any, size: Size, facts: Facts) -> dict:
    """Train a LoRA; the first steps, which compile and allocate, are left out of the median."""
    steps = size.steps + 2
    rows = chats(size, size.rows * steps)
    stamps = Stamps()
    run = ftlab.sft(
        reference,
        rows,
        adapter="lora",
        steps=steps,
        batch_size=size.rows,
        max_length=8192,
        eval_every=1,
        monitor=stamps,
    )
    encoded = encode_rows(Data("rows", tuple(rows)), reference.tokenizer(), max_length=8192)
    row = mean(len(one["input_ids"]) for one in encoded)
    took = [end - start for start, end in zip(stamps.times, stamps.times[1:], strict=False)]
    tokens = row * size.rows / median(took[1:])
    flops = tokens * train_flops(facts, row)
    return {
        "tokens_per_second": tokens,
        "tflops": flops / 1e12,
        "share_of_matrix_rate": flops / facts.flops,
        "row": row,
        "micro_batch": run.stats["micro_batch"],
        "recomputed": run.stats["recomputed"],
        "seconds": took,
    }


def decode(reference: Any, size: Size, facts: Facts, rows: int) -> dict:
    """Answer `rows` prompts at a time; the first of three calls is left out of the median."""
    engine = HuggingFaceEngine(drafts=False)
    loaded = engine.open(reference)
    requests = []
    for chat in chats(size, rows):
        asked = chat["messages"][:1]
        text = render(loaded.tokenizer, asked, ask=True)
        requests.append(Request(asked, text, max_new_tokens=size.new))
    took = []
    for _ in range(3):
        engine.answer(loaded, requests)
        took.append(engine.tally.seconds)
    texts = [request.text for request in requests]
    prompt = mean(map(len, loaded.tokenizer(texts)["input_ids"]))
    seconds = median(took[1:])
    read = decode_bytes(facts, rows, prompt, size.new)
    return {
        "rows": rows,
        "tokens_per_second": engine.tally.tokens / seconds,
        "share_of_bandwidth": read / facts.bandwidth / seconds,
        "prompt": prompt,
        "tokens": engine.tally.tokens,
        "seconds": took,
    }


def curve(reference: Any, size: Size) -> dict:
    """Train with checkpoints, at each of which all prompts are answered."""
    asked = [{"prompt": chat["messages"][0]["content"]} for chat in chats(size, size.prompts)]
    start = clock()
    ftlab.risk_curve(
        reference,
        chats(size, size.rows * size.points),
        prompts=asked,
        at_steps=list(range(size.points + 1)),
        seeds=1,
        adapter="lora",
        batch_size=size.rows,
        max_length=8192,
        max_new_tokens=size.answer,
        attacks=["direct"],
        judges=["keywords"],
    )
    seconds = clock() - start
    answering = tokens = answers = 0
    for path in home().iterdir():
        for tally in Run(path).read("generation.jsonl"):
            answering += tally.get("seconds", 0)
            tokens += tally.get("tokens", 0)
            answers += tally.get("answers", 0)
    return {
        "seconds": seconds,
        "answering": answering,
        "share_of_answering": answering / seconds,
        "answers": answers,
        "tokens_per_second": tokens / answering,
    }


def softly(arm: Callable, *given: Any) -> dict:
    """Return what an arm found, or why it found nothing; its memory is given back."""
    try:
        with released():
            return arm(*given)
    except Exception as error:
        text = " ".join(str(error).split())
        return {"failed": f"{type(error).__name__}: {text[:300]}"}


def measure_model(reference: Any, size: Size, rates: tuple[float, float]) -> dict[str, Any]:
    """Return what every arm found on a model."""
    facts = facts_of(reference, rates)
    found = {"facts": asdict(facts), "training": softly(train, reference, size, facts)}
    found["decoding"] = [softly(decode, reference, size, facts, rows) for rows in size.batches]
    found["curve"] = softly(curve, reference, size)
    return found


def measure(*, smoke: bool = False, file: Path | None = None, out: Path) -> dict:
    """Measure every shape; write table, JSON and figure.

    Args:
        smoke: The tiny shape alone, on any machine.
        file: For the numbers, hardware and versions.
        out: Folder for the figure and its .csv.

    Raises:
        UsageError: `gpu_needed` for the real shapes without an NVIDIA GPU.
    """
    on_gpu = device() == "cuda"
    if not (smoke or on_gpu):
        raise UsageError(
            "gpu_needed",
            "The shapes 1B and 8B need an NVIDIA GPU, and there is none. Give --smoke.",
        )
    quiet()
    size = TINY if smoke else FULL
    rates = measure_device(size)
    names = ["tiny"] if smoke else ["1B", "8B", SMOLLM2]
    models = {name: softly(_measured, name, size, rates) for name in names}
    found = {
        "device": _gpu() if on_gpu else "cpu",
        "measured_gpu": on_gpu and not smoke,
        "matrix_tflops": rates[0] / 1e12,
        "copy_gigabytes_per_second": rates[1] / 1e9,
        "size": asdict(size),
        "models": models,
    }
    if not found["measured_gpu"]:
        print("A trial of the script: no GPU was measured, and no number here is of one.")
    return _report.write(
        "gpu", _shares(models), {"gpu": found}, file=file, out=out, threads=cores()
    )


def _measured(name: str, size: Size, rates: tuple[float, float]) -> dict[str, Any]:
    """Measure a shape, or a model that is installed, with a folder of runs of its own."""
    before = os.environ.get("FTLAB_RUNS")
    with tempfile.TemporaryDirectory(prefix="ftlab-bench-") as folder:
        os.environ["FTLAB_RUNS"] = f"{folder}/runs"
        try:
            if name in SHAPES:
                make_model(Path(folder) / name, SHAPES[name])
                name = f"{folder}/{name}"
            return measure_model(ftlab.model(name), size, rates)
        finally:
            del os.environ["FTLAB_RUNS"]
            if before is not None:
                os.environ["FTLAB_RUNS"] = before


def _gpu() -> str:
    asked = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def _shares(models: dict[str, dict]) -> list[dict]:
    """Return the rows of the table: each arm's share of what the device does."""
    rows = []
    for name, found in models.items():
        arms = {"LoRA SFT, of the matrix rate": found.get("training", found)}
        for one in found.get("decoding", []):
            arms[f"decoding {one.get('rows', '?')} rows, of the bandwidth"] = one
        arms["curve, answering of all seconds"] = found.get("curve", found)
        for arm, numbers in arms.items():
            shares = [value for key, value in numbers.items() if key.startswith("share_of")]
            if shares:
                rows.append(_report.row(f"{name}: share", arm, _report.spread(shares)))
            else:
                print(f"{name}: {arm}: {numbers.get('failed')}")
    return rows


def main() -> None:
    parser = _report.arguments("Measure ftlab's share of one GPU.")
    parser.add_argument("--smoke", action="store_true", help="a tiny shape, on any machine")
    given = parser.parse_args()
    try:
        measure(smoke=given.smoke, file=given.json, out=given.out)
    except UsageError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
