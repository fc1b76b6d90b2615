"""Computes no more positions than needed: rows without padding, losses without unlabelled tokens.

Both give the same training up to rounding; whether they apply is counted, never timed, so that a
resumed run decides as it did before.
"""

from __future__ import annotations

import contextlib
import random
from unittest.mock import patch

from ftlab.models import out_of_memory
from ftlab.training.config import TrainingConfig


def padding_free_is_cheaper(model, config: TrainingConfig, lengths: list[int], rows: int) -> bool:
    """Whether SFT computes less with the rows of a forward pass laid end to end.

    Padding is saved, but attention also covers pairs of tokens of different rows, which are then
    masked (flash attention skips them). FLOPs of `rows` rows of lengths n, longest m:

        padded         rows * m * (W + A * m)
        end to end     sum(n) * W + A * sum(n)^2       with flash attention: A * sum(n^2)

    where W is 6 FLOPs per weight and token (4 with frozen weights below an adapter) and A is
    12 * layers * hidden size. Dropout would draw other random numbers, so it rules this out.

    Args:
        model: The torch model to be trained.
        config: The training's settings.
        lengths: Tokens of every row.
        rows: Rows of one forward pass.
    """
    text = model.config.get_text_config()
    attention = model.config._attn_implementation or ""
    flash = "flash" in attention
    if has_dropout(text.to_dict()) or not (flash or attention == "sdpa"):
        return False
    flops_per_weight = 4 if config.adapter else 6
    per_token = flops_per_weight * model.num_parameters(exclude_embeddings=True)
    per_pair = 12 * text.num_hidden_layers * text.hidden_size
    shuffled = random.Random("padding").sample(lengths, len(lengths))
    padded = free = 0
    for start in range(0, len(shuffled), rows):
        end = start + rows
        batch = shuffled[start:end]
        tokens = sum(batch)
        pairs = tokens**2
        if flash:
            pairs = sum(n * n for n in batch)
        longest = max(batch)
        padded_tokens = len(batch) * longest
        padded += padded_tokens * (per_token + per_pair * longest)
        free += tokens * per_token + per_pair * pairs
    return padded > free


def has_dropout(config) -> bool:
    """Whether a configuration (a dict) names a dropout rate above 0."""
    for name, value in config.items():
        if "drop" in name and isinstance(value, float) and value:
            return True
    return False


def keeps_rows_apart(model, rows: list[list[int]]) -> bool:
    """Whether the model reads rows laid end to end as it reads each alone (Mamba does not)."""
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    together = collator([{"input_ids": ids} for ids in rows])
    together.pop("labels")
    for name, value in together.items():
        if isinstance(value, torch.Tensor):
            together[name] = value.to(model.device)
    whole = model
    if hasattr(model, "get_base_model"):
        whole = model.get_base_model()
    body = whole.base_model.eval()
    alone = []
    try:
        with torch.no_grad():
            found = body(**together, use_cache=False).last_hidden_state[0]
            for ids in rows:
                row = torch.tensor([ids], device=model.device)
                alone.append(body(input_ids=row, use_cache=False).last_hidden_state[0])
        expected = torch.cat(alone)
        tolerance = 2e-2
        if model.dtype == torch.float32:
            tolerance = 1e-3
        difference = (found - expected).norm()
        allowed = tolerance * expected.norm()
        return bool(difference <= allowed)
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        return False  # the model takes no such arguments
    finally:
        body.train()


def score_labelled_positions_only() -> contextlib.AbstractContextManager:
    """Return a context in which TRL's loss on a CPU skips positions without a label.

    TRL 1.16 scores every position where it has no Triton, which costs a seventh of a step of the
    embedded model. It is asked through a private name; a TRL without that name just runs slower.
    """
    from trl.trainer import utils

    known = getattr(utils, "_use_triton", None)
    if known is None:
        return contextlib.nullcontext()

    def also_on_cpu(device) -> bool:
        return device.type == "cpu" or known(device)

    return patch.object(utils, "_use_triton", also_on_cpu)
