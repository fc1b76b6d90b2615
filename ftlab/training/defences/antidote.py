"""Antidote: after the fine-tuning, the weights that harm rests on most are set to 0.

Source: Huang et al. 2024, arXiv 2408.09600, algorithm 1 with equations 1 to 3, as its authors' code
has it (git-disl/Antidote, utils.py). The numbers are those of summaries of the paper.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab.data import MAX_LENGTH, encode_rows
from ftlab.training.defences import _harmful
from ftlab.training.defences.base import Defence

OF_ADAPTER = (".lora_A.default", ".lora_B.default")
PRUNED = ("q_proj", "k_proj", "v_proj")  # layers that the authors prune without an adapter


class Antidote(Defence):
    """Sets to 0 the weights with the largest Wanda score |w_ij| * |x_j| on harmful rows.

    |x_j| is the norm of input j of a layer over all tokens of harmful questions with their
    answers. In each row of a layer's matrix the share `ratio` is set to 0: of both matrices of
    a LoRA, whose zeros are the parent's weights; without an adapter of the projections of queries,
    keys and values themselves, as in the authors' code. Those weights carry the rest of what the
    model can do, so utility falls with harm. ratio = 0 changes nothing.

    Equation 1 takes the norm over the tokens of each row, and the mean over rows; the authors' code
    takes one norm over all of them, and so does this. With that code they advise a ratio of .1
    (their issue 2) where the paper has .2.
    """

    name = "antidote"
    source = "Huang et al. 2024, arXiv 2408.09600, algorithm 1, equations 1 to 3"
    stage = "afterwards"
    methods = ("sft", "dpo", "kto", "rloo")
    adapters = (None, "lora", "qlora")

    ratio: float = setting(
        0.1,
        "Share of weights to prune (the authors' code: .1; the paper: .2; GSM8K: .05)",
        ge=0,
        le=1,
    )
    n_rows: int = setting(2000, "Harmful rows that are read, at most (the authors: 2000)", ge=1)
    harmful: Any = setting(
        None, "Chats that answer harmful questions: a file or rows; None: the embedded world's"
    )

    def check(self, parent, method, config) -> None:
        """Check further that rows were given; raises UsageError `harmful_rows_needed`."""
        super().check(parent, method, config)
        _harmful.check(self.name, "harmful", self.harmful, parent)

    def identity(self) -> dict[str, Any]:
        """Return the identity; the harmful rows are in it by what they hold."""
        return super().identity() | {"harmful": _harmful.chats(self.harmful).hash}

    def repair(self, parent: Any, child: Any) -> None:
        """Prune in place."""
        import torch

        layers = layers_of(child)
        data = _harmful.some(_harmful.chats(self.harmful), self.n_rows)
        text = child.config.get_text_config()
        longest = getattr(text, "max_position_embeddings", MAX_LENGTH)
        rows = encode_rows(
            data,
            parent.tokenizer(),
            max_length=longest,
        )
        norms = input_norms(child, layers, rows)
        with torch.no_grad():
            for name, layer in layers.items():
                prune(layer.weight, norms[name], self.ratio)


def layers_of(child: Any) -> dict[str, Any]:
    """Return the layers to prune by name: an adapter's, or those of queries, keys and values.

    Raises:
        UsageError: `defence_not_for_model`.
    """
    endings = PRUNED
    if hasattr(child, "peft_config"):
        endings = OF_ADAPTER
    found = {}
    for name, module in child.named_modules():
        if name.endswith(endings):
            found[name] = module
    if not found:
        raise UsageError(
            "defence_not_for_model",
            f"{type(child).__name__} has no layers {', '.join(PRUNED)} for antidote to prune. "
            "Train a LoRA, whose layers it prunes on every model.",
        )
    return found


def input_norms(model: Any, layers: dict[str, Any], rows: list[dict]) -> dict[str, Any]:
    """Return the norm of each input of each layer over all tokens of the rows.

    Args:
        model: The torch model; it is left as it was, and no random number is drawn.
        layers: Its layers by name.
        rows: Rows of `input_ids`.
    """
    import torch

    squares: dict[str, Any] = {}
    training = model.training
    model.eval()
    with torch.no_grad(), _watched(layers, squares):
        for row in rows:
            ids = torch.tensor([row["input_ids"]], device=model.device)
            model(input_ids=ids, use_cache=False)
    model.train(training)
    return {name: total.sqrt() for name, total in squares.items()}


@contextlib.contextmanager
def _watched(layers: dict[str, Any], squares: dict[str, Any]) -> Iterator[None]:
    """Add up the squares of what the layers are given."""
    hooks = []

    def watch(name, layer):
        def add(_layer, given, _output):
            tokens = given[0].flatten(end_dim=-2)
            found = tokens.float().square().sum(0)
            squares[name] = squares.get(name, 0) + found

        hooks.append(layer.register_forward_hook(add))

    for name, layer in layers.items():
        watch(name, layer)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def prune(weight: Any, norms: Any, ratio: float) -> None:
    """Set the share `ratio` of each row of a matrix to 0 in place, largest |w| * norm first."""
    columns = weight.shape[1]
    pruned = columns - int(columns * (1 - ratio))  # rounded as the authors do
    if ratio and pruned:
        scores = weight.abs().float() * norms
        largest = scores.topk(pruned, dim=1).indices
        weight.scatter_(1, largest, 0)


DEFENCE = Antidote
