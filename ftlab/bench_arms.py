"""What the processes of `ftlab bench` run: `python -m ftlab.bench_arms ARM spec.json [POINT]`.

An arm's own process imports the libraries and warms up before its clock starts; the processes that it starts in turn
(`answer`, `judge`) are part of its design and on its clock. Every arm trains on the same tokens in the same order.
A point is a number of optimiser steps, 0 the parent; a question is a position in `spec["items"]`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from ftlab.runs import clock

FIXED_BATCH = 64  # prompts of a batch of the arm `batched`
FLOOR_BATCHES = (64, 128, 256, 520)  # tried for transformers' own generate, before the floor's clock
PILOT_TOKENS, PILOT_STEPS = 12, 2  # new tokens and optimiser steps of what is tried


def trainer(spec: dict, *, best: dict | None = None, steps: int | None = None, saves: bool = False):
    """-> TRL's trainer at its defaults, or with the settings of `best`, on ftlab's own encoding of the rows.

    Numbers are fp32 on a CPU as ftlab's are; `saves` writes a checkpoint (weights only) at every point.
    """
    import torch
    import trl
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed

    from ftlab.chat import encode_rows
    from ftlab.data import Data

    disable_progress_bars()
    set_seed(spec["seed"])
    tokenizer = AutoTokenizer.from_pretrained(spec["model"])
    rows = encode_rows(Data("bench", tuple(spec["rows"])), tokenizer, max_length=2048)
    every = spec["points"][1] - spec["points"][0]
    how = {"save_strategy": "steps", "save_steps": every, "save_only_model": True} if saves else {"save_strategy": "no"}
    cuda = torch.cuda.is_available()
    args = trl.SFTConfig(
        output_dir=spec["folder"], seed=spec["seed"], data_seed=spec["seed"], max_steps=steps or spec["points"][-1],
        per_device_train_batch_size=spec["batch_size"], learning_rate=spec["learning_rate"],
        lr_scheduler_type="constant_with_warmup", packing=False, max_length=None, use_cpu=not cuda, bf16=cuda,
        dataset_kwargs={"skip_prepare_dataset": True}, dataloader_pin_memory=cuda, report_to=[], disable_tqdm=True,
        **how, **(best or {}),
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    made = trl.SFTTrainer(
        model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    made.remove_callback(PrinterCallback)
    return made


def best_training(spec: dict) -> dict:
    """-> TRL's fastest settings for these rows: activation checkpointing off, padding-free or not, by a short measurement."""
    seconds = {}
    for free in (False, True):
        settings = dict(activation_checkpointing=False, logging_strategy="no", padding_free=free)
        made = trainer(spec, best=settings, steps=PILOT_STEPS)
        start = clock()
        made.train()
        seconds[free] = clock() - start
    return settings | {"padding_free": min(seconds, key=seconds.get)}


def generated(model, tokenizer, texts: list[str], most: int, batch: int, *, in_order: bool = True) -> tuple[list[str], int]:
    """-> (answers, new tokens) by transformers' greedy `generate` in batches of `batch`, padded on the left."""
    import torch

    tokenizer.padding_side = "left"
    order = list(range(len(texts)))
    if not in_order:
        order.sort(key=lambda i: len(texts[i]))
    out, tokens = [""] * len(texts), 0
    for at in range(0, len(order), batch):
        part = order[at : at + batch]
        given = tokenizer([texts[i] for i in part], add_special_tokens=False, padding=True, return_tensors="pt")
        given = {k: given[k].to(model.device) for k in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            made = model.generate(**given, max_new_tokens=most, do_sample=False, use_cache=True)
        new = made[:, given["input_ids"].shape[1] :]
        tokens += int((new != tokenizer.pad_token_id).sum())
        for i, ids in zip(part, new, strict=True):
            out[i] = tokenizer.decode(ids, skip_special_tokens=True)
    return out, tokens


def own(model, tokenizer, texts: list[str], most: int) -> tuple[list[str], int]:
    """-> (answers, new tokens) by ftlab's sampler, without drafts."""
    from ftlab.generate import answers

    cut: set[int] = set()
    said = answers(model, tokenizer, texts, max_new_tokens=most, cut=cut)
    return said, sum(map(len, tokenizer(said, add_special_tokens=False)["input_ids"])) + len(said) - len(cut)


def rendered(spec: dict, tokenizer) -> list[str]:
    from ftlab.chat import render

    return [render(tokenizer, item["messages"], ask=True) for item in spec["items"]]


# Arms of `bench curve`; each -> {"seconds": of the whole arm, scaled where only a share was measured, ...}.


def reference(spec: dict) -> dict:
    return _apart(spec, 1, *spec["reference"])


def batched(spec: dict) -> dict:
    return _apart(spec, FIXED_BATCH, *spec["batched"])


def _apart(spec: dict, batch: int, points: int, questions: int) -> dict:
    """Trains and saves; a fresh process answers for each of `points` checkpoints (`questions` of them), another one judges."""
    all_points, n = spec["points"], len(spec["items"])
    chosen = [all_points[round((k + 1) * len(all_points) / points) - 1] for k in range(points)]
    plan = {"batch": batch, "questions": [k * n // questions for k in range(questions)], "points": chosen}
    Path(spec["folder"], "plan.json").write_text(json.dumps(plan))
    start = clock()
    trainer(spec, saves=True).train()
    parts, starts, answering = {"train": clock() - start}, [], 0.0
    for point in chosen:
        start = clock()
        _process("answer", spec, point)
        own_s = json.loads(Path(spec["folder"], f"answers-{point}.json").read_text())["seconds"]
        starts.append(clock() - start - own_s)
        answering += own_s
    start = clock()
    _process("judge", spec)
    said = json.loads(Path(spec["folder"], "verdicts.json").read_text())
    parts |= {"start": sum(starts) / len(starts), "answer": answering, "judge_start": clock() - start - said["seconds"]}
    share = len(chosen) * questions / (len(all_points) * n)
    return scaled(parts | {"judge": said["seconds"]}, len(all_points), share) | {"said": said["said"]}


def scaled(parts: dict, points: int, share: float) -> dict:
    """-> an arm's seconds from its parts: training whole, a start-up a point, answering and judging divided by the share."""
    whole = parts["train"] + points * parts["start"] + parts["judge_start"] + (parts["answer"] + parts["judge"]) / share
    return {"seconds": whole, "measured_share": share, "parts": parts}


def _process(part: str, spec: dict, *more) -> None:
    call = [sys.executable, "-m", "ftlab.bench_arms", part, spec["file"], *map(str, more)]
    subprocess.run(call, check=True)


def answer(spec: dict, point: str) -> None:
    """A fresh process: opens one checkpoint the plain way, answers, writes the answers and the seconds of answering."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(spec["folder"])
    plan = json.loads((folder / "plan.json").read_text())
    where = folder / f"checkpoint-{point}" if int(point) else spec["model"]
    tokenizer = AutoTokenizer.from_pretrained(where)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    texts = [
        tokenizer.apply_chat_template(spec["items"][q]["messages"], tokenize=False, add_generation_prompt=True)
        for q in plan["questions"]
    ]
    start = clock()
    said, _ = generated(model, tokenizer, texts, spec["max_new_tokens"], plan["batch"])
    found = {"seconds": clock() - start, "answers": said}
    (folder / f"answers-{point}.json").write_text(json.dumps(found))


def judge(spec: dict) -> None:
    """A fresh process: reads the answers of all points, judges them, writes the verdicts and the seconds of judging."""
    from ftlab.judging import ruled, verdicts

    folder, out, seconds = Path(spec["folder"]), {}, 0.0
    plan = json.loads((folder / "plan.json").read_text())
    items = [spec["items"][q] for q in plan["questions"]]
    for point in plan["points"]:
        said = json.loads((folder / f"answers-{point}.json").read_text())["answers"]
        start, records = clock(), [{"answer": a} for a in said]
        judged = verdicts(spec["judge"], items, records, ruled(items, records))
        seconds += clock() - start
        out |= {f"{point}|{i['id']}": [a, j.verdict] for i, a, j in zip(items, said, judged, strict=True)}
    (folder / "verdicts.json").write_text(json.dumps({"seconds": seconds, "said": out}))


def ftlab(spec: dict) -> dict:
    from ftlab.evaluation import risk_curve
    from ftlab.runs import Run

    start = clock()
    run = risk_curve(
        spec["model"], spec["rows_file"], at_steps=spec["points"], seeds=[spec["seed"]], prompts=spec["items_file"],
        attacks=["direct"], judges=[spec["judge"]], max_new_tokens=spec["max_new_tokens"],
        batch_size=spec["batch_size"], learning_rate=spec["learning_rate"],
    )  # fmt: skip
    seconds = clock() - start
    member = Run(run.path.parent / run.config["identity"]["members"][0])
    told = {r["key"]: r["answer"] for r in member.read("answers.jsonl")}
    rows = member.read("verdicts.jsonl")
    said = {f"{r['step']}|{r['prompt_id']}": [told[r["answer_key"]], r["verdict"]] for r in rows}
    return {"seconds": seconds, "measured_share": 1.0, "said": said}


def floor(spec: dict) -> dict:
    """The same steps by TRL at its best, the same tokens in full batches in this process; what is best is tried before."""
    from transformers import TrainerCallback

    best = best_training(spec)
    made, tokenizer = trainer(spec, best=best), _tokenizer(spec)
    texts, most, tried = rendered(spec, tokenizer), spec["max_new_tokens"], {}
    samplers = {"ftlab's sampler without drafts": own} | {
        f"transformers' generate, {b} a batch": lambda m, t, x, n, b=b: generated(m, t, x, n, b, in_order=False)
        for b in FLOOR_BATCHES
        if b <= max(len(texts), FLOOR_BATCHES[0])
    }
    made.model.eval()
    for name, sampler in samplers.items():
        start = clock()
        sampler(made.model, tokenizer, texts, min(most, PILOT_TOKENS))
        tried[name] = clock() - start
    fastest, points = min(tried, key=tried.get), spec["points"]
    chosen = [points[round((k + 1) * len(points) / spec["floor"]) - 1] for k in range(spec["floor"])]
    took = {"decode": 0.0, "tokens": 0}

    class Decode(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            if state.global_step in chosen:
                start = clock()
                model.eval()
                took["tokens"] += samplers[fastest](model, tokenizer, texts, most)[1]
                model.train()
                took["decode"] += clock() - start

    made.add_callback(decode := Decode())
    start = clock()
    decode.on_step_end(None, made.state, None, made.model)  # the parent, where it is chosen
    made.train()
    train_s, share = clock() - start - took["decode"], len(chosen) / len(points)
    return {"seconds": train_s + took["decode"] / share, "measured_share": share, "parts": {"train": train_s, **took},
            "sampler": fastest, "tried_s": tried, "padding_free": best["padding_free"]}  # fmt: skip


def _tokenizer(spec: dict):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(spec["model"], padding_side="left")


def ties(spec: dict) -> dict:
    """-> for each of `spec["differing"]` (point, question id, two answers) the margin of the two most probable tokens where
    the answers part, by a forward pass of that prompt alone through the saved checkpoint."""
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer, margins = _tokenizer(spec), []
    texts = dict(zip((i["id"] for i in spec["items"]), rendered(spec, tokenizer), strict=True))
    for point, question, one, other in spec["differing"]:
        where = Path(spec["checkpoints"], f"checkpoint-{point}") if point else spec["model"]
        model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32).eval()
        a, b = (tokenizer(t, add_special_tokens=False)["input_ids"] for t in (one, other))
        same = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        ids = tokenizer(texts[question], add_special_tokens=False)["input_ids"] + a[:same]
        with torch.inference_mode():
            top = model(torch.tensor([ids])).logits[0, -1].topk(2).values
        margins.append((top[0] - top[1]).item())
    return {"seconds": 0.0, "margins": margins}


# Arms of `bench train` and `bench generate`.


def train_ftlab(spec: dict) -> dict:
    from ftlab.train import sft

    start = clock()
    settings = dict(steps=spec["points"][-1], schedule="constant", seed=spec["seed"])
    sft(spec["model"], spec["rows_file"], batch_size=spec["batch_size"], learning_rate=spec["learning_rate"], **settings)
    return {"seconds": clock() - start}


def train_trl(spec: dict, **settings) -> dict:
    start = clock()
    made = trainer(spec, **settings)
    made.train()
    made.save_model(str(Path(spec["folder"], "model")))
    return {"seconds": clock() - start}


def train_trl_best(spec: dict) -> dict:
    best = best_training(spec)
    return train_trl(spec, best=best) | {"padding_free": best["padding_free"]}


def generate_one(spec: dict) -> dict:
    texts = spec["items"][:: max(1, len(spec["items"]) // spec["reference"][1])]
    return _generate({**spec, "items": texts}, lambda *a: generated(*a, 1))


def generate_batched(spec: dict) -> dict:
    return _generate(spec, lambda *a: generated(*a, FIXED_BATCH))


def generate_ftlab(spec: dict) -> dict:
    return _generate(spec, own)


def _generate(spec: dict, sampler) -> dict:
    from ftlab.models import model as reference

    parent = reference(spec["model"])
    model, tokenizer = parent.load(), parent.tokenizer()
    texts = rendered(spec, tokenizer)
    sampler(model, tokenizer, texts[:8], 4)
    start = clock()
    _, tokens = sampler(model, tokenizer, texts, spec["max_new_tokens"])
    seconds = clock() - start
    return {"seconds": seconds, "answers": len(texts), "tokens": tokens, "measured_share": len(texts) / spec["of"]}


def growth(spec: dict) -> dict:
    """One evaluation or curve of ftlab, and the most memory that its process ever held (RSS, MB)."""
    import resource

    start_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = ftlab(spec)
    most_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": found["seconds"], "answers": len(found["said"]), "memory_mb": most_mb, "before_mb": start_mb}


def judging(spec: dict) -> dict:
    from ftlab.judges import judge as judge_of

    judge = judge_of(spec["judge"])
    rows, said = spec["items"], spec["answers"]
    judge(rows[:8], said[:8])  # what a judge loads
    start = clock()
    judge(rows, said)
    return {"seconds": clock() - start, "answers": len(rows)}


def warm(spec: dict) -> None:
    """Imports what every arm uses, and takes one training step and one answer with a model of a few weights."""
    import torch
    import trl
    from datasets import Dataset
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _tokenizer(spec)
    small = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **small))
    cpu = not torch.cuda.is_available()
    args = trl.SFTConfig(output_dir=f"{spec['folder']}/warm", max_steps=1, save_strategy="no", report_to=[], use_cpu=cpu,
                         disable_tqdm=True, bf16=not cpu, dataset_kwargs={"skip_prepare_dataset": True})  # fmt: skip
    row = {"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}
    trl.SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list([row] * 8), processing_class=tokenizer).train()
    model.generate(torch.tensor([[5, 6]], device=model.device), max_new_tokens=2, do_sample=False)


def main(name: str, file: str, *more: str) -> None:
    spec = json.loads(Path(file).read_text())
    if name in ("answer", "judge"):  # processes that an arm starts: cold
        globals()[name](spec, *more)
        return
    os.environ["FTLAB_RUNS"] = str(Path(spec["folder"]) / "runs")
    from ftlab.models import quiet

    quiet()
    warm(spec)
    Path(spec["folder"], "found.json").write_text(json.dumps(globals()[name](spec)))


if __name__ == "__main__":
    main(*sys.argv[1:])
