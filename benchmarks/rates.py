"""How much do ftlab and what people use today do per second: training, generating, judging?

python -m benchmarks.rates train|generate|judge [--model MODEL] [--repeat N]
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks import _report
from benchmarks._arms import RATES
from benchmarks._running import prepared, run_in_turn, threads
from benchmarks._work import SIZES, Size

UNITS = {"train": "steps per second", "generate": "answers per second"}
UNITS["judge"] = UNITS["generate"]


def measure(
    what: str, model: str = "organism", *, size: Size, file: Path | None = None, out: Path
) -> dict:
    """Measure the ways to do one thing; raises as `curve.measure`."""
    arms = tuple(f"{what}:{way}" for way in RATES[what][1])
    with prepared(size, model) as work:
        done = run_in_turn(arms, work, what)
    unit = UNITS[what]
    found = {}
    for arm, runs in done.items():
        found[arm] = runs[-1] | _report.spread([r["amount"] / r["seconds"] for r in runs], unit)
    rows = [_report.row(unit, arm, numbers) for arm, numbers in found.items()]
    numbers = {"unit": unit, "arms": found}
    return _report.write(what, rows, numbers, file=file, out=out, threads=threads())


def main() -> None:
    parser = _report.arguments("Time training, generating or judging.")
    parser.add_argument("what", choices=RATES)
    parser.add_argument("--model", default="organism")
    parser.add_argument("--repeat", type=_report.at_least_one, default=3, help="default 3")
    given = parser.parse_args()
    size = replace(SIZES["organism"], repeat=given.repeat)
    measure(given.what, given.model, size=size, file=given.json, out=given.out)


if __name__ == "__main__":
    main()
