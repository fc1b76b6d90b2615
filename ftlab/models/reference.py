"""Open and release models. A `Model` is a reference: nothing is loaded until it is needed.

Ordinary Hugging Face folders (safetensors), PEFT adapter folders whoever made them, runs of this package, hub ids
(`org/name@revision`), and the embedded model under its names. No remote code, no pickle.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import re
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

from ftlab._core.text import safe
from ftlab.models import adapters
from ftlab.models.adapters import adapt  # noqa: F401  found here by those who open models
from ftlab.models.devices import (
    attention,  # noqa: F401
    device,  # noqa: F401
    precision,  # noqa: F401
    quiet,  # noqa: F401
    released,  # noqa: F401
    spare_memory,  # noqa: F401
)
from ftlab.models.engines.openai import Endpoint, endpoint
from ftlab.models.folders import EMBEDDED, check, from_hub, hub_id, torn
from ftlab.runs import Run, digest, file_hash, load, resource

PROMPTS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "ADAPTION_PROMPT")  # never merge
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "generation_config.json",
    "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
)  # fmt: skip


_KEPT: dict[str, dict] = {}  # hash of a model -> what was opened of it, inside `kept`


@contextlib.contextmanager
def kept(parent):
    """Inside, the files of `parent` are read once: each further `load` and `tokenizer` of it comes from memory, as modules of
    the caller's own. Weights are copied from the host where all will be trained; else their storage is shared."""
    key, mine = parent.hash, {}
    try:
        yield _KEPT.setdefault(key, mine)
    finally:
        if _KEPT.get(key) is mine:  # else an outer block goes on
            del _KEPT[key]


@dataclass(frozen=True)
class Model:
    """A model by folder. `name` is for people, `hash` (weights, configuration, tokenizer, template) for identity."""

    name: str
    path: Path
    base: Model | None = field(default=None, repr=False)  # below an adapter, where the caller named it
    hub: str = field(default="", repr=False)  # id, of a model that came from the hub
    revision: str = field(default="", repr=False)  # its commit
    _named: dict = field(default_factory=dict, repr=False, compare=False)  # what an adapter's file names, once found

    @property
    def adapter(self) -> dict | None:
        """The adapter's configuration where the folder holds a PEFT adapter, else None."""
        file = self.path / "adapter_config.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    @property
    def parent(self) -> Model | None:
        """The model below an adapter, else None."""
        if not (adapter := self.adapter):
            return None
        named = adapter.get("base_model_name_or_path"), adapter.get("revision")
        if not self.base and named not in self._named:
            self._named[named] = _below(self.path, adapter)
        return self.base or self._named[named]

    @property
    def source(self) -> dict:
        """-> where the weights came from, for provenance: hub id and commit, or folder name; the hash in any case."""
        return {**({"hub": self.hub, "commit": self.revision} if self.hub else {"folder": self.name}), "hash": self.hash,
                **({"base": self.parent.source} if self.parent else {})}  # fmt: skip

    @property
    def quantised(self) -> bool:
        """Whether the weights on disk are 4-bit ones, or, of an adapter, were while it was trained."""
        own = adapters.record(self.path).get("kind") == "qlora" or "quantization_config" in self.config
        return own if self.adapter else "quantization_config" in self.config

    @property
    def config(self) -> dict:
        return (
            self.parent.config if self.parent else json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        )

    @property
    def is_organism(self) -> bool:
        """Whether the model lives in the embedded world (its exact judge and prompts apply)."""
        return "ftlab_world" in self.config

    @property
    def hash(self) -> str:
        weights = sorted(self.path.glob("*.safetensors"))
        config = {k: v for k, v in self.config.items() if k not in ("_name_or_path", "transformers_version", "dtype")}
        files = {p.name: file_hash(p) for p in (*weights, *(self.path / n for n in TOKENIZER_FILES)) if p.exists()}
        adapter = {
            k: v for k, v in (self.adapter or {}).items() if k != "base_model_name_or_path"
        }  # the same weights at another alpha differ, and on 4-bit weights below
        below = [self.parent.hash if self.parent else None, *(["4-bit"] if self.adapter and self.quantised else [])]
        return digest([files, config, adapter, *below])

    def tokenizer(self):
        """-> the tokenizer, padding on the left as generation needs it (training pads by its own collator)."""
        found = _KEPT.get(self.hash) if _KEPT else None
        if found is None:
            return self._tokenizer()
        return copy.copy(found.get("tokenizer") or found.setdefault("tokenizer", self._tokenizer()))

    def _tokenizer(self):
        if self.parent and not (self.path / "tokenizer_config.json").exists():  # an adapter saved alone
            return self.parent.tokenizer()
        quiet()
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(self.path, padding_side="left", trust_remote_code=False)
        except Exception as e:
            raise ValueError(
                f"{self.path}: the tokenizer cannot be opened ({type(e).__name__}: {e}); save it there with save_pretrained"
            ) from None
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.pad_token_id is None:
            raise ValueError(
                f"{self.path}: the tokenizer has neither a pad nor an eos token; set one and save it there with save_pretrained"
            )
        rows = (self.adapter and adapters.vocabulary(self.path)) or self.config.get("vocab_size")
        if rows and max(tokenizer.get_vocab().values()) >= rows:
            raise ValueError(
                f"{self.path}: the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings; give the tokenizer that belongs to it"
            )
        return tokenizer

    def load(self, *, training: bool = False, four_bit: bool = False, frozen: bool = False):
        """-> the torch model on its device, in eval mode.

        Weights in bf16 on a GPU for answering; in fp32 for training, what is measured on the way included
        (`precision`), and on a CPU. `frozen`: for training an adapter above weights that stay as they are, bf16 on a
        GPU. `four_bit`: as nf4 (QLoRA); an adapter is merged in 16 or 32 bit first. An adapter answers as it was
        trained: unmerged in fp32 where the weights below are bf16 or 4-bit, which would round much of it away
        (`merge_difference`), else merged. For training it is merged, a QLoRA one onto its 4-bit weights dequantised.
        """
        found = _KEPT.get(self.hash) if _KEPT else None
        if found is None:
            return self._load(training, four_bit, frozen)
        whole = training and not frozen and not four_bit  # every weight will change
        if (how := (training, four_bit, frozen, attention())) not in found:
            made = self._load(training, four_bit, frozen)
            found[how] = made.cpu() if whole else made
        there = (*found[how].parameters(), *found[how].buffers())
        own = {id(t): copy.copy(t) for t in there}  # of the same storage
        for t in own.values() if whole else ():
            t.data = t.data.to(device(), copy=True)
        return copy.deepcopy(found[how], own)

    def _load(self, training: bool, four_bit: bool, frozen: bool):
        quiet()
        import torch

        dtype = torch.bfloat16 if device() == "cuda" and (frozen or four_bit or not training) else torch.float32
        if four_bit and self.adapter:
            with tempfile.TemporaryDirectory(prefix="ftlab-") as folder:
                self.load(training=True, frozen=True).save_pretrained(folder)
                return Model(self.name, Path(folder)).load(four_bit=True)
        if four_bit and not self.quantised:
            return self._open(dtype, quantization_config=adapters.four_bit_config(dtype))
        if not self.adapter:
            loaded = self._open(dtype)
            return adapters.dequantised(loaded, dtype) if self.quantised and training and not four_bit else loaded
        if not self.quantised:
            model = adapters.put_on(self.parent.load(training=True, frozen=frozen or not training), self.path)
            return (adapters.merged(model) if training or dtype == torch.float32 else model).eval()
        base = self.parent.load(four_bit=True)
        if training:
            return adapters.merged(adapters.put_on(adapters.dequantised(base, dtype), self.path)).eval()
        return adapters.put_on(adapters.prepared(base), self.path).eval()

    def _open(self, dtype, **settings):
        """-> what the folder itself holds, as transformers opens it; every weight is there."""
        from transformers import AutoModelForCausalLM

        try:
            loaded, found = AutoModelForCausalLM.from_pretrained(
                self.path, dtype=dtype, attn_implementation=attention(), use_safetensors=True, trust_remote_code=False,
                output_loading_info=True, **settings,
            )  # fmt: skip
        except Exception as e:
            raise ValueError(
                f"{torn(self.path)}: the weights cannot be opened ({type(e).__name__}: {e}); safetensors are needed"
            ) from None
        if missing := sorted(found["missing_keys"]):  # transformers would go on with random numbers in their place
            raise ValueError(
                f"{self.path} holds no weights for {', '.join(missing[:3])} ({len(missing)} in all); give a folder with all of a causal language model"
            )
        spare_memory(loaded.num_parameters())
        return adapters.keep_differentiable(loaded.to(device())).eval()

    def merge_difference(self, texts: list[str]) -> dict[str, float]:
        """-> how the outputs of an adapter, as it answers, change when it is merged in the numbers of the weights below it
        (4-bit ones dequantised): `adapters.difference`; 0 where it answers merged."""
        if not self.adapter:
            raise ValueError(f"{self.path} is no adapter; give a folder or a run with one")
        with released():
            return adapters.difference(self.load(), self.load(training=True, frozen=True), self.tokenizer(), texts)

    def _repr_html_(self) -> str:
        import html

        c = self.config
        facts = {"model": self.name, "architecture": (c.get("architectures") or ["?"])[0], "layers": c.get("num_hidden_layers"),
                 "hidden": c.get("hidden_size"), "vocabulary": c.get("vocab_size"), "hash": self.hash,
                 **({"hub": f"{self.hub}@{self.revision}"} if self.hub else {}), **({"adapter on": self.parent.name} if self.adapter else {})}  # fmt: skip
        return (
            "<table>"
            + "".join(f"<tr><td>{k}</td><td>{html.escape(safe(v))}</td></tr>" for k, v in facts.items())
            + "</table>"
        )


def model(ref, base=None) -> Model | Endpoint:
    """-> a reference to a model: `"organism"`, `"organism:base"`, `"organism:sft"`, a folder, a run, or a hub id.

    `api:MODEL@URL` is a model behind an endpoint, which can be asked only. A hub id may name a revision:
    `org/name@revision`. `base` is the model below an adapter whose own note of it does
    not hold here; in one word `ADAPTER+BASE`. Raises FileNotFoundError or ValueError with what was found and what is
    allowed.
    """
    if base is not None:
        made, base = model(ref), model(base)
        if not made.adapter:
            raise ValueError(f"{made.path} holds no adapter; leave base={base.name!r} away")
        return replace(made, base=base)
    if isinstance(ref, (Model, Endpoint)):
        return ref
    if not isinstance(ref, (str, os.PathLike, Run)):
        raise ValueError(
            f"a {type(ref).__name__} object was given; give a folder, a run or a hub id: save what is in memory with "
            "save_pretrained(FOLDER), its tokenizer too, and give FOLDER"
        )
    text = str(ref.path if isinstance(ref, Run) else ref)
    if text.startswith("api:"):
        return endpoint(text)
    if text in EMBEDDED:
        folder = Path(os.environ.get("FTLAB_ORGANISM", resource("data") / "organism")) / EMBEDDED[text]
        if not folder.is_dir():
            raise FileNotFoundError(f"no embedded model in {folder}; make it with `ftlab organism build`")
        return _folder(folder, text.replace(":", "-"))
    path = Path(text)
    if "+" in text and not path.exists():
        above, _, below = text.partition("+")
        return model(above, base=below)
    if text.startswith("organism"):
        raise ValueError(f"unknown model {text!r}; allowed: {', '.join(EMBEDDED)}, a folder, a run or a hub id")
    if (path / "provenance.json").exists():  # a run
        load(path)
        if not (path / "model").is_dir():
            raise ValueError(
                f"{path} trained no model; give a run of sft, dpo or dealign (of a curve: one of its members)"
            )
        made = _folder(path / "model", path.name)
        if made.parent and made.parent.hash != Run(path).config["identity"]["parent"]:
            raise ValueError(f"{path} is an adapter on {made.parent.path}, which has changed since; train it again")
        return made
    if there := hub_id(text):
        name, folder = there[0], from_hub(*there)
        commit = folder.name if re.fullmatch("[0-9a-f]{40}", folder.name) else ""
        return replace(_folder(folder, name.split("/")[1]), hub=name, revision=commit)
    return _folder(path, path.resolve().name)


def _below(path: Path, adapter: dict) -> Model:
    """-> the model that an adapter's configuration names: hub id, absolute path, or relative to here or to the adapter."""
    name = adapter.get("base_model_name_or_path") or ""
    revision = adapter.get("revision")
    if adapter.get("peft_type") in PROMPTS or adapter.get("task_type") not in (None, "CAUSAL_LM"):
        raise ValueError(
            f"{path} is an adapter {adapter.get('peft_type')} for {adapter.get('task_type')}; "
            "allowed: those that merge into a causal language model, as LoRA"
        )
    for place in (Path(name), path / name, path.parent / name):
        if name and place.is_dir() and place.resolve() != path.resolve():
            return model(place)
    try:
        if not name:
            raise ValueError("its adapter_config.json has no base_model_name_or_path")
        return model(f"{name}@{revision}" if revision and "/" in name else name)
    except (FileNotFoundError, ValueError) as e:
        raise FileNotFoundError(
            f"{path} is an adapter on {name or 'a model it does not name'}, which is not here ({e}); "
            f"give its base: ftlab.model({str(path)!r}, base=FOLDER), or on the command line {path}+FOLDER"
        ) from None


def _folder(path: Path, name: str) -> Model:
    return Model(name, check(path))
