"""vLLM as generator (extra `vllm`): prompts -> answers by one warm engine, LoRA adapters swapped without a restart.

The contract is that of `generate.answers`, the numbers are not: bf16 kernels of its own (an adapter's too, which we keep in
fp32), and its own random numbers, so that a seed gives another answer than ours, to the rounding of a batch's shape.
Parent and child must be answered by the same generator. Written against the source of vLLM 0.28 and 0.30.
"""

from __future__ import annotations

import math
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

from ftlab.data import DataError, stop_ids
from ftlab.models import adapters
from ftlab.models.engines.base import GREEDY, Decoding
from ftlab.models.reference import Model, device
from ftlab.training import Training

RANKS = (16, 32, 64, 128, 256, 320, 512)  # the values of `max_lora_rank`, without the smaller ones
LONGEST = 16_384  # tokens of prompt and answer; an engine keeps room for one sequence of the most it allows
SHARE = 0.45  # of the GPU's memory: in a curve the model in training lives beside the engine
CALL = 1024  # prompts of one call: when a later one fails, what was answered before is kept
# Of an adapter's configuration: vLLM refuses some of these and leaves others out without a word.
NOT_READ = """use_dora modules_to_save rank_pattern alpha_pattern lora_bias layer_replication trainable_token_indices
target_parameters""".split()
_warm: dict = {}  # `llm`, of which `model` (path, hash), `rank`, `numbers` of the adapters it was given; `snapshot`


def check(model, items=(), training: Training | None = None) -> None:
    """Raises ValueError where vLLM cannot answer the prompts `items` for a model (a reference), or for it in training."""
    above, trained = (
        getattr(model, "adapter", None) or {},
        (training.adapter or "all weights") if training else "lora",
    )
    rank, usual = (
        max(above.get("r", 0), training.lora_rank if training else 0),
        {"peft_type": "LORA", "bias": "none"},
    )
    odd = [k for k in NOT_READ if above.get(k)] + [
        f"{k} {above[k]}" for k, v in usual.items() if above.get(k, v) != v
    ]
    found = (
        "an endpoint" if not isinstance(model, Model)
        else "weights of 4 bit" if model.quantised
        else "an adapter above an adapter" if above and (training or model.parent.adapter)
        else f"an adapter with {', '.join(odd)}" if odd
        else "an adapter with embeddings" if above and adapters.vocabulary(model.path)
        else f"rank {rank}" if rank > RANKS[-1]
        else f"training of {trained}" if trained != "lora"
        else "prompts with choices, whose likelihoods it does not give" if any("choices" in i for i in items)
        else "no NVIDIA GPU with the package vllm (Linux: pip install 'ftlab[vllm]')" if not find_spec("vllm") or device() != "cuda"
        else ""
    )  # fmt: skip
    if found:
        can = (
            f"local weights of 16 or 32 bit and plain LoRA adapters of rank <= {RANKS[-1]} on them"
        )
        raise ValueError(
            f"generator vllm answers for {can}; found {found}; leave generator='transformers'"
        )


def snapshot(model, parent: Model) -> Model:
    """-> a reference to the adapter of a PEFT model in training as it is now, above `parent`; good until the next one."""
    if not getattr(model, "peft_config", None):
        raise ValueError(
            "generator vllm swaps LoRA adapters; found full weights in training; give lora=True"
        )
    if "snapshot" in _warm:
        _warm["snapshot"].cleanup()
    _warm["snapshot"] = tempfile.TemporaryDirectory(prefix="ftlab-vllm-")
    folder = Path(_warm["snapshot"].name)
    adapters.save(model, folder, parent.path, "lora")
    return Model(parent.name, folder, base=parent)


def answers(
    model: Model, tokenizer, prompts: list[str], *, max_new_tokens: int, each=None, decoding: Decoding = GREEDY,
    seeds=None, cut=None,
) -> list[str]:  # fmt: skip
    """-> the answer to each rendered prompt, as `generate.answers`; `model` is a reference (also from `snapshot`).

    Prompts go in as token ids: no second BOS. Raises ValueError (`check`; a prompt that does not fit; seeds missing),
    DataError where a probability is not a number, RuntimeError where the engine gives an answer up.
    """
    check(model)
    seeds = list(seeds or ()) if decoding.temperature else [None] * len(prompts)
    if len(seeds) != len(prompts):
        raise ValueError(
            f"sampling needs one seed a prompt ({len(prompts)}); found {len(seeds)}; give seeds=[...]"
        )
    ids = tokenizer(prompts, add_special_tokens=False)["input_ids"] if prompts else []
    longest, new, room = (
        max(map(len, ids), default=0),
        max_new_tokens,
        min(model.config.get("max_position_embeddings") or LONGEST, LONGEST),
    )
    if longest + new > room:  # vLLM would end the answer there without a word
        raise ValueError(
            f"the longest prompt has {longest} tokens; with max_new_tokens = {new} at most {room} fit"
        )
    llm, request = _engine(model, room)
    from vllm import SamplingParams

    how = dict(max_tokens=new, stop_token_ids=stop_ids(tokenizer), detokenize=False, logprobs=0,  # 0: the chosen token's
               temperature=decoding.temperature, top_p=decoding.top_p, top_k=decoding.top_k)  # fmt: skip
    out = [""] * len(ids)
    for start in range(0, len(ids), CALL):
        batch = range(start, min(start + CALL, len(ids)))
        asked = [SamplingParams(**how, seed=seeds[i]) for i in batch]
        given = [{"prompt_token_ids": ids[i]} for i in batch]
        for i, made in zip(
            batch, llm.generate(given, asked, lora_request=request, use_tqdm=False), strict=True
        ):
            said = made.outputs[0]
            if said.finish_reason not in ("stop", "length"):
                raise RuntimeError(
                    f"{model.name}: vLLM gave prompt {i} up ({said.finish_reason}); call again to go on"
                )
            if math.isnan(said.cumulative_logprob):
                raise DataError(
                    f"{model.name}: the probabilities after prompt {i} are NaN; its weights are broken"
                )
            out[i] = tokenizer.decode(list(said.token_ids), skip_special_tokens=True)
            if cut is not None and said.finish_reason == "length":
                cut.add(i)
        if each:
            each(list(batch), [out[i] for i in batch])
    return out


def release() -> None:
    """Ends the engine's process, which gives its memory back, and removes the last snapshot."""
    if "llm" in _warm:
        _warm.pop("llm").llm_engine.engine_core.shutdown()
    if "snapshot" in _warm:
        _warm.pop("snapshot").cleanup()


def _engine(model: Model, room: int):
    """-> (the warm `vllm.LLM` on the weights of a model or below its adapter, the LoRARequest or None)."""
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    import torch
    from vllm import LLM
    from vllm.lora.request import LoRARequest

    base, needed = model.parent or model, (model.adapter or {}).get("r", 0)
    key = (base.path, base.hash)
    if "llm" not in _warm or _warm["model"] != key or _warm["rank"] < needed:
        if "llm" in _warm:
            _warm.pop("llm").llm_engine.engine_core.shutdown()
        rank, (free, total) = next(r for r in RANKS if r >= needed), torch.cuda.mem_get_info()
        llm = LLM(
            model=str(base.path), dtype="bfloat16", max_model_len=room, enable_lora=True, max_lora_rank=rank, seed=0,
            enable_prefix_caching=True, trust_remote_code=False, gpu_memory_utilization=min(SHARE, 0.9 * free / total),
        )  # fmt: skip  # dtype: else fp32 weights become fp16
        _warm.update(model=key, rank=rank, llm=llm, numbers={})
    # The engine knows an adapter by its number, its prefix cache by the name: both stand for the content, not the path.
    number = _warm["numbers"].setdefault(model.hash, len(_warm["numbers"]) + 1)
    return _warm["llm"], LoRARequest(model.hash, number, str(model.path)) if model.adapter else None
