"""Cells of somebody's own, which lie beside the plan and note what they do in files."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import psutil


def note(number: int, how: str = "", times: int = 1, seconds: float = 0.0) -> Path:
    """Add a line to `noted`; then end as asked, in the first `times` attempts.

    Args:
        number: Of the job.
        how: "killed", "fails" (a fault of code), "no room" (of the file system), "sleeps",
            "clings" (to its life, for 3 s), "interrupts itself", "no result" (its path is not there).
        times: Attempts that end so.
        seconds: How long it takes.
    """
    with open("noted", "a") as file:
        file.write(f"{number}\n")
    time.sleep(seconds)
    begun = Path("noted").read_text().split().count(str(number))
    if begun > times:
        how = ""
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "fails":
        raise ZeroDivisionError("a fault")
    if how == "no room":
        raise OSError(5, "Input/output error")
    if how == "sleeps":
        time.sleep(60)
    if how == "clings":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        time.sleep(3)
    if how == "interrupts itself":
        raise KeyboardInterrupt("enough")
    result = Path(f"result-{number}")
    if how == "no result":
        return result
    result.write_text("done")
    return result


def look(number: int, model: str = "", batch_size: int = 1, seconds: float = 0.0) -> Path:
    """Write into `seen-NUMBER` where a job runs, when, and which accelerators it sees.

    Args:
        number: Of the job.
        model: Whose training the job passes for, where its memory is estimated.
        batch_size: Of that training.
        seconds: How long it takes.
    """
    found = {
        "accelerators": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "above": [process.pid for process in psutil.Process().parents()],
        "begun": time.time(),
    }
    time.sleep(seconds)
    result = Path(f"seen-{number}")
    result.write_text(json.dumps({**found, "ended": time.time()}))
    return result


def measure(label: str, kind: str) -> Path:
    """Return a folder that passes for a run.

    Args:
        label: A text; one that begins with / is an error.
        kind: Of the run.
    """
    if label.startswith("/"):
        raise ZeroDivisionError(f"nothing in '{label}'")
    folder = Path(f"run-{label}")
    folder.mkdir()
    identity = {"kind": kind, "schema": 6}
    (folder / "config.json").write_text(json.dumps({"identity": identity}))
    return folder
