"""Whether two models have weights of the same shapes, by their configurations."""

from __future__ import annotations

from ftlab.models import Model

SHAPE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "intermediate_size",
)


def difference_of_shape(model: Model, other: Model) -> str:
    """Return in words the first setting in which two models differ in shape; "" if in none."""
    mine = model.config
    theirs = other.config
    for name in SHAPE:
        own = mine.get(name)
        found = theirs.get(name)
        if own != found:
            return f"{name} is {found}, of {model.name} {own}"
    return ""
