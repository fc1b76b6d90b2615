"""Spectra of what several arms changed, by kind of matrix. Cell: compare_spectra."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.experiments.arms import models_of
from ftlab.models import weight_spectrum

NOISE = "noise"
MEASURES = ["change", "stable_rank", "rank_90", "top_1", "top_4", "top_16"]


@takes()
def compare_spectra(
    parent: Any,
    arms: Mapping[str, Any],
    *,
    since: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Measure the weight differences of several arms, by kind of matrix.

    Args:
        parent: Anything that `ftlab.model` takes, except an endpoint.
        arms: Models by the arm's name: a model, a curve, or a list with one per training seed.
        since: What an arm differs from, by the arm's name, where that is not the parent: such as
            the same fine-tuning without a defence, so that the difference is what the defence
            changed. A model, or one per training seed, in the arm's order.

    Returns:
        One row per kind of matrix and arm, means over layers and seeds: kind (such as q_proj),
        arm, change, stable_rank, rank_90, top_1, top_4, top_16, as in `weight_spectrum`; least and
        most (of top_16, over layers and seeds), n_matrices, n_seeds. The arm "noise" is a Gaussian
        difference of the same shapes. rate, low, high (top_16, least, most), group and series name
        the bars of a figure.

    Raises:
        UsageError: `unknown_arm`, `several_doses`, `no_models`, and those of
            `ftlab.models.weight_spectrum`.
    """
    origins = dict.fromkeys(arms, parent) | dict(since or {})
    for name in origins.keys() - arms.keys():
        allowed = ", ".join(arms)
        raise UsageError("unknown_arm", f"There is no arm {name!r}. Allowed: {allowed}.")
    parts = []
    for name, given in arms.items():
        found = weight_spectrum(models_of(origins[name]), models_of(given))
        found["arm"] = name
        parts.append(found)
    every = pd.concat(parts, ignore_index=True)
    names = every["weights"].str.removesuffix(".weight")
    every["kind"] = names.str.split(".").str[-1]
    rows = []
    for (kind, arm), part in every.groupby(["kind", "arm"], sort=False):
        row = {"kind": kind, "arm": arm}
        row |= part[MEASURES].mean().to_dict()
        row["least"] = part["top_16_least"].min()
        row["most"] = part["top_16_most"].max()
        row["n_matrices"] = len(part)
        row["n_seeds"] = int(part["n_seeds"].max())
        rows.append(row)
    for kind, part in every.groupby("kind", sort=False):
        of_noise = part["noise_top_16"]
        row = {
            "kind": kind,
            "arm": NOISE,
            "rank_90": part["noise_rank_90"].mean(),
            "top_16": of_noise.mean(),
            "least": of_noise.min(),
            "most": of_noise.max(),
            "n_matrices": len(part),
            "n_seeds": int(part["n_seeds"].max()),
        }
        rows.append(row)
    table = pd.DataFrame(rows).assign(band="least and most of layers and seeds")
    table["rate"] = table["top_16"]
    table["low"] = table["least"]
    table["high"] = table["most"]
    table["group"] = table["kind"]
    table["series"] = table["arm"]
    table.attrs = {
        "by": ["kind", "arm"],
        "axis": "energy in the 16 largest singular values (%)",
    }
    return table
