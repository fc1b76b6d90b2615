"""How do ftlab's seconds and peak memory grow with prompts, runs in a folder and training rows?

Each arm (see `benchmarks._growing`) has a process of its own, whose peak memory is reported.
Answers come from a script: the numbers are ftlab's own, without any model.

python -m benchmarks.growth [--smoke] [--only ARM ...] [--sizes N ...] [--json FILE] [--out DIR]
python -m benchmarks.growth --draw FILE ... [--out DIR]   # what earlier calls wrote, as one figure
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import _growing, _report
from ftlab._core.threads import cores

GROUPS = {  # by what grows: its sizes, those of the short trial, and the arms in their order
    "prompts": (
        (1_000, 3_000, 10_000),
        (20, 60),
        ("evaluate", "write curve", "rates", "compare", "plot", "report", "selections"),
    ),
    "runs in one folder": (
        (500, 2_000),
        (4, 8),
        ("write runs", "list", "table", "show", "verify", "clean", "evaluate among"),
    ),
    "training rows": (
        (100_000, 1_000_000),
        (40, 80),
        ("load", "check", "mix", "split", "preview", "train one step"),
    ),
}
FIRST = ("write curve", "write runs")  # others read what they have left
AS_THEY_ARE = "One run each. Time by logarithms, peak memory of the whole process from zero."
RunArm = Callable[[str, int, Path], dict]


def run_arm(arm: str, n: int, folder: Path) -> dict:
    """Run an arm in a process of its own; return its seconds and peak memory, or why it failed."""
    command = [sys.executable, "-m", "benchmarks._growing", arm, str(n), str(folder)]
    env = os.environ | {"FTLAB_RUNS": str(folder / "runs")}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
        return {"failed": last[:300]}
    return json.loads((folder / "found.json").read_text())


def measure(
    *,
    smoke: bool = False,
    only: tuple[str, ...] = (),
    sizes: tuple[int, ...] = (),
    file: Path | None = None,
    out: Path,
    run: RunArm = run_arm,
) -> dict:
    """Measure every arm at every size; write table, JSON and figure.

    Args:
        smoke: Tiny sizes.
        only: Arms; by default all. What they read is written too.
        sizes: Instead of those of each group.
        file: For the numbers, hardware and versions.
        out: Folder for the figure and its .csv.
        run: What runs an arm.
    """
    found = []
    for group, (full, tiny, arms) in GROUPS.items():
        chosen = [arm for arm in arms if not only or arm in only]
        if chosen:
            chosen = [arm for arm in arms if arm in chosen or arm in FIRST]
        of_group = full
        if smoke:
            of_group = tiny
        for n in sizes or of_group:
            with tempfile.TemporaryDirectory(prefix="ftlab-bench-") as folder:
                for arm in chosen:
                    row = {"group": group, "arm": arm, "n": n} | run(arm, n, Path(folder))
                    print(json.dumps(row), flush=True)
                    found.append(row)
    return _written(found, file, out)


def _written(found: list[dict], file: Path | None, out: Path) -> dict:
    drawn = []
    for row in found:
        for what, name in (("CPU seconds", "cpu_seconds"), ("MB", "memory_mb")):
            if name in row:
                drawn.append({"panel": what, **row, "value": row[name]})
    columns = ("panel", "group", "arm", "n", "value")
    table = [{column: row[column] for column in columns} for row in drawn]
    return _report.write(
        "growth",
        table,
        {"growth": found},
        file=file,
        out=out,
        threads=cores(),
        kind=_report.GROWTH,
        legend=AS_THEY_ARE,
    )


def main() -> None:
    parser = _report.arguments("Time and memory of ftlab by prompts, runs and rows.")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to try the script")
    parser.add_argument("--only", nargs="*", choices=_growing.ARMS, default=(), help="these arms")
    parser.add_argument("--sizes", nargs="*", type=int, default=(), help="instead of the usual")
    parser.add_argument("--draw", nargs="*", type=Path, help="files of --json, measured in pieces")
    given = parser.parse_args()
    if given.draw:
        found = [row for file in given.draw for row in json.loads(file.read_text())["growth"]]
        _written(found, given.json, given.out)
        return
    measure(
        smoke=given.smoke,
        only=tuple(given.only),
        sizes=tuple(given.sizes),
        file=given.json,
        out=given.out,
    )


if __name__ == "__main__":
    main()
