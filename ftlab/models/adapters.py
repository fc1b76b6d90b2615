"""Adapters (PEFT): put on a model, saved, opened whoever made them, merged; 4-bit bases (bitsandbytes) below them.

A QLoRA adapter belongs to the 4-bit weights it was trained on (Dettmers et al. 2023, arXiv 2305.14314): it is
measured on them, unmerged. It is merged onto the same weights dequantised to 16 or 32 bit, never into 4-bit ones, which
would be rounded once more; `difference` says what either did to the outputs.
"""

from __future__ import annotations

import json
from pathlib import Path

KINDS = ("lora", "dora", "qlora")
RECORD = "ftlab_adapter.json"  # beside the adapter: what numbers the weights below it had
NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}


def adapt(model, kind: str, rank: int):
    """-> PeftModel with one new adapter, `default`, on all linear layers but the output head; alpha = 2 * rank.

    (A reward model's new head is trained whole.)

    `model` is what `Model.load` gave: for qlora `load(four_bit=True)`, else `load(training=True, frozen=True)`. The weights
    below are frozen; the adapter's are fp32. Sources: LoRA arXiv 2106.09685, DoRA 2402.09353, QLoRA 2305.14314.
    TRL casts the adapter of a 4-bit model to bf16 when a trainer is made: call `full_precision` after that.
    Raises ValueError for an unknown kind, a model that has an adapter, or one in other numbers than `kind` needs.
    """
    from peft import LoraConfig, get_peft_model

    if kind not in KINDS:
        raise ValueError(f"unknown adapter {kind!r}; allowed: {', '.join(KINDS)}")
    if getattr(model, "peft_config", None):
        raise ValueError("the model already has an adapter; a second one would start anew: load the model again")
    quantised = getattr(model, "is_loaded_in_4bit", False)
    if (kind == "qlora") != quantised:
        raise ValueError(
            f"{kind} needs {'a 4-bit model' if kind == 'qlora' else 'weights of 16 or 32 bit'}, found the other; "
            f"load it with four_bit={kind == 'qlora'}"
        )
    task = "SEQ_CLS" if type(model).__name__.endswith("ForSequenceClassification") else "CAUSAL_LM"
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", use_dora=kind == "dora", task_type=task
    )
    return get_peft_model(prepared(model) if quantised else model, config)


def prepared(model):
    """-> a 4-bit model as QLoRA trains it: all frozen, what is not quantised (norms, embeddings, head) in fp32."""
    from peft import prepare_model_for_kbit_training

    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # the trainer's choice


def dequantised(model, dtype):
    """-> a 4-bit model as an ordinary one in `dtype`, its weights those that nf4 left, all trainable."""
    whole = model.dequantize(dtype).requires_grad_(True)
    whole.is_loaded_in_4bit = False  # transformers leaves it on, and trainers would go by it
    return whole


def full_precision(model) -> None:
    """The trainable weights in fp32: in bf16 steps below 1/256 of a weight are lost."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.float32)


def save(model, folder: Path, parent: Path, kind: str) -> None:
    """Saves the adapter `default`, the folder of the model below it, and (`RECORD`) in what numbers that one was."""
    model.peft_config["default"].base_model_name_or_path = str(Path(parent).resolve())
    # The check of its vocabulary would ask the hub; a copy that a DPO trainer made as reference is left out.
    model.save_pretrained(folder, save_embedding_layers=False, selected_adapters=["default"])
    record = {"kind": kind, "base": NF4 if kind == "qlora" else "16 or 32 bit"}
    (Path(folder) / RECORD).write_text(json.dumps(record, indent=1), encoding="utf-8")


def record(folder: Path) -> dict:
    """-> what `save` recorded; {} for an adapter made elsewhere."""
    file = Path(folder) / RECORD
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def four_bit_config(dtype):
    """-> transformers' configuration of nf4 weights, doubly quantised, that compute in `dtype`."""
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if not find_spec("bitsandbytes"):
        raise ValueError("qlora needs bitsandbytes, which is not installed; do: pip install 'ftlab[qlora]'")
    return BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=dtype)


def keep_differentiable(model):
    """-> the model, without bitsandbytes' repacking for CPUs with AVX512-BF16.

    After one forward pass in eval mode, as a measurement during training makes, the repacked layers would pass no
    gradient any more (bitsandbytes 0.50: gemv_4bit has no autograd kernel), without an error.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def saved_shapes(folder: Path) -> dict[str, list[int]]:
    """-> name -> shape of every tensor in an adapter's safetensors, read from the header."""
    from safetensors import safe_open

    with safe_open(Path(folder) / "adapter_model.safetensors", "pt") as f:
        return {k: f.get_slice(k).get_shape() for k in f.keys()}


def vocabulary(folder: Path) -> int | None:
    """-> rows of the embeddings that an adapter brings along (resized or trained ones), else None."""
    whole = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight")
    return next((s[0] for n, s in saved_shapes(folder).items() if n.endswith(whole) and "lora_" not in n), None)


def put_on(base, folder: Path):
    """-> PeftModel: `base` with the adapter of `folder`, every one of its weights in place.

    Raises ValueError where names or shapes do not fit; peft alone would leave such layers untouched.
    """
    from peft import PeftModel, get_peft_model_state_dict

    try:
        saved = saved_shapes(folder)
        if (rows := vocabulary(folder)) and rows != base.get_input_embeddings().weight.shape[0]:
            base.resize_token_embeddings(rows, mean_resizing=False)  # all rows come from the adapter
        model = PeftModel.from_pretrained(base, folder)
        there = set(get_peft_model_state_dict(model, save_embedding_layers=False))
    except Exception as e:
        raise ValueError(f"{folder}: the adapter does not fit the model below it ({type(e).__name__}: {e})") from None
    lost = [n for n in saved if n not in there and "lora_" in n]
    if wrong := sorted(there - set(saved)) + sorted(lost):
        raise ValueError(
            f"{folder}: the adapter does not fit the model below it: {len(wrong)} of its weights belong to no layer "
            f"or are missing ({wrong[0]}); give the model that it was trained on"
        )
    return model


def merged(model):
    """-> an ordinary model, its adapter merged in the numbers of its weights, all trainable again."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    base = model.get_base_model()
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    adapted = [isinstance(m, BaseTunerLayer) for m in (head, embeddings)]
    if any(adapted) and head.weight is embeddings.weight:  # tied: merging one would change the other too
        layer = getattr(head, "base_layer", head)
        layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    whole = model.merge_and_unload()
    return whole.requires_grad_(True)  # peft froze what is below an adapter


def difference(one, other, tokenizer, texts: list[str]) -> dict[str, float]:
    """-> how the next-token distributions of two loaded models differ over `texts`.

    `max_abs`, `mean_abs`: of the logits; `kl`: mean Kullback-Leibler divergence of `other` from `one`, nats a token;
    `same_top`: share of the tokens at which both would go on alike.
    """
    import torch

    gaps, kl, same = [], [], []
    with torch.inference_mode():
        for text in texts:
            ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            a, b = (m(input_ids=ids.to(m.device)).logits[0].float().cpu() for m in (one, other))
            gaps.append((a - b).abs().flatten())
            p, q = a.log_softmax(-1), b.log_softmax(-1)
            kl.append((p.exp() * (p - q)).sum(-1))
            same.append((a.argmax(-1) == b.argmax(-1)).float())
    gap = torch.cat(gaps)
    return {"max_abs": gap.max().item(), "mean_abs": gap.mean().item(),
            "kl": torch.cat(kl).mean().item(), "same_top": torch.cat(same).mean().item()}  # fmt: skip
