"""Nothing is lost, asked twice or changed by a kill at any moment (`killing.py` kills).

The moments are random with fixed seeds. FTLAB_SOAK=50 kills that many cells, each up to four times.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
from pathlib import Path

import pytest
from killing import CELLS, MEASURED, Zygote

from ftlab import runs

KILLS = int(os.environ.get("FTLAB_SOAK", "0"))
TRAININGS = [cell for cell in CELLS if cell not in MEASURED]
AMID = {
    "evaluate": ["after counting", "after answers"],
    "curve": ["after answers", ""],
}  # the first kill, in turn
KNOWN: dict[str, tuple] = {}
RECORDS = ("train.jsonl", "valid.jsonl", "prompts.jsonl", "answers.jsonl", "verdicts.jsonl")


def undisturbed(zygote: Zygote, cell: str, folder: Path) -> tuple:
    """-> what the cell makes when nobody kills it, its seconds, its events, and those of a call that goes on."""
    if cell not in KNOWN:
        root = folder / f"{cell} undisturbed"
        whole, made = zygote.call(cell, root, 0), state(root)
        middle = "half answers.jsonl" if cell == "evaluate" else "half train.jsonl"
        zygote.call(cell, folder / f"{cell} resumed", 0, {"at": middle, "n": 3})
        again = zygote.call(cell, folder / f"{cell} resumed", 1)
        KNOWN[cell] = (
            made,
            whole["seconds"],
            whole["events"],
            whole["events"] | again["events"],
        )
    return KNOWN[cell]


def state(root: Path) -> dict:
    """-> all that a cell made and that is the same each time: weights, losses, answers, verdicts, figures."""
    out = {}
    for path in sorted((root / "runs").glob("[!.]*")):
        run = runs.Run(path)
        assert run.finished, f"{path} is not finished"
        files = {
            p.relative_to(path).as_posix(): p
            for p in path.rglob("*")
            if p.is_file() and p.name[0] != "."
        }
        out[path.name, "files"] = sorted(files)
        out |= {
            (path.name, name): p.read_bytes()
            for name, p in files.items()
            if name.startswith("model/")
        }
        for name in RECORDS:
            with contextlib.redirect_stderr(io.StringIO()):
                records = run.read(name)
            keys = [r["key"] for r in records if "key" in r]
            assert len(keys) == len(set(keys)), f"{path.name}/{name}: one key twice"
            out[path.name, name] = sorted(
                records, key=lambda r: (r.get("step", 0), r.get("key", ""), json.dumps(r))
            )
        out[path.name, "stats"] = run.stats
    return out


def had(root: Path) -> dict[str, int]:
    """-> how many different answers and judgements there are."""
    quiet = contextlib.redirect_stderr(io.StringIO())  # of torn lines
    files = {
        "asked": (root / "runs").glob("*/answers.jsonl"),
        "judged": (root / "runs/.judged").glob("*.jsonl"),
    }
    with quiet:
        return {
            k: len({r["key"] for p in v for r in runs.Run(p.parent).read(p.name)})
            for k, v in files.items()
        }


def asked(root: Path) -> dict[str, list[int]]:
    """-> how many answers and judgements each attempt asked for."""
    out = {}
    for kind in ("asked", "judged"):
        tries = [json.loads(line)[0] for line in (root / kind).read_text().splitlines()]
        out[kind] = [tries.count(n) for n in range(max(tries, default=0) + 5)]
    return out


def drawn(rng: random.Random, seconds: float, events: dict[str, int], event: str = "") -> dict:
    """-> a moment: any time, or the n-th time that something happens (something like `event`)."""
    if not event and rng.random() < 0.4:
        return {"after": rng.uniform(0, seconds)}
    at = rng.choice(sorted(e for e in events if event in e))
    return {"at": at, "n": rng.randint(1, events[at])}


def disturbed(zygote: Zygote, cell: str, root: Path, rng: random.Random, event: str) -> list[str]:
    """Kills a cell up to four times (first at `event`, if any), lets it through, and holds that nothing is lost and nothing
    differs -> where it was killed."""
    expected, seconds, first, events = undisturbed(zygote, cell, root.parent)
    killed, before = [], []
    for attempt in range(99):
        through = len(killed) == 4 or (killed and rng.random() < 0.5)
        kill = None if through else drawn(rng, seconds, *((events,) if killed else (first, event)))
        by = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGKILL, signal.SIGINT])
        before.append(had(root))
        ended = zygote.call(cell, root, attempt, kill, by)["ended"]
        if ended:
            moment = (
                f"after {kill['after']:.2f} s"
                if "after" in kill
                else f"at {kill['at']} no. {kill['n']}"
            )
            killed.append(f"{by.name} {moment}")
        elif killed:
            break
        else:  # it was faster than the clock: a new one
            root, before = root.with_name(root.name + "+"), []
            return disturbed(zygote, cell, root, rng, event)
    found, last, counts = state(root), had(root), asked(root)
    differ = sorted(
        {str(k) for k in found.keys() | expected.keys() if found.get(k) != expected.get(k)}
    )
    assert not differ, f"{cell}, {killed}: not the same: {differ}"
    for (
        kind,
        numbers,
    ) in (
        counts.items()
    ):  # what was there was never asked again; of the rest the last call asked all
        missing = [last[kind] - b[kind] for b in before]
        assert all(n <= m for n, m in zip(numbers, missing, strict=False)), (
            f"{cell}, {killed}: {kind} {numbers} of {missing}"
        )
        assert numbers[attempt] == missing[attempt], (
            f"{cell}, {killed}: {kind} {numbers} of {missing}"
        )
    return killed


def survive(zygote, folder: Path, cells: list[str], kills: int) -> None:
    """Kills `kills` cells, in turn, and fails with all that was lost."""
    failed, dead = [], 0
    for k in range(kills):
        cell = cells[k % len(cells)]
        moments = AMID.get(cell, [""])
        event = moments[k // len(cells) % len(moments)]
        try:
            rng = random.Random(f"kill {k}")
            killed = disturbed(zygote, cell, folder / f"kill {k}", rng, event)
        except AssertionError as e:
            failed.append(str(e))
            print(f"{k + 1:3} {cell}: LOST: {e}", flush=True)
        else:
            dead += len(killed)
            print(f"{k + 1:3} {cell}: {', then '.join(killed)}", flush=True)
    print(f"{kills - len(failed)} of {kills} survived ({dead} kills)")
    assert not failed, "\n\n".join(failed)


@pytest.mark.slow
def test_random_kills_of_every_training(zygote, tmp_path):
    survive(zygote, tmp_path, TRAININGS, max(KILLS, 8))


@pytest.mark.slow
def test_random_kills_of_curves_and_evaluations(zygote, tmp_path):
    survive(zygote, tmp_path, MEASURED, max(KILLS, 6))
