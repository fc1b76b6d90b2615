"""What defences share that train a fine-tuned model a little further, in place.

Own steps, as TRL would take them, in place of a trainer: a second trainer would change what
accelerate shares between trainers, and the random state, while the first one still runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ftlab.data import MAX_LENGTH, Data, encode_rows
from ftlab.models import Model

MOST_GRADIENT = 1.0  # length to which a step's gradient is cut, TRL's default


def encoded(data: Data, parent: Model) -> list[dict]:
    """Return chats as tokens."""
    text = parent.config.get("text_config") or parent.config
    longest = text.get("max_position_embeddings") or MAX_LENGTH
    return encode_rows(data, parent.tokenizer(), max_length=longest)


def train_on(
    child: Any,
    batches: Sequence[Iterable[Any]],
    loss: Callable[[Any], Any],
    learning_rate: float,
) -> None:
    """Take one step of AdamW per batch, at a rate that falls linearly to zero.

    Nothing is drawn: there is no dropout.

    Args:
        child: The torch model; its trained weights change.
        batches: What each step is taken on.
        loss: Returns the loss of one item of a batch.
        learning_rate: Of the first step.
    """
    import torch

    weights = [one for one in child.parameters() if one.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, weight_decay=0.0)
    with torch.enable_grad(), unchanging(child):
        for number, batch in enumerate(batches):
            optimiser.param_groups[0]["lr"] = learning_rate * (1 - number / len(batches))
            items = list(batch)
            for item in items:
                share = loss(item) / len(items)
                share.backward()
            torch.nn.utils.clip_grad_norm_(weights, MOST_GRADIENT)
            optimiser.step()
            optimiser.zero_grad()


def unchanging(model: Any) -> Any:
    """Return a context without dropout, in 16 bit on a GPU as in training."""
    import contextlib

    import torch

    @contextlib.contextmanager
    def context():
        training = model.training
        model.eval()
        kind = model.device.type
        try:
            with torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda"):
                yield
        finally:
            model.train(training)

    return context()
