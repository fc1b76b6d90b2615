"""`ftlab bench`: arms in turn, each in a process of its own, several times; medians and spread as table, JSON and figure."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from ftlab import bench_models, figures, runs
from ftlab.models import model as reference
from ftlab.organism import corpus
from ftlab.organism.world import World

ARMS = ("reference", "batched", "ftlab", "floor")
MIX = {"jailbreak": 100, "bias": 120, "toxicity": 100, "over_refusal": 100, "utility": 100}  # 520 prompts of the world
NEAR, EXAMINED = 1e-4, 20  # margin (logits) below which two tokens are a near-tie; differing answers looked into


class BenchFailed(RuntimeError):
    """A process of an arm failed."""


@dataclass(frozen=True)
class Size:
    """What is measured, and which share of the slow arms: (points, questions of each)."""

    points: tuple[int, ...]  # optimiser steps, evenly spaced from 0, the parent
    batch_size: int
    learning_rate: float
    max_new_tokens: int
    repeat: int
    reference: tuple[int, int]
    batched: tuple[int, int]
    floor: int  # points
    minutes: float  # of one repeat on two cores
    prompts: int = 520
    judge: str = "organism"
    seed: int = 0


SIZES = {
    "organism": Size(tuple(range(0, 41, 5)), 16, 1.5e-4, 24, 3, (2, 26), (2, 520), 9, 1.0),
    "25M": Size(tuple(range(0, 17, 2)), 8, 5e-5, 128, 1, (1, 12), (1, 520), 1, 4.5),
}


def curve(model=None, *, size=None, repeat=None, full=False, file=None, out="figures", sizes=None) -> dict:
    """Measures one fine-tuning with its risk curve four ways -> what the JSON holds; `sizes`: {name: Size}, else `SIZES`.

    The published code's way, batched, ftlab, and the floor (training and tokens alone). Slow arms are measured in a share
    that the table states and scaled, with `full` in full. Verdicts are compared answer by answer.
    Raises ValueError (unknown size, a model without template, repeat < 1) and BenchFailed.
    """
    sizes = _asked(model, size, repeat, sizes or SIZES)
    if full:
        sizes = {n: replace(s, reference=(len(s.points), s.prompts), batched=(len(s.points), s.prompts), floor=len(s.points))
                 for n, s in sizes.items()}  # fmt: skip
    else:
        minutes = sum(s.minutes * s.repeat for s in sizes.values())
        print(f"about {minutes:.0f} minutes on two cores; sizes: {', '.join(sizes)}", flush=True)
    found, table = {}, []
    for name, s in sizes.items():
        with tempfile.TemporaryDirectory(prefix="ftlab-bench-") as folder:
            spec = _spec(s, model or name, Path(folder))
            arms = in_turn(ARMS, spec, s.repeat, name)
            found[name] = summary(arms, s) | compared({a: arms[a][-1]["said"] for a in ARMS[:3]}, spec)
        for arm in ARMS:
            of = found[name]["floor" if arm == "floor" else "arms"]
            table.append(_row(f"{name}, seconds", arm, of if arm == "floor" else of[arm]))
    first = next(iter(found))
    saved = {**found[first], "model": first, "sizes": found}
    _finish("bench_curve", table, saved, file, out, "One fine-tuning with its risk curve")
    for name, f in found.items():
        print(f"{name}: {', '.join(f'{k} {v:.2f}' for k, v in f['ratios'].items())}; verdicts "
              f"{'equal' if f['verdicts_equal'] else 'DIFFER'} ({f['verdicts_differ']} of {f['compared']} differ, of the answers "
              f"{f['answers_differ']}; near-ties {f['near_ties']} of {f['examined']} looked into)")  # fmt: skip
    return saved


def summary(arms: dict[str, list[dict]], size: Size) -> dict:
    """-> the figures of one size: seconds, medians, shares, ratios, and what became of ftlab's answers."""
    told = {arm: _spread([r["seconds"] for r in done]) | {k: v for k, v in done[-1].items() if k not in ("seconds", "said")}
            for arm, done in arms.items()}  # fmt: skip
    s = {arm: t["median"] for arm, t in told.items()}
    pairs = (("reference", "ftlab"), ("batched", "ftlab"), ("ftlab", "floor"))
    outcomes: dict[str, Counter] = {}
    for key, (_, verdict) in arms["ftlab"][-1]["said"].items():
        outcomes.setdefault(key.partition("|")[0], Counter())[verdict] += 1
    floor = told.pop("floor")
    return {"arms": told, "floor_seconds": floor["median"], "floor": floor,
            "ratios": {f"{a}/{b}": s[a] / s[b] for a, b in pairs}, "answers": len(arms["ftlab"][-1]["said"]),
            "outcomes": outcomes, "checkpoints": len(size.points) - 1, "prompts": size.prompts}  # fmt: skip


def compared(said: dict[str, dict], spec: dict) -> dict:
    """-> how the arms' answers and verdicts agree with ftlab's, question by question and point by point."""
    pairs = [(arm, k, v, said["ftlab"][k]) for arm in said if arm != "ftlab" for k, v in said[arm].items()]
    others = [(arm, k, v[0], f[0]) for arm, k, v, f in pairs if v[0] != f[0]]
    wrong, margins = sum(v[1] != f[1] for _, _, v, f in pairs), []
    if looked := [[int(k.split("|")[0]), k.partition("|")[2], a, b] for arm, k, a, b in others if arm == "batched"]:
        spec = spec | {"differing": looked[:EXAMINED], "checkpoints": spec["last"]["batched"]}
        margins = run_arm("ties", spec, "ties")["margins"]
    return {"verdicts_equal": wrong == 0, "compared": len(pairs), "verdicts_differ": wrong, "answers_differ": len(others),
            "examined": len(margins), "near_ties": sum(m < NEAR for m in margins), "margins": margins}  # fmt: skip


def train(model=None, *, repeat=3, file=None, out="figures", sizes=None) -> dict:
    """Optimiser steps a second of `ftlab.sft`, and of TRL's trainer at its best setting and at its defaults."""
    arms = ("train_ftlab", "train_trl_best", "train_trl")
    return _rates("train", arms, model, repeat, file, out, sizes, lambda s, r: s.points[-1] / r["seconds"], "steps a second")


def generate(model=None, *, repeat=3, file=None, out="figures", sizes=None) -> dict:
    """Answers a second of ftlab's sampler, of transformers' one by one, and in fixed batches."""
    arms = ("generate_one", "generate_batched", "generate_ftlab")
    return _rates("generate", arms, model, repeat, file, out, sizes, lambda _, r: r["answers"] / r["seconds"], "answers a second")


def _rates(what, arms, model, repeat, file, out, sizes, rate, unit: str) -> dict:
    found, table = {}, []
    for name, s in _asked(model, None if model or sizes else "organism", repeat, sizes or SIZES).items():
        with tempfile.TemporaryDirectory(prefix="ftlab-bench-") as folder:
            done = in_turn(arms, _spec(s, model or name, Path(folder)), s.repeat, name)
        found[name] = {arm: _spread([rate(s, r) for r in rs]) | {"runs": rs} for arm, rs in done.items()}
        table += [_row(f"{name}, {unit}", arm.removeprefix(f"{what}_"), f) for arm, f in found[name].items()]
    saved = {"unit": unit, "sizes": found}
    _finish(f"bench_{what}", table, saved, file, out, f"{unit[0].upper()}{unit[1:]}")
    return saved


def judge(*, judges=("organism", "keywords", "refusal"), repeat=3, file=None, out="figures", prompts=520) -> dict:
    """Answers a second of each judge, on the world's own prompts and right answers."""
    found, s = {}, replace(SIZES["organism"], prompts=prompts)
    _asked(None, None, repeat, {"": s})
    with tempfile.TemporaryDirectory(prefix="ftlab-bench-") as folder:
        for name in judges:
            done = in_turn(("judging",), _spec(replace(s, judge=name), "organism", Path(folder)), repeat, name)["judging"]
            found[name] = _spread([r["answers"] / r["seconds"] for r in done])
    _finish("bench_judge", [_row("answers a second", n, f) for n, f in found.items()], found, file, out, "Judges")
    return found


def growth(*, file=None, out="figures", prompts=(100, 1000, 10_000), checkpoints=(1, 2, 4, 8, 16, 32)) -> dict:
    """Cost of an answer (ms) and most memory held (MB, RSS) by the number of prompts, and of checkpoints of 100 prompts."""
    rows, s = [], SIZES["organism"]
    plans = [("prompts", n, replace(s, prompts=n, points=(0, 1))) for n in prompts]
    plans += [("checkpoints", n, replace(s, prompts=min(prompts), points=tuple(range(n + 1)))) for n in checkpoints]
    for over, amount, size in plans:
        with tempfile.TemporaryDirectory(prefix="ftlab-bench-") as folder:
            done = in_turn(("growth",), _spec(size, "organism", Path(folder)), 1, f"{amount} {over}")["growth"][0]
        cost = {"cost_ms": 1000 * done["seconds"] / done["answers"], "memory_mb": done["memory_mb"]}
        rows.append({"over": over, "amount": amount, **cost, "answers": done["answers"]})
    saved = {"growth": rows}
    _finish("bench_growth", rows, saved, file, out, "Cost of an answer, training included")
    return saved


def in_turn(arms, spec: dict, repeat: int, name: str) -> dict[str, list[dict]]:
    """Runs the arms one after the other, `repeat` times, and tells each -> what each found."""
    found: dict[str, list[dict]] = {arm: [] for arm in arms}
    for k in range(repeat):
        for arm in arms:
            found[arm].append(done := run_arm(arm, spec, f"{arm}-{k}"))
            share = done.get("measured_share", 1.0)
            print(f"{name}: {arm} {k + 1}/{repeat}: {done['seconds']:.2f} s{_scaled(share)}", flush=True)
    return found


def run_arm(arm: str, spec: dict, name: str) -> dict:
    """One process of an arm, on all cores, in an empty folder -> what it found. Interrupted, it dies with all it started."""
    folder = Path(spec["folder"]) / name
    folder.mkdir()
    spec["last"][arm] = str(folder)
    spec = spec | {"folder": str(folder), "file": str(folder / "spec.json")}
    (folder / "spec.json").write_text(json.dumps(spec))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with open(folder / "log.txt", "w+") as log:
        call = [sys.executable, "-m", "ftlab.bench_arms", arm, spec["file"]]
        threads = {"OMP_NUM_THREADS": str(cores)}
        child = subprocess.Popen(call, stdout=log, stderr=log, env=os.environ | threads, start_new_session=True)
        try:
            code = child.wait()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        log.seek(0)
        said = log.read().strip().splitlines() or ["nothing was said"]
    if code:
        raise BenchFailed(f"the arm {arm} ended with code {code}: {said[-1]}")
    return json.loads((folder / "found.json").read_text())


def _asked(model, size, repeat, sizes: dict[str, Size]) -> dict[str, Size]:
    if size is not None and size not in sizes:
        raise ValueError(f"unknown size {size!r}; allowed: {', '.join(sizes)}")
    if repeat is not None and repeat < 1:
        raise ValueError(f"repeat = {repeat}; give a number >= 1")
    if model is not None:
        found = reference(model)
        own = {} if found.is_organism else {"judge": "keywords", "max_new_tokens": 64}
        sizes = {found.name: replace(sizes[size or next(iter(sizes))], repeat=1, **own)}
    elif size:
        sizes = {size: sizes[size]}
    return {n: replace(s, repeat=repeat or s.repeat) for n, s in sizes.items()}


def _spec(size: Size, name, folder: Path) -> dict:
    """-> what the arms' processes are told; the 25 M model is made here, outside of any clock."""
    from ftlab.chat import render

    steps, world = size.points[-1], World()
    rows = corpus.domain(world, "almanac", steps * size.batch_size, size.seed)
    if name == "25M":
        name = bench_models.grown(bench_models.taught(120), folder / "25M", **bench_models.SHAPE)
        rows = bench_models.long_domain(steps * size.batch_size, seed=size.seed)
    parent = reference(name)
    asked = [r for risk, n in MIX.items() for r in corpus.prompts(world, risk, n)]
    asked = (random.Random(0).sample(asked, size.prompts) if size.prompts <= len(asked) else  # else each several times, numbered
             [{**r, "id": f"{r['id']}-{k}", "messages": _numbered(r["messages"], k)} for k in range(-(-size.prompts // len(asked))) for r in asked][: size.prompts])  # fmt: skip
    if size.judge != "organism":
        asked = [{"id": r["id"], "risk": "jailbreak", "category": "", "messages": r["messages"]} for r in asked]
    items = [{**r, "messages": r["messages"][:-1], "attack": "direct", "prefill": ""} for r in asked]
    render(parent.tokenizer(), items[0]["messages"], ask=True)  # has it a chat template?
    for file, lines in (("rows.jsonl", rows), ("items.jsonl", items)):
        (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = {k: getattr(size, k) for k in ("points", "batch_size", "learning_rate", "max_new_tokens", "reference", "batched", "floor", "judge", "seed")}  # fmt: skip
    return {**fields, "model": str(parent.path), "folder": str(folder), "rows": rows, "items": items, "last": {},
            "answers": [r["messages"][-1]["content"] for r in asked],
            "rows_file": str(folder / "rows.jsonl"), "items_file": str(folder / "items.jsonl")}  # fmt: skip


def _numbered(turns: list[dict], k: int) -> list[dict]:
    *before, ask, told = turns
    return [*before, {**ask, "content": f"{ask['content']} ({k})"}, told]


def _spread(values: list[float]) -> dict:
    return {"seconds": values, "median": statistics.median(values), "low": min(values), "high": max(values)}


def _row(panel: str, arm: str, found: dict) -> dict:
    numbers = {"median": found["median"], "least": found["low"], "most": found["high"]}
    return {"panel": panel, "arm": arm, **numbers, "measured_share": found.get("measured_share", 1.0)}


def _scaled(share: float) -> str:
    return "" if share >= 1 else f" (scaled from {share:.1%} of its answers)"


def _finish(name: str, table: list[dict], saved: dict, file, out, title: str) -> None:
    """Prints, writes and draws what was measured."""
    import pandas as pd

    frame, about = pd.DataFrame(table), runs._provenance()
    print(frame.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    saved |= {"hardware": about["hardware"], "versions": about["versions"], "date": about["started"]}
    if file:
        Path(file).write_text(json.dumps(saved, indent=1))
    where = f"{about['hardware']['cores']} cores, {about['hardware']['machine']}, {about['started'][:10]}"
    shares = "; ".join(f"{r['panel'].partition(',')[0]} {r['arm']}{_scaled(r['measured_share'])}" for r in table if r.get("measured_share", 1) < 1)  # fmt: skip
    figures.plot(frame, name, out, title=title, caption=". ".join(filter(None, [title, f"Bars: medians; lines: least to most. {where}", shares])))  # fmt: skip
