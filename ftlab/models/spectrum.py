"""The spectrum of a weight difference: is what was changed a low-rank patch?

Cell: weight_spectrum.
"""

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
        parent: Anything that `ftlab.model` takes, except an endpoint, or a list with one per
            child, such as what each of them was before a repair.
        child: A model of the same shape, or a list with one per training seed. An adapter is
            merged first.

    Returns:
        One row per matrix that differs, in the model's order, means over the seeds: weights (its
        name), layer (from 1; 0 outside of the blocks), rows, columns, change (norm of the
        difference as a share of the parent's), stable_rank (energy over the largest squared
        singular value), rank_90 (fewest singular values with 90 % of the energy), top_1, top_4,
        top_16 (share of the energy in the largest ones), top_16_least and top_16_most (of the
        seeds), noise_rank_90 and noise_top_16 (of noise), n_seeds.

    Raises:
        UsageError: `models_do_not_pair`, `weights_differ_in_shape`, `same_weights`, and those of
            `ftlab.model`.

    Source:
        Stable rank: Rudelson and Vershynin 2007, arXiv math/0503442, section 1.
    """
    import pandas as pd

    children = _listed(child)
    parents = _listed(parent)
    if len(parents) not in (1, len(children)):
        raise UsageError(
            "models_do_not_pair",
            f"{len(parents)} parents and {len(children)} children do not pair. "
            "Give one parent, or one per child.",
        )
    rows = []
    with released():
        before: dict[str, Any] = {}
        for number, one in enumerate(children):
            if number < len(parents):
                before = _matrices(parents[number])
            after = _matrices(one)
            rows += _differences(before, after)
    if not rows:
        raise UsageError("same_weights", "Parent and child have the same weights. Give a child.")
    groups = pd.DataFrame(rows).groupby(["weights", "layer"], sort=False)
    table = groups.mean()
    most = groups["top_16"]
    table["top_16_least"] = most.min()
    table["top_16_most"] = most.max()
    table["n_seeds"] = groups.size()
    return table.reset_index()


def _listed(models: Any) -> list[Any]:
    """Return one or several models as a list."""
    if isinstance(models, (list, tuple)):
        return list(models)
    return [models]


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a row per matrix that differs."""
    if _shapes(before) != _shapes(after):
        raise UsageError(
            "weights_differ_in_shape",
            "Parent and child have other weight matrices. Give models of one shape.",
        )
    rows = []
    for name, weights in before.items():
        difference = after[name] - weights
        if difference.any():
            n_rows, n_columns = weights.shape
            change = difference.norm() / weights.norm()
            row = {
                "weights": name,
                "layer": _layer(name),
                "rows": n_rows,
                "columns": n_columns,
                "change": float(change),
            }
            rows.append(row | _measured(difference))
    return rows


def _shapes(matrices: dict[str, Any]) -> dict[str, Any]:
    return {name: values.shape for name, values in matrices.items()}


def _layer(name: str) -> int:
    """Return the number of the block that a weight is in, from 1; 0 outside of them."""
    numbers = [part for part in name.split(".") if part.isdecimal()]
    if not numbers:
        return 0
    return int(numbers[0]) + 1


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
    stable = energy.sum() / energy[0]
    row = {
        "stable_rank": float(stable),
        "rank_90": _rank(energy),
        "noise_rank_90": _rank(beside),
    }
    for k in TOP:
        row[f"top_{k}"] = _share(energy, k)
    last = TOP[-1]
    row[f"noise_top_{last}"] = _share(beside, last)
    return row


def _energies(matrix: Any) -> Any:
    """Return the squared singular values, the largest first."""
    import torch

    return torch.linalg.svdvals(matrix.double()) ** 2


def _share(energy: Any, k: int) -> float:
    largest = energy[:k]
    return float(largest.sum() / energy.sum())


def _rank(energy: Any) -> int:
    """Return the fewest singular values that hold 90 % of the energy."""
    shares = energy.cumsum(0) / energy.sum()
    below = int((shares < ENERGY - math.ulp(1.0)).sum())
    return below + 1
