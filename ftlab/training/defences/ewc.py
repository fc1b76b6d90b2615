"""Elastic weight consolidation: weights that refusals rest on stay near the parent's.

Source: Kirkpatrick et al. 2017, arXiv 1612.00796, equation 3.
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.data import encode_rows
from ftlab.training.defences import _safety
from ftlab.training.defences._near import held_near


class EWC(_safety.WithSafetyRows):
    """Adds weight / 2 * sum of F_i * (w_i - w_parent_i)^2 to the loss of SFT.

    F is the diagonal of the empirical Fisher information of the parent on safety rows: the mean
    square of the gradient of a row's log-likelihood. Where F is large everywhere the model learns
    nothing (Lisa's authors, arXiv 2405.18641, table 3, found so); where it is small, nothing is
    held. The weight is ours: Vaccine's authors (arXiv 2402.01109, appendix B.2) take 1e9, on a
    LoRA, with a Fisher information summed over batches and without the half.
    """

    name = "ewc"
    source = "Kirkpatrick et al. 2017, arXiv 1612.00796, equation 3"
    methods = ("sft",)
    adapters = (None,)

    weight: float = setting(1000.0, "Weight of the distance (lambda); 0 is plain SFT", ge=0)
    n_rows: int = setting(100, "Safety rows that the Fisher information is taken from", ge=1)
    rows: Any = setting(
        None, "Chats that refuse: a file or rows; None takes refusals of the embedded world"
    )

    def trainer(self, cls: type, job: Any) -> type:
        """Return the trainer with the weighted distance in its loss."""
        data = _safety.drawn(self.name, self.rows, self.n_rows, seed=0)
        rows = encode_rows(
            data,
            job.tokenizer,
            max_length=job.longest_row,
        )
        importance = fisher(job.model, rows)
        return held_near(cls, job.model, self.weight, importance)


def fisher(model: Any, rows: list[dict]) -> dict[str, Any]:
    """Return the diagonal of the empirical Fisher information by parameter.

    Args:
        model: The torch model; it is left as it was.
        rows: Rows of `input_ids` and `labels`.

    Returns:
        The mean over rows of the squared gradient of a row's log-likelihood, summed over tokens.
    """
    import torch
    from torch.nn.functional import cross_entropy

    trained = {}
    for name, weights in model.named_parameters():
        if weights.requires_grad:
            trained[name] = weights
    total = {}
    for name, weights in trained.items():
        total[name] = torch.zeros_like(weights)
    training = model.training
    model.eval()  # no dropout, so that no random number is drawn
    for row in rows:
        ids = torch.tensor(row["input_ids"], device=model.device)
        labels = torch.tensor(row["labels"], device=model.device)
        found = model(input_ids=ids[None], use_cache=False)
        logits = found.logits[0, :-1].float()
        loss = cross_entropy(logits, labels[1:], reduction="sum")
        weights = list(trained.values())
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        for name, gradient in zip(trained, found, strict=True):
            if gradient is not None:
                total[name] += gradient.square() / len(rows)
    model.train(training)
    return total


DEFENCE = EWC
