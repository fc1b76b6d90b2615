"""Folders that hold a model, whoever wrote them: find, check, fetch. Opens no weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ftlab._core.errors import NotFoundError, UsageError
from ftlab._core.text import redacted, safe

EMBEDDED = {"organism": "aligned", "organism:sft": "sft", "organism:base": "base"}
INDEX = "model.safetensors.index.json"  # of weights in several files
WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # of a hub repository
UNWANTED = ["original/*", "consolidated*", "checkpoint-*/*", "onnx/*"]  # further copies of weights
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # org/name or org/name@revision


def check(path: Path) -> Path:
    """Return the folder of the model in `path`, which is complete by its file names and JSON.

    Raises:
        NotFoundError: `model_folder_not_found`, `config_not_found`, `weights_not_found`,
            `weight_shards_missing`.
        UsageError: `several_models`, `config_unreadable`, `adapter_and_model_mixed`,
            `adapter_weights_missing`.
    """
    if not path.is_dir():
        message = f"There is no model folder {path}. Allowed: {', '.join(EMBEDDED)},"
        message += " a folder, a finished run or a hub id."
        raise NotFoundError("model_folder_not_found", message)
    path = _model_inside(path)
    names = {p.name for p in path.iterdir()}
    if "adapter_config.json" not in names and "config.json" not in names:
        message = f"{path} has no config.json. Pass a Hugging Face model folder."
        raise NotFoundError("config_not_found", message)
    if not any(name.endswith(".safetensors") for name in names):
        raise NotFoundError(
            "weights_not_found",
            f"{path} has no *.safetensors, and pickled weights are never opened. "
            "If you trust them, open them with transformers or peft and call save_pretrained().",
        )
    for name in names & {"config.json", "adapter_config.json"}:
        _read_json(path / name)
    if "adapter_config.json" in names:
        _check_adapter_files(path, names)
    if INDEX in names:
        _check_shards(path, names)
    return path


def _model_inside(path: Path) -> Path:
    """Return `path`, or its only subfolder with a model, where peft saves a named adapter."""
    if _has_config(path):
        return path
    found = [p for p in path.iterdir() if p.is_dir() and _has_config(p)]
    if len(found) > 1:  # a DPO trainer leaves a copy of its reference model in "ref"
        found = [p for p in found if p.name != "ref"]
    if len(found) > 1:
        found.sort(key=lambda p: (len(p.name), p.name))
        listed = ", ".join(p.name for p in found[:6])
        message = f"{path} holds {len(found)} models ({listed}). Pass one of them."
        raise UsageError("several_models", message)
    return found[0] if found else path


def _has_config(folder: Path) -> bool:
    return (folder / "config.json").exists() or (folder / "adapter_config.json").exists()


def _read_json(file: Path) -> dict:
    """Read a JSON object from a file of a model folder."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        problem = str(error)
    else:
        if isinstance(found, dict):
            return found
        problem = "it is not a JSON object"
    raise UsageError("config_unreadable", f"{file} cannot be read ({problem}). Save it again.")


def _check_adapter_files(path: Path, names: set[str]) -> None:
    """Refuse an adapter's folder that also holds a whole model, or lacks the adapter's weights."""
    if any(name.startswith("model") and name.endswith(".safetensors") for name in names):
        message = f"{path} holds both an adapter and a whole model. Move one of them elsewhere."
        raise UsageError("adapter_and_model_mixed", message)
    if "adapter_model.safetensors" not in names:
        message = (
            f"{path} has adapter_config.json, but no adapter_model.safetensors. Copy it there."
        )
        raise UsageError("adapter_weights_missing", message)


def _check_shards(path: Path, names: set[str]) -> None:
    """Check that every file that the index of the weights names is there."""
    weight_map = _read_json(path / INDEX).get("weight_map", {})
    missing = sorted(set(weight_map.values()) - names)
    if missing:
        message = f"{path} lacks {len(missing)} files that {INDEX} names, such as {missing[0]}."
        raise NotFoundError("weight_shards_missing", message)


def torn(path: Path) -> Path:
    """Return the first incomplete safetensors file in a folder, or else the folder itself."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError:
            return file
    return path


def hub_id(text: str) -> tuple[str, str | None] | None:
    """Return (id, revision or None) if `text` has the form of a hub id and is no local path."""
    path = Path(text)
    if path.exists() or path.parent.is_dir() or not HUB_ID.fullmatch(text):
        return None
    name, _, revision = text.partition("@")
    return name, revision or None


def from_hub(name: str, revision: str | None = None, only: list[str] | None = None) -> Path:
    """Return the cached folder of a hub model, named by its commit; download what is missing.

    Args:
        name: The id, `org/name`.
        revision: A branch, tag or commit; None takes the main branch.
        only: Patterns of the files to fetch; None fetches what opening a model needs.

    Raises:
        NotFoundError: `hub_unavailable`, also after an incomplete download.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            name, revision=revision, allow_patterns=only or WANTED, ignore_patterns=UNWANTED
        )
    except Exception as error:
        shown = f"{name}@{revision}" if revision else name
        reason = safe(redacted(" ".join(str(error).split())), 300)
        raise NotFoundError(
            "hub_unavailable",
            f"There is no folder {shown!r}, and the hub did not deliver it "
            f"({type(error).__name__}: {reason}). Check the name, the network and your access; "
            "a repeated call resumes the download.",
        ) from None
    return Path(folder)
