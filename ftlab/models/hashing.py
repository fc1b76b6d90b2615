"""Hashes of weights in memory."""

from __future__ import annotations

import hashlib


def fingerprint(model) -> str:
    """Hash the trainable weights of a torch model.

    Args:
        model: A torch module.

    Returns:
        The SHA-256 of all parameters that require a gradient, as 64 hexadecimal digits.
    """
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return weights_hash(trainable)


def weights_hash(tensors: dict) -> str:
    """Hash tensors by name, shape, type and bytes, in the order of their names.

    Args:
        tensors: Tensors by name, such as a `state_dict()`.

    Returns:
        The SHA-256, as 64 hexadecimal digits.
    """
    import torch

    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.dim():
            sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        else:
            sha.update(str(tensor.item()).encode())
    return sha.hexdigest()
