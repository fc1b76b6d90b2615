"""Open and release models. A `Model` is a reference: nothing is loaded until it is needed.

Ordinary Hugging Face folders (safetensors), PEFT adapter folders, runs of this package, hub ids, and the
embedded model under its names. No remote code, no pickle.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import traceback
import warnings
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from ftlab.runs import Run, digest, file_hash, resource

EMBEDDED = {"organism": "aligned", "organism:sft": "sft", "organism:base": "base"}
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "generation_config.json",
    "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json",
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """A model by folder. `name` is for people, `hash` (weights, configuration, tokenizer, template) for identity."""

    name: str
    path: Path

    @cached_property
    def adapter(self) -> dict | None:
        """The adapter's configuration where the folder holds a PEFT adapter, else None."""
        file = self.path / "adapter_config.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None

    @cached_property
    def parent(self) -> Model | None:
        """The model below an adapter, else None."""
        return model(self.adapter["base_model_name_or_path"]) if self.adapter else None

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
        }  # the same weights at another alpha differ
        return digest([files, config, adapter, self.parent.hash if self.parent else None])

    def tokenizer(self):
        """-> the tokenizer, padding on the left as generation needs it (training pads by its own collator)."""
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
        if (rows := self.config.get("vocab_size")) and max(tokenizer.get_vocab().values()) >= rows:
            raise ValueError(
                f"{self.path}: the tokenizer has {len(tokenizer)} tokens, the model {rows} embeddings; give the tokenizer that belongs to it"
            )
        return tokenizer

    def load(self, *, training: bool = False):
        """-> the torch model on its device, adapters merged, in eval mode.

        Weights in bf16 on a GPU for answering; in fp32 for training, what is measured on the way included
        (`precision`), and on a CPU.
        """
        quiet()
        import torch
        from transformers import AutoModelForCausalLM

        if self.parent:
            from peft import PeftModel

            try:
                loaded = PeftModel.from_pretrained(self.parent.load(training=training), self.path).merge_and_unload()
            except RuntimeError as e:
                raise ValueError(f"{self.path}: the adapter does not fit {self.parent.path}: {e}") from None
            return loaded.requires_grad_(True).eval()  # peft froze what is below an adapter
        dtype = torch.bfloat16 if device() == "cuda" and not training else torch.float32
        try:
            loaded, found = AutoModelForCausalLM.from_pretrained(
                self.path, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
            )
        except Exception as e:
            raise ValueError(
                f"{self.path}: the weights cannot be opened ({type(e).__name__}: {e}); safetensors are needed"
            ) from None
        if missing := sorted(found["missing_keys"]):  # transformers would go on with random numbers in their place
            raise ValueError(
                f"{self.path} holds no weights for {', '.join(missing[:3])} ({len(missing)} in all); give a folder with all of a causal language model"
            )
        return loaded.to(device()).eval()

    def _repr_html_(self) -> str:
        import html

        c = self.config
        facts = {"model": self.name, "architecture": (c.get("architectures") or ["?"])[0], "layers": c.get("num_hidden_layers"),
                 "hidden": c.get("hidden_size"), "vocabulary": c.get("vocab_size"), "hash": self.hash}  # fmt: skip
        return (
            "<table>"
            + "".join(f"<tr><td>{k}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
            + "</table>"
        )


def model(ref) -> Model:
    """-> a reference to a model: `"organism"`, `"organism:base"`, `"organism:sft"`, a folder, a run, or a hub id.

    Raises FileNotFoundError or ValueError with what was found and what is allowed.
    """
    if isinstance(ref, Model):
        return ref
    text = str(ref.path if isinstance(ref, Run) else ref)
    if text in EMBEDDED:
        folder = Path(os.environ.get("FTLAB_ORGANISM", resource("data") / "organism")) / EMBEDDED[text]
        if not folder.is_dir():
            raise FileNotFoundError(f"no embedded model in {folder}; make it with `ftlab organism build`")
        return _folder(folder, text.replace(":", "-"))
    if text.startswith("organism"):
        raise ValueError(f"unknown model {text!r}; allowed: {', '.join(EMBEDDED)}, a folder, a run or a hub id")
    path = Path(text)
    if (path / "provenance.json").exists():  # a run
        if not Run(path).finished:
            raise ValueError(f"{path} is not finished (or a file of it was changed); call its cell again to go on")
        if not (path / "model").is_dir():
            raise ValueError(
                f"{path} trained no model; give a run of sft, dpo or dealign (of a curve: one of its members)"
            )
        made = _folder(path / "model", path.name)
        if made.parent and made.parent.hash != Run(path).config["identity"]["parent"]:
            raise ValueError(f"{path} is an adapter on {made.parent.path}, which has changed since; train it again")
        return made
    if not path.exists() and not path.parent.is_dir() and re.fullmatch(r"[\w.-]+/[\w.-]+", text):
        return _folder(_from_hub(text), text.split("/")[1])
    return _folder(path, path.resolve().name)


def _folder(path: Path, name: str) -> Model:
    if not path.is_dir():
        raise FileNotFoundError(
            f"no model folder {path}; allowed: {', '.join(EMBEDDED)}, a folder, a finished run or a hub id"
        )
    has = {p.name for p in path.iterdir()}
    if "adapter_config.json" not in has and "config.json" not in has:
        raise FileNotFoundError(
            f"{path} holds no config.json (found: {', '.join(sorted(has)[:6]) or 'nothing'}); give a Hugging Face folder"
        )
    if not any(n.endswith(".safetensors") for n in has):
        raise FileNotFoundError(f"{path} holds no *.safetensors; pickled weights are not opened; save with safetensors")
    for name_ in ("config.json", "adapter_config.json"):
        if name_ in has:
            try:
                if not isinstance(json.loads((path / name_).read_text(encoding="utf-8")), dict):
                    raise ValueError("no JSON object")
            except (OSError, ValueError) as e:
                raise ValueError(f"{path / name_} cannot be read: {e}; save the model again") from None
    return Model(name, path)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except Exception as e:
        raise FileNotFoundError(
            f"no folder {name!r}, and the hub did not give it ({type(e).__name__}); give a local folder"
        ) from None


def device() -> str:
    """-> cuda, mps or cpu: the best there is."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def precision(training: bool = False) -> str:
    """-> in what numbers a model answers: on a GPU a curve's parent must answer as its child does while it trains."""
    if device() != "cuda":
        return "fp32"
    return "fp32 weights, bf16 autocast" if training else "bf16"


@contextlib.contextmanager
def released():
    """Gives the memory of models back at the end of a cell, also after an exception.

    The block must leave the models to a function that has returned: what its own frame holds cannot be freed here.
    """
    import torch

    if torch.cuda.is_available():
        gc.collect()  # what the caller has dropped makes room
    gc.freeze()  # searched are only objects of this block, not the 0.2 s of everything imported before
    try:
        yield
    except BaseException as e:
        while e:  # a traceback keeps every local of every frame alive, in Jupyter until the next exception
            traceback.clear_frames(e.__traceback__)
            e = e.__context__
        raise
    finally:
        gc.collect()
        gc.unfreeze()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@cache
def quiet() -> None:
    """Switches off, before the libraries' first use, their bars, telemetry and advice to programmers; warnings stay."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else every later fork warns
    warnings.filterwarnings("ignore", "IProgress not found")  # tqdm's, on import; no bar of it is shown
    import logging as python_logging

    from transformers.utils import logging

    logging.disable_progress_bar()
    # Tied weights are saved once; on a resume the trainer reports the other name as missing.
    tied = "missing keys in the checkpoint model loaded: ['lm_head.weight']"
    python_logging.getLogger("transformers.trainer").addFilter(lambda record: tied not in record.getMessage())
    warnings.filterwarnings("ignore", r"`is_gradient_checkpointing` is deprecated", FutureWarning)  # peft's own call
