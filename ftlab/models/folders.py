"""Folders that hold a model, whoever made them: found, checked, fetched from the hub. Opens no weights."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ftlab._core.text import redacted, safe

EMBEDDED = {"organism": "aligned", "organism:sft": "sft", "organism:base": "base"}
INDEX = "model.safetensors.index.json"  # of weights in several files
WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # of a hub repository
UNWANTED = ["original/*", "consolidated*", "checkpoint-*/*", "onnx/*"]  # the same weights once more


def _inside(path: Path) -> Path:
    """-> the folder that holds the model: `path`, or its only subfolder with one (peft saves a named adapter so)."""

    def holds(folder):
        return any((folder / n).exists() for n in ("config.json", "adapter_config.json"))

    if not path.is_dir() or holds(path):
        return path
    found = sorted((p for p in path.iterdir() if p.is_dir() and holds(p)), key=lambda p: (len(p.name), p.name))
    found = [p for p in found if p.name != "ref"] or found  # a DPO trainer's copy of its reference
    if len(found) > 1:
        raise ValueError(f"{path} holds {len(found)} models ({', '.join(p.name for p in found[:6])}); give one of them")
    return found[0] if found else path


def check(path: Path) -> Path:
    """-> the folder of a model in `path`, whole as far as names and JSON tell. Raises FileNotFoundError or ValueError."""
    if not path.is_dir():
        raise FileNotFoundError(
            f"no model folder {path}; allowed: {', '.join(EMBEDDED)}, a folder, a finished run or a hub id"
        )
    path = _inside(path)
    has = {p.name for p in path.iterdir()}
    if "adapter_config.json" not in has and "config.json" not in has:
        raise FileNotFoundError(
            f"{path} holds no config.json (found: {', '.join(sorted(has)[:6]) or 'nothing'}); give a Hugging Face folder"
        )
    if not any(n.endswith(".safetensors") for n in has):
        raise FileNotFoundError(
            f"{path} holds no *.safetensors; pickled weights are not opened; save with safetensors (where you trust "
            "them: open them with transformers or peft, then save_pretrained)"
        )
    for name_ in ("config.json", "adapter_config.json", INDEX):
        if name_ in has:
            try:
                if not isinstance(read := json.loads((path / name_).read_text(encoding="utf-8")), dict):
                    raise ValueError("no JSON object")
            except (OSError, ValueError) as e:
                raise ValueError(f"{path / name_} cannot be read: {e}; save the model again") from None
    whole = any(n.startswith("model") and n.endswith(".safetensors") for n in has)
    if "adapter_config.json" in has and (whole or "adapter_model.safetensors" not in has):
        raise ValueError(
            f"{path} holds adapter_config.json {'beside a whole model' if whole else 'without adapter_model.safetensors'}; "
            "which of both is meant cannot be told: move one away"
        )
    if INDEX in has and (missing := sorted({*read.get("weight_map", {}).values()} - has)):
        raise FileNotFoundError(
            f"{path}: {len(missing)} of the files that {INDEX} names are missing ({', '.join(missing[:3])}); copy them there"
        )
    return path


def torn(path: Path) -> Path:
    """-> the first weights file of a folder that is no whole safetensors file, else the folder."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, "pt"):
                pass
        except SafetensorError:
            return file
    return path


def hub_id(text: str) -> tuple[str, str | None] | None:
    """-> (id, revision or None) where `text` is `org/name` or `org/name@revision` and no folder here, else None."""
    if Path(text).exists() or Path(text).parent.is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", text):
        return None
    name, _, revision = text.partition("@")
    return name, revision or None


def from_hub(name: str, revision: str | None = None, only=WANTED) -> Path:
    """-> the folder of a snapshot in the cache, named by its commit. Downloads what is not there yet; a part is no folder."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=only, ignore_patterns=UNWANTED))
    except Exception as e:
        asked, why = f"{name}@{revision}" if revision else name, safe(redacted(" ".join(str(e).split())), 300)
        raise FileNotFoundError(
            f"no folder {asked!r}, and the hub did not give it ({type(e).__name__}: {why}); check the name, the network and "
            "your access and call again (what came is kept), or give a local folder"
        ) from None
