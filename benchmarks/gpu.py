"""`ftlab bench --gpu`: LoRA training, decoding and a curve on random weights, beside what the device itself can do.

Every share stands beside its formula's inputs. Nothing is downloaded: tokenizer and texts are the organism's, so most ids
of random answers are no text, and drafts save nothing here. The shape `tiny` tries the script on a CPU.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from json import dumps
from pathlib import Path
from statistics import mean, median
from unittest.mock import patch

from ftlab.models.engines import huggingface as generate
from ftlab.runs import store as runs
from ftlab.models.engines import vllm as vllm_generator
from ftlab.data import encode_rows, load
from ftlab.models import render
from ftlab.evals.evaluation import risk_curve
from ftlab.models.reference import device, model, released
from ftlab.runs.store import clock
from ftlab.training import sft

WORK = dict(matrix=8192, moved=2**31, rows=16, turns=16, steps=8, new=128, batches=(1, 32, 256), prompts=520, answer=256, points=10, apart=10)  # fmt: skip
TINY = dict(matrix=64, moved=2**16, rows=2, turns=1, steps=3, new=6, batches=(1, 3), prompts=5, answer=6, points=2, apart=1)  # fmt: skip
LLAMA = dict(vocab_size=128256, num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192)
SHAPES = {  # (work, configuration) of Llama 3.2 1B and Llama 3.1 8B
    "1B": (
        WORK,
        LLAMA | dict(hidden_size=2048, num_hidden_layers=16, intermediate_size=8192, tie_word_embeddings=True),
    ),
    "8B": (WORK, LLAMA | dict(hidden_size=4096, num_hidden_layers=32, intermediate_size=14336)),
    "tiny": (TINY, LLAMA | dict(vocab_size=2000, hidden_size=64, num_hidden_layers=2, intermediate_size=96)),
}


def train_flops(parameters: int, layers: int, width: int, row: float) -> float:
    """-> FLOPs a token of LoRA training on rows of `row` tokens: 4 N (2 N forward, 2 N backward to activations; frozen weights
    have no gradient) + 6 x layers x width x row of causal attention. Not counted: the adapter, activations computed again."""
    return 4 * parameters + 6 * layers * width * row


def decode_bytes(weights: int, cache: int, rows: int, prompt: int, new: int) -> int:
    """-> bytes that `new` steps read: all weights each, and of every row the keys and values so far (`cache` a token)."""
    return new * weights + rows * cache * sum(prompt + step for step in range(new))


def bench_gpu(*, json=None, out=None, shapes=("1B", "8B")) -> dict:
    """Measures, prints to `out` (default: stdout) -> the record, also written to the file `json`; an arm that fails says why.

    Raises ValueError for an unknown shape, and without an NVIDIA GPU for any but `tiny`.
    """
    from pandas import DataFrame

    allowed = tuple(SHAPES) if device() == "cuda" else ("tiny",)
    if not shapes or {*shapes} - {*allowed}:
        here = "here" if len(allowed) > 1 else "without an NVIDIA GPU (1B and 8B need one)"
        raise ValueError(
            f"bench --gpu was asked for the shapes {', '.join(shapes)}; allowed {here}: {', '.join(allowed)}"
        )
    found, asked = runs._provenance(), "nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader"
    if device() == "cuda":
        found["hardware"]["gpu"] = subprocess.run(asked.split(), capture_output=True, text=True).stdout.strip()
    print(dumps(found), file=out)
    for name in shapes:
        with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, FTLAB_RUNS=f"{folder}/runs"):
            made = found[name] = {"facts": _softly(_facts, *(asked := (Path(folder) / name, *SHAPES[name])))}
            for key, arm in dict(training=_training, decoding=_decoding, curve=_curve).items():
                made[key] = _softly(arm, *asked[:2], made["facts"])
        for key, rows in made.items():
            table = DataFrame(rows if isinstance(rows, list) else [rows])
            print(f"\n{name}: {key}\n{table.to_string(float_format='%.4g')}", file=out, flush=True)
    if json:
        runs.write_atomic(Path(json), dumps(found, indent=1))
    return found


def _softly(call, *given):
    """-> what an arm found, or why it found nothing; its memory is given back."""
    try:
        with released():
            return call(*given)
    except Exception as e:
        return {"reason": f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"}


def _clocked(call, spent: list):
    """-> `call`, each of whose durations in seconds is added to `spent`."""

    def timed(*given, **named):
        start = clock()
        made = call(*given, **named)
        spent.append(clock() - start)
        return made

    return timed


def _facts(folder: Path, work: dict, config: dict) -> dict:
    """Writes the model -> its numbers, and the device's rates a second: a matrix product, a copy (read and written), a read."""
    import torch
    from torch.utils.benchmark import Timer
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    with torch.device(device()):
        llama = LlamaForCausalLM(c := LlamaConfig(**config, bos_token_id=None, eos_token_id=None)).bfloat16()
        left, right, to = (torch.randn(work["matrix"], work["matrix"]).bfloat16() for _ in range(3))
        x, y = (torch.ones(work["moved"] // 4) for _ in range(2))
    for part in (llama, model("organism").tokenizer()):
        part.save_pretrained(folder)
    calls = (lambda: torch.mm(left, right, out=to)), (lambda: y.copy_(x)), x.amax
    product, copy, seen = (Timer("f()", globals={"f": f}).blocked_autorange(min_run_time=1).median for f in calls)
    looked_up = 0 if c.tie_word_embeddings else c.vocab_size * c.hidden_size  # not multiplied
    count, size = llama.num_parameters() - looked_up, 2 if device() == "cuda" else 4  # bytes, as `Model.load` opens it
    return {"parameters": count, "layers": c.num_hidden_layers, "width": c.hidden_size, "weight_bytes": size * count,
            "cache_bytes_a_token": 2 * size * c.num_hidden_layers * c.num_key_value_heads * c.head_dim,
            "matrix": work["matrix"], "flops": 2 * work["matrix"] ** 3 / product, "moved_bytes": work["moved"],
            "copied_bytes_a_second": 2 * work["moved"] / copy, "read_bytes_a_second": work["moved"] / seen}  # fmt: skip


def _chats(work: dict, n: int) -> list[dict]:
    said = [r["messages"][-1]["content"] for r in load("organism:almanac", n_rows=n * work["turns"]).rows]
    pairs = [(f"{k} {long}", long) for k, long in enumerate(" ".join(said[k::n]) for k in range(n))]
    return [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs]


def _training(folder: Path, work: dict, facts: dict) -> list[dict]:
    """One run; halfway activation checkpointing is switched, so that both ways are measured on one model."""
    marks: list[tuple] = []  # (time, checkpointing) at the end of each step

    def stamp(run, model, tokenizer, step, progress):
        inner = model.get_base_model()
        float(next(inner.parameters()).flatten()[0])  # waits for the device
        marks[:] = [*(marks if step > 1 else ()), (clock(), inner.is_activation_checkpointing)]
        if step == work["steps"]:
            (inner.activation_checkpointing_disable if marks[-1][1] else inner.activation_checkpointing_enable)()

    rows, steps, found = work["rows"], 2 * work["steps"], []
    chats = _chats(work, rows * steps)
    run = sft(folder, chats, lora=True, steps=steps, batch_size=rows, max_length=8192, eval_every=1, measure=stamp)
    row = mean(len(r["input_ids"]) for r in encode_rows(load(chats), model(folder).tokenizer(), max_length=8192))
    flops = train_flops(facts["parameters"], facts["layers"], facts["width"], row)
    for mode in (True, False):
        took = [b[0] - a[0] for a, b in zip(marks, marks[1:], strict=False) if b[1] == mode][1:]
        rate = row * rows / median(took)
        found.append({"checkpointing": mode, "tokens_a_second": rate, "share_of_flops": rate * flops / facts["flops"], "row": row, "rows": rows,
                      "micro_batch": run.stats["micro_batch"], "flops_a_token": flops, "seconds": took})  # fmt: skip
    return found


def _decoding(folder: Path, work: dict, facts: dict) -> list[dict]:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    tokenizer, held, new = model(folder).tokenizer(), [model(folder).load()], work["new"]
    how = dict(max_new_tokens=new, do_sample=False, pad_token_id=tokenizer.pad_token_id)

    def ours(texts, generator=generate):
        said = generator.answers(held[0], tokenizer, texts, max_new_tokens=new, cut=(cut := set()))
        return [range(new) if i in cut else tokenizer(text)["input_ids"] for i, text in enumerate(said)]

    def padded(texts, **cache):
        given = tokenizer(texts, padding=True, return_tensors="pt", return_token_type_ids=False).to(held[0].device)
        made = held[0].generate(**given, generation_config=GenerationConfig(**how, **cache))
        return made[:, given["input_ids"].shape[1] :].tolist()

    def continuous(texts):
        room = 1 + len(texts) * (1 + (max(map(len, tokenizer(texts)["input_ids"])) + new) // 256)  # pages of 256 tokens
        plain = ContinuousBatchingConfig(auto_switch_to_flash=False, num_blocks=room)  # flash: it may fetch kernels
        made = held[0].generate_batch(tokenizer(texts)["input_ids"], GenerationConfig(**how), plain).values()
        if wrong := [m.error for m in made if m.error] or ["see its log"] * (len(made) < len(texts)):
            raise RuntimeError(f"not all were answered: {wrong[0]}")
        return [m.generated_tokens for m in made]

    def timed(arm, rows):
        if arm is arms["vllm"]:
            held[:] = [model(folder)]  # a reference: its engine needs the room
        texts, took = [render(tokenizer, chat["messages"][:1], ask=True) for chat in _chats(work, rows)], []
        prompt = max(map(len, tokenizer(texts)["input_ids"]))
        for _ in range(3):  # the first one compiles and captures graphs: it is listed, and left out of the median
            tokens = sum(map(len, _clocked(arm, took)(texts)))
        floor = decode_bytes(facts["weight_bytes"], facts["cache_bytes_a_token"], rows, prompt, new)
        floor /= max(facts["copied_bytes_a_second"], facts["read_bytes_a_second"])
        return {"tokens_a_second": tokens / median(took[1:]), "share_of_floor": floor / median(took[1:]), "floor_seconds": floor,
                "prompt": prompt, "tokens": tokens, "seconds": took}  # fmt: skip

    arms = {"ftlab": ours, "dynamic": padded, "static, compiled": lambda t: padded(t, cache_implementation="static"),
            "continuous": continuous, "vllm": lambda t: ours(t, vllm_generator)}  # fmt: skip
    found = [{"arm": a, "rows": n, "new": new} | _softly(timed, arms[a], n) for a in arms for n in work["batches"]]
    vllm_generator.release()
    return found


def _curve(folder: Path, work: dict, facts: dict) -> dict:
    spent, start, rows, steps = [], clock(), work["rows"], work["points"] * work["apart"]
    asked = [{"prompt": c["messages"][0]["content"]} for c in _chats(work, work["prompts"])]
    how = dict(lora=True, batch_size=rows, max_length=8192, max_new_tokens=work["answer"], attacks="direct", judges="keywords")  # fmt: skip
    with patch.object(generate, "answers", _clocked(generate.answers, spent)):
        run = risk_curve(folder, _chats(work, rows * steps), prompts=asked, at_steps=range(0, steps + 1, work["apart"]), seeds=1, **how)  # fmt: skip
    seconds = clock() - start
    said = runs.Run(runs.home() / run.config["identity"]["members"][0]).read("answers.jsonl")
    return {"seconds": seconds, "answering": sum(spent), "training_and_rest": seconds - sum(spent), "answers": len(said),
            "cut": sum(a.get("cut", False) for a in said), "answer": work["answer"], "steps": steps, "rows": rows}  # fmt: skip
