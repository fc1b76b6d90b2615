"""Folders that hold a model, whoever wrote them: find, check, fetch. Opens no weights."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, PositiveInt, ValidationError

from ftlab._core.errors import NotFoundError, UsageError
from ftlab._core.text import redacted, safe

EMBEDDED = {"organism": "aligned", "organism:sft": "sft", "organism:base": "base"}
WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"  # of weights in several files
SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
MORE_TEMPLATES = "additional_chat_templates"  # a folder inside that of a model
MOST_BYTES = 64 * 2**20  # of a configuration
MOST = {"layer": 2000, "expert": 20_000}  # far more would be built for hours
NUMBERS = {"n", "num", "number", "count"}  # words of a key that counts
WIDTHS = {"size", "sizes", "dim", "dims", "width", "length", "tokens"}  # and of one that does not
# Keys whose values may name code on the hub.
FETCHED = ("attn_implementation", "experts_implementation", "kernel_config", "use_kernels")
WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # of a hub repository
UNWANTED = ["original/*", "consolidated*", "checkpoint-*/*", "onnx/*"]  # further copies of weights
SECONDS = 10  # for what takes milliseconds
MOST_MEMORY = 2**30  # further bytes, for what takes a few megabytes
STATM = Path("/proc/self/statm")  # of Linux: sizes of this process, in pages
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # org/name or org/name@revision


JSON_FILES = (
    "config.json",
    "adapter_config.json",
    "ftlab_adapter.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    INDEX,
)


class Values(BaseModel, strict=True):
    """The values that are read in the JSON files of a model's folder."""

    architectures: list[str] | None = None
    vocab_size: PositiveInt | None = None
    quantization_config: dict | None = None
    ftlab_learning_rate: dict[str, float] = {}
    eos_token_id: int | list[int] | None = None
    peft_type: str | None = None
    task_type: str | None = None
    base_model_name_or_path: str | None = None
    revision: str | None = None
    weight_map: dict[str, str] | None = None


def check(path: Path) -> Path:
    """Return the folder of the model in `path`, which is complete by its file names and JSON.

    Raises:
        NotFoundError: `model_folder_not_found`, `config_not_found`, `weights_not_found`,
            `weight_shards_missing`.
        UsageError: `several_models`, `config_unreadable`, `adapter_and_model_mixed`,
            `adapter_weights_missing`, `two_sets_of_weights`, `not_a_file`, `names_code`,
            `too_many_layers`.
    """
    if not path.is_dir():
        message = f"There is no model folder {path}. Allowed: {', '.join(EMBEDDED)},"
        message += " a folder, a finished run or its name, or a hub id."
        raise NotFoundError("model_folder_not_found", message)
    path = _model_inside(path)
    names = {p.name for p in path.iterdir()}
    _refuse_devices(path)
    if "adapter_config.json" not in names and "config.json" not in names:
        message = f"{path} has no config.json. Pass a Hugging Face model folder."
        raise NotFoundError("config_not_found", message)
    if not any(name.endswith(".safetensors") for name in names):
        raise NotFoundError(
            "weights_not_found",
            f"{path} has no *.safetensors, and pickled weights are never opened. "
            "If you trust them, open them with transformers or peft and call save_pretrained().",
        )
    for name in sorted(names & {*JSON_FILES}):
        check_values(path / name)
    adapter = names & {"adapter_config.json", "adapter_model.safetensors"}
    if adapter and any(re.fullmatch(r"model.*\.safetensors", name) for name in names):
        message = f"{path} holds both an adapter and a whole model. Move one of them elsewhere."
        raise UsageError("adapter_and_model_mixed", message)
    if "adapter_config.json" in names:
        _check_adapter_files(path, names)
    else:
        _check_weight_files(path, names)
    return path


def _refuse_devices(path: Path) -> None:
    """Refuse a folder that holds a pipe or a device, whose reading may never end."""
    for file in (*path.iterdir(), *path.glob(f"{MORE_TEMPLATES}/*")):
        if file.exists() and not (file.is_file() or file.is_dir()):
            raise UsageError("not_a_file", f"{file} is a pipe or a device. Remove it.")


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


def read_json(file: Path) -> dict:
    """Return the JSON object in a file of a model folder.

    Raises:
        UsageError: `config_unreadable`.
    """
    problem = "it is not a JSON object"
    try:
        if not file.is_file() or file.stat().st_size > MOST_BYTES:
            raise OSError(f"it is no file of at most {MOST_BYTES} bytes")
        found = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except (OSError, ValueError) as error:
        problem = safe(error, 300)
    except RecursionError:
        problem = "it is nested too deep"
    raise UsageError("config_unreadable", f"{file} cannot be read ({problem}). Save it again.")


def check_values(file: Path) -> None:
    """Check the values of a configuration that are read, and that none names code.

    Raises:
        UsageError: `config_unreadable`, `names_code`, `too_many_layers`.
    """
    found = read_json(file)
    try:
        Values.model_validate(found)
    except ValidationError as error:
        name = error.errors()[0]["loc"][0]
        raise UsageError(
            "config_unreadable",
            safe(f"{file}: {name} is {found[name]!r}. Save it again.", 300),
        ) from None
    for name, value in _items(found):
        if _names_code(name.lstrip("_"), value):
            raise UsageError(
                "names_code",
                f"{file}: {safe(name)} names code, which is never run. Remove it.",
            )
        most = _most(name)
        if most and type(value) is int and value > most:
            message = f"{file}: {safe(name)} is {value}. At most {most} are opened."
            raise UsageError("too_many_layers", message)


def _most(name: str) -> int | None:
    """Return the bound of a key that counts layers or experts; None for widths and others."""
    words = name.lower().split("_")
    if not WIDTHS.isdisjoint(words):
        return None
    is_number = not NUMBERS.isdisjoint(words)
    for thing, most in MOST.items():
        if words[-1].endswith((f"{thing}s", f"n{thing}")):
            return most
        if is_number and thing in name and f"per_{thing}" not in name:
            return most
    return None


def _names_code(name: str, value: Any) -> bool:
    """Whether a key of a configuration names code that a library would import or fetch."""
    if name == "parent_library":
        return not str(value).startswith("transformers.")
    if name in ("megatron_config", "megatron_core"):
        return value not in (None, "megatron.core")
    return name.startswith(FETCHED) and re.search("[/:]", str(value)) is not None


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key of nested dicts with its value."""
    if isinstance(value, dict):
        yield from value.items()
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _items(item)


def _check_adapter_files(path: Path, names: set[str]) -> None:
    """Refuse an adapter's folder that lacks the adapter's weights."""
    if "adapter_model.safetensors" not in names:
        message = (
            f"{path} has adapter_config.json, but no adapter_model.safetensors. Copy it there."
        )
        raise UsageError("adapter_weights_missing", message)


def _check_weight_files(path: Path, names: set[str]) -> None:
    """Check that the files of the weights are there, and no others that would not be opened."""
    used = {WHOLE}
    if INDEX in names:
        used = {*(read_json(path / INDEX).get("weight_map") or {}).values()}
    missing = sorted(used - names)
    if missing and INDEX in names:
        message = f"{path} lacks {len(missing)} files that {INDEX} names, such as {missing[0]}."
        raise NotFoundError("weight_shards_missing", message)
    weights = {name for name in names if name == WHOLE or SHARD.fullmatch(name)}
    unused = sorted(weights - used)
    if unused and used <= names:
        message = f"{path} holds {unused[0]} beside another set of weights. Move one elsewhere."
        raise UsageError("two_sets_of_weights", message)


@contextlib.contextmanager
def limited(what: str, seconds: float = SECONDS) -> Iterator[None]:
    """End a block that runs on or takes much memory, as a hostile folder can make it do.

    Only the main thread of a Unix process can be ended; elsewhere the block runs unbounded.
    Memory is bounded on Linux.

    Args:
        what: The beginning of the error.
        seconds: When it ends.

    Raises:
        UsageError: `takes_too_long`, `takes_too_much`.
    """

    def stop(*_):
        raise UsageError("takes_too_long", f"{what} takes more than {seconds} s.")

    main = threading.current_thread() is threading.main_thread()
    if not main or not hasattr(signal, "setitimer"):
        yield
        return
    import resource

    usual = most, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY and (pages := _pages_of_data()):
        most = pages * resource.getpagesize() + MOST_MEMORY
    previous = signal.signal(signal.SIGALRM, stop)
    before = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))
        yield
    except MemoryError:
        raise UsageError("takes_too_much", f"{what} takes too much memory.") from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, usual)
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, previous)


def _pages_of_data() -> int:
    """Return the pages of this process's data; 0 where the system does not tell."""
    try:
        file = os.open(STATM, os.O_RDONLY)  # read for every chat; pathlib takes twice as long
    except OSError:
        return 0
    try:
        return int(os.read(file, 256).split()[5])
    finally:
        os.close(file)


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
