"""What a training leaves on disk on the way: sealed checkpoints of its own.

A checkpoint holds TRL's weights, optimiser, schedule and random state, and `whole.json`: size and
SHA-256 of every file and the identity of the run that wrote it. One that is torn is set aside and
never used; one of another run is refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ftlab._core.errors import UsageError
from ftlab._core.files import file_hash, write_atomic
from ftlab._core.identity import refuse_other
from ftlab.runs import Run

CHECKPOINT_S = 30.0  # seconds of training between two checkpoints, or FTLAB_CHECKPOINT_SECONDS;
CHECKPOINT_SHARE = 20  # more where saving is slow: at least this many times as long as it took
NEEDED = (  # besides weights
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)
OF_A_PROCESS = re.compile(r"_\d+(?=\.pth$)")  # in the names of what each of several has saved
BEFORE_ALL = -1  # a step before that of the parent, which is 0
LOGS = ("train.jsonl", "valid.jsonl", "verdicts.jsonl", "answers.jsonl")


def checkpoint_is_due(waited_s: float, saving_s: float) -> bool:
    """Whether to save, `waited_s` seconds after the last checkpoint, which took `saving_s`."""
    asked = os.environ.get("FTLAB_CHECKPOINT_SECONDS")
    if asked is not None:
        return waited_s > float(asked)
    return waited_s > max(CHECKPOINT_S, CHECKPOINT_SHARE * saving_s)


def folder(run: Run, step: int) -> Path:
    """Return where the checkpoint of a step is, or would be."""
    return run.path / "checkpoints" / f"checkpoint-{step}"


def step_of(checkpoint: Path) -> int:
    """Return the optimiser step of a checkpoint folder."""
    return int(checkpoint.name.rpartition("-")[2])


def max_steps_of(checkpoint: Path) -> int:
    """Return how many optimiser steps the training of a checkpoint lasts."""
    return _state(checkpoint)["max_steps"]


def _state(checkpoint: Path) -> dict:
    text = (checkpoint / "trainer_state.json").read_bytes()
    return json.loads(text)


def seal(run: Run, step: int, best_step: int | None = None) -> None:
    """Write a checkpoint's manifest and remove older checkpoints, except the best one."""
    new = folder(run, step)
    files = {}
    for path in new.rglob("*"):
        if path.is_file() and path.name != "whole.json":
            name = path.relative_to(new).as_posix()
            size = path.stat().st_size
            files[name] = [size, file_hash(path)]
    manifest = {"files": files, "identity": run.config["identity"]}
    write_atomic(new / "whole.json", json.dumps(manifest, ensure_ascii=False))
    kept = {new}
    if best_step is not None:
        kept.add(folder(run, best_step))
    home = run.path / "checkpoints"
    for older in home.glob("checkpoint-*"):
        if older not in kept:
            shutil.rmtree(older, ignore_errors=True)


def newest_checkpoint(run: Run) -> Path | None:
    """Return the newest checkpoint that is whole and whose best one is whole too, or None.

    Torn ones are renamed to `torn-checkpoint-N`, and stderr reports which file is at fault. Where
    a log is damaged, everything is computed again: what it lost may be older than a checkpoint.

    Raises:
        UsageError: `other_training`, naming each field, where another training wrote it.
    """
    home = run.path / "checkpoints"
    if any(run.broken(file) for file in LOGS):
        shutil.rmtree(home, ignore_errors=True)
    found = sorted(home.glob("checkpoint-*"), key=step_of, reverse=True)
    validations = validations_of(run)
    reports = []
    usable = None
    for checkpoint in found:
        wrong = _fault_of_needed(run, checkpoint, validations)
        if not wrong:
            usable = checkpoint
            break
        aside = checkpoint.with_name(f"torn-{checkpoint.name}")
        shutil.rmtree(aside, ignore_errors=True)
        checkpoint.rename(aside)
        reports.append(f"{wrong}; set aside as {aside.name}")
    next_step = "training starts again"
    if usable:
        next_step = f"continuing from {usable.name}"
    for report in reports:
        print(f"{run.name}: {report}; {next_step}", file=sys.stderr)
    if usable:
        manifest = json.loads((usable / "whole.json").read_bytes())
        refuse_other(str(usable), manifest["identity"], run.config["identity"])
    return usable


def own_names(trainer: Any) -> None:
    """Let checkpoints name weights as they are in memory, where they are loaded by these names.

    Models, such as mixtures of experts, are saved under other names. The trainer would leave what
    it does not find as it is, and so would continue from the parent's weights.
    """
    model = trainer.model
    if hasattr(model, "peft_config"):  # adapters have a loader of their own
        return
    model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
    trainer._issue_warnings_after_load = partial(_refuse_others, model)


def _refuse_others(model: Any, loaded: Any) -> None:
    """Refuse a checkpoint that lacks weights or has others; tied ones are saved once."""
    known = {*model.all_tied_weights_keys, *(model._keys_to_ignore_on_save or ())}
    wrong = sorted({*loaded.missing_keys, *loaded.unexpected_keys} - known)
    if wrong:
        raise UsageError(
            "checkpoint_does_not_fit",
            f"The checkpoint does not hold the model's weights, such as {wrong[0]}. "
            "Remove the run's folder `checkpoints` to start again.",
        )


def validations_of(run: Run) -> list[tuple[float, int]]:
    """Return (loss, step) of every validation so far."""
    validations = []
    for record in run.read("valid.jsonl"):
        if "loss" in record:
            validations.append((record["loss"], record["step"]))
    return validations


def _fault_of_needed(run: Run, checkpoint: Path, validations: list[tuple[float, int]]) -> str:
    """Return what is wrong with a checkpoint, or with the best one before it, or ""."""
    needed = [checkpoint]
    newest = step_of(checkpoint)
    earlier = [(loss, step) for loss, step in validations if step <= newest]
    if earlier:  # the best checkpoint gives the weights at the end
        _, best_step = min(earlier)
        needed.append(folder(run, best_step))
    for path in needed:
        wrong = fault(path)
        if wrong:
            return f"{path.name}/{wrong}"
    return ""


def fault(checkpoint: Path) -> str:
    """Return the first file of a checkpoint that is not as sealed and what is wrong, or ""."""
    try:
        text = (checkpoint / "whole.json").read_bytes()
        return _first_fault(checkpoint, json.loads(text))
    except FileNotFoundError:
        return "whole.json is missing: saving was not finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"whole.json cannot be read ({type(error).__name__}: {error})"


def _first_fault(checkpoint: Path, manifest: dict) -> str:
    files = manifest["files"]
    names = {OF_A_PROCESS.sub("", name) for name in files}
    missing = [name for name in NEEDED if name not in names]
    weights = [name for name in files if name.endswith(".safetensors")]
    if not weights:
        missing.append("weights")
    if "identity" not in manifest:
        missing.append("identity")
    if missing:
        return f"whole.json lists no {', '.join(missing)}"
    for name, (size, sha) in files.items():
        path = checkpoint / name
        if not path.exists():
            return f"{name} is missing"
        found = path.stat().st_size
        if found != size:
            return f"{name} has {found} bytes, not {size}"
        found_sha = file_hash(path)
        if found_sha != sha:
            return f"{name} was changed"
    state = _state(checkpoint)
    step = state["global_step"]
    if step != step_of(checkpoint):
        return f"trainer_state.json is of step {step}"
    return ""


def forget_after(run: Run, step: int) -> None:
    """Drop log records past a step; answers will be found again by their keys."""
    for file in LOGS:
        run.forget(file, lambda record: record.get("step", step) > step)
