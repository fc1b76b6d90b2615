"""What defences share that know safety by the way from an unaligned model to the parent."""

from __future__ import annotations

from typing import Any

from ftlab._core.errors import UsageError
from ftlab.models import Model, local_model
from ftlab.training.shapes import difference_of_shape


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
    differs = difference_of_shape(parent, local_model(unaligned))
    if differs:
        raise UsageError(
            "unaligned_model_differs",
            f"Of the unaligned model {differs}. Give a model of the same shape.",
        )


def safety_vector(parent: Model, unaligned: Any) -> dict[str, Any]:
    """Return parent minus unaligned model for every parameter, by name."""
    aligned = parent.load(training=True)
    before = dict(local_model(unaligned).load(training=True).named_parameters())
    found = {}
    for name, weights in aligned.named_parameters():
        found[name] = weights.detach() - before[name].detach()
    return found
