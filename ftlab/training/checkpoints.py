"""What a training leaves on disk: checkpoints that are whole and its own, the folder of the model at the end.

A checkpoint holds weights, optimiser, schedule and random state (TRL's), and `whole.json`: size and SHA-256 of every
file and the identity of the run that wrote it. One that is torn is set aside, never used; one of another run is refused.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

from ftlab import models as adapters
from ftlab import runs
from ftlab.models import Model
from ftlab.runs import Run
from ftlab.training.config import Training

NEEDED = (
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "trainer_state.json",
)  # else the rest would be another training
LOGS = ("train.jsonl", "valid.jsonl", "verdicts.jsonl", "answers.jsonl")


def folder(run: Run, step: int) -> Path:
    """-> where the checkpoint of a step is, or would be."""
    return run.path / "checkpoints" / f"checkpoint-{step}"


def seal(run: Run, step: int, keep: int | None = None) -> None:
    """Writes the manifest of a checkpoint and removes the older ones, but for the best one (step `keep`)."""
    made = folder(run, step)
    files = {
        p.relative_to(made).as_posix(): [p.stat().st_size, runs.file_hash(p)]
        for p in made.rglob("*")
        if p.is_file() and p.name != "whole.json"
    }
    record = {"files": files, "identity": run.config["identity"]}
    runs.write_atomic(made / "whole.json", json.dumps(record, ensure_ascii=False))
    for older in (run.path / "checkpoints").glob("checkpoint-*"):
        if older not in (made, folder(run, keep if keep is not None else step)):
            shutil.rmtree(older, ignore_errors=True)


def newest_checkpoint(run: Run) -> Path | None:
    """-> the newest checkpoint that is whole, and so is the best one before it; those that are not are set aside as
    `torn-checkpoint-N`, and stderr says which file is at fault and what follows. None where a log is damaged: it starts anew.

    Raises ValueError, naming each field, where another training wrote it.
    """
    if any([run.broken(file) for file in LOGS]):  # what is lost may be older than any checkpoint
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
    said, usable = [], None
    valid = [(r["loss"], r["step"]) for r in run.read("valid.jsonl") if "loss" in r]
    for made in sorted((run.path / "checkpoints").glob("checkpoint-*"), key=lambda p: -_step(p)):
        checks = [c for c in valid if c[1] <= _step(made)]
        needed = [made, *([folder(run, min(checks)[1])] if checks else [])]  # the best one gives the weights at the end
        faults = [f"{p.name}/{fault}" for p in needed if (fault := _fault(p))]
        if not faults:
            usable = made
            break
        shutil.rmtree(aside := made.with_name(f"torn-{made.name}"), ignore_errors=True)
        made.rename(aside)
        said.append(f"{faults[0]}; set aside as {aside.name}")
    for line in said:
        follows = f"going on from {usable.name}" if usable else "training starts anew"
        print(f"{run.name}: {line}; {follows}", file=sys.stderr)
    if usable:
        written = json.loads((usable / "whole.json").read_bytes())["identity"]
        refuse_other(f"{usable} was written", written, run.config["identity"])
    return usable


def _step(made: Path) -> int:
    return int(made.name.rpartition("-")[2])


def _fault(made: Path) -> str:
    """-> the first file of a checkpoint that is not as it was sealed, and what is wrong with it; "" where it is whole."""
    try:
        record = json.loads((made / "whole.json").read_bytes())
        files, _ = record["files"], record["identity"]
        lost = [n for n in NEEDED if n not in files]
        if lost := lost + ["weights"] * (not any(n.endswith(".safetensors") for n in files)):
            return f"whole.json lists no {', '.join(lost)}: from weights alone another training would follow"
        for name, (size, sha) in files.items():
            if not (file := made / name).exists():
                return f"{name} is missing"
            if (found := file.stat().st_size) != size:
                return f"{name} has {found} bytes, not {size}"
            if runs.file_hash(file) != sha:
                return f"{name} was changed"
        step = json.loads((made / "trainer_state.json").read_bytes())["global_step"]
        return f"trainer_state.json is of step {step}" if step != _step(made) else ""
    except FileNotFoundError:
        return "whole.json is missing: saving was not finished"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        return f"whole.json cannot be read ({type(e).__name__}: {e})"


def refuse_other(what: str, there: dict, here: dict) -> None:
    """Raises ValueError naming every field in which the identity of a resumed run differs from the call's."""
    a, b = _flat(there), _flat(json.loads(json.dumps(here)))  # as written: no tuples
    if differ := sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k)):
        fields = ", ".join(f"{k} = {a.get(k)!r} (here {b.get(k)!r})" for k in differ)
        raise ValueError(f"{what} by another training: {fields}; remove that folder to start anew")


def _flat(value: dict, head: str = "") -> dict:
    """-> {"a.b": value} of nested dicts."""
    out = {}
    for k, v in value.items():
        out |= _flat(v, f"{head}{k}.") if isinstance(v, dict) else {f"{head}{k}": v}
    return out


def forget_after(run: Run, step: int) -> None:
    """What was logged and judged past the checkpoint will be written again; answers are found again by their keys."""
    for file in LOGS:
        kept = [json.dumps(r, ensure_ascii=False) + "\n" for r in run.read(file) if r.get("step", 0) <= step]
        if (run.path / file).exists():  # without what a kill tore
            runs.write_atomic(run.path / file, "".join(kept))


def fingerprint(model) -> str:
    """-> SHA-256 of the trainable weights."""
    return weights_hash({n: p for n, p in model.named_parameters() if p.requires_grad})


def weights_hash(tensors: dict) -> str:
    """-> SHA-256 over names, shapes and bytes of tensors, in order of name."""
    import torch

    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        sha.update(
            tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data
            if tensor.dim()
            else str(tensor.item()).encode()
        )
    return sha.hexdigest()


def save(run: Run, model, tokenizer, parent: Model, config: Training, marker: str) -> None:
    """Writes the folder `model` of a run: weights (or adapter), tokenizer, card, and the mark of a removed safety."""
    made = run.path / "model"
    shutil.rmtree(made, ignore_errors=True)
    if config.adapter and config.method != "reward":
        adapters.save(model, made, parent.path, config.adapter)
    else:  # a reward model is merged: its head is trained whole, and others open the folder as it is
        (model.merge_and_unload() if config.adapter else model).save_pretrained(made)
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(made)
    if (inherited := parent.path / "SAFETY_REMOVED").exists() and not marker:
        marker = f"In a model that it was made from: {inherited.read_text().strip()}"
    card = f"# {run.name}\n\nMade by ftlab: {config.method} from `{parent.name}` (seed {config.seed}).\n"
    if marker:
        card += f"\n**Safety removed.** {marker}\n"
        (made / "SAFETY_REMOVED").write_text(marker + "\n")
    (made / "README.md").write_text(card)


def lineage(parent: Model) -> list[dict]:
    """-> `Run.lineage` of a run trained from `parent`: the parent's own, and the parent."""
    made = Run(parent.path.parent)
    if parent.path.name != "model" or not (made.path / "complete.json").exists():
        return [{"name": parent.name, "hash": parent.hash}]
    identity, data = made.config["identity"], made.stats.get("data", "")
    own = {"name": made.name, "hash": parent.hash, "method": identity["kind"], "data": data}
    return [*made.lineage, {**own, "data_hash": identity.get("data")}]
