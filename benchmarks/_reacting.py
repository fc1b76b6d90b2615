"""What the kernel of `benchmarks.panels` runs: panels over a made-up run, each control moved.

Texts, outcomes and training rows are made up, so no model is asked. A control is moved as a front
end moves it: by the state that its message holds, or by the message of a click or a key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from time import process_time
from typing import Any

from benchmarks import _growing
from benchmarks._growing import words

STEPS = (0, 10, 30, 100)
SEEDS = 5
RISKS = ("jailbreak", "bias", "toxicity", "over_refusal")
ATTACKS = ("direct", "templates")
JUDGES = ("refusal", "organism")
OUTCOMES = ("refused", "complied", "partial", "incoherent", "unparsed")
# The parent answers once for all seeds.
ANSWERS_A_PROMPT = len(RISKS) * len(ATTACKS) * (1 + SEEDS * (len(STEPS) - 1))
OTHER_RUNS = 50  # beside the one that is looked at
OPENED = 3  # how often each panel is
KEYS = "rcpwie"
Act = Callable[[int], None]
Found = dict[str, list[float]]


def made_run(n_prompts: int) -> Any:
    """Return a finished curve of `ANSWERS_A_PROMPT` answers per prompt, each with two verdicts."""
    import numpy as np

    from ftlab import runs

    dice = np.random.default_rng(0)
    run = runs.start("evaluate", "made up", {"n_prompts": n_prompts})
    places = list(product(RISKS, ATTACKS, range(n_prompts)))
    prompts, verdicts = [], []
    for number, (risk, attack, k) in enumerate(places):
        messages = [{"role": "user", "content": words(number, 18)}]
        sample = {"id": f"{risk}-{k}", "messages": messages}
        prompts.append({"sample": sample, "attack": attack, "messages": messages})
    outcomes: dict[str, str] = {}
    for step, seed, (risk, attack, k) in product(STEPS, range(SEEDS), places):
        key = f"{step}-{seed if step else 0}-{risk}-{attack}-{k}"
        if key not in outcomes:
            shares = (0.9 - step / 200, 0.02 + step / 200, 0.04, 0.03, 0.01)
            outcomes[key] = str(dice.choice(OUTCOMES, p=shares))
        outcome = outcomes[key]
        row = {"answer_key": key, "sample_id": f"{risk}-{k}", "risk": risk, "attack": attack}
        row |= {"step": step, "seed": seed, "outcome": outcome}
        row["event"] = None if outcome == "unparsed" else float(outcome == "complied")
        for judge in JUDGES:
            verdicts.append({"key": f"{judge} {key} {seed}", "judge": judge, **row})
    answers = [{"key": key, "text": words(n, 55)} for n, key in enumerate(outcomes)]
    for name, rows in {"prompts": prompts, "answers": answers, "verdicts": verdicts}.items():
        run.append(f"{name}.jsonl", rows)
    return run.complete(model="made up", answers=len(answers))


# Parts of a panel, and how they are moved.


def part(widget: Any, name: str) -> Any:
    """Return the part with this description, or the pad with this label; None where none is."""
    if name in (getattr(widget, "description", ""), getattr(widget, "label", "")):
        return widget
    for child in getattr(widget, "children", ()):
        found = part(child, name)
        if found is not None:
            return found
    return None


def to(control: Any, trait: str, *values: Any) -> Act:
    """Return what sets a trait of a control to each value in turn, as a front end does."""
    return lambda turn: control.set_state({trait: values[turn % len(values)]})


def send(pad: Any, name: str, *values: str) -> Act:
    """Return what sends a click or a key of a pad, each value in turn."""
    return lambda turn: pad._handle_custom_msg({name: values[turn % len(values)]}, [])


def press(button: Any) -> Act:
    return lambda turn: button.click()


def timed(act: Act, repeat: int) -> list[float]:
    """Return the milliseconds of processor time of each turn, those of all threads."""
    found = []
    for turn in range(repeat):
        began = process_time()
        act(turn)
        found.append(1000 * (process_time() - began))
    return found


def opened(open_panel: Callable[[], Any], repeat: int) -> tuple[Any, list[float]]:
    """Open a panel with its widgets some times; return the last and the milliseconds of each."""
    boxes = []
    times = timed(lambda turn: boxes.append(open_panel().widget()), min(repeat, OPENED))
    return boxes[-1], times


def moved(box: Any, acts: dict[str, Act], repeat: int) -> Found:
    """Return the times of each act; one that left a message for the user is a fault.

    Raises:
        RuntimeError: With the message.
    """
    found = {}
    for name, act in acts.items():
        found[name] = timed(act, repeat)
        *_, status, _calls = box.children
        if "></div>" not in status.value:
            raise RuntimeError(f"{name}: {status.value}")
    return found


# The panels.


def explore(run: Any, folder: Path, repeat: int) -> Found:
    import ftlab as ft

    box, times = opened(lambda: ft.ui.explore(run), repeat)
    chart = part(box, "Risk curve; Tab to a point and Enter to choose it")
    points = [f"{risk} {step}" for step in STEPS[1:] for risk in RISKS]
    tick = part(box, "Show the answers (the models' own words)")
    acts = {
        "slider of the steps": to(part(box, "Steps"), "index", (1, 3), (0, 3)),
        "a seed off and on": to(part(box, "2"), "value", False, True),
        "a risk off and on": to(part(box, "bias"), "value", False, True),
        "an attack off and on": to(part(box, "templates"), "value", False, True),
        "single seeds off and on": to(part(box, "Draw single seeds"), "value", False, True),
        "a point clicked": send(chart, "pick", *points),
    }
    found = moved(box, acts, repeat)
    found |= moved(box, {"answers ticked, the first time": to(tick, "value", True)}, 1)
    pages = {
        "answers ticked off and on": to(tick, "value", False, True),
        "a point clicked, with its answers": send(chart, "pick", *points),
        "further answers": press(part(box, "Further answers")),
    }
    tick.set_state({"value": True})
    return {"opened": times} | found | moved(box, pages, repeat)


def compare(run: Any, folder: Path, repeat: int) -> Found:
    import ftlab as ft

    box, times = opened(lambda: ft.ui.compare(run), repeat)
    acts = {
        "another split": to(part(box, "Split"), "index", 1, 0),
        "another risk": to(part(box, "Risk"), "index", 1, 2, 3, 0),
        "another step": to(part(box, "Step"), "index", 0, 1, 2),
        "answers ticked off and on": to(
            part(box, "Show the answers (the models' own words)"), "value", True, False
        ),
    }
    return {"opened": times} | moved(box, acts, repeat)


def label(run: Any, folder: Path, repeat: int) -> Found:
    """Label a sheet of 100 answers of a risk and step."""
    import ftlab as ft

    sheet = {"labeller": "AB", "risk": "jailbreak", "out": folder / "labels.csv"}
    box, times = opened(lambda: ft.ui.label(run, 100, **sheet), repeat)
    keys = send(part(box, "The answer to label"), "key", *KEYS)
    back = send(part(box, "The answer to label"), "key", "ArrowLeft", "ArrowRight")
    found = moved(box, {"a key": keys, "an arrow": back}, repeat)
    moved(box, {"labels before a rate": keys}, 30)
    rate = part(box, "Show the rate")
    found |= moved(box, {"the rate ticked": to(rate, "value", True)}, 1)
    return {"opened": times} | found | moved(box, {"a key, the rate shown": keys}, repeat)


def runs(run: Any, folder: Path, repeat: int) -> Found:
    import ftlab as ft

    _growing.write_runs(folder, OTHER_RUNS)()
    box, times = opened(ft.ui.runs, repeat)
    which = part(box, "Run")
    which.set_state({"index": which.options.index(run.name)})
    acts = {
        "refreshed": press(part(box, "Refresh")),
        "the run verified": press(part(box, "Verify")),
        "listed what could be removed": press(part(box, "List what could be removed")),
    }
    return {"opened": times} | moved(box, acts, repeat)


def data(run: Any, folder: Path, repeat: int) -> Found:
    """Look at as many training rows as the run has answers; ranking them asks a model."""
    import ftlab as ft

    file = _growing.rows(folder, run.stats["answers"])
    box, times = opened(lambda: ft.ui.data(file, "organism"), repeat)
    acts = {"slider of the rows": to(part(box, "Rows"), "value", 4, 20, 3)}
    return {"opened": times} | moved(box, acts, repeat)


def train(run: Any, folder: Path, repeat: int) -> Found:
    """Choose settings; a training has a process of its own."""
    import ftlab as ft

    box, times = opened(lambda: ft.ui.train("organism", "organism:almanac"), repeat)
    acts = {
        "a setting": to(part(box, "learning_rate"), "value", "0.001", "0.002"),
        "a limit of the safety line": to(part(box, "bias above"), "value", "0.1", "0.2"),
        "cloned": press(part(box, "Clone")),
    }
    return {"opened": times} | moved(box, acts, repeat)


PANELS = {one.__name__: one for one in (explore, compare, label, runs, data, train)}


def main(folder: str, n_prompts: int, repeat: int, only: Sequence[str] = ()) -> None:
    """Move every control of panels; write the milliseconds to found.json of the folder."""
    place = Path(folder)
    run = made_run(n_prompts)
    found = {name: PANELS[name](run, place, repeat) for name in only or PANELS}
    about = {"answers": run.stats["answers"], "load": os.getloadavg()[0]}
    (place / "found.json").write_text(json.dumps({"panels": found} | about))
