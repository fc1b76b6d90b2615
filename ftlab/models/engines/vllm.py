"""Answers by vLLM on an NVIDIA GPU (extra `vllm`), whose LoRA adapters are swapped while it runs.

vLLM computes in bf16 with kernels of its own, adapters too, and draws its own random numbers: its
answers are not those of the engine `huggingface`. Parent and child must be answered by the same
engine. Greedy answers that another batch may turn are counted (`Tally.near_ties`). Written against
the source of vLLM 0.28 and 0.30 and never run: we had no GPU.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ftlab._core.errors import UsageError
from ftlab._core.types import Answer
from ftlab.models import adapters
from ftlab.models.chat_template import stop_ids
from ftlab.models.devices import device
from ftlab.models.engines._writing import NOT_FINITE
from ftlab.models.engines.base import (
    Collector,
    Engine,
    LoadedModel,
    Request,
    check_length,
    make_answer,
)
from ftlab.models.reference import Model

RANKS = (16, 32, 64, 128, 256, 320, 512)  # values of `max_lora_rank`
LONGEST = 16_384  # tokens of prompt and answer; vLLM keeps room for one text of the most it allows
SHARE = 0.45  # of the GPU's memory; a model in training lives next to the server
NEAR = 0.125  # lead in logits: the step between numbers in bf16 from 16 to 32, where logits lie
CALL = 1024  # requests in one call; when a later one fails, earlier answers are kept
# Entries of an adapter's configuration that vLLM refuses or silently leaves out.
NOT_READ = """use_dora modules_to_save rank_pattern alpha_pattern lora_bias layer_replication
trainable_token_indices target_parameters""".split()


class VLLMEngine(Engine):
    """Answers by vLLM: local weights in 16 or 32 bit, and plain LoRA adapters on them."""

    name = "vllm"

    def __init__(self) -> None:
        super().__init__()
        self.llm: Any = None
        self.weights: tuple = ()  # path and hash of the weights that `llm` runs on
        self.rank = 0  # of the adapters that it has room for
        self.adapters: dict[str, int] = {}  # hash of an adapter: its number
        self.folder: tempfile.TemporaryDirectory | None = None  # adapter of the model in training

    def supports(self, reference: Any, *, training: Any = None, **asked) -> str | None:
        if not isinstance(reference, Model):
            return "it is behind an endpoint"
        rows = [
            *_adapter_reasons(reference, training),
            (reference.quantised, "its weights have 4 bit"),
            (asked.get("choices"), "vLLM gives no likelihoods of choices"),
            (asked.get("screened"), "vLLM does not end an answer at a refusal"),
            (not find_spec("vllm"), "the package vllm is missing: pip install 'ftlab[vllm]'"),
            (device() != "cuda", "vLLM needs an NVIDIA GPU"),
        ]
        return next((reason for holds, reason in rows if holds), None)

    def open(self, reference: Model, **how) -> LoadedModel:
        return LoadedModel(None, reference.tokenizer(), reference)

    def precision(self, training: Any = None) -> str:
        return "bf16, vllm"

    def answer_all(self, model: LoadedModel, collector: Collector) -> None:
        requests = collector.requests
        reference = model.reference
        if model.module is not None:
            reference = self._snapshot(model)
        choices = any(request.choices for request in requests)
        screened = any(request.stop_when for request in requests)
        reason = self.supports(reference, choices=choices, screened=screened)
        if reason:
            raise UsageError("engine_unsupported", f"vLLM cannot answer: {reason}.")
        room = min(reference.config.get("max_position_embeddings") or LONGEST, LONGEST)
        stops = stop_ids(model.tokenizer)
        prompts = []
        for request in requests:
            ids = model.tokenizer(request.text, add_special_tokens=False)["input_ids"]
            check_length(len(ids), request.max_new_tokens, room)
            prompts.append({"prompt_token_ids": ids})  # as tokens: no second BOS
        collector.tally.near_ties = 0
        for start in range(0, len(requests), CALL):
            llm, adapter = self._server(reference, room)
            asked = requests[start : start + CALL]
            settings = [_sampling(request, stops) for request in asked]
            given = prompts[start : start + CALL]
            outputs = llm.generate(given, settings, lora_request=adapter, use_tqdm=False)
            answers = []
            for request, output in zip(asked, outputs, strict=True):
                made = output.outputs[0]
                answers.append(_answer(request, made, model.tokenizer))
                collector.tally.near_ties += _is_near_tie(request, made)
            collector.add(list(range(start, start + len(asked))), answers)

    def release(self) -> None:
        """End the server's process, which gives its memory back."""
        if self.llm is not None:
            self.llm.llm_engine.engine_core.shutdown()
            self.llm = None
        if self.folder is not None:
            self.folder.cleanup()
            self.folder = None

    def _snapshot(self, model: LoadedModel) -> Model:
        """Return a reference to the adapter of a model in training; it is good until the next."""
        if not getattr(model.module, "peft_config", None):
            raise UsageError(
                "engine_unsupported",
                "vLLM swaps LoRA adapters, but all weights are trained. Give adapter='lora'.",
            )
        if self.folder is not None:
            self.folder.cleanup()
        self.folder = tempfile.TemporaryDirectory(prefix="ftlab-vllm-")
        path = Path(self.folder.name)
        adapters.save_adapter(model.module, path, model.reference.path, "lora")
        return Model(model.reference.name, path, base=model.reference)

    def _server(self, model: Model, room: int) -> tuple[Any, Any]:
        """Return the running `vllm.LLM` on the model's weights, and the request for its adapter."""
        os.environ |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        import torch
        from vllm import LLM
        from vllm.lora.request import LoRARequest

        base = model.parent or model
        weights = (base.path, base.hash)
        needed = (model.adapter or {}).get("r", 0)
        if self.llm is None or self.weights != weights or self.rank < needed:
            if self.llm is not None:
                self.llm.llm_engine.engine_core.shutdown()
                self.llm = None  # should the next one not start
            free, total = torch.cuda.mem_get_info()
            self.rank = next(rank for rank in RANKS if rank >= needed)
            self.llm = LLM(
                model=str(base.path),
                dtype="bfloat16",  # by default fp32 weights become fp16
                max_model_len=room,
                enable_lora=True,
                max_lora_rank=self.rank,
                seed=0,
                enable_prefix_caching=True,
                trust_remote_code=False,
                gpu_memory_utilization=min(SHARE, 0.9 * free / total),
            )
            self.weights = weights
            self.adapters = {}
        if not model.adapter:
            return self.llm, None
        # vLLM knows an adapter by its number and its prefix cache by the name: both stand for
        # the content, not for the path.
        number = self.adapters.setdefault(model.hash, len(self.adapters) + 1)
        return self.llm, LoRARequest(model.hash, number, str(model.path))


def _adapter_reasons(model: Model, training: Any) -> Iterator[tuple[bool, str]]:
    """Yield conditions under which vLLM cannot read a model's adapter or the one in training."""
    adapter = model.adapter or {}
    trained = None
    rank = adapter.get("r", 0)
    if training is not None:
        trained = training.adapter or "all weights"
        rank = max(rank, training.lora_rank)
    odd = [name for name in NOT_READ if adapter.get(name)]
    for name, usual in {"peft_type": "LORA", "bias": "none"}.items():
        if adapter.get(name, usual) != usual:
            odd.append(f"{name} {adapter[name]}")
    stacked = bool(adapter) and bool(training or model.parent.adapter)
    yield stacked, "it would be an adapter on an adapter"
    yield bool(odd), f"its adapter has {', '.join(odd)}"
    yield bool(adapter) and bool(adapters.vocabulary(model.path)), "its adapter has embeddings"
    yield rank > RANKS[-1], f"the adapter's rank {rank} is above {RANKS[-1]}"
    yield trained not in (None, "lora"), f"vLLM swaps plain LoRA adapters, not {trained}"


def _sampling(request: Request, stops: list[int]) -> Any:
    """Return vLLM's settings for a request."""
    from vllm import SamplingParams

    sampled = bool(request.decoding.temperature)
    return SamplingParams(
        **request.decoding.model_dump(),
        max_tokens=request.max_new_tokens,
        seed=request.seed if sampled else None,
        stop_token_ids=stops,
        detokenize=False,
        logprobs=0 if sampled else 2,  # of the chosen token, and of the two likeliest
    )


def _is_near_tie(request: Request, output: Any) -> bool:
    """Return whether the lead of a token of a greedy answer is within the rounding of bf16."""
    if request.decoding.temperature:
        return False
    for known in output.logprobs:
        first, second = sorted((one.logprob for one in known.values()), reverse=True)[:2]
        if first - second < NEAR:
            return True
    return False


def _answer(request: Request, output: Any, tokenizer: Any) -> Answer:
    if output.finish_reason not in ("stop", "length"):
        return Answer("", finish="error", error=f"vLLM gave up ({output.finish_reason})")
    if math.isnan(output.cumulative_logprob):
        return Answer("", finish="error", error=NOT_FINITE)
    text = tokenizer.decode(list(output.token_ids), skip_special_tokens=True)
    count = len(output.token_ids)
    return make_answer(request, text, finish=output.finish_reason, tokens=count)


ENGINE = VLLMEngine
