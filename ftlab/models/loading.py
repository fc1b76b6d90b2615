"""Open the weights and the tokenizer of a model; share what was opened inside `keep_open`."""

from __future__ import annotations

import contextlib
import copy
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ftlab._core.errors import UsageError
from ftlab._core.text import safe
from ftlab.models import adapters, chat_template, devices
from ftlab.models.folders import torn

if TYPE_CHECKING:
    from ftlab.models.reference import Model


# Weights without a place that change no answer: buffers of older files, value heads.
UNUSED = re.compile(r"(inv_freq|masked_bias|position_ids|att(ention|n)\.bias|v_head\.[\w.]+)$")

# By hash of a model: its tokenizer, under "tokenizer", and its modules by how they were loaded.
_kept: dict[str, dict] = {}


@contextlib.contextmanager
def keep_open(model: Model) -> Iterator[None]:
    """Read the files of a model only once inside a block.

    Every further `load` and `tokenizer` returns a copy from memory that belongs to its caller.
    Copies share the storage of their weights, unless all weights will be trained.
    """
    key = model.hash
    if key in _kept:  # an outer block keeps it
        yield
        return
    _kept[key] = {}
    try:
        yield
    finally:
        del _kept[key]


def tokenizer(model: Model):
    """Return the tokenizer of a model, a copy inside `keep_open`."""
    opened = _opened(model)
    if opened is None:
        return _open_tokenizer(model)
    if "tokenizer" not in opened:
        opened["tokenizer"] = _open_tokenizer(model)
    return copy.copy(opened["tokenizer"])


def load(model: Model, training: bool = False, four_bit: bool = False, frozen: bool = False):
    """Return the torch module of a model, a copy inside `keep_open`; see `Model.load`."""
    opened = _opened(model)
    if opened is None:
        return _open_weights(model, training, four_bit, frozen)
    all_trained = training and not frozen and not four_bit
    how = (training, four_bit, frozen, devices.attention())
    if how not in opened:
        module = _open_weights(model, training, four_bit, frozen)
        opened[how] = module.cpu() if all_trained else module
    return _own_copy(opened[how], all_trained)


def load_sharded(model: Model, processes: int):
    """Return a whole model for training, of which each of so many processes holds a share (FSDP).

    Weights are fp32. Each process reads only its share of the files. The model also takes a whole
    `state_dict`.
    """
    devices.quiet()
    import torch
    from transformers.distributed import DistributedConfig

    shares = DistributedConfig(fsdp_size=processes)
    module = open_folder(model.path, torch.float32, distributed_config=shares)
    module.register_load_state_dict_pre_hook(_share_out)
    return module


def _share_out(module, state_dict: dict, *_) -> None:
    """Put this process's shares in the place of whole tensors."""
    for name, weights in module.named_parameters(remove_duplicate=False):
        if name in state_dict:
            state_dict[name] = share_of(state_dict[name], weights)


def share_of(whole, weights):
    """Return what a process holds of a whole tensor where it holds so much of these weights."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, weights.device_mesh, weights.placements, src_data_rank=None)


def _opened(model: Model) -> dict | None:
    """Return what is kept open of a model, if anything."""
    if not _kept:  # a hash is not free
        return None
    return _kept.get(model.hash)


def _own_copy(module, with_weights: bool):
    """Copy a module; its weights share storage with the original unless they are copied too."""
    tensors = [*module.parameters(), *module.buffers()]
    own = {id(tensor): copy.copy(tensor) for tensor in tensors}
    if with_weights:
        for tensor in own.values():
            tensor.data = tensor.data.to(devices.device(), copy=True)
    return copy.deepcopy(module, own)


def _open_tokenizer(model: Model):
    """Open the tokenizer of a model, or that of the model below an adapter saved without one."""
    if model.parent and not (model.path / "tokenizer_config.json").exists():
        return model.parent.tokenizer()
    devices.quiet()
    chat_template.make_repeatable()
    try:
        found = _tokenizer_class(model).from_pretrained(
            model.path, padding_side="left", trust_remote_code=False
        )
    except Exception as error:
        _check_config(model.path)
        message = f"{model.path}: the tokenizer cannot be opened ({safe(error, 300)})."
        raise UsageError("tokenizer_unreadable", message + " Save it there again.") from None
    _check_tokenizer(model, found)
    if found.pad_token_id is None:
        found.pad_token = found.eos_token
    if found.pad_token_id is None:
        message = f"{model.path}: the tokenizer has neither a pad nor an eos token. Set one."
        raise UsageError("tokenizer_without_padding", message)
    return found


def _check_tokenizer(model: Model, found) -> None:
    """Refuse a tokenizer that cannot say where its tokens stand, or that is of another model."""
    if not found.is_fast:
        message = f"{model.path}: {type(found).__name__} does not say where its tokens stand."
        raise UsageError("tokenizer_not_fast", message + " Save a fast form (tokenizer.json).")
    rows = model.config.get("vocab_size")
    if model.adapter:
        rows = adapters.vocabulary(model.path) or rows
    if rows and max(found.get_vocab().values()) >= rows:
        raise UsageError(
            "tokenizer_too_large",
            f"{model.path}: the tokenizer has {len(found)} tokens, the model {rows} embeddings. "
            "Use the model's own tokenizer.",
        )


def _tokenizer_class(model: Model):
    """Return the class that opens a model's tokenizer; AutoTokenizer would import torch."""
    if model.is_organism:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast
    from transformers import AutoTokenizer

    return AutoTokenizer


def _open_weights(model: Model, training: bool, four_bit: bool, frozen: bool):
    """Open a model or an adapter in the numbers that its use needs."""
    devices.quiet()
    import torch

    narrow = frozen or four_bit or not training
    dtype = torch.bfloat16 if devices.device() == "cuda" and narrow else torch.float32
    if model.adapter and four_bit:
        return _merged_in_four_bit(model)
    if model.adapter and model.quantised:
        return _qlora(model, training, dtype)
    if model.adapter:
        base = model.parent.load(training=True, frozen=frozen or not training)
        adapted = adapters.put_on(base, model.path)
        if training or dtype == torch.float32:
            adapted = adapters.merged(adapted)
        return adapted.eval()
    if four_bit and not model.quantised:
        quantisation = adapters.four_bit_config(dtype)
        return open_folder(model.path, dtype, quantization_config=quantisation)
    module = open_folder(model.path, dtype)
    if model.quantised and training and not four_bit:
        return adapters.dequantised(module, dtype)
    return module


def _merged_in_four_bit(model: Model):
    """Merge an adapter in 16 or 32 bit, then open the result in 4 bit."""
    with tempfile.TemporaryDirectory(prefix="ftlab-") as folder:
        model.load(training=True, frozen=True).save_pretrained(folder)
        merged = replace(model, path=Path(folder))
        return _open_weights(merged, training=False, four_bit=True, frozen=False)


def open_quantised(model: Model, bits: int):
    """Return a model in bitsandbytes' weights: nf4 for 4 bits, LLM.int8 for 8.

    An adapter is merged in 16 or 32 bit first.
    """
    if bits == 4:
        return load(model, four_bit=True)
    whole = load(model, training=True, frozen=True)
    with tempfile.TemporaryDirectory(prefix="ftlab-") as folder:
        whole.save_pretrained(folder)
        config = adapters.eight_bit_config()
        return open_folder(folder, whole.dtype, quantization_config=config)


def _qlora(model: Model, training: bool, dtype):
    """Open a QLoRA adapter: on its 4-bit weights, or for training merged onto them dequantised."""
    base = model.parent.load(four_bit=True)
    if training:
        whole = adapters.dequantised(base, dtype)
        return adapters.merged(adapters.put_on(whole, model.path)).eval()
    return adapters.put_on(adapters.prepared(base), model.path).eval()


def _check_config(path: Path, kind: str = "") -> None:
    """Raise UsageError if what cannot be opened fails by its configuration alone.

    Without weights nothing is computed: the model is made on torch's device "meta".
    """
    import torch
    import transformers

    file = path / "config.json"
    if not file.is_file():
        return
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False)
        if kind:
            with torch.device("meta"):
                getattr(transformers, kind).from_config(config, trust_remote_code=False)
        file = path / "generation_config.json"
        if file.is_file():
            transformers.GenerationConfig.from_pretrained(path)
    except Exception as error:
        reason = f"no model can be made of it ({safe(error, 300)}). Correct that value."
        if str(error).startswith("Unrecognized configuration class"):
            reason = f"{safe(config.model_type, 80)} has no {kind}. Pass a model of text alone."
        raise UsageError("config_unreadable", f"{file}: {reason}") from None


def open_folder(path: Path | str, dtype, kind: str = "AutoModelForCausalLM", **settings):
    """Open a folder as transformers does, and check that every weight is there.

    Args:
        path: The folder, or a hub id.
        dtype: Numbers of its weights.
        kind: What of transformers opens it.
        **settings: Further arguments of `from_pretrained`.

    Raises:
        UsageError: `config_unreadable`, `weights_unreadable`, `weights_missing`,
            `weights_not_used`.
    """
    import transformers

    attention = devices.attention()
    try:
        module, info = getattr(transformers, kind).from_pretrained(
            path,
            dtype=dtype,
            attn_implementation=attention,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **settings,
        )
    except Exception as error:
        _check_config(Path(path), kind)
        message = f"{torn(Path(path))}: the weights cannot be opened ({safe(error, 300)})."
        raise UsageError("weights_unreadable", message) from None
    missing = sorted(info["missing_keys"])
    if missing:  # transformers would continue with random numbers in their place
        message = f"{path} lacks {len(missing)} tensors of the model, such as {missing[0]}."
        raise UsageError("weights_missing", safe(message))
    unused = sorted(name for name in info["unexpected_keys"] if not UNUSED.search(name))
    causal = kind == "AutoModelForCausalLM"  # classifiers leave the heads of their models out
    if unused and causal:  # transformers would leave them out: another model
        message = f"{path}: its configuration has no place for {len(unused)} tensors of its files, "
        message += f"such as {safe(unused[0], 200)}. Save the model again."
        raise UsageError("weights_not_used", message)
    if "distributed_config" not in settings:  # else it is where it belongs
        module = module.to(devices.device())
    return adapters.keep_differentiable(module).eval()
