"""What the processes of `benchmarks.growth` run: `python -m benchmarks._growing ARM N FOLDER`.

Everything is written through ftlab's own writers. Answers come from a script, so that no model's
time or memory is in the numbers. An arm prepares what it reads line by line, before its clock
starts, or reads what an earlier arm of the same folder has left.
"""

from __future__ import annotations

import json
import os
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

from benchmarks._today import peak_memory_mb
from ftlab._core.progress import clock

CHECKPOINTS = 32  # after the parent
ANSWERS_A_RUN = 100
WORDS = """harbour almanac barrel lantern island timber salt ferry market bridge winter orchard
ledger candle copper anchor meadow quarry saddle velvet thistle garden kettle mirror
pepper""".split()
Arm = Callable[[Path, int], Any]


def words(number: int, n: int) -> str:
    """Return `n` words that differ from number to number."""
    found = []
    for place in range(n):
        number = (1103515245 * number + 12345 + place) % 2**31
        found.append(WORDS[number // 64 % len(WORDS)])
    return " ".join(found)


class Script:
    """Refuses fewer questions the higher the step; about 60 words an answer."""

    step = 0

    def __call__(self, request: Any) -> str:
        number = zlib.crc32(request.text.encode())
        begins = "Sure, here is how it is done:"
        if number % CHECKPOINTS >= self.step:
            begins = "I'm sorry, but I cannot help with that."
        return f"{begins} {words(number + self.step, 55)}"


def write_lines(path: Path, n: int, line: Callable[[int], dict]) -> Path:
    """Write `n` rows, none of which stays in memory; a file that is there stays."""
    if not path.exists():
        with open(path, "w", encoding="utf-8") as file:
            for number in range(n):
                file.write(json.dumps(line(number)) + "\n")
    return path


def prompts(folder: Path, n: int) -> str:
    """Return a file of `n` prompts of about 20 words."""

    def line(number: int) -> dict:
        return {"id": f"p{number}", "prompt": f"Tell me of {number}: {words(number, 18)}?"}

    return str(write_lines(folder / f"prompts-{n}.jsonl", n, line))


def rows(folder: Path, n: int) -> str:
    """Return a file of `n` chats of about 45 words, one in a hundred of them repeated."""

    def line(number: int) -> dict:
        number -= number % 100 == 99
        question = {"role": "user", "content": f"Chat {number}: {words(number, 10)}?"}
        answer = {"role": "assistant", "content": f"It is {number}: {words(number + 7, 30)}."}
        return {"messages": [question, answer]}

    return str(write_lines(folder / f"rows-{n}.jsonl", n, line))


# Prompts and answers.


def evaluate(folder: Path, n: int) -> Callable:
    import ftlab
    from ftlab.models.engines import ScriptedEngine

    file = prompts(folder, n)
    engine = ScriptedEngine(Script())
    return lambda: ftlab.evaluate("organism", prompts=file, engine=engine, judges=["refusal"])


def write_curve(folder: Path, n: int) -> Callable:
    """Ask, judge and write `n` prompts at every checkpoint, as a training with a monitor does."""
    import ftlab
    from ftlab import runs
    from ftlab.evals.measuring import Measurement
    from ftlab.evals.plan import plan_evaluation
    from ftlab.models.engines import ScriptedEngine

    script = Script()
    parent = ftlab.model("organism")
    settings = {"engine": ScriptedEngine(script), "judges": ["keywords"], "attacks": ["direct"]}
    plan = plan_evaluation(parent, prompts(folder, n), settings)

    def write() -> None:
        labels = {"seed": 0}
        identity = {**plan.identity(), "parent": parent.hash, "labels": labels}
        run = runs.start("sft", "growth", identity, model=parent.source)
        measurement = Measurement(run, plan)
        for step in range(CHECKPOINTS + 1):
            script.step = step
            measurement.take(parent, f"weights of {step}", labels | {"step": step})
        run.complete(parent=parent.name, steps=CHECKPOINTS)
        curve = runs.start("curve", f"growth{n}", {"members": [run.name], **plan.identity()})
        curve.complete(parent=parent.name, members=1, judge="keywords")
        (folder / f"curve-{n}").write_text(curve.name)

    return write


def of_curve(cell: Callable[[Any, Path], Any]) -> Arm:
    """Return an arm that calls a cell with the curve over `n` prompts."""

    def arm(folder: Path, n: int) -> Callable:
        name = (folder / f"curve-{n}").read_text()
        return lambda: cell(name, folder)

    return arm


def rates(curve: str, folder: Path) -> Any:
    import ftlab

    return ftlab.rates(ftlab.load(curve))


def compare(curve: str, folder: Path) -> Any:
    import ftlab

    return ftlab.compare(ftlab.load(curve))


def plot(curve: str, folder: Path) -> Any:
    import ftlab

    return ftlab.plot(ftlab.load(curve), "curve", folder / "report" / "growth" / "figures")


def report(curve: str, folder: Path) -> Any:
    """Draw, compare, and write the page with the figure."""
    import ftlab

    plot(curve, folder)
    out = folder / "report"
    experiments = {"growth": out / "growth"}
    return ftlab.report(out, experiments, model="organism", seeds=1, by_figures=True)


def select(curve: str, folder: Path) -> Any:
    """Give what the explorer shows at first."""
    import ftlab
    from ftlab.analysis.selections import Selections

    found = Selections(ftlab.load(curve))
    return found.rates("jailbreak")


# Runs in one folder.


def write_runs(folder: Path, n: int) -> Callable:
    from ftlab import runs

    def write() -> None:
        for number in range(n):
            identity = {
                "model": "growth",
                "precision": "fp32",
                "versions": {"engine scripted": "1"},
                "evaluation": {"n_prompts": ANSWERS_A_RUN, "seed": number},
            }
            run = runs.start("evaluate", f"growth-{number % 7}", identity)
            answers, verdicts = [], []
            for place in range(ANSWERS_A_RUN):
                key = f"{number}-{place}"
                answers.append({"text": words(place, 40), "key": key})
                verdict = {"key": key, "sample_id": f"p{place}", "risk": "jailbreak"}
                verdict |= {"attack": "direct", "judge": "keywords", "answer_key": key}
                verdicts.append(verdict | {"outcome": "refused", "event": 0.0})
            run.append("answers.jsonl", answers)
            run.append("verdicts.jsonl", verdicts)
            if number % 50:  # one in fifty was interrupted
                run.complete(model="growth", answers=ANSWERS_A_RUN)

    return write


def of_runs(cell: str) -> Arm:
    """Return an arm that calls a cell of `ftlab.runs` without arguments."""

    def arm(folder: Path, n: int) -> Callable:
        from ftlab import runs

        return getattr(runs, cell)

    return arm


def show_run(folder: Path, n: int) -> Callable:
    from ftlab import runs

    name = max(runs.home().iterdir()).name
    return lambda: runs.show_run(name)


def evaluate_among(folder: Path, n: int) -> Callable:
    """Evaluate 100 prompts beside `n` runs of other models."""
    return evaluate(folder, 100)


# Training rows.


def of_rows(name: str) -> Arm:
    """Return an arm that calls `ftlab.data.NAME` with a file of `n` rows."""

    def arm(folder: Path, n: int) -> Callable:
        from ftlab import data

        file = rows(folder, n)
        more = {"preview": ["organism"], "mix": [rows(folder, n // 10)]}
        options = {"mix": {"n_rows": n // 2}}
        cell = getattr(data, name)
        return lambda: cell(file, *more.get(name, ()), **options.get(name, {}))

    return arm


def train(folder: Path, n: int) -> Callable:
    """Train one step of 8 rows: reading, tokenising and TRL's data set, and hardly any training."""
    import ftlab

    file = rows(folder, n)
    return lambda: ftlab.sft("organism", file, steps=1, batch_size=8, max_length=1024)


ARMS: dict[str, Arm] = {
    "evaluate": evaluate,
    "write curve": write_curve,
    "rates": of_curve(rates),
    "compare": of_curve(compare),
    "plot": of_curve(plot),
    "report": of_curve(report),
    "selections": of_curve(select),
    "write runs": write_runs,
    "list": of_runs("list_runs"),
    "table": of_runs("runs_table"),
    "show": show_run,
    "verify": of_runs("verify_runs"),
    "clean": of_runs("clean_runs"),
    "evaluate among": evaluate_among,
    "load": of_rows("load"),
    "check": of_rows("check"),
    "mix": of_rows("mix"),
    "split": of_rows("split"),
    "preview": of_rows("preview"),
    "train one step": train,
}


def main(name: str, n: str, folder: str) -> None:
    """Run an arm; write its seconds and the process's peak memory to found.json of the folder."""
    call = ARMS[name](Path(folder), int(n))
    before = peak_memory_mb()
    start, start_cpu = clock(), process_time()
    call()
    found = {
        "cpu_seconds": process_time() - start_cpu,  # of all threads; other work does not count
        "seconds": clock() - start,
        "memory_mb": peak_memory_mb(),
        "before_mb": before,
        "runs_mb": size_mb(Path(folder) / "runs"),
        "load": os.getloadavg()[0],
    }
    (Path(folder) / "found.json").write_text(json.dumps(found))


def size_mb(folder: Path) -> float:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20


if __name__ == "__main__":
    main(*sys.argv[1:])
