"""What the processes of `ftlab bench` run: `python -m benchmarks.arms ARM[:ARGUMENT] spec.json [POINT]`.

An arm's own process imports the libraries and warms up before its clock starts; the processes that it starts in turn
(`answer`, `verdicts`) are part of its design and on its clock. All train on the same tokens in the same order. A point is a
number of optimiser steps, 0 the parent. An arm gives `seconds`, scaled to the whole where only a share was measured.
"""

from __future__ import annotations

import gc
import json
import random
import resource
import subprocess
import sys
from pathlib import Path

from ftlab.runs.store import clock

FLOOR_BATCHES = (64, 128, 256, 520)  # of transformers' own generate: tried before the floor's clock starts
PILOT_TOKENS = 32  # new tokens of an answer, of what is tried
PILOT_STEPS = 3  # optimiser steps of what is tried


def trainer(spec: dict, steps: int | None = None, **settings):
    """-> TRL's trainer on ftlab's encoding of the rows: its defaults but for `settings`, and fp32 numbers on a CPU."""
    import torch
    import trl
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, set_seed

    from ftlab.data import encode_rows
    from ftlab.data import Data

    disable_progress_bars()
    set_seed(spec["seed"])
    tokenizer, cuda = AutoTokenizer.from_pretrained(spec["model"]), torch.cuda.is_available()
    rows = encode_rows(Data("bench", tuple(spec["rows"])), tokenizer, max_length=2048)
    args = trl.SFTConfig(
        output_dir=spec["folder"], seed=spec["seed"], data_seed=spec["seed"], max_steps=steps or spec["points"][-1],
        per_device_train_batch_size=spec["batch_size"], learning_rate=spec["learning_rate"], max_length=None,
        lr_scheduler_type="constant_with_warmup", use_cpu=not cuda, bf16=cuda, dataloader_pin_memory=cuda,
        dataset_kwargs={"skip_prepare_dataset": True}, disable_tqdm=True, **{"save_strategy": "no", **settings},
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=torch.float32)
    made = trl.SFTTrainer(model=model, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    made.remove_callback(PrinterCallback)
    return made


def best_settings(spec: dict) -> dict:
    """-> TRL's fastest settings for these rows: no checkpointing of activations; padding-free or not, as measured now."""
    seconds = {}
    for free in (False, True):
        how = dict(activation_checkpointing=False, logging_strategy="no", padding_free=free)
        made, start = trainer(spec, PILOT_STEPS, **how), clock()
        made.train()
        seconds[free] = clock() - start
    return how | {"padding_free": min(seconds, key=seconds.get)}


def generated(model, tokenizer, texts: list[str], most: int, batch: int) -> list[str]:
    """-> answers by transformers' greedy `generate`, `batch` at a time in the order given, padded on the left."""
    import torch

    tokenizer.padding_side, said = "left", []
    for at in range(0, len(texts), batch):
        given = tokenizer(texts[at : at + batch], add_special_tokens=False, padding=True, return_tensors="pt")
        given = {k: given[k].to(model.device) for k in ("input_ids", "attention_mask")}
        with torch.inference_mode():
            new = model.generate(**given, max_new_tokens=most, do_sample=False, use_cache=True)
        said += [tokenizer.decode(ids, skip_special_tokens=True) for ids in new[:, given["input_ids"].shape[1] :]]
    return said


def own(model, tokenizer, texts: list[str], most: int, **more) -> list[str]:
    from ftlab.models.engines.huggingface import answers

    return answers(model, tokenizer, texts, max_new_tokens=most, **more)


def tokens(tokenizer, said: list[str]) -> int:
    """-> tokens of answers, each with its end."""
    return sum(len(ids) + 1 for ids in tokenizer(said, add_special_tokens=False)["input_ids"])


def opened(spec: dict, folder=None):
    """-> (model, tokenizer, texts of the prompts), the plain way."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(spec["model"], padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder or spec["model"], dtype=torch.float32).eval()
    turns = [item["messages"] for item in spec["items"]]
    texts = [tokenizer.apply_chat_template(t, tokenize=False, add_generation_prompt=True) for t in turns]
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, texts


def apart(spec: dict, batch: str) -> dict:
    """Trains and saves; a fresh process answers for each checkpoint, `batch` prompts at a time; another one judges.

    `spec["share"]`: (points, prompts) measured. A start-up counts once a point, whatever the share.
    """
    folder, (points, prompts), whole = Path(spec["folder"]), spec["share"][f"apart:{batch}"], len(spec["items"])
    some = {"items": asked(spec, prompts), "batch": int(batch), "points": spread(spec["points"], points)}
    (folder / "some.json").write_text(json.dumps({**spec, **some}))
    every, call = spec["points"][1], [sys.executable, "-m", "benchmarks.arms"]
    start = clock()
    trainer(spec, save_strategy="steps", save_steps=every, save_only_model=True, activation_checkpointing=False).train()
    parts, starts, answering = {"train": clock() - start}, [], []
    for point in some["points"]:
        start = clock()
        subprocess.run([*call, "answer", folder / "some.json", str(point)], check=True)
        answering.append(json.loads((folder / f"answers-{point}.json").read_text())["seconds"])
        starts.append(clock() - start - answering[-1])
    start = clock()
    subprocess.run([*call, "verdicts", folder / "some.json"], check=True)
    judged = json.loads((folder / "verdicts.json").read_text())
    parts |= {"start": sum(starts) / points, "answer": sum(answering), "judge": judged["seconds"]}
    parts["judge_start"] = clock() - start - judged["seconds"]
    share = points * prompts / (len(spec["points"]) * whole)
    return scaled(parts, len(spec["points"]), share) | {"said": judged["said"]}


def asked(spec: dict, n: int) -> list[dict]:
    """-> `n` of the prompts, drawn once for all arms: fewer are among more."""
    items = spec["items"]
    return [items[i] for i in sorted(random.Random("bench").sample(range(len(items)), len(items))[:n])]


def spread(points: list[int], n: int) -> list[int]:
    """-> `n` of the points, evenly, the last one among them."""
    return [points[(k + 1) * len(points) // n - 1] for k in range(n)]


def scaled(parts: dict, points: int, share: float) -> dict:
    """-> the whole from its parts: training as it is, a start-up a point, answering and judging divided by the share."""
    whole = parts["train"] + points * parts["start"] + parts["judge_start"] + (parts["answer"] + parts["judge"]) / share
    return {"seconds": whole, "measured_share": share, "parts": parts}


def answer(spec: dict, point: str) -> None:
    folder = Path(spec["folder"])
    given = opened(spec, folder / f"checkpoint-{point}" if int(point) else None)
    start = clock()
    said = generated(*given, spec["max_new_tokens"], spec["batch"])
    (folder / f"answers-{point}.json").write_text(json.dumps({"seconds": clock() - start, "answers": said}))


def verdicts(spec: dict) -> None:
    from ftlab.evals.scoring import ruled
    from ftlab.evals.scoring import verdicts as judged

    folder, items, out, seconds = Path(spec["folder"]), spec["items"], {}, 0.0
    for point in spec["points"]:
        said = json.loads((folder / f"answers-{point}.json").read_text())["answers"]
        start, records = clock(), [{"answer": a} for a in said]
        found = judged(spec["judge"], items, records, ruled(items, records))
        seconds += clock() - start
        out |= {f"{point}|{i['id']}": [a, j.verdict] for i, a, j in zip(items, said, found, strict=True)}
    (folder / "verdicts.json").write_text(json.dumps({"seconds": seconds, "said": out}))


def curve(spec: dict, _) -> dict:
    """`ftlab.risk_curve` at every point; and the most memory that the process held (MB, RSS). Of the seconds those of answering are
    divided by the share of the prompts."""
    from ftlab.evals.evaluation import risk_curve
    from ftlab.runs.store import Run, home

    prompts = Path(spec["folder"]) / "asked.jsonl"
    prompts.write_text("".join(json.dumps(i) + "\n" for i in asked(spec, spec["share"]["curve"][1])))
    start, how = clock(), {k: spec[k] for k in ("max_new_tokens", "batch_size", "learning_rate")}
    run = risk_curve(spec["model"], spec["rows_file"], at_steps=spec["points"], seeds=[spec["seed"]], prompts=str(prompts),
                     attacks=["direct"], judges=[spec["judge"]], **how)  # fmt: skip
    took, memory = clock() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    member = Run(run.path.parent / run.config["identity"]["members"][0])
    parts = [line for path in home().iterdir() for line in Run(path).read("generation.jsonl")]
    tally = {k: sum(p[k] for p in parts) for k in ("seconds", "tokens", "drafted", "saved")}
    told = {r["key"]: r["answer"] for r in member.read("answers.jsonl")}
    rows, share = member.read("verdicts.jsonl"), spec["share"]["curve"][1] / len(spec["items"])
    return {"seconds": took + tally["seconds"] * (1 / share - 1), "memory_mb": memory, "measured_share": share,
            "parts": {"answer": tally.pop("seconds"), **tally, "whole": took},
            "said": {f"{r['step']}|{r['prompt_id']}": [told[r["answer_key"]], r["verdict"]] for r in rows}}  # fmt: skip


def floor(spec: dict, _) -> dict:
    """The same steps by TRL at its best and the same tokens in full batches, in this process; the best is found before."""
    from transformers import TrainerCallback

    n_points, prompts = spec["share"]["floor"]
    best, (_, tokenizer, texts) = best_settings(spec), opened(spec | {"items": asked(spec, prompts)})
    texts.sort(key=len)
    made, points, most, seconds, decoded = trainer(spec, **best), spec["points"], spec["max_new_tokens"], {}, []
    pilot, chosen = texts[:: -(-len(texts) // spec["pilot"])], spread(points, n_points)
    sizes = [b for b in FLOOR_BATCHES if b <= max(FLOOR_BATCHES[0], len(pilot))]
    ways = {f"generate, {b} a batch": lambda *a, b=b: generated(*a, b) for b in sizes} | {
        "ftlab's sampler, no drafts": own
    }
    for name, way in ways.items():
        for most_now in (1, min(most, PILOT_TOKENS)):  # the first warms up
            start = clock()
            way(made.model.eval(), tokenizer, pilot, most_now)
            seconds[name] = clock() - start
    fastest = min(seconds, key=seconds.get)
    gc.freeze()  # else TRL's own collection at the start searches everything imported

    class Decode(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            if state.global_step in chosen:
                start = clock()
                decoded.append((ways[fastest](model.eval(), tokenizer, texts, most), clock() - start))
                model.train()

    made.add_callback(decode := Decode())
    start = clock()
    decode.on_step_end(None, made.state, None, made.model)  # the parent, where it is chosen
    made.train()
    parts = {"train": clock() - start, "decode": sum(took for _, took in decoded)}
    parts["train"] -= parts["decode"]
    parts["tokens"] = sum(tokens(tokenizer, said) for said, _ in decoded)
    share = n_points * prompts / (len(points) * len(spec["items"]))
    return {"seconds": parts["train"] + parts["decode"] / share, "parts": parts, "sampler": fastest,
            "measured_share": share, "tried_s": seconds, "padding_free": best["padding_free"]}  # fmt: skip


def ties(spec: dict, _) -> dict:
    """-> of each of `spec["differing"]` (point, prompt's id, two answers) the margin of the two most probable tokens (logits)
    where the answers part, by a forward pass of that prompt alone through the checkpoint that `batched` saved."""
    import torch

    margins = []
    for point, name, *answers in spec["differing"]:
        model, tokenizer, texts = opened(spec, Path(spec["checkpoints"], f"checkpoint-{point}") if int(point) else None)
        text = next(t for t, item in zip(texts, spec["items"], strict=True) if item["id"] == name)
        start, a, b = tokenizer([text, *answers], add_special_tokens=False)["input_ids"]
        same = next((k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        with torch.inference_mode():
            top = model(torch.tensor([start + a[:same]], device=model.device)).logits[0, -1].topk(2).values
        margins.append((top[0] - top[1]).item())
    return {"seconds": 0.0, "margins": margins}


def train(spec: dict, way: str) -> dict:
    """ftlab: `ftlab.sft`; best, defaults: TRL's trainer. Opening and saving the model included."""
    from ftlab.training import sft

    settings, steps = best_settings(spec) if way == "best" else {}, spec["points"][-1]
    start, how = clock(), {k: spec[k] for k in ("batch_size", "learning_rate", "seed")}
    if way == "ftlab":
        sft(spec["model"], spec["rows_file"], steps=steps, schedule="constant", **how)
    else:
        made = trainer(spec, **settings)
        made.train()
        made.save_model(f"{spec['folder']}/model")
    return {"seconds": clock() - start, "amount": steps, **settings}


def generate(spec: dict, way: str) -> dict:
    """`way`: ftlab; drafts (ftlab's sampler with the answers of the model some training steps later); or a batch size."""
    (model, tokenizer, texts), most, more = opened(spec), spec["max_new_tokens"], {}
    if way == "1":
        texts = texts[::10]
    if way == "drafts":
        (made := trainer(spec, PILOT_STEPS)).train()
        more = {"drafts": [[a] for a in own(made.model, tokenizer, texts, most)]}
    sampler = (lambda *a: generated(*a, int(way))) if way.isdigit() else (lambda *a: own(*a, **more))
    for n in (1, most):  # the first warms up
        start = clock()
        said = sampler(model, tokenizer, texts, n)
        seconds = clock() - start
    return {"seconds": seconds, "amount": len(texts), "tokens": tokens(tokenizer, said)}


def judge(spec: dict, name: str) -> dict:
    from ftlab.judges.base import judge as judge_of

    judge_of(name)(spec["items"][:8], spec["answers"][:8])  # it loads what it needs
    start = clock()
    judge_of(name)(spec["items"], spec["answers"])
    return {"seconds": clock() - start, "amount": len(spec["items"])}


def main(arm: str, file: str, *point: str) -> None:
    spec, (name, _, argument) = json.loads(Path(file).read_text()), arm.partition(":")
    work = globals()[name]
    if name in ("answer", "verdicts"):  # a process that an arm starts: cold
        return work(spec, *point)
    from ftlab.models.reference import quiet

    quiet()
    (made := trainer(spec, 1)).train()
    generated(made.model.eval(), made.processing_class, ["a"], 2, 1)
    Path(spec["folder"], "found.json").write_text(json.dumps(work(spec, argument)))


if __name__ == "__main__":
    main(*sys.argv[1:])
