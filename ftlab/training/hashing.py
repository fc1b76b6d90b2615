"""Hashes of weights in memory."""  # transition: ftlab.models

from __future__ import annotations

import hashlib


def fingerprint(model) -> str:
    """Return the SHA-256 of the trainable weights."""
    return weights_hash({n: p for n, p in model.named_parameters() if p.requires_grad})


def weights_hash(tensors: dict) -> str:
    """Return the SHA-256 of names, shapes, types and bytes of tensors, in order of name."""
    import torch

    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        if tensor.dim():
            sha.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        else:
            sha.update(str(tensor.item()).encode())
    return sha.hexdigest()
