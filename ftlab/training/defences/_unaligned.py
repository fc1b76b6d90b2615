"""What defences share that know safety by the way from an unaligned model to the parent."""

from __future__ import annotations

from typing import Any

from ftlab._core.errors import UsageError
from ftlab.models import Model, local_model

SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")


def check(name: str, unaligned: Any, parent: Model) -> None:
    """Check that the unaligned model was given and has the parent's shape.

    Raises:
        UsageError: `unaligned_model_needed`, `unaligned_model_differs`, and those of
            `ftlab.model`.
    """
    if unaligned is None:
        raise UsageError(
            "unaligned_model_needed",
            f"The defence {name} compares {parent.name} with an unaligned model of the same shape. "
            f"Give it, as in {name}:unaligned=FOLDER.",
        )
    config = local_model(unaligned).config
    for setting in SHAPE:
        if config.get(setting) != parent.config.get(setting):
            raise UsageError(
                "unaligned_model_differs",
                f"{setting} of the unaligned model is {config.get(setting)}, of {parent.name} "
                f"{parent.config.get(setting)}. Give a model of the same shape.",
            )


def safety_vector(parent: Model, unaligned: Any) -> dict[str, Any]:
    """Return parent minus unaligned model for every parameter, by name."""
    aligned = parent.load(training=True)
    before = dict(local_model(unaligned).load(training=True).named_parameters())
    found = {}
    for name, weights in aligned.named_parameters():
        found[name] = weights.detach() - before[name].detach()
    return found
