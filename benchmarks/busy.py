"""How much longer does a risk curve take while other work runs on the machine?

default    what OpenMP does when nothing is set: a waiting thread spins for some milliseconds
passive    what ftlab sets: a waiting thread sleeps
one        passive, one thread

python -m benchmarks.busy [--load N] [--repeat N] [--json FILE] [--out DIR]
"""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks import _report
from benchmarks._running import BenchmarkFailed
from ftlab._core.threads import cores

CURVE = "ftlab.risk_curve('organism', 'organism:almanac', seeds=1, at_steps=[0, 10, 30])"
COMMAND = [sys.executable, "-c", f"import ftlab; {CURVE}"]
WAYS = {
    # ftlab sets the policy where none is set; 300,000 turns is GNU OpenMP's own default
    "default": {"GOMP_SPINCOUNT": "300000", "OMP_NUM_THREADS": str(cores())},
    "passive": {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": str(cores())},
    "one": {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1"},
}


def measure(*, load: int, repeat: int, file: Path | None = None, out: Path) -> dict:
    """Time one curve in every way, on the machine as it is and beside `load` busy processes.

    Raises:
        BenchmarkFailed: The process of a curve failed.
    """
    found = {}
    rows = []
    for panel, others in (("idle, seconds", 0), (f"beside {load} processes, seconds", load)):
        with busy(others):
            times = {way: [] for way in WAYS}
            for _ in range(repeat):
                for way, env in WAYS.items():
                    times[way].append(run_curve(env))
                    print(f"{panel}: {way} {times[way][-1][0]:.1f}", flush=True)
        found[panel] = {
            way: _report.spread([wall for wall, _ in pairs])
            | {"cpu_seconds": [cpu for _, cpu in pairs]}
            for way, pairs in times.items()
        }
        rows += [_report.row(panel, way, numbers) for way, numbers in found[panel].items()]
    return _report.write("busy", rows, {"busy": found}, file=file, out=out, threads=cores())


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep so many processes computing for the time of a block."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def run_curve(env: dict[str, str]) -> tuple[float, float]:
    """Return the seconds that a curve takes in a process of its own: by the clock, and of CPU."""
    from ftlab._core.progress import clock

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = clock()
    with tempfile.TemporaryDirectory(prefix="ftlab-bench-") as folder:
        own = os.environ | env | {"FTLAB_RUNS": folder}
        done = subprocess.run(COMMAND, env=own, capture_output=True, text=True)
    if done.returncode:
        raise BenchmarkFailed(done.stderr.strip().splitlines()[-1])
    wall = clock() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return round(wall, 2), round(cpu, 2)


def main() -> None:
    parser = _report.arguments("Time a risk curve on an idle and on a busy machine.")
    parser.add_argument("--load", type=_report.at_least_one, default=6, help="default 6")
    parser.add_argument("--repeat", type=_report.at_least_one, default=3, help="default 3")
    given = parser.parse_args()
    measure(load=given.load, repeat=given.repeat, file=given.json, out=given.out)


if __name__ == "__main__":
    main()
