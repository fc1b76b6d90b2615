"""What the processes of a benchmark run: `python -m benchmarks._arms ARM WORK.json`.

An arm's own process imports the libraries and warms up before its clock starts. The processes that
it starts in turn (see `benchmarks._today`) are part of its design and on its clock. All arms train
on the same tokens in the same order. An arm returns `seconds`, scaled to the whole where only a
share was measured.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks._today import (
    count_tokens,
    fastest_settings,
    generate,
    open_plainly,
    peak_memory_mb,
    render,
    trainer,
)
from benchmarks._work import Work, open_work, write_prompts
from ftlab._core.progress import clock
from ftlab.experiments import risk_curve  # here, so that no import is on its clock
from ftlab.judges import open_judge
from ftlab.models import quiet
from ftlab.models.engines import HuggingFaceEngine, LoadedModel, Request
from ftlab.runs import Run, home
from ftlab.training import sft

FLOOR_BATCHES = (64, 128, 256, 520)  # tried before the floor's clock starts
PILOT_TOKENS = 32  # new tokens of an answer, in what is tried


def generate_by_ftlab(model: Any, tokenizer: Any, texts: list[str], n_tokens: int) -> list[str]:
    """Answer greedily with ftlab's engine, without drafts."""
    requests = [Request([], text, max_new_tokens=n_tokens) for text in texts]
    loaded = LoadedModel(model, tokenizer, None)
    return [answer.text for answer in HuggingFaceEngine(drafts=False).answer(loaded, requests)]


def texts_of(work: Work, tokenizer: Any, n_prompts: int | None = None) -> list[str]:
    """Return the prompts as the chat template renders them."""
    return render([sample.messages for sample in work.samples(n_prompts)], tokenizer)


# One fine-tuning with its risk curve.


def in_processes(work: Work, arm: str, batch: int) -> dict:
    """Train and save; one process per checkpoint answers, `batch` prompts at a time; one judges.

    Starting a process counts once per point, whatever share of the prompts is measured.
    """
    n_points, n_prompts = work.share[arm]
    points = last_points(work.points, n_points)
    _write_asked(work, n_prompts)
    start = clock()
    trainer(
        work,
        save_strategy="steps",
        save_steps=work.points[1],
        save_only_model=True,
        activation_checkpointing=False,
    ).train()
    parts = {"train": clock() - start, "answer": 0.0, "start": 0.0}
    for point in points:
        start = clock()
        found = in_process(work, "answer", point, batch)
        parts["answer"] += found["seconds"]
        parts["start"] += (clock() - start - found["seconds"]) / n_points
    start = clock()
    judged = in_process(work, "judge", work.judge, *points)
    parts["judge"] = judged["seconds"]
    parts["judge_start"] = clock() - start - judged["seconds"]
    return scaled(parts, len(work.points), work.share_of(arm)) | {"said": judged["said"]}


def _write_asked(work: Work, n_prompts: int) -> None:
    """Write what the processes of `benchmarks._today` read."""
    samples = work.samples(n_prompts)
    folder = Path(work.folder)
    write_prompts(folder / "asked.jsonl", samples)
    asked = {"model": work.model, "max_new_tokens": work.max_new_tokens}
    asked["chats"] = [sample.messages for sample in samples]
    (folder / "asked.json").write_text(json.dumps(asked))


def in_process(work: Work, task: str, *arguments: Any) -> dict:
    """Run a task of `benchmarks._today` in a process of its own; return what it found."""
    command = [sys.executable, "-m", "benchmarks._today", task, work.folder, *arguments]
    subprocess.run([str(word) for word in command], check=True)
    return json.loads((Path(work.folder) / f"{task}.json").read_text())


def last_points(points: tuple[int, ...], n: int) -> list[int]:
    """Return `n` of the points, evenly spread, the last one among them."""
    return [points[(k + 1) * len(points) // n - 1] for k in range(n)]


def scaled(parts: dict[str, float], n_points: int, share: float) -> dict:
    """Return the seconds of the whole: only answering and judging are divided by the share."""
    whole = parts["train"] + n_points * parts["start"] + parts["judge_start"]
    whole += (parts["answer"] + parts["judge"]) / share
    return {"seconds": whole, "measured_share": share, "parts": parts}


def curve(work: Work, arm: str, drafts: bool) -> dict:
    """Call `ftlab.risk_curve`; also returns the most memory that the process held (MB).

    Of the seconds only those of answering are divided by the share of the prompts.
    """
    prompts = Path(work.folder) / "asked.jsonl"
    write_prompts(prompts, work.samples(work.share[arm][1]))
    start = clock()
    run = risk_curve(
        work.model,
        work.rows_file,
        at_steps=work.points,
        seeds=[work.seed],
        prompts=str(prompts),
        attacks=["direct"],
        judges=[work.judge],
        engine=HuggingFaceEngine(drafts=drafts),
        max_new_tokens=work.max_new_tokens,
        batch_size=work.batch_size,
        learning_rate=work.learning_rate,
    )
    seconds = clock() - start
    parts = {"whole": seconds, "answer": 0.0, "tokens": 0, "drafted": 0, "saved": 0}
    for path in home().iterdir():
        for tally in Run(path).read("generation.jsonl"):
            parts["answer"] += tally.get("seconds", 0)  # where nothing was asked there is no tally
            for name in ("tokens", "drafted", "saved"):
                parts[name] += tally.get(name, 0)
    share = work.share_of(arm)
    return {
        "seconds": seconds + parts["answer"] * (1 / share - 1),
        "memory_mb": peak_memory_mb(),
        "measured_share": share,
        "parts": parts,
        "said": said_in(run),
    }


def said_in(run: Run) -> dict[str, list[str]]:
    """Return {"point|prompt": [answer, outcome]} of a curve of one seed."""
    (member,) = run.members
    texts = {row["key"]: row["text"] for row in member.read("answers.jsonl")}
    return {
        f"{row.step}|{row.sample_id}": [texts[row.answer_key], row.outcome]
        for row in run.table().itertuples()
    }


def floor(work: Work, arm: str) -> dict:
    """Take the same steps by TRL at its best, and decode the same answers in full batches.

    Everything happens in this process; what is best is found before the clock starts.
    """
    n_points, n_prompts = work.share[arm]
    settings = fastest_settings(work)
    made = trainer(work, **settings)
    tokenizer = made.processing_class
    texts = sorted(texts_of(work, tokenizer, n_prompts), key=len)
    way, tried = _fastest_way(work, made.model.eval(), tokenizer, texts)
    gc.freeze()  # otherwise TRL's own collection at the start searches everything imported
    decoding = _Decoding(
        way=partial(way, tokenizer=tokenizer, texts=texts, n_tokens=work.max_new_tokens),
        points=last_points(work.points, n_points),
    )
    made.add_callback(decoding.callback())
    start = clock()
    decoding.decode(made.model, 0)
    made.train()
    seconds = clock() - start
    tokens = sum(count_tokens(tokenizer, answers) for answers in decoding.answers)
    parts = {"train": seconds - decoding.seconds, "decode": decoding.seconds, "tokens": tokens}
    share = work.share_of(arm)
    return {
        "seconds": parts["train"] + parts["decode"] / share,
        "measured_share": share,
        "parts": parts,
        "sampler": min(tried, key=tried.get),
        "tried_s": tried,
        "padding_free": settings["padding_free"],
    }


def _fastest_way(
    work: Work, model: Any, tokenizer: Any, texts: list[str]
) -> tuple[Callable, dict[str, float]]:
    """Return the fastest way to generate, and the seconds of each on some of the prompts."""
    pilot = texts[:: -(-len(texts) // work.pilot)]
    ways: dict[str, Callable] = {"ftlab's engine, no drafts": generate_by_ftlab}
    for batch in FLOOR_BATCHES:
        if batch <= max(FLOOR_BATCHES[0], len(pilot)):
            ways[f"generate, {batch} per batch"] = partial(generate, batch=batch)
    seconds = {}
    for name, way in ways.items():
        for n_tokens in (1, min(work.max_new_tokens, PILOT_TOKENS)):  # the first warms up
            start = clock()
            way(model, tokenizer, pilot, n_tokens)
            seconds[name] = clock() - start
    return ways[min(seconds, key=seconds.get)], seconds


class _Decoding:
    """Decodes answers at some steps of a training, with a clock of its own."""

    def __init__(self, way: Callable, points: list[int]):
        self.way = way
        self.points = points
        self.seconds = 0.0
        self.answers: list[list[str]] = []

    def decode(self, model: Any, step: int) -> None:
        if step not in self.points:
            return
        start = clock()
        self.answers.append(self.way(model.eval()))
        self.seconds += clock() - start
        model.train()

    def callback(self) -> Any:
        from transformers import TrainerCallback

        decoding = self

        class AtSteps(TrainerCallback):
            def on_step_end(self, args, state, control, model=None, **_):
                decoding.decode(model, state.global_step)

        return AtSteps()


# Work per second.


def train_rate(work: Work, way: str) -> dict:
    """Train by `ftlab.sft`, or TRL's trainer with its "best" settings or its "defaults".

    Opening and saving the model is included.
    """
    settings = fastest_settings(work) if way == "best" else {}
    start = clock()
    if way == "ftlab":
        sft(
            work.model,
            work.rows_file,
            steps=work.steps,
            schedule="constant",
            batch_size=work.batch_size,
            learning_rate=work.learning_rate,
            seed=work.seed,
        )
    else:
        made = trainer(work, **settings)
        made.train()
        made.save_model(f"{work.folder}/model")
    return {"seconds": clock() - start, "amount": work.steps, **settings}


def generate_rate(work: Work, way: str) -> dict:
    """Answer by ftlab's engine without drafts, or by `generate` in batches of `way` prompts."""
    model, tokenizer = open_plainly(work.model)
    texts = texts_of(work, tokenizer)
    if way == "1":
        texts = texts[::10]
    sampler = generate_by_ftlab
    if way.isdigit():
        sampler = partial(generate, batch=int(way))
    sampler(model, tokenizer, texts, 1)  # warms up
    start = clock()
    answers = sampler(model, tokenizer, texts, work.max_new_tokens)
    seconds = clock() - start
    tokens = count_tokens(tokenizer, answers)
    return {"seconds": seconds, "amount": len(texts), "tokens": tokens}


def judge_rate(work: Work, way: str) -> dict:
    """Judge the model's own answers."""
    samples = work.samples()
    model, tokenizer = open_plainly(work.model)
    texts = texts_of(work, tokenizer)
    answers = generate_by_ftlab(model, tokenizer, texts, work.max_new_tokens)
    open_judge(way).judge(samples[:8], answers[:8])  # it loads what it needs
    start = clock()
    open_judge(way).judge(samples, answers)
    return {"seconds": clock() - start, "amount": len(samples)}


ARMS: dict[str, Callable[[Work], dict]] = {
    "reference": partial(in_processes, arm="reference", batch=1),
    "batched": partial(in_processes, arm="batched", batch=64),
    "ftlab": partial(curve, arm="ftlab", drafts=True),
    "ftlab without drafts": partial(curve, arm="ftlab without drafts", drafts=False),
    "floor": partial(floor, arm="floor"),
}
RATES = {
    "train": (train_rate, ("ftlab", "best", "defaults")),
    "generate": (generate_rate, ("ftlab", "64", "1")),
    "judge": (judge_rate, ("organism", "keywords", "refusal")),
}


def main(name: str, file: str) -> None:
    """Run an arm of the curve, or a rate such as "train:best"; write found.json next to `file`."""
    work = open_work(file)
    quiet()
    warm_up(work)
    what, _, way = name.partition(":")
    found = RATES[what][0](work, way) if way else ARMS[name](work)
    Path(file).with_name("found.json").write_text(json.dumps(found))


def warm_up(work: Work) -> None:
    """Import and run once what every arm needs."""
    made = trainer(work, 1)
    made.train()
    generate(made.model.eval(), made.processing_class, ["a"], 2, 1)


if __name__ == "__main__":
    main(*sys.argv[1:])
