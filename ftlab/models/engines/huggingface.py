"""Answers by transformers in this process, always in batches.

Prompts are sorted by length and padded on the left; answers that have ended leave their batch.
Answers do not depend on the batch: greedy ones up to the rounding of logits, sampled ones because
each draws its own random numbers.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from ftlab._core.errors import UsageError
from ftlab._core.types import Answer
from ftlab.models.devices import check_devices, precision
from ftlab.models.engines._drafts import Drafts
from ftlab.models.engines._several import Elsewhere, answer_elsewhere
from ftlab.models.engines._writing import (
    NOT_FINITE,
    Row,
    Writer,
    context,
    in_batches,
    padded,
    without_adapter,
)
from ftlab.models.engines.base import (
    Collector,
    Engine,
    LoadedModel,
    Request,
    check_length,
    make_answer,
)

SCORED = (2**20, 16_384)  # of a pass over prompts and choices: rows; rows times columns


class HuggingFaceEngine(Engine):
    """Answers by a torch model in this process. Supports everything that a local model can do.

    Args:
        drafts: Verify earlier greedy answers instead of decoding them again, where the model
            computes in fp32. In bf16 two tokens are often equally probable, and which of them is
            taken would depend on the draft: on what was asked before, or on a resumption.
    """

    name = "huggingface"

    def __init__(self, drafts: bool = True) -> None:
        super().__init__()
        self.drafts = Drafts() if drafts else None
        self.devices = 1  # among which requests are shared out

    def supports(self, reference: Any, **what) -> str | None:
        if not hasattr(reference, "load"):
            return "a model behind an endpoint needs the engine 'openai'"
        return None

    def use_devices(self, devices: int) -> None:
        check_devices(devices)
        self.devices = devices

    def open(self, reference: Any, **how) -> LoadedModel:
        if self.devices > 1:
            return Elsewhere(None, reference.tokenizer(), reference, how=how)
        return LoadedModel(reference.load(**how), reference.tokenizer(), reference)

    def precision(self, training: Any = None) -> str:
        adapter = training.adapter if training else None
        return precision(training is not None, adapter)

    def answer_all(self, model: LoadedModel, collector: Collector) -> None:
        if isinstance(model, Elsewhere):
            alone = copy.copy(self)
            alone.devices = 1
            answer_elsewhere(alone, model, collector, self.devices)
            return
        drafts = None
        if _computes_in_fp32(model.module):
            drafts = self.drafts
        with _inference(model.module):
            for numbers in collector.groups():
                if collector.requests[numbers[0]].choices:
                    _choose(model, collector, numbers)
                else:
                    Writer(model, collector, numbers).run(drafts)

    def remember(self, requests: list[Request], answers: list[Answer]) -> None:
        if self.drafts is None:
            return
        for request, answer in zip(requests, answers, strict=True):
            if request.decoding.temperature or request.choices or answer.finish == "error":
                continue
            own_text = answer.own_text if request.opening else answer.text
            self.drafts.known[request.text] = own_text

    def release(self) -> None:
        if self.drafts is not None:
            self.drafts = Drafts()


def _choose(model: LoadedModel, collector: Collector, numbers: list[int]) -> None:
    """Answer with the likeliest choice."""
    rows: dict[int, list[Row]] = {}
    for number in numbers:
        request = collector.requests[number]
        tokenise = partial(_tokenise, model.tokenizer, number, request)
        rows[number] = [tokenise(choice) for choice in request.choices]
    every = [row for several in rows.values() for row in several]
    longest = max(row.size for row in every)
    check_length(longest, 0, context(model.module))
    in_batches(every, partial(_score, model), collector.tally, SCORED)
    for number, several in rows.items():
        request = collector.requests[number]
        found = [row.score for row in several]
        if all(map(math.isfinite, found)):
            best = request.choices[found.index(max(found))]
            answer = make_answer(request, best, likelihoods=found)
        else:
            answer = Answer("", finish="error", error=NOT_FINITE)
        collector.add([number], [answer])


def _tokenise(tokenizer: Any, number: int, request: Request, choice: str) -> Row:
    """Return prompt and choice as tokens.

    They are tokenised together, as in training; a token that also holds the prompt's end counts
    whole to the choice. The end of the turn is not part of a choice.
    """
    text = request.text + choice
    encoded = tokenizer(
        text,
        add_special_tokens=False,
        return_offsets_mapping=True,
    )
    ids = encoded["input_ids"]
    start = sum(end <= len(request.text) for _, end in encoded["offset_mapping"])
    if not 0 < start < len(ids):
        raise UsageError(
            "empty_choice",
            f"The choice {choice!r} has no token of its own after its prompt. Give it a text.",
        )
    return Row(number, request, ids[:start], guess=ids[start:])


def _score(model: LoadedModel, rows: list[Row]) -> None:
    """Add up the log-probabilities (natural logarithm) of each row's guess.

    Padding is on the right, where no token of a causal model sees it.
    """
    import torch

    module = model.module
    texts = [row.unread for row in rows]
    ids, mask = padded(texts, model.tokenizer.pad_token_id, "right", module.device)
    given = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
    first = min(len(row.prompt) for row in rows) - 1
    if "logits_to_keep" in inspect.signature(without_adapter(module).forward).parameters:
        given["logits_to_keep"] = torch.arange(first, ids.shape[1], device=ids.device)
        logits = module(**given).logits
    else:
        logits = module(**given).logits[:, first:]
    logs = logits.float().log_softmax(-1)
    for own, row in zip(logs, rows, strict=True):
        tokens = torch.tensor(row.guess, device=logs.device)
        start = len(row.prompt) - 1 - first
        own = own[start : start + len(tokens)]
        row.score = own.gather(-1, tokens[:, None]).sum().item()


def _computes_in_fp32(module: Any) -> bool:
    import torch

    return module.dtype == torch.float32 and module.device.type != "cuda"


@contextlib.contextmanager
def _inference(module: Any) -> Iterator[None]:
    """Switch off dropout, gradients and the outputs of routers.

    Routers report a loss in training, which fails where keys and values are cached. Weights in
    fp32 on a GPU compute in bf16, as they do in training.
    """
    import torch

    config = without_adapter(module).config.get_text_config(decoder=True)
    reports = getattr(config, "output_router_logits", None)
    was_training = module.training
    mixed = module.device.type == "cuda" and module.dtype == torch.float32
    module.eval()
    if reports:
        config.output_router_logits = False
    try:
        with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16, enabled=mixed):
            yield
    finally:
        module.train(was_training)
        if reports:
            config.output_router_logits = reports


ENGINE = HuggingFaceEngine
