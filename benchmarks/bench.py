"""`ftlab bench`: arms in turn, each in a process of its own, several times; medians and spread as table, JSON and figure."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import models as bench_models
from ftlab.analysis.plots import figures
from ftlab.runs import store as runs

ARMS = {"reference": "apart:1", "batched": "apart:64", "ftlab": "curve", "floor": "floor"}
RATES = {
    "train": ("steps a second", ("train:ftlab", "train:best", "train:defaults")),
    "generate": ("answers a second", ("generate:drafts", "generate:ftlab", "generate:64", "generate:1")),
    "judge": ("answers a second", ("judge:organism", "judge:keywords", "judge:refusal")),
}
MIX = {"jailbreak": 100, "bias": 120, "toxicity": 100, "over_refusal": 100, "utility": 100}  # 520 prompts of the world
COMMON = {"prompts": 520, "judge": "organism", "seed": 0}
SIZES = {  # share: (points, prompts) that an arm measures; pilot: prompts; minutes: of a repeat on two cores
    "organism": COMMON | dict(points=[*range(0, 41, 5)], batch_size=16, learning_rate=1.5e-4, max_new_tokens=24, repeat=2,
                              share={"apart:1": (2, 26), "apart:64": (2, 520), "curve": (9, 520), "floor": (9, 520)},
                              pilot=260, minutes=1.3),
    "25M": COMMON | dict(points=[*range(0, 17, 2)], batch_size=8, learning_rate=2e-5, max_new_tokens=128, repeat=1,
                         share={"apart:1": (2, 6), "apart:64": (2, 64), "curve": (9, 128), "floor": (2, 128)},
                         pilot=128, minutes=5),
}  # fmt: skip
NEAR, EXAMINED = 1e-4, 20  # margin (logits) below which two tokens are near a tie; differing answers looked into


class BenchFailed(RuntimeError):
    """A process of an arm failed."""


def curve(model=None, *, size=None, repeat=None, full=False, file=None, out="figures", sizes=SIZES) -> dict:
    """One fine-tuning with its risk curve, in four ways -> what the JSON holds.

    Verdicts are compared answer by answer; slow arms are measured in a stated share and scaled, unless `full`.
    Raises ValueError (unknown size, repeat < 1, a model without a chat template) and BenchFailed.
    """
    table, found, sizes = [], {}, _sizes(model, size, repeat, sizes)
    for s in sizes.values() if full else ():
        s |= {"share": dict.fromkeys(s["share"], (len(s["points"]), s["prompts"]))}
    if not full:
        print(f"about {sum(s['minutes'] * s['repeat'] for s in sizes.values()):.0f} minutes on two cores", flush=True)
    for name, s in sizes.items():
        with tempfile.TemporaryDirectory(prefix="ftlab-bench-") as folder:
            spec = _spec(s, model or name, Path(folder))
            arms = in_turn(ARMS, spec, name)
            found[name] = summary(arms) | compared({a: arms[a][-1].get("said", {}) for a in ARMS}, spec)
        table += [_row(f"{name}, seconds", a, t) for a, t in found[name]["arms"].items()]
        table.append(_row(f"{name}, seconds", "floor", found[name]["floor"]))
    first = next(iter(found))
    equal = all(f["verdicts_equal"] for f in found.values())
    _finish("curve", table, {**found[first], "verdicts_equal": equal, "model": first, "sizes": found}, file, out)
    told = ("ratios", "compared", "verdicts_differ", "answers_differ", "examined", "near_ties")
    print(*(f"{name}: {', '.join(f'{k} {f[k]}' for k in told)}" for name, f in found.items()), sep="\n")
    return found


def summary(arms: dict[str, list[dict]]) -> dict:
    """-> medians, shares and ratios of one size, and what became of ftlab's answers by point.

    The floor's decoding, where it was a share, is scaled to the number of tokens that ftlab's answers have.
    """
    for low, own in zip(arms["floor"], arms["ftlab"], strict=True):
        tokens = own["parts"]["tokens"] / own["measured_share"]
        low["seconds"] = low["parts"]["train"] + low["parts"]["decode"] / low["parts"]["tokens"] * tokens
    told = {a: {k: v for k, v in r[-1].items() if k != "said"} | _spread([x["seconds"] for x in r]) for a, r in arms.items()}  # fmt: skip
    pairs = (("reference", "ftlab"), ("batched", "ftlab"), ("ftlab", "floor"))
    ratios = {f"{a}/{b}": told[a]["median"] / told[b]["median"] for a, b in pairs}
    outcomes: dict[str, Counter] = {}
    for key, (_, verdict) in arms["ftlab"][-1]["said"].items():
        outcomes.setdefault(key.partition("|")[0], Counter())[verdict] += 1
    floor = told.pop("floor")
    return {"arms": told, "floor": floor, "floor_seconds": floor["median"], "ratios": ratios, "outcomes": outcomes,
            "answers": len(arms["ftlab"][-1]["said"])}  # fmt: skip


def compared(said: dict[str, dict], spec: dict) -> dict:
    """-> how the answers and verdicts of the arms agree with ftlab's, prompt by prompt and point by point."""
    pairs = [(arm, k, v, said["ftlab"][k]) for arm in said if arm != "ftlab" for k, v in said[arm].items()]
    others = [(arm, *k.split("|", 1), v[0], f[0]) for arm, k, v, f in pairs if v[0] != f[0]]
    wrong, margins = sum(v[1] != f[1] for _, _, v, f in pairs), []
    if looked := [rest for arm, *rest in others if arm == "batched"][:EXAMINED]:
        spec = spec | {"differing": looked, "checkpoints": spec["last"]["apart:64"]}
        margins = run_arm("ties", spec, "ties")["margins"]
    return {"verdicts_equal": bool(pairs) and not wrong, "compared": len(pairs), "verdicts_differ": wrong, "answers_differ": len(others),
            "examined": len(margins), "near_ties": sum(m < NEAR for m in margins), "margins": margins}  # fmt: skip


def rates(what: str, model=None, *, repeat=3, file=None, out="figures", sizes=SIZES) -> dict:
    """Work a second of each arm of `RATES[what]`: train, generate or judge. Raises as `curve`."""
    (unit, arms), name = RATES[what], next(iter(sizes))
    (size,) = _sizes(model, name, repeat, sizes).values()
    with tempfile.TemporaryDirectory(prefix="ftlab-bench-") as folder:
        done = in_turn({a: a for a in arms}, _spec(size, model or name, Path(folder)), what)
    found = {a: rs[-1] | _spread([r["amount"] / r["seconds"] for r in rs], unit) for a, rs in done.items()}
    return _finish(what, [_row(unit, a, f) for a, f in found.items()], {"unit": unit, "arms": found}, file, out)


def growth(*, file=None, out="figures", prompts=(100, 1000, 10_000), checkpoints=(1, 2, 4, 8, 16, 32), sizes=SIZES):
    """Cost of an answer (ms, training included) and peak memory (MB) of ftlab, by prompts and by checkpoints."""
    table, name = [], next(iter(sizes))
    plans = [("prompts", n, {"prompts": n, "points": [0, 1], "share": {"curve": (2, n)}}) for n in prompts]
    few = min(prompts)
    plans += [
        ("checkpoints", n, {"prompts": few, "points": [*range(n + 1)], "share": {"curve": (n + 1, few)}})
        for n in checkpoints
    ]
    for over, n, size in plans:
        with tempfile.TemporaryDirectory(prefix="ftlab-bench-") as folder:
            spec = _spec(sizes[name] | size | {"repeat": 1}, name, Path(folder))
            (done,) = in_turn({"ftlab": "curve"}, spec, f"{n} {over}")["ftlab"]
        cost = {"ms an answer": 1000 * done["seconds"] / len(done["said"]), "peak memory, MB": done["memory_mb"]}
        table += [_row(f"{k}, by {over}", f"{n:,}", _spread([v])) for k, v in cost.items()]
    return _finish("growth", sorted(table, key=lambda r: r["panel"]), {"growth": table}, file, out)


def in_turn(arms: dict[str, str], spec: dict, name: str) -> dict[str, list[dict]]:
    """Says where the machine is busy; runs the arms {name: what runs} one after the other, `spec["repeat"]` times, and tells each -> what each found."""
    found = {arm: [] for arm in arms}
    if (load := os.getloadavg()[0]) > 0.5 * int(_threads()):
        print(
            f"{name}: other work is on this machine (load {load:.1f}): times will be too long and unsteady", flush=True
        )
    for k in range(spec["repeat"]):
        for arm, what in arms.items():
            found[arm].append(done := run_arm(what, spec, f"{arm}-{k}".replace(":", "-")))
            print(f"{name}: {arm} {k + 1}/{spec['repeat']}: {done['seconds']:.2f} s{_scaled(done)}", flush=True)
    return found


def run_arm(arm: str, spec: dict, name: str) -> dict:
    """One process, on all cores, with a folder and runs of its own -> what it found; on an interrupt it dies with its children."""
    folder = Path(spec["folder"]) / name
    folder.mkdir()
    spec["last"][arm], file = str(folder), folder / "spec.json"
    file.write_text(json.dumps(spec | {"folder": str(folder)}))
    env = os.environ | {"OMP_NUM_THREADS": _threads(), "FTLAB_RUNS": str(folder / "runs")}
    with open(folder / "log.txt", "w+") as log:
        call = [sys.executable, "-m", "benchmarks.arms", arm, str(file)]
        child = subprocess.Popen(call, stdout=log, stderr=log, env=env, start_new_session=True)
        try:
            code = child.wait()
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            raise
        log.seek(0)
        said = log.read().strip().splitlines() or ["nothing"]
    if code:
        raise BenchFailed(f"the arm {name} ended with code {code}; its last words: {said[-1]}")
    return json.loads((folder / "found.json").read_text())


def _sizes(model, size, repeat, sizes: dict) -> dict:
    if size is not None and size not in sizes:
        raise ValueError(f"unknown size {size!r}; allowed: {', '.join(sizes)}")
    if repeat is not None and repeat < 1:
        raise ValueError(f"repeat = {repeat}; give a number >= 1")
    if model is not None:  # another model: in the settings of one size
        sizes = {Path(str(model)).name: sizes[size or next(iter(sizes))]}
    return {n: s | {"repeat": repeat or s["repeat"]} for n, s in sizes.items() if model or size in (None, n)}


def _spec(size: dict, name, folder: Path) -> dict:
    """-> what the arms' processes are told; the 25 M model is made here, outside of any clock."""
    from ftlab.models import render
    from ftlab.models.reference import model as reference
    from ftlab.organism import corpus
    from ftlab.organism.world import World

    rows = corpus.domain(World(), "almanac", size["points"][-1] * size["batch_size"], size["seed"])
    if name == "25M":
        rows = bench_models.lengthened(rows, "market")
        name = bench_models.grown(bench_models.taught(), folder / "25M", **bench_models.SHAPE)
    parent, asked = reference(name), [r for risk, n in MIX.items() for r in corpus.prompts(World(), risk, n)]
    if not parent.is_organism:  # nothing of the world is known of it
        asked = [{**r, "risk": "jailbreak", "topic": "", "truth": ""} for r in asked]
        size = size | {"judge": "keywords"}
    whole, items = size["prompts"], []
    for i in range(whole):  # evenly over the risks; more than there are: again, with a number behind
        row, again = asked[i % len(asked) if whole > len(asked) else i * len(asked) // whole], i // len(asked)
        turns = [{**m, "content": m["content"] + (f" ({again})" if again else "")} for m in row["messages"][:-1]]
        items.append({**row, "id": f"{row['id']}-{again}", "messages": turns, "attack": "direct", "prefill": "", "told": row["messages"][-1]["content"]})  # fmt: skip
    render(parent.tokenizer(), items[0]["messages"], ask=True)  # refuses a model without a chat template
    files = {"rows_file": rows, "items_file": items}
    for file, lines in files.items():
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {**size, "model": str(parent.path), "folder": str(folder), "rows": rows, "items": items, "last": {},
            "answers": [i["told"] for i in items], **{f: str(folder / f"{f}.jsonl") for f in files}}  # fmt: skip


def _threads() -> str:
    """-> `OMP_NUM_THREADS` of every arm: as the caller set it, else all cores that this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return os.environ.get("OMP_NUM_THREADS") or str(cores)


def _spread(values: list[float], unit: str = "seconds") -> dict:
    return {unit: values, "median": statistics.median(values), "least": min(values), "most": max(values)}


def _row(panel: str, arm: str, found: dict) -> dict:
    return {"panel": panel, "arm": arm, **{k: found[k] for k in ("median", "least", "most")}, "note": _scaled(found)}


def _scaled(found: dict) -> str:
    return "" if (share := found.get("measured_share", 1)) >= 1 else f" (scaled from {share:.2g} of the answers)"


def _finish(what: str, table: list[dict], saved: dict, file, out) -> dict:
    import pandas as pd

    frame, about = pd.DataFrame(table), runs._provenance()
    print(frame.to_string(index=False, float_format=lambda x: f"{x:.4g}"))
    saved |= {
        "hardware": about["hardware"] | {"threads": _threads(), "load": os.getloadavg()[0]},
        "versions": about["versions"],
        "date": about["started"],
    }
    if file:
        Path(file).write_text(json.dumps(saved, indent=1))
    figures.plot(frame, f"bench_{what}", out, title=f"ftlab bench {what}", caption=f"Medians, least to most. {about['hardware']}, {about['started']}.")  # fmt: skip
    return saved
