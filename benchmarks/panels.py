"""How much processor time does a kernel take for each move in a panel, on a run of 10,240 answers?

The panels run in a kernel of their own, as in a notebook; the time is that of the whole kernel, and
not of the browser. A reaction may take 100 ms. Opening a panel is no reaction.

python -m benchmarks.panels [--only PANEL ...] [--prompts N] [--repeat N] [--json FILE] [--out DIR]
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks import _reacting, _report
from benchmarks._running import BenchmarkFailed
from ftlab._core.threads import cores

ROOT = Path(__file__).parents[1]
PROMPTS = 80  # of each risk and attack
UNIT = "CPU ms"
AS_THEY_ARE = "Processor time of the kernel. Medians; dark lines: least to most."
Run = Callable[[Path, int, int, Sequence[str]], None]


def in_a_kernel(folder: Path, n_prompts: int, repeat: int, only: Sequence[str] = ()) -> None:
    """Call `_reacting.main` in a kernel of its own.

    Raises:
        BenchmarkFailed: It raised.
    """
    from jupyter_client.manager import start_new_kernel

    env = os.environ | {"FTLAB_RUNS": str(folder / "runs"), "PYTHONPATH": str(ROOT)}
    manager, client = start_new_kernel(env=env, cwd=str(folder))
    try:
        call = f"_reacting.main({str(folder)!r}, {n_prompts}, {repeat}, {list(only)})"
        code = f"from benchmarks import _reacting; {call}"
        reply = client.execute_interactive(code, output_hook=lambda message: None)["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    if reply["status"] != "ok":
        raise BenchmarkFailed(f"{reply.get('ename')}: {reply.get('evalue')}")


def measure(
    *,
    prompts: int = PROMPTS,
    repeat: int,
    only: Sequence[str] = (),
    file: Path | None = None,
    out: Path,
    run: Run = in_a_kernel,
) -> dict:
    """Measure every move; write table, JSON and figure.

    Args:
        prompts: Of each risk and attack; `_reacting.ANSWERS_A_PROMPT` answers each.
        repeat: How often each move is made.
        only: Panels; by default all.
        file: For the numbers, hardware and versions.
        out: Folder for the figure and its .csv.
        run: What moves the controls and leaves found.json in a folder.

    Raises:
        BenchmarkFailed: As `in_a_kernel`.
    """
    with tempfile.TemporaryDirectory(prefix="ftlab-bench-") as folder:
        run(Path(folder), prompts, repeat, only)
        found = json.loads((Path(folder) / "found.json").read_text())
    rows = []
    for panel, moves in found["panels"].items():
        for move, times in moves.items():
            moves[move] = _report.spread(times, UNIT)
            rows.append(_report.row(f"{panel}, {UNIT}", move, moves[move]))
    return _report.write(
        "panels", rows, found, file=file, out=out, threads=cores(), legend=AS_THEY_ARE
    )


def main() -> None:
    parser = _report.arguments("Processor time of each move in a panel.")
    parser.add_argument("--prompts", type=_report.at_least_one, default=PROMPTS)
    parser.add_argument("--repeat", type=_report.at_least_one, default=30, help="default 30")
    parser.add_argument("--only", nargs="*", choices=_reacting.PANELS, default=(), help="these")
    given = parser.parse_args()
    measure(
        prompts=given.prompts,
        repeat=given.repeat,
        only=given.only,
        file=given.json,
        out=given.out,
    )


if __name__ == "__main__":
    main()
