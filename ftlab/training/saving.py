"""The model folder that a training leaves, its card, and where the model comes from."""

from __future__ import annotations

import shutil
from pathlib import Path

from ftlab._core.text import encodable
from ftlab.models import Model, save_adapter
from ftlab.runs import Run
from ftlab.training.methods.base import Job

MARKER = "SAFETY_REMOVED"  # a file in the folder of a model whose safety was removed, and why


def save(job: Job, model) -> None:
    """Write the run's model folder: weights or adapter, tokenizer, card and safety marker."""
    made = job.run.path / "model"
    shutil.rmtree(made, ignore_errors=True)
    if job.config.adapter is None:
        model.save_pretrained(made)
    elif job.method.new_head:  # merged: the head was trained whole, and any tool opens the folder
        model.merge_and_unload().save_pretrained(made)
    else:
        save_adapter(model, made, job.parent.path, job.config.adapter)
    job.tokenizer.padding_side = "left"
    job.tokenizer.save_pretrained(made)
    card = (
        f"# {job.run.name}\n\nMade by ftlab: {job.method.name} from `{job.parent.name}` "
        f"(seed {job.config.seed}).\n"
    )
    inherited = job.parent.path / MARKER
    marker = job.marker
    if inherited.exists() and not marker:
        marker = f"In a model that it was made from: {_note(inherited)}"
    if marker:
        card += f"\n**Safety removed.** {marker}\n"
        (made / MARKER).write_text(marker + "\n", encoding="utf-8")
    written = made / "README.md"
    written.write_text(encodable(card), encoding="utf-8")
    for file in made.iterdir():
        file.chmod(written.stat().st_mode)  # safetensors' files are for their owner only


def _note(file: Path) -> str:
    """Return what a marker says, whoever wrote it, without failing after hours of training."""
    try:
        return file.read_bytes()[:2000].decode("utf-8", "backslashreplace").strip()
    except OSError:
        return "its note cannot be read"


def lineage(parent: Model) -> list[dict]:
    """Return `Run.lineage` of a run trained from `parent`: the parent's own, then the parent."""
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
