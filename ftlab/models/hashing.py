"""Hashes of weights in memory."""

from __future__ import annotations

import hashlib


def fingerprint(model) -> str:
    """Return the SHA-256 of all parameters of a torch model that require a gradient."""
    trainable = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            trainable[name] = parameter
    return weights_hash(trainable)


def weights_hash(tensors: dict) -> str:
    """Return the SHA-256 of tensors by name, such as a `state_dict()`, in order of their names."""
    import torch

    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        if hasattr(tensor, "full_tensor"):  # one that processes share, all of which are here
            tensor = tensor.full_tensor()
        shape = tuple(tensor.shape)
        sha.update(f"{name}{shape}{tensor.dtype}".encode())
        if shape:
            values = tensor.detach().cpu().contiguous()
            sha.update(values.view(torch.uint8).numpy().data)
        else:
            value = str(tensor.item())
            sha.update(value.encode())
    return sha.hexdigest()
