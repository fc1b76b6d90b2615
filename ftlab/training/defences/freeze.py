"""Freezing: chosen layers keep the parent's weights while the user's rows are trained.

Source: ours, by whole layers; Wei et al. 2024, arXiv 2402.05162, freeze safety-critical neurons.
"""

from __future__ import annotations

import re
from typing import Any

from pydantic import field_validator

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab.training.defences.base import Defence

HALVES = ("first_half", "last_half", "all", "none")
NUMBERS = re.compile(r"\d+(-\d+)?(\+\d+(-\d+)?)*")  # 0-3+7


class Freeze(Defence):
    """Trains all weights but those of the chosen transformer layers.

    From the paper is only the question: does safety survive a fine-tuning that may not change some
    of the weights? Its authors choose the weights, single neurons that score high on safety data
    and not on utility data (Wanda, SNIP), and report that the model stays open to fine-tuning all
    the same. Ours are the choice of whole layers by their place, which asks no data where safety
    lies, the default and the treatment of embeddings. So what is measured here neither confirms
    nor contradicts the paper. Of the paper only the abstract and the list of sections were read.

    With an adapter the layers' part of the adapter stays as it began. The final norm is always
    trained without an adapter. It fails where the other layers suffice to unlearn a refusal.
    layers="none" is plain training.
    """

    name = "freeze"
    source = "ours; after the question of Wei et al. 2024, arXiv 2402.05162 (there single neurons)"

    layers: str = setting(
        "first_half",
        "Layers that stay: first_half (of 5: 2), last_half, all, none, or numbers from 0 as in "
        "0-3+7 (ours)",
    )
    embeddings: bool = setting(
        False,
        "Whether token embeddings and output head stay too; an adapter leaves them alone anyway",
    )

    @field_validator("layers")
    @classmethod
    def _readable(cls, layers):
        if layers not in HALVES and not NUMBERS.fullmatch(layers):
            allowed = ", ".join(HALVES)
            raise ValueError(f"give {allowed}, or numbers from 0 as in 0-3+7")
        return layers

    def check(self, parent, method, config) -> None:
        """Check further that the model has the layers and that something is left to train.

        Raises:
            UsageError: `unknown_layer`, `no_trainable_parameter`.
        """
        super().check(parent, method, config)
        own = parent.config.get("text_config") or parent.config
        count = own.get("num_hidden_layers")
        if count is None:  # named otherwise in the file; the loaded model knows it
            return
        chosen = self.chosen(count)
        if config.adapter and len(chosen) == count:
            raise UsageError(
                "no_trainable_parameter",
                f"freeze:layers={self.layers} leaves no weight of the adapter to train. "
                "Freeze fewer layers, or train without an adapter.",
            )

    def chosen(self, count: int) -> list[int]:
        """Return the numbers of the layers that stay, of so many; raises `unknown_layer`."""
        half = count // 2
        places = {
            "first_half": range(half),
            "last_half": range(count - half, count),
            "all": range(count),
            "none": range(0),
        }
        if self.layers in places:
            return list(places[self.layers])
        found = set()
        for part in self.layers.split("+"):
            first, _, last = part.partition("-")
            end = int(last or first) + 1
            found.update(range(int(first), end))
        if not found or max(found) >= count:
            raise UsageError(
                "unknown_layer",
                f"freeze:layers={self.layers}: the model has layers 0 to {count - 1}. "
                "Give some of these.",
            )
        return sorted(found)

    def trainer(self, cls: type, job: Any) -> type:
        """Return the trainer; the frozen weights of the loaded model need no gradient."""
        for weights in frozen(job.model, self):
            weights.requires_grad_(False)
        return cls


def frozen(model: Any, defence: Freeze) -> list[Any]:
    """Return the parameters that would be trained and are to stay.

    Raises:
        UsageError: `defence_not_for_model`, `unknown_layer`.
    """
    layers = layers_of(model)
    chosen = defence.chosen(len(layers))
    modules = [layers[number] for number in chosen]
    if defence.embeddings:
        modules += [model.get_input_embeddings(), model.get_output_embeddings()]
    found = {}
    for module in modules:
        if module is None:  # a reward model has no output head
            continue
        for weights in module.parameters():
            if weights.requires_grad:
                found[id(weights)] = weights  # tied weights once
    return list(found.values())


def layers_of(model: Any) -> Any:
    """Return the list of transformer layers of a torch model, below an adapter too."""
    import torch

    whole = model
    if hasattr(model, "get_base_model"):
        whole = model.get_base_model()
    count = whole.config.get_text_config().num_hidden_layers
    for module in whole.get_decoder().modules():  # the outermost list first
        if isinstance(module, torch.nn.ModuleList) and len(module) == count:
            return module
    raise UsageError(
        "defence_not_for_model",
        f"{type(whole).__name__} has no list of {count} layers for freeze to find. "
        "Use another defence, such as l2.",
    )


DEFENCE = Freeze
