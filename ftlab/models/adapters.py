"""PEFT adapters: create, save, open whoever made them, merge; the 4-bit weights below QLoRA.

A QLoRA adapter belongs to the 4-bit weights it was trained on (Dettmers et al. 2023, arXiv
2305.14314): it is measured on them, unmerged. It is merged onto the same weights dequantised to 16
or 32 bit, never into 4-bit ones, which would round once more. `difference` measures the effect.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ftlab._core.errors import UsageError
from ftlab._core.text import safe
from ftlab.models.folders import limited, read_json

KINDS = ("lora", "dora", "qlora")
RECORD = "ftlab_adapter.json"  # in the adapter's folder: the kind, and the numbers below it
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight")


def adapt(model, kind: str, rank: int):
    """Put a new adapter on a model, which freezes the weights below it.

    The adapter is named `default`, its weights are fp32, alpha is twice the rank. It covers all
    linear layers except the output head; the new head of a reward model is trained in full. TRL
    casts the adapter of a 4-bit model to bf16 in its trainer: call `full_precision` afterwards.

    Args:
        model: What `Model.load` returned: for qlora `load(four_bit=True)`, otherwise
            `load(training=True, frozen=True)`. It is changed in place.
        kind: "lora", "dora" or "qlora".
        rank: Rank of the low-rank matrices.

    Returns:
        A PeftModel.

    Raises:
        UsageError: `unknown_adapter`; `already_adapted` if the model has an adapter;
            `wrong_weights_for_adapter` if only one of kind and weights is 4-bit.

    Source:
        LoRA arXiv 2106.09685, DoRA arXiv 2402.09353, QLoRA arXiv 2305.14314.
    """
    from peft import LoraConfig, get_peft_model

    if kind not in KINDS:
        allowed = ", ".join(KINDS)
        raise UsageError("unknown_adapter", f"Unknown adapter {kind!r}. Allowed: {allowed}.")
    if getattr(model, "peft_config", None):
        raise UsageError(
            "already_adapted",
            "The model already has an adapter. Load the model again.",
        )
    quantised = getattr(model, "is_loaded_in_4bit", False)
    if (kind == "qlora") != quantised:
        raise UsageError(
            "wrong_weights_for_adapter",
            f"{kind} needs a model loaded with four_bit={kind == 'qlora'}.",
        )
    if quantised:
        model = prepared(model)
    scores = type(model).__name__.endswith("ForSequenceClassification")
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",
        use_dora=kind == "dora",
        task_type="SEQ_CLS" if scores else "CAUSAL_LM",
    )
    return get_peft_model(model, config)


def full_precision(model) -> None:
    """Cast the trainable weights to fp32: bf16 loses steps below 1/256 of a weight."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def save_adapter(model, folder: Path, parent: Path, kind: str) -> None:
    """Save the adapter `default` of a PeftModel.

    Args:
        model: The PeftModel.
        folder: Where to save.
        parent: Folder of the model below the adapter.
        kind: "lora", "dora" or "qlora": decides in which numbers the model below is opened again.
    """
    model.peft_config["default"].base_model_name_or_path = str(Path(parent).resolve())
    # A check of the vocabulary would contact the hub; the copy of an adapter that a DPO trainer
    # keeps as its reference is left out.
    model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])
    base = NF4 if kind == "qlora" else "16 or 32 bit"
    text = json.dumps({"kind": kind, "base": base}, indent=1)
    file = Path(folder) / RECORD
    file.write_text(text, encoding="utf-8")


def record(folder: Path) -> dict:
    """Return what `save_adapter` recorded in a folder, or {} for an adapter made elsewhere."""
    file = Path(folder) / RECORD
    return read_json(file) if file.exists() else {}


def four_bit_config(dtype):
    """Return the configuration of doubly quantised nf4 weights that compute in `dtype`."""
    return _bitsandbytes(**NF4, bnb_4bit_compute_dtype=dtype)


def eight_bit_config():
    """Return the configuration of LLM.int8 weights."""
    return _bitsandbytes(load_in_8bit=True)


def _bitsandbytes(**settings):
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if not find_spec("bitsandbytes"):
        raise UsageError(
            "bitsandbytes_missing",
            "Such weights need bitsandbytes. Run: pip install 'ftlab[qlora]'.",
        )
    return BitsAndBytesConfig(**settings)


def prepared(model):
    """Prepare a 4-bit model for QLoRA: all frozen; norms, embeddings and head in fp32."""
    from peft import prepare_model_for_kbit_training

    # The trainer decides about checkpointing.
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def dequantised(model, dtype):
    """Turn a 4-bit or 8-bit model into an ordinary trainable one, with the values it left."""
    whole = model.dequantize(dtype).requires_grad_(True)
    # transformers leaves these on: trainers go by the first, saving fails at the last.
    whole.is_loaded_in_4bit = False
    whole.is_loaded_in_8bit = False
    conversions = getattr(whole, "_weight_conversions", None) or []
    whole._weight_conversions = [each for each in conversions if _reversible(each)] or None
    return whole


def _reversible(conversion) -> bool:
    """Whether a conversion of names or weights can be undone in saving; quantisation cannot."""
    try:
        return bool(conversion.reverse_transform())
    except NotImplementedError:
        return False


def keep_differentiable(model):
    """Switch off bitsandbytes' repacking for CPUs with AVX512-BF16, and return the model.

    Repacked layers pass no gradient after one forward pass in eval mode, which a measurement during
    training makes (in bitsandbytes 0.50 `gemv_4bit` has no autograd kernel); there is no error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def saved_shapes(folder: Path) -> dict[str, list[int]]:
    """Read the shapes of an adapter's tensors by name from the header of its file."""
    from safetensors import safe_open

    with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as file:
        return {name: file.get_slice(name).get_shape() for name in file.keys()}


def vocabulary(folder: Path) -> int | None:
    """Return the rows of the embeddings that an adapter brings along, or None."""
    for name, shape in saved_shapes(folder).items():
        if name.endswith(EMBEDDINGS) and "lora_" not in name:
            return shape[0]
    return None


def put_on(base, folder: Path):
    """Put the adapter of a folder on a model, and check that every one of its weights fits.

    Raises:
        UsageError: `adapter_does_not_fit`; peft alone would leave the layers in question unchanged.
    """
    from peft import PeftModel, get_peft_model_state_dict

    try:
        _try_patterns(base, folder)
        saved = set(saved_shapes(folder))
        rows = vocabulary(folder)
        if rows and rows != base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(rows, mean_resizing=False)  # the adapter has all rows
        model = PeftModel.from_pretrained(base, folder)
        found = model.load_adapter(folder, "default")  # again: only this reports what does not fit
        expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    except Exception as error:
        message = f"{folder}: the adapter does not fit the model below it ({safe(error, 300)})."
        raise UsageError("adapter_does_not_fit", message) from None
    # peft reports no missing biases. Its names may be newer than those in the file.
    wrong = found.missing_keys + found.unexpected_keys
    wrong += [name for name in expected - saved if name.endswith(".bias")]
    if wrong:
        shown = safe(min(wrong), 200)
        message = f"{folder}: {len(wrong)} weights do not fit the model below, such as {shown}."
        raise UsageError("adapter_does_not_fit", message + " Pass the model it was trained on.")
    return model


def _try_patterns(base, folder: Path) -> None:
    """Try the regular expressions of an adapter's configuration, which may run for ever."""
    config = read_json(Path(folder) / "adapter_config.json")
    names = [name for name, _ in base.named_modules()]
    with limited(f"{folder}: matching the names of its layers"):
        for setting in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
            patterns = config.get(setting) or ()
            if isinstance(patterns, str):
                patterns = [patterns]
            for pattern in patterns:
                any(re.fullmatch(pattern, name) for name in names)


def freeze_embeddings(model) -> None:
    """Let no training change a torch model's token embeddings and its output head."""
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None:  # models that end in a number have no output head
            layer.requires_grad_(False)


def merged(model):
    """Merge an adapter in the numbers of the weights below it; return an ordinary trainable model.

    Tied embeddings are untied first if an adapter is on one of them.
    """
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    head = base.get_output_embeddings()
    embeddings = base.get_input_embeddings()
    adapted = isinstance(head, BaseTunerLayer) or isinstance(embeddings, BaseTunerLayer)
    if adapted and head.weight is embeddings.weight:
        layer = getattr(head, "base_layer", head)
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    try:
        whole = model.merge_and_unload()
    except NotImplementedError as error:
        raise UsageError("adapter_cannot_merge", f"The adapter cannot be merged: {error}") from None
    return whole.requires_grad_(True)  # peft froze what is below an adapter


def difference(one, other, tokenizer, texts: list[str]) -> dict[str, float]:
    """Measure how the next-token distributions of two loaded models differ over texts.

    Returns:
        `max_abs` and `mean_abs` of the differences of logits; `kl`, the mean Kullback-Leibler
        divergence of `other` from `one` in nats per token; `same_top`, the share of positions at
        which both models prefer the same next token.
    """
    import torch

    gaps, divergences, agreements = [], [], []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            a = one(input_ids=ids.to(one.device)).logits[0].float().cpu()
            b = other(input_ids=ids.to(other.device)).logits[0].float().cpu()
            gaps.append((a - b).abs().flatten())
            log_p = a.log_softmax(-1)
            log_q = b.log_softmax(-1)
            divergences.append((log_p.exp() * (log_p - log_q)).sum(-1))
            agreements.append((a.argmax(-1) == b.argmax(-1)).float())
    gap = torch.cat(gaps)
    return {
        "max_abs": gap.max().item(),
        "mean_abs": gap.mean().item(),
        "kl": torch.cat(divergences).mean().item(),
        "same_top": torch.cat(agreements).mean().item(),
    }
