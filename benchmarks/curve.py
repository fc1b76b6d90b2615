"""How long do one fine-tuning and its risk curve take, compared with what people do today?

reference   a process per checkpoint answers one prompt at a time, then a judge's process
batched     the same in batches of 64
ftlab       `ftlab.risk_curve`; and the same without drafts from earlier answers
floor       the same steps by TRL at its best, the same answers in full batches, and nothing else;
            shown as "tuned TRL", for it is no lower bound: drafts save tokens

Verdicts are compared answer by answer. Slow arms are measured in a stated share and scaled.

python -m benchmarks.curve [--size organism|25M|135M] [--model MODEL] [--repeat N] [--full]
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks._running import prepared, run_in_turn, threads
from benchmarks._work import SIZES, Size

ARMS = ("reference", "batched", "ftlab", "ftlab without drafts", "floor")
TUNED = "tuned TRL"  # how the arm "floor" is shown
RATIOS = (
    ("reference", "ftlab"),
    ("batched", "ftlab"),
    ("ftlab without drafts", "ftlab"),
    ("ftlab", "floor"),
)
Said = dict[str, list[str]]  # {"point|prompt": [answer, outcome]}
PRINTED = ("ratios", "compared", "verdicts_differ", "answers_differ")


def measure(models: dict[Any, Size], *, file: Path | None = None, out: Path) -> dict:
    """Measure every model in its size; write table, JSON and figure.

    Returns:
        What the JSON holds: the first model's numbers, and under `sizes` those of all.

    Raises:
        UsageError: `no_chat_template`, and those of `ftlab.model`.
        BenchmarkFailed: The process of an arm failed.
    """
    rows = []
    sizes = {}
    for model, size in models.items():
        name = Path(str(model)).name
        with prepared(size, model) as work:
            found = run_in_turn(ARMS, work, name)
        said = {arm: runs[-1]["said"] for arm, runs in found.items() if arm != "floor"}
        sizes[name] = summary(found) | compare(said)
        panel = f"{name}, seconds"
        for arm, numbers in sizes[name]["arms"].items():
            rows.append(_report.row(panel, arm, numbers))
        rows.append(_report.row(panel, TUNED, sizes[name]["floor"]))
    first = next(iter(sizes))
    equal = all(found["verdicts_equal"] for found in sizes.values())
    numbers = {**sizes[first], "verdicts_equal": equal, "model": first, "sizes": sizes}
    saved = _report.write("curve", rows, numbers, file=file, out=out, threads=threads())
    for name, found in sizes.items():
        print(f"{name}: " + ", ".join(f"{key} {found[key]}" for key in PRINTED))
    return saved


def summary(found: dict[str, list[dict]]) -> dict:
    """Return medians, shares and ratios of one model, and ftlab's outcomes by point.

    Args:
        found: What every arm found each time.
    """
    arms = {}
    for arm, runs in found.items():
        seconds = [run["seconds"] for run in runs]
        if arm == "floor":
            seconds = [floor_seconds(*pair) for pair in zip(runs, found["ftlab"], strict=True)]
        told = {key: value for key, value in runs[-1].items() if key != "said"}
        arms[arm] = told | _report.spread(seconds)
    ratios = {f"{a}/{b}": arms[a]["median"] / arms[b]["median"] for a, b in RATIOS}
    said = found["ftlab"][-1]["said"]
    outcomes: dict[str, Counter] = {}
    for key, (_, outcome) in said.items():
        point = key.partition("|")[0]
        outcomes.setdefault(point, Counter())[outcome] += 1
    floor = arms.pop("floor")
    return {
        "arms": arms,
        "floor": floor,
        "floor_seconds": floor["median"],
        "ratios": ratios,
        "outcomes": outcomes,
        "answers": len(said),
    }


def floor_seconds(floor: dict, ftlab: dict) -> float:
    """Return the floor's seconds, its decoding scaled to the tokens of ftlab's answers."""
    tokens = ftlab["parts"]["tokens"] / ftlab["measured_share"]
    parts = floor["parts"]
    return parts["train"] + parts["decode"] / parts["tokens"] * tokens


def compare(said: dict[str, Said]) -> dict:
    """Return how answers and verdicts agree with ftlab's, by prompt and point."""
    compared = verdicts_differ = answers_differ = 0
    for arm, answers in said.items():
        if arm == "ftlab":
            continue
        for key, (text, outcome) in answers.items():
            own_text, own_outcome = said["ftlab"][key]
            compared += 1
            answers_differ += text != own_text
            verdicts_differ += outcome != own_outcome
    return {
        "verdicts_equal": compared > 0 and verdicts_differ == 0,
        "compared": compared,
        "verdicts_differ": verdicts_differ,
        "answers_differ": answers_differ,
    }


def main() -> None:
    parser = _report.arguments("Time one fine-tuning with its risk curve.")
    parser.add_argument(
        "--size", choices=SIZES, help="default: organism and 25M; 135M needs `make real`"
    )
    parser.add_argument("--model", help="another model, in the settings of one size")
    parser.add_argument("--repeat", type=_report.at_least_one, help="times each arm runs")
    parser.add_argument(
        "--full", action="store_true", help="measure slow arms in full (hours), not a share"
    )
    given = parser.parse_args()
    models: dict[Any, Size] = {name: SIZES[name] for name in ("organism", "25M")}
    if given.size:
        models = {given.size: SIZES[given.size]}
    if given.model:
        models = {given.model: next(iter(models.values()))}
    for model, size in models.items():
        if given.full:
            size = size.in_full()
        models[model] = replace(size, repeat=given.repeat or size.repeat)
    measure(models, file=given.json, out=given.out)


if __name__ == "__main__":
    main()
