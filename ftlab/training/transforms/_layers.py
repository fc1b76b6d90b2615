"""The layers that compression acts on."""

from __future__ import annotations

from typing import Any

from ftlab._core.errors import UsageError


def linear_layers(module: Any) -> list[Any]:
    """Return the linear layers of a torch model except its output head, as bitsandbytes does.

    Experts that lie in one tensor are none.

    Raises:
        UsageError: `no_linear_layers`, as of GPT-2.
    """
    from torch.nn import Linear

    head = module.get_output_embeddings()
    found = []
    for layer in module.modules():
        if isinstance(layer, Linear) and layer is not head:
            found.append(layer)
    if not found:
        message = f"{type(module).__name__} has no linear layers below its output head."
        raise UsageError("no_linear_layers", f"{message} Use a model that has some.")
    return found
