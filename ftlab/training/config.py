"""Settings of a training run that every method has."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from ftlab._core.config import Config, setting
from ftlab._core.errors import UsageError
from ftlab.training.defences.base import Defence, no_defence, open_defence

if TYPE_CHECKING:
    from ftlab.models import Model


FOR_ADAPTERS = 10  # times the learning rate of full training, as TRL's documentation advises
DEVICES = "GPUs that share the work, each with the whole model; without a GPU: processes"
NOT_IN_IDENTITY = {"defence", "devices", "fsdp"}  # one by its own identity; the others only round


class TrainingConfig(Config):
    """Settings of one training run.

    A method's own settings are fields of a subclass in the method's file. Defaults are TRL's
    unless the description names TRL's.
    """

    adapter: Literal["lora", "dora", "qlora"] | None = setting(
        None,
        "Adapter to train: lora, dora (LoRA with a trained magnitude per weight column) or qlora "
        "(LoRA over 4-bit weights); None trains all weights",
    )
    lora_rank: int = setting(16, "Rank of the adapter; its alpha is twice the rank", ge=1)
    freeze_embeddings: bool = setting(
        False,
        "Trains all weights but the token embeddings and the output head, which takes less "
        "memory; not with an adapter, which leaves them alone anyway",
    )
    epochs: float = setting(3.0, "Passes over the data; give either epochs or steps", gt=0)
    steps: int | None = setting(None, "Optimiser steps", ge=1)
    learning_rate: float | None = setting(
        None,
        "Peak learning rate of AdamW; None takes the rate in the model's configuration, else the "
        "method's, in both cases ten times as much for an adapter",
        gt=0,
    )
    schedule: Literal["constant", "linear", "cosine"] = setting(
        "linear", "How the learning rate falls after the warm-up"
    )
    warmup_steps: int = setting(0, "Optimiser steps of linear warm-up", ge=0)
    batch_size: int = setting(
        16, "Rows per optimiser step (rloo: completions), over all forward passes; TRL's: 8", ge=1
    )
    accumulation: int = setting(
        1, "Forward passes per optimiser step; must divide batch_size", ge=1
    )
    devices: int = setting(1, DEVICES, ge=1)
    fsdp: bool = setting(
        False,
        "Each of the devices holds a share of the weights, gradients and optimiser state (FSDP2), "
        "for a model too large for one; for sft of all weights",
    )
    max_length: int = setting(
        1024, "Most tokens of a row; the model's own limit holds where it is lower", ge=8
    )
    on_too_long: Literal["raise", "drop", "cut"] = setting(
        "raise", "What happens to a longer row; drop and cut report how many rows they changed"
    )
    seed: int = setting(0, "Seed of the order of rows, dropout and new weights", ge=0, lt=2**32)
    valid: float | str | None = setting(
        None, "Validation rows: a share of the data to hold out, such as 0.1, or a file"
    )
    eval_every: int | None = setting(
        None,
        "Optimiser steps between validations and monitor calls; None validates per epoch",
        ge=1,
    )
    patience: int | None = setting(
        None, "Validations without a lower loss after which training ends", ge=1
    )
    stop_above: dict[str, float] | None = setting(
        None, "Ends training where a metric of the monitor passes its limit: {'jailbreak': 0.1}"
    )
    at_steps: tuple[int, ...] = setting(
        (), "Optimiser steps at which the monitor is called; 0 is the parent"
    )
    stop_when_broken: bool = setting(
        False, "Ends training where the monitor finds no refused jailbreak prompt"
    )

    defence: Any = setting(
        None, "Defence that keeps the model safe, by its name, as in mix:n_rows=200, or an object"
    )

    @property
    def protection(self) -> Defence:
        """The defence, or the one that changes nothing."""
        return self.defence or no_defence()

    @field_validator("defence", mode="before")
    @classmethod
    def _opened(cls, defence):
        return None if defence is None else open_defence(defence)

    @field_validator("valid", mode="before")
    @classmethod
    def _share_or_file(cls, valid):
        if isinstance(valid, os.PathLike):
            return os.fspath(valid)
        if isinstance(valid, (int, float)) and not 0 < valid < 1:
            raise ValueError("give a share of the rows between 0 and 1, such as 0.1, or a file")
        return valid

    @field_validator("freeze_embeddings")
    @classmethod
    def _not_with_an_adapter(cls, freeze, info):
        if freeze and info.data.get("adapter"):
            raise ValueError("an adapter leaves the embeddings alone anyway; give one of the two")
        return freeze

    @field_validator("accumulation")
    @classmethod
    def _divides_the_batch(cls, accumulation, info):
        batch_size = info.data.get("batch_size", accumulation)
        if batch_size % accumulation:
            raise ValueError(f"accumulation must divide batch_size, which is {batch_size}")
        return accumulation

    @field_validator("devices")
    @classmethod
    def _shares_the_batch(cls, devices, info):
        batch_size = info.data.get("batch_size", devices)
        if batch_size % devices:
            raise ValueError(f"devices must divide batch_size, which is {batch_size}")
        return devices

    @field_validator("stop_above")
    @classmethod
    def _limits_are_shares(cls, limits):
        if any(not 0 <= limit < 1 for limit in (limits or {}).values()):
            raise ValueError("a limit is a share of the prompts, 0 <= limit < 1")
        return limits

    @field_validator("at_steps")
    @classmethod
    def _increasing(cls, steps):
        pairs = itertools.pairwise(steps)
        if any(step < 0 for step in steps) or any(later <= step for step, later in pairs):
            raise ValueError("steps must increase and be at least 0, as in [0, 10, 30, 100]")
        return steps

    def check_limits(self, metrics: Collection[str]) -> None:
        """Check that `stop_above` names only metrics that are measured.

        Args:
            metrics: The names of those that are.

        Raises:
            UsageError: `metric_not_measured`.
        """
        missing = sorted((self.stop_above or {}).keys() - set(metrics))
        if missing:
            measured = ", ".join(metrics) or "nothing"
            raise UsageError(
                "metric_not_measured",
                f"stop_above names {', '.join(missing)}, but what is measured is {measured}.",
            )


def usual_rate(parent: Model, method: str, otherwise: float, adapter: bool) -> float:
    """Return the learning rate of a training that names none.

    Args:
        parent: The model, whose configuration may name a rate.
        method: The training method's name.
        otherwise: The method's own rate.
        adapter: Whether an adapter is trained.
    """
    rate = parent.config.get("ftlab_learning_rate", {}).get(method) or otherwise
    if adapter:
        return rate * FOR_ADAPTERS
    return rate
