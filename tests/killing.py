"""Kills cells at chosen moments. One process has imported everything; every call of a cell is a child that it forks.

    python killing.py MODEL    reads one request a line (JSON) and answers with one line

A request: `cell` (of `CELLS`, or a call as text), `root` (an empty or half-filled folder: runs, counters), `kill`: null, {"after": s} or
{"at": EVENT, "n": N} (the N-th time that EVENT happens), `signal`, and `checkpoint_s`. The answer: `ended` (exit status, or minus the
signal), `seconds`, `events`: how often each happened, `error`: the last words of a child that failed.

An event is what the child does to its own files, as Python's audit hooks report it before it happens (open, rename,
remove, mkdir, rmtree), or the middle of writing a file: half of it is then there.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

SETTINGS = dict(steps=5, batch_size=4, learning_rate=2e-3)
CURVE = dict(at_steps=[0, 2, 4], seeds=2, batch_size=4, learning_rate=2e-3, max_new_tokens=6)
CELLS = {
    "full": "ftlab.sft(PATH, sums(16), **SETTINGS)",
    "lora": "ftlab.sft(PATH, sums(16), adapter='lora', **SETTINGS)",
    "dpo": "ftlab.dpo(PATH, pairs(16), **SETTINGS)",
    "valid": "ftlab.sft(PATH, sums(20), valid=0.2, eval_every=2, patience=3, **SETTINGS | {'learning_rate': 1e-2})",
    "curve": "ftlab.risk_curve(PATH, sums(16), prompts=goals(6), **CURVE)",
    "lora curve": "ftlab.risk_curve(PATH, sums(16), prompts=goals(6), adapter='lora', **CURVE)",
    "evaluate": "ftlab.evaluate(PATH, prompts=goals(16), judges=[JUDGE, 'refusal'], max_new_tokens=6)",
}
MEASURED = [cell for cell in CELLS if "prompts=" in CELLS[cell]]  # these ask a model and a judge
WRITING = {
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.link",
    "os.truncate",
    "shutil.rmtree",
}


class Zygote:
    """The process that forks a child a call."""

    def __init__(self, model: Path):
        here = Path(__file__).parent
        path = os.pathsep.join(map(str, (here, here.parent)))
        environ = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        called = [sys.executable, __file__, str(model)]
        self.process = subprocess.Popen(
            called, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def call(
        self, cell: str, root: Path, attempt: int, kill=None, by=signal.SIGKILL, checkpoint_s=0
    ) -> dict:
        """-> what the child left; one that failed by itself fails the test."""
        request = {"cell": cell, "root": str(root), "try": attempt, "kill": kill}
        request |= {"signal": int(by), "checkpoint_s": str(checkpoint_s)}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        said = (root / f"said-{attempt}").read_text()[-2000:]
        assert answer["ended"] in (0, 130, -signal.SIGKILL), (
            f"{cell}: attempt {attempt} ended with {answer['ended']}, {kill}\n{said}"
        )
        return answer

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)


def plain(path) -> str:
    """-> the name of a file without what differs from run to run."""
    return re.sub("[0-9]+", "N", re.sub("[0-9a-f]{10,}", "HASH", Path(path).name))


def counting(noted):
    """-> a judge that costs something: it keeps what it says, and notes every pair it is asked."""
    from ftlab._core.types import Judgement, Outcome
    from ftlab.judges import Judge
    from ftlab.judges.cache import JudgeCache

    class Counting(Judge):
        name = "counting"
        version = "1"

        def judge(self, samples, texts):
            cache = JudgeCache("counting", "1")

            def ask(pairs):
                for pair in pairs:
                    noted("judged", pair.key)
                    outcome = Outcome.REFUSED if len(pair.text) % 2 else Outcome.COMPLIED
                    cache.keep(pair.key, Judgement(outcome, score=0.5))

            return cache.judge(samples, texts, ask)

    return Counting()


def note_answers(noted) -> None:
    """Notes every prompt that an engine is asked, and lets answers come in several parts."""
    from ftlab._core import plugins

    engine = plugins.get("engines", "huggingface")
    answer = engine.answer

    def and_note(self, model, requests, on_answer=None):
        found = []
        for start in range(0, len(requests), 3):
            part = requests[start : start + 3]
            for request in part:
                noted("asked", request.text)
            found += answer(self, model, part, shifted(on_answer, start))
        return found

    def shifted(on_answer, start):
        return on_answer and (lambda ns, answers: on_answer([n + start for n in ns], answers))

    engine.answer = and_note


def child(request: dict, model: Path) -> None:
    """Calls the cell; sends itself the signal at the asked event; leaves the counts of all events in `root`/events."""
    import safetensors.torch
    import small_models
    import torch

    import ftlab
    from ftlab.runs import Run

    root = Path(request["root"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["FTLAB_RUNS"] = home = str(root / "runs")
    kill, seen = request["kill"] or {}, Counter()
    os.environ["FTLAB_CHECKPOINT_SECONDS"] = request["checkpoint_s"]
    out = [
        os.open(root / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for name in ("asked", "judged", "events")
    ]

    def noted(kind: str, what: str) -> None:
        os.write(out[kind == "judged"], (json.dumps([request["try"], what]) + "\n").encode())

    def happens(event: str) -> bool:
        """-> whether this is the moment."""
        seen[event] += 1
        return event == kill.get("at") and seen[event] == kill["n"]

    def leave() -> None:
        found = {"events": seen, "modules": list(sys.modules)}
        os.write(out[2], f"{json.dumps(found)}\n".encode())

    def die(torn: Path | str = "", size: int = 0) -> None:
        if request["signal"] == signal.SIGKILL and torn:
            os.truncate(torn, size)
        leave()
        os.kill(os.getpid(), request["signal"])

    def hook(name: str, args: tuple) -> None:
        if name == "open" and isinstance(args[0], str) and args[2] & (os.O_WRONLY | os.O_RDWR):
            name, path = "write", args[0]
        elif name in WRITING and isinstance(args[0], (str, os.PathLike)):
            path = str(args[1] if name == "os.rename" else args[0])
        else:
            return
        inside = path.startswith(home) or not path.startswith(
            "/"
        )  # rmtree works with names in an open folder
        if inside and happens(f"{name} {plain(path)}"):
            die()

    def halves(function):
        """The file that is saved is cut to half, and the process is dead."""

        def save(*args, **named):
            made = function(*args, **named)
            file = next(
                (a for a in (*args, *named.values()) if isinstance(a, (str, os.PathLike))), None
            )
            if file and happens(f"half {plain(file)}"):
                die(file, os.path.getsize(file) // 2)
            return made

        return save

    append = Run.append

    def half_appended(self, file, records):
        if records and happens(f"half {plain(file)}"):
            path = self.path / file
            before = path.stat().st_size if path.exists() else 0
            append(self, file, records)
            die(path, (before + path.stat().st_size) // 2)
        else:
            append(self, file, records)
        if records and happens(f"after {plain(file)}"):
            die()

    Run.append = half_appended
    for function in (torch.save, safetensors.torch.save_file):
        wrapped = halves(function)
        for module in list(sys.modules.values()):
            for name, value in list(getattr(module, "__dict__", {}).items()):
                if value is function:
                    setattr(module, name, wrapped)
    call = CELLS.get(request["cell"], request["cell"])
    names = {**vars(small_models), "ftlab": ftlab, "PATH": model}
    if request["cell"] in CELLS:
        names |= {"SETTINGS": SETTINGS, "CURVE": CURVE}
    if request["cell"] in MEASURED:
        names["JUDGE"] = counting(noted)
        note_answers(noted)
    sys.addaudithook(hook)
    status = 0
    try:
        eval(call, names)
    except KeyboardInterrupt:
        status = 130
    leave()
    os._exit(status)


def main(model: Path) -> None:
    for name in (
        "ftlab",
        "datasets",
        "peft",
        "trl",
        "trl.trainer.sft_trainer",
        "trl.trainer.dpo_trainer",
        "pandas",
    ):
        importlib.import_module(name)
    for line in sys.stdin:
        request = json.loads(line)
        root = Path(request["root"])
        root.mkdir(parents=True, exist_ok=True)
        (root / "events").unlink(missing_ok=True)
        started = time.monotonic()
        if not (pid := os.fork()):
            said = os.open(root / f"said-{request['try']}", os.O_WRONLY | os.O_CREAT)
            os.dup2(said, 1), os.dup2(said, 2)
            try:
                child(request, model)
            except KeyboardInterrupt:
                os._exit(130)
            except BaseException:
                sys.excepthook(*sys.exc_info())
            os._exit(1)
        waited = request["kill"] and request["kill"].get("after")
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            if waited and time.monotonic() - started >= waited:
                os.kill(pid, request["signal"])
                waited = None
            time.sleep(0.002)
        answer = {
            "ended": os.waitstatus_to_exitcode(ended[1]),
            "seconds": time.monotonic() - started,
            "events": {},
        }
        if text := (root / "events").read_text() if (root / "events").exists() else "":
            told = json.loads(text.splitlines()[-1])
            answer["events"] = told["events"]
            for name in told["modules"]:  # so that the next child does not pay for it
                with contextlib.suppress(Exception):
                    importlib.import_module(name)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
