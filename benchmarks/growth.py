"""How do ftlab's cost per answer and peak memory grow with prompts and with checkpoints?

python -m benchmarks.growth [--json FILE] [--out DIR]
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks import _report
from benchmarks._running import prepared, run_in_turn, threads
from benchmarks._work import SIZES, Size

PROMPTS = (100, 1000, 10_000)  # at 2 points
CHECKPOINTS = (1, 2, 4, 8, 16, 32)  # after the parent, with 100 prompts


def measure(
    *,
    size: Size = SIZES["organism"],
    prompts: tuple[int, ...] = PROMPTS,
    checkpoints: tuple[int, ...] = CHECKPOINTS,
    file: Path | None = None,
    out: Path,
) -> dict:
    """Measure both; training is included in the cost. Raises as `curve.measure`."""
    plans = [("prompts", n, n, 1) for n in prompts]
    plans += [("checkpoints", n, min(prompts), n) for n in checkpoints]
    rows = []
    for along, n, n_prompts, n_checkpoints in plans:
        points = tuple(range(n_checkpoints + 1))
        share = {"ftlab": (len(points), n_prompts)}
        this = replace(size, points=points, n_prompts=n_prompts, share=share, repeat=1)
        with prepared(this, "organism") as work:
            (done,) = run_in_turn(("ftlab",), work, f"{n} {along}")["ftlab"]
        costs = {
            "ms per answer": 1000 * done["seconds"] / len(done["said"]),
            "peak memory, MB": done["memory_mb"],
        }
        for cost, value in costs.items():
            rows.append(_report.row(f"{cost}, by {along}", f"{n:,}", _report.spread([value])))
    rows.sort(key=lambda row: row["panel"])
    numbers = {"growth": rows}
    return _report.write("growth", rows, numbers, file=file, out=out, threads=threads())


if __name__ == "__main__":
    given = _report.arguments("Time and memory of ftlab by prompts and checkpoints.").parse_args()
    measure(file=given.json, out=given.out)
