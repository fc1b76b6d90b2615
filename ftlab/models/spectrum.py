"""The spectrum of a weight difference: is a fine-tuning a low-rank patch? Cell: weight_spectrum."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.models.devices import released
from ftlab.models.reference import local_model

if TYPE_CHECKING:
    import pandas as pd

ENERGY = 0.9
TOP = (1, 4, 16)  # singular values whose share of the energy is given


@takes()
def weight_spectrum(parent: Any, child: Any) -> pd.DataFrame:
    """Measure the singular values of the difference of every weight matrix.

    The energy of a matrix is the sum of its squared singular values, which is its squared Frobenius
    norm. Noise beside it is a Gaussian matrix of the same shape with a fixed seed.

    Args:
        parent: Anything that `ftlab.model` takes, except an endpoint.
        child: A model of the same shape. An adapter is merged first.

    Returns:
        One row per matrix that differs, in the model's order: weights (its name), rows, columns,
        change (norm of the difference as a share of the parent's), stable_rank (energy over the
        largest squared singular value), rank_90 (fewest singular values with 90 % of the energy)
        and noise_rank_90 (of noise), top_1, top_4, top_16 (share of the energy in the largest
        ones) and noise_top_16.

    Raises:
        UsageError: `weights_differ_in_shape`, `same_weights`, and those of `ftlab.model`.

    Source:
        Stable rank: Rudelson and Vershynin 2007, arXiv math/0503442, section 1.
    """
    import pandas as pd

    with released():
        before = _matrices(parent)
        after = _matrices(child)
        shapes = [
            {name: tuple(values.shape) for name, values in side.items()} for side in (before, after)
        ]
        if shapes[0] != shapes[1]:
            raise UsageError(
                "weights_differ_in_shape",
                "Parent and child have other weight matrices. Give models of one shape.",
            )
        rows = []
        for name, weights in before.items():
            difference = after[name] - weights
            if difference.any():
                row = {
                    "weights": name,
                    "rows": weights.shape[0],
                    "columns": weights.shape[1],
                    "change": float(difference.norm() / weights.norm()),
                }
                rows.append(row | _measured(difference))
    if not rows:
        raise UsageError("same_weights", "Parent and child have the same weights. Give a child.")
    return pd.DataFrame(rows)


def _matrices(model: Any) -> dict[str, Any]:
    """Return the weight matrices of a model by name, in fp32 on the CPU."""
    module = local_model(model).load(training=True)
    found = {}
    for name, weights in module.named_parameters():
        if weights.dim() == 2:
            found[name] = weights.detach().float().cpu()
    return found


def _measured(difference: Any) -> dict[str, float]:
    """Return what is measured of one difference, and of noise of its shape."""
    import torch

    dice = torch.Generator().manual_seed(0)
    noise = torch.randn(difference.shape, generator=dice)
    energy = _energies(difference)
    beside = _energies(noise)
    row = {
        "stable_rank": float(energy.sum() / energy[0]),
        "rank_90": _rank(energy),
        "noise_rank_90": _rank(beside),
    }
    for k in TOP:
        row[f"top_{k}"] = _share(energy, k)
    row[f"noise_top_{TOP[-1]}"] = _share(beside, TOP[-1])
    return row


def _energies(matrix: Any) -> Any:
    """Return the squared singular values, the largest first."""
    import torch

    return torch.linalg.svdvals(matrix.double()) ** 2


def _share(energy: Any, k: int) -> float:
    return float(energy[:k].sum() / energy.sum())


def _rank(energy: Any) -> int:
    """Return the fewest singular values that hold 90 % of the energy."""
    shares = energy.cumsum(0) / energy.sum()
    below = int((shares < ENERGY - math.ulp(1.0)).sum())
    return below + 1
