"""Vaccine: an alignment that withstands perturbed hidden embeddings.

Source: Huang et al. 2024, arXiv 2402.01109, algorithm 1 with equation 3, as its authors' code
has it (git-disl/Vaccine, trainer.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab.data import Data
from ftlab.training.defences import _safety
from ftlab.training.defences._alignment import (
    Alignment,
    OtherLoss,
    alignment_chats,
    token_loss,
)

SMALL = 1e-7  # the authors', against a norm of 0
KIND = "Attention"  # how the classes of attention layers are called


class Vaccine(Alignment):
    """Aligns under the perturbation of hidden embeddings that raises the loss most.

    Each step takes two passes. The first finds the gradient g_l of the loss at the output of every
    attention layer l; the second trains with rho * g_l / |g| added to those outputs (equation 3),
    |g| being the norm of all of them together, over the rows of one forward pass. rho = 0 is plain
    SFT on the same rows. It fails where a fine-tuning moves embeddings further than rho, and costs
    utility where rho is large against them.
    """

    name = "vaccine"
    source = "Huang et al. 2024, arXiv 2402.01109, algorithm 1, equation 3"

    rho: float = setting(
        2.0, "Norm of the perturbation (2 in the authors' README; table 6 tries .01 to 10)", ge=0
    )
    rows: Any = setting(
        None,
        "Chats to align on, harmful questions with refusals among them: a file or rows; None takes "
        "the alignment data of the embedded world",
    )

    def check(self, parent, method, config) -> None:
        """Check further that rows were given; raises UsageError `safety_rows_needed`."""
        super().check(parent, method, config)
        _safety.check(self.name, self.rows, parent)

    def alignment_rows(self) -> Data:
        """Return the chats to align on."""
        return alignment_chats(self.rows, self.seed)

    def method(self) -> OtherLoss:
        """Return SFT with two passes per step."""
        return OtherLoss(partial(perturbed_trainer, rho=self.rho))

    def identity(self) -> dict[str, Any]:
        """Return the identity; the rows are in it by what they hold."""
        return super().identity() | {"rows": self.alignment_rows().hash}


def perturbed_trainer(cls: type, job: Any, *, rho: float) -> type:
    """Return TRL's SFT trainer that trains under the perturbation.

    Args:
        cls: TRL's trainer.
        job: The training.
        rho: Norm of the perturbation; 0 returns TRL's trainer itself.

    Raises:
        UsageError: `defence_not_for_model`.
    """
    if not rho:
        return cls
    layers = attention_layers(job.model)

    class Perturbed(cls):
        def training_step(self, model, inputs, num_items_in_batch=None):
            # Until after the backward pass, which may compute activations again.
            with contextlib.ExitStack() as self.until_backward:
                return super().training_step(model, inputs, num_items_in_batch)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            count = num_items_in_batch
            if self.model.training and not return_outputs:
                steps = perturbation(layers, token_loss, model, inputs, rho)
                self.until_backward.enter_context(added(steps))
            return super().compute_loss(model, inputs, return_outputs, count)

    return Perturbed


def attention_layers(model: Any) -> list[Any]:
    """Return the attention layers of a model, none inside another."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if type(module).__name__.endswith(KIND) and not inside:
            found[name] = module
    if not found:
        raise UsageError(
            "defence_not_for_model",
            f"{type(model).__name__} has no layer whose class is called ...{KIND}, whose output "
            "vaccine perturbs. Use another defence, such as deep_alignment.",
        )
    return list(found.values())


def perturbation(layers: list[Any], loss: Any, model: Any, inputs: Any, rho: float) -> dict:
    """Return what is added to the output of each layer: rho * g_l / |g|.

    Args:
        layers: The layers.
        loss: Returns the loss, given the model and the inputs.
        model: The torch model; its gradients are left alone.
        inputs: A batch.
        rho: Norm of all that is added.
    """
    import torch

    with caught(layers) as outputs:
        found = loss(model, inputs)
        gradients = torch.autograd.grad(found, list(outputs.values()))
    squares = [gradient.float().square().sum() for gradient in gradients]
    norm = torch.stack(squares).sum().sqrt()
    scale = rho / (norm + SMALL)
    steps = {}
    for layer, gradient in zip(outputs, gradients, strict=True):
        steps[layer] = (gradient * scale).to(gradient.dtype)
    return steps


@contextlib.contextmanager
def caught(layers: list[Any]) -> Iterator[dict]:
    """Yield a dict that receives the first output of each layer."""
    outputs: dict[Any, Any] = {}

    def catch(layer, _given, found):
        outputs.setdefault(layer, _first(found))

    with _hooks(layers, catch):
        yield outputs


@contextlib.contextmanager
def added(steps: dict) -> Iterator[None]:
    """Add something to the output of layers."""

    def add(layer, _given, found):
        moved = _first(found) + steps[layer]
        return (moved, *found[1:]) if isinstance(found, tuple) else moved

    with _hooks(steps, add):
        yield


@contextlib.contextmanager
def _hooks(layers: Any, function: Any) -> Iterator[None]:
    hooks = [layer.register_forward_hook(function) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _first(found: Any) -> Any:
    return found[0] if isinstance(found, tuple) else found


DEFENCE = Vaccine
