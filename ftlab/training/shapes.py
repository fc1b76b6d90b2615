"""Whether two models have weights of the same shapes, by their configurations."""

from __future__ import annotations

from ftlab.models import Model

SHAPE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "vocab_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
    "attention_bias",
    "mlp_bias",
)


def difference_of_shape(model: Model, other: Model) -> str:
    """Return in words the first setting in which two models differ in shape; "" if in none.

    One that only one configuration names says nothing: other versions write other defaults.
    """
    mine = model.config
    theirs = other.config
    for name in SHAPE:
        own = mine.get(name)
        found = theirs.get(name)
        if None not in (own, found) and own != found:
            return f"{name} is {found}, of {model.name} {own}"
    return ""
