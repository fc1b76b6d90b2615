"""What defences share that compare the model in training with its parent, token by token."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ftlab._core.errors import UsageError
from ftlab.data import IGNORED

# Settings of a model by which its logits are scaled after the output head.
SCALES = ("logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


@dataclass(frozen=True)
class Answers:
    """The answer tokens of one forward pass.

    Args:
        logits: Of the model in training: (tokens, vocabulary), with gradients.
        parent_logits: Of its parent, without.
        targets: The tokens: (tokens,).
        places: Place of each token in its answer, from 0: (tokens,).
        count: Answer tokens of the whole optimiser step, by which a sum over tokens is divided.
    """

    logits: Any
    parent_logits: Any
    targets: Any
    places: Any
    count: Any


def anchored(cls: type, job: Any, loss: Callable[[Any, Answers], Any]) -> type:
    """Return TRL's SFT trainer with a loss that sees the parent's logits too.

    Validation keeps the plain loss. The parent is the model below the adapter, or a second copy of
    the weights; it is asked without dropout, so that no random number is drawn for it.

    Args:
        cls: TRL's trainer.
        job: The training.
        loss: Returns the loss from the plain one and the answers.

    Raises:
        UsageError: `defence_not_for_model`.
    """
    import torch

    _check(job.model)
    parent = None
    if job.config.adapter is None:
        parent = job.parent.load(training=True).requires_grad_(False)

    class Anchored(cls):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            plain = super().compute_loss
            if return_outputs or not self.model.training:
                return plain(model, inputs, return_outputs, num_items_in_batch)
            targets, places, kept = targets_of(inputs["labels"])
            parent_logits = self._of_parent(inputs, kept)
            with _last_states(self.model) as caught:
                found = plain(model, inputs, False, num_items_in_batch)
            states = caught[0][:, :-1]
            with self.accelerator.autocast():
                logits = _logits(self.model, states[kept])
            count = num_items_in_batch
            if count is None:
                count = kept.sum()
            answers = Answers(logits, parent_logits, targets, places, count)
            return loss(found, answers)

        @torch.no_grad()
        def _of_parent(self, inputs, kept):
            asked = {**inputs, "use_cache": False}
            del asked["labels"]
            with self.accelerator.autocast(), _parent(self.model, parent) as below:
                body = _whole(below).base_model
                states = body(**asked).last_hidden_state[:, :-1]
                return _logits(below, states[kept])

    return Anchored


def targets_of(labels: Any) -> tuple[Any, Any, Any]:
    """Return the answer tokens, their places in their answers, and where they are predicted.

    Answers are runs of labelled tokens: rows laid end to end and further turns begin anew.

    Args:
        labels: (rows, tokens), `IGNORED` where nothing is learned.

    Returns:
        Tokens (n,), places (n,), and a mask (rows, tokens - 1) of the n positions before them.
    """
    import torch

    following = labels[:, 1:]
    kept = following != IGNORED
    earlier = kept[:, :-1]
    before = torch.nn.functional.pad(earlier, (1, 0))
    numbers = torch.arange(kept.shape[1], device=labels.device)
    begins = torch.where(kept & ~before, numbers, 0)
    latest = begins.cummax(dim=1).values
    places = numbers - latest
    return following[kept], places[kept], kept


def _check(model: Any) -> None:
    settings = model.config.get_text_config()
    scaled = []
    for name in SCALES:
        value = getattr(settings, name, None)
        if value not in (None, 1.0):
            scaled.append(name)
    if scaled:
        raise UsageError(
            "defence_not_for_model",
            f"The model scales its logits ({scaled[0]}), which this defence does not know. "
            "Use another defence, such as mix.",
        )


def _whole(model: Any) -> Any:
    """Return the model with its head, without the wrapping of an adapter."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _logits(model: Any, states: Any) -> Any:
    import torch

    whole = _whole(model)
    head = whole.get_output_embeddings()
    logits = head(states).float()
    settings = whole.config.get_text_config()
    cap = getattr(settings, "final_logit_softcapping", None)
    if cap is None:
        return logits
    return cap * torch.tanh(logits / cap)


@contextlib.contextmanager
def _last_states(model: Any) -> Iterator[list]:
    """Yield a list that receives the last hidden states of a forward pass."""
    caught: list[Any] = []

    def catch(_module, _given, found):
        caught.append(found.last_hidden_state)

    body = _whole(model).base_model
    hook = body.register_forward_hook(catch)
    try:
        yield caught
    finally:
        hook.remove()


@contextlib.contextmanager
def _parent(model: Any, parent: Any) -> Iterator[Any]:
    """Yield the parent in eval mode: the copy, or the model without its adapter."""
    if parent is not None:
        yield parent.eval()
        return
    with model.disable_adapter():
        model.eval()
        try:
            yield model
        finally:
            model.train()
