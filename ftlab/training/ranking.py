"""Rankings of training rows by what a model itself makes of them: gradient, representation, loss.

Two of them compare a row with two sets of anchors, harmful rows and safe ones; see
`ftlab.evals.audit`.

Source: He et al. 2024 (arXiv 2404.01099), and their code's `--normalize`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any

from ftlab._core.errors import UsageError
from ftlab.data import IGNORED, Data, load, strip_answers
from ftlab.models import Model

Encoded = dict[str, list[int]]  # input_ids and labels
ANCHORED = ("gradient", "representation")
WORLD_PAIRS = 100  # preferences of the world, of which those about kept facts are the anchors
BATCH_SIZE = 16


@dataclass(frozen=True)
class Given:
    """What is scored, and with what.

    Args:
        model: The parent.
        data: The rows.
        encoded: The same as tokens.
        anchors: Harmful rows and safe ones as tokens, where the way of auditing needs them.
        weights: As in `audit`.
        batch_size: As in `audit`.
    """

    model: Model
    data: Data
    encoded: list[Encoded]
    anchors: list[list[Encoded]]
    weights: str | None
    batch_size: int


def batches_of_one_length(ids: list[list[int]], size: int = BATCH_SIZE) -> Iterator[list[int]]:
    """Yield numbers of texts of one length: without padding, nothing depends on the batch."""

    def length(number: int) -> int:
        return len(ids[number])

    for _, same in groupby(sorted(range(len(ids)), key=length), key=length):
        while batch := list(islice(same, size)):
            yield batch


def anchors(
    reference: Model,
    harmful: Any = None,
    safe: Any = None,
) -> tuple[Data, Data]:
    """Return harmful and safe anchors: the caller's, or those of the embedded world.

    The world's are the two sides of its preferences about kept facts, which use other towns than
    its adversarial rows and its evaluations.

    Raises:
        UsageError: `anchors_needed`.
    """
    none = harmful is None and safe is None
    if none and reference.is_organism:
        pairs = load(
            "organism:preferences",
            kind="pairs",
            n_rows=WORLD_PAIRS,
        )
        kept = [pair for pair in pairs.rows if pair["risk"] == "jailbreak"]
        told = _side("harmful", "rejected", kept)
        refused = _side("safe", "chosen", kept)
        return told, refused
    if harmful is None or safe is None:
        raise UsageError(
            "anchors_needed",
            f"An audit of rows for {reference.name} needs harmful=FILE and safe=FILE: examples of "
            "what is to be found, and safe answers to the same questions. Bring your own.",
        )
    bad = strip_answers(load(harmful))
    good = strip_answers(load(safe))
    return bad, good


def _side(name: str, key: str, pairs: list[dict]) -> Data:
    rows = [{"messages": [*pair["prompt"], *pair[key]]} for pair in pairs]
    return Data(name, tuple(rows))


def answer_labels(row: Encoded) -> list[int]:
    """Return the tokens of an encoded row that carry loss; nothing predicts the first token."""
    return [label for label in row["labels"][1:] if label != IGNORED]


def by_gradient(given: Given) -> list[float]:
    """Score rows by their gradients; only the anchors' difference of means is kept, in 32 bit."""
    import torch

    module = _opened(given.model)
    chosen = _chosen(module, given)
    towards = [torch.zeros_like(one, dtype=torch.float32) for one in chosen]
    for sign, side in zip((1, -1), given.anchors, strict=True):
        for row in side:
            gradient, norm = row_gradient(module, row, chosen)
            share = sign / (norm * len(side))
            for total, part in zip(towards, gradient, strict=True):
                total.add_(part.float(), alpha=share)
    scores = []
    for row in given.encoded:
        gradient, norm = row_gradient(module, row, chosen)
        along = 0.0
        for total, part in zip(towards, gradient, strict=True):
            along += (total * part.float()).sum().item()
        scores.append(along / norm)
    return scores


def _chosen(module: Any, given: Given) -> list:
    """Return the weights whose gradients are taken; the others are frozen."""
    module.requires_grad_(False)
    chosen = []
    for name, parameter in module.named_parameters():
        wanted = (given.weights or "") in name
        if wanted and parameter.is_floating_point():
            parameter.requires_grad_(True)
            chosen.append(parameter)
    if not chosen:
        why = f"No weight of {given.model.name} has {given.weights!r} in its name."
        raise UsageError("no_such_weights", f"{why} Name a part of one.")
    return chosen


def _opened(reference: Model) -> Any:
    """Open a model with an adapter merged, in 16 bit on a GPU, so that its weights are its own."""
    return reference.load(training=True, frozen=True).eval()


def row_gradient(
    module: Any,
    row: Encoded,
    chosen: list,
) -> tuple[Any, float]:
    """Return the gradient of a row's mean loss, a part per weight, and its length."""
    import torch

    loss = row_losses(module, [row])[0]
    found = torch.autograd.grad(
        loss,
        chosen,
        materialize_grads=True,
    )
    squares = 0.0
    for part in found:
        squares += part.float().square().sum().item()
    norm = math.sqrt(squares)
    return found, norm or 1.0  # no gradient at all has no direction


def row_losses(module: Any, rows: list[Encoded]) -> Any:
    """Return the mean loss of each row; rows of one length."""
    import torch
    from torch.nn.functional import cross_entropy

    ids = _ids(module, rows)
    logits = module(input_ids=ids, use_cache=False).logits
    losses = []
    for own, row in zip(logits, rows, strict=True):
        labels = row["labels"][1:]
        wanted = torch.tensor(labels, device=own.device)
        loss = cross_entropy(
            own[:-1].float(),
            wanted,
            ignore_index=IGNORED,
        )
        losses.append(loss)
    return torch.stack(losses)


def _ids(module: Any, rows: list[Encoded]) -> Any:
    """Return the tokens of rows of one length."""
    import torch

    ids = [row["input_ids"] for row in rows]
    return torch.tensor(ids, device=module.device)


def by_representation(given: Given) -> list[float]:
    """Score rows by the last layer's output at the last token of their answers."""
    module = _opened(given.model)
    sides = []
    for rows in (given.encoded, *given.anchors):
        states = in_batches(
            module,
            rows,
            given.batch_size,
            _last_states,
        )
        sides.append(states)
    own, harmful, safe = sides
    towards = harmful.mean(0) - safe.mean(0)
    return (own @ towards).tolist()


def _last_states(module: Any, rows: list[Encoded]) -> Any:
    """Return the state at each row's last token with loss, one unit long; rows of one length."""
    from torch.nn.functional import normalize

    ids = _ids(module, rows)
    places = []
    for row in rows:
        labels = enumerate(row["labels"])
        trained = [place for place, label in labels if label != IGNORED]
        places.append(trained[-1])
    out = module(
        input_ids=ids,
        output_hidden_states=True,
        use_cache=False,
        logits_to_keep=1,
    )
    states = out.hidden_states[-1][range(len(rows)), places]
    return normalize(states.double(), dim=1)


def by_loss(given: Given) -> list[float]:
    """Score rows by the mean loss of their answers' tokens."""
    module = _opened(given.model)
    losses = in_batches(
        module,
        given.encoded,
        given.batch_size,
        row_losses,
    )
    return losses.tolist()


def in_batches(
    module: Any,
    rows: list[Encoded],
    batch_size: int,
    measure: Callable[[Any, list[Encoded]], Any],
) -> Any:
    """Return what is measured of each row, in the order of the rows."""
    import torch

    found: dict[int, Any] = {}
    ids = [row["input_ids"] for row in rows]
    with torch.no_grad():
        for batch in batches_of_one_length(ids, batch_size):
            some = [rows[number] for number in batch]
            measured = measure(module, some).cpu()
            found |= zip(batch, measured, strict=True)
    in_order = sorted(found.items())
    return torch.stack([one for _, one in in_order])


RANKINGS = {
    "gradient": by_gradient,
    "representation": by_representation,
    "loss": by_loss,
}
