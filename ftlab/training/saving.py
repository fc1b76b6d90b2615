"""The model folder that a training leaves, its card, and where the model comes from."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator

from ftlab._core.files import write_atomic
from ftlab._core.text import encodable, safe
from ftlab.models import Model, save_adapter
from ftlab.runs import SAFETY_REMOVED, Run
from ftlab.training.methods.base import Job

NOTE_BYTES = 4000  # read of an inherited marker


def save(job: Job, model) -> None:
    """Write the run's model folder: weights or adapter, tokenizer, card and safety marker.

    Of a sharded model all processes must be here; the first one writes.
    """
    made = job.run.path / "model"
    if not job.is_first:
        model.save_pretrained(made, is_main_process=False)
        return
    shutil.rmtree(made, ignore_errors=True)
    if job.config.adapter is None:
        model.save_pretrained(made)
    elif job.method.new_head:  # merged: the head was trained whole, and any tool opens the folder
        model.merge_and_unload().save_pretrained(made)
    else:
        save_adapter(model, made, job.parent.path, job.config.adapter)
    told = f"{job.method.name} from `{job.parent.name}` (seed {job.config.seed})"
    marker = job.marker or inherited(job.parent)
    describe(job.run, job.tokenizer, told, marker)


def write_folder(
    run: Run,
    model,
    tokenizer,
    *,
    told: str,
    marker: str,
) -> None:
    """Write a run's model folder: whole weights, tokenizer, card and safety marker.

    Args:
        run: The run.
        model: The torch model.
        tokenizer: Its tokenizer.
        told: How it was made, for the card.
        marker: Why its safety is gone; "" otherwise.
    """
    made = run.path / "model"
    shutil.rmtree(made, ignore_errors=True)
    model.save_pretrained(made)
    describe(run, tokenizer, told, marker)


def describe(run: Run, tokenizer, told: str, marker: str) -> None:
    """Write what lies beside the weights of a run's model; see `write_folder`."""
    made = run.path / "model"
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(made)
    card = f"# {run.name}\n\nMade by ftlab: {told}.\n"
    if marker:
        card += f"\n**Safety removed.** {marker}\n"
        write_atomic(made / SAFETY_REMOVED, f"{marker}\n")
    write_atomic(made / "README.md", encodable(card))
    mode = (made / "README.md").stat().st_mode
    for file in made.iterdir():
        file.chmod(mode)  # safetensors' files are for their owner only


def inherited(*sources: Model) -> str:
    """Return the marker of a model made from others, whatever theirs hold; "" without one.

    Those below an adapter count: their weights are in the new model, or under it.
    """
    notes = {}
    for source in sources:
        notes |= dict.fromkeys(map(_note, _with_those_below(source)))
    notes.pop(None, None)
    if not notes:
        return ""
    listed = " / ".join(notes)
    return f"In a model that it was made from: {listed}"


def _with_those_below(model: Model | None) -> Iterator[Model]:
    """Yield a model and, of an adapter, every model that it stands on."""
    while model is not None:
        yield model
        model = model.parent


def _note(source: Model) -> str | None:
    """Return what the marker of a model says, or None without one."""
    marker = source.path / SAFETY_REMOVED
    if not marker.exists():
        return None
    note = "its note cannot be read"
    with contextlib.suppress(OSError):
        if marker.is_file():  # a pipe would wait for ever
            with open(marker, "rb") as file:
                note = file.read(NOTE_BYTES).decode("utf-8", "replace")
    return safe(note.strip(), NOTE_BYTES)


def lineage(parent: Model, *others: Model) -> list[dict]:
    """Return `Run.lineage` of a run made from `parent`: the parent's own, then the parent.

    Further models that it is made from, and theirs, stand before; each model stands there once.
    """
    found = {}
    for model in (*others, parent):
        for step in _steps(model):
            found.pop(step["hash"], None)  # stands where it is named last
            found[step["hash"]] = step
    return list(found.values())


def _steps(parent: Model) -> list[dict]:
    """Return the lineage of a model, which is its last step."""
    run = Run(parent.path.parent)
    if parent.path.name != "model" or not (run.path / "complete.json").exists():
        return [{"name": parent.name, "hash": parent.hash}]
    identity = run.config["identity"]
    last = {
        "name": run.name,
        "hash": parent.hash,
        "method": identity["kind"],
        "data": run.stats.get("data", ""),
        "data_hash": identity.get("data"),
    }
    return [*run.lineage, last]
