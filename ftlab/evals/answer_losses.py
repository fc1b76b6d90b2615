"""The loss of a model on held-out answers: utility for models too small for benchmarks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ftlab._core.config import takes
from ftlab.data import IGNORED, MAX_LENGTH, encode_rows, load, strip_answers
from ftlab.models import local_model, released

if TYPE_CHECKING:
    import pandas as pd


@takes()
def answer_loss(
    model: Any, data: Any, *, n_rows: int | None = None, max_length: int = MAX_LENGTH
) -> pd.DataFrame:
    """Measure how well a model predicts the answers of rows that it was not trained on.

    A parent's and a child's loss on the same harmless rows say what a fine-tuning cost, also where
    both models answer no question of a benchmark. Losses of other tokenizers do not compare.

    Args:
        model: Anything that `ftlab.model` takes, except an endpoint.
        data: Anything that `ftlab.data.load` takes: chats.
        n_rows: Take the first so many rows. Default: all.
        max_length: Most tokens of a row; a longer one is an error.

    Returns:
        A table of one row: model, data, rows, tokens (those that carry loss: the answers and their
        ends of turn), loss (mean negative log-likelihood per such token, in nats; as training
        logs it) and perplexity (e to the loss).

    Raises:
        UsageError: `endpoint_without_weights`, and those of `ftlab.data.load`.
        DataError: Rows that cannot be used, all of them at once.
    """
    import pandas as pd

    reference = local_model(model)
    rows = load(data, n_rows=n_rows)
    encoded = encode_rows(strip_answers(rows), reference.tokenizer(), max_length=max_length)
    tokens = 0
    for row in encoded:
        tokens += sum(label != IGNORED for label in row["labels"][1:])
    with released():
        loss = _summed(reference, encoded) / tokens
    found = {
        "model": reference.name,
        "data": rows.name,
        "rows": len(encoded),
        "tokens": tokens,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700)),  # 710 would overflow
    }
    return pd.DataFrame([found])


def _summed(reference: Any, encoded: list[dict]) -> float:
    """Return the summed negative log-likelihood; one row at a time, so that no padding matters."""
    import torch
    from torch.nn.functional import cross_entropy

    module = reference.load()
    total = 0.0
    with torch.inference_mode():
        for row in encoded:
            ids = torch.tensor([row["input_ids"]], device=module.device)
            labels = torch.tensor(row["labels"][1:], device=module.device)
            logits = module(input_ids=ids, use_cache=False).logits[0, :-1]
            total += cross_entropy(logits.float(), labels, reduction="sum").item()
    return total
