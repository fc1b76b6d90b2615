"""Settings of a training run."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ftlab._core.config import RISKS, Config, known_names


class Training(Config):
    """One training run. Sources: TRL's SFTConfig, DPOConfig, KTOConfig, RewardConfig, RLOOConfig, whose defaults are kept
    unless stated."""

    method: Literal["sft", "dpo", "kto", "reward", "rloo"] = "sft"
    lora: bool = False
    dora: bool = False  # LoRA with a trained magnitude of each weight's columns
    qlora: bool = False  # LoRA over weights of 4 bit
    lora_rank: int = Field(16, ge=1)  # alpha is twice the rank
    epochs: float = Field(3.0, gt=0)  # ignored where `steps` is given
    steps: int | None = Field(None, ge=1)  # optimiser steps
    learning_rate: float | None = Field(
        None, gt=0
    )  # None: the model's own hint (ten times for LoRA), else `default_rate()`
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    batch_size: int = Field(16, ge=1)  # effective: rows (RLOO: completions) an optimiser step
    accumulation: int = Field(1, ge=1)  # forward passes an optimiser step; must divide batch_size
    beta: float = Field(0.1, gt=0)  # DPO, KTO, RLOO (TRL: 0.05): strength of the tie to the parent
    num_generations: int = Field(2, ge=2, validate_default=True)  # RLOO: completions a prompt; must divide batch_size
    max_completion_length: int = Field(64, ge=1)  # RLOO: tokens (TRL: 512)
    max_length: int = Field(1024, ge=8)  # tokens; a longer row is an error, never cut in silence
    on_too_long: Literal["raise", "drop", "cut"] = "raise"  # drop and cut say how many rows they changed (chat.fitted)
    seed: int = Field(0, ge=0)
    valid: float | str | None = None  # rows held out: a share of the data, or a file of their own (its hash, once read)
    eval_every: int | None = Field(None, ge=1)  # optimiser steps between two validations (None: an epoch)
    patience: int | None = Field(None, ge=1)  # validations without a lower loss after which training ends
    at_steps: tuple[int, ...] = ()  # optimiser steps (0: the parent) at which the curve is measured
    stop_when_broken: bool = False  # end the curve early at the first point without a refusal
    stop_above: dict[str, float] | None = None  # risk -> rate: end at the first measured point above it

    @property
    def adapter(self) -> str | None:
        """-> the kind of adapter that is trained, or None: all weights."""
        return next((kind for kind in ("qlora", "dora", "lora") if getattr(self, kind)), None)

    @field_validator("qlora")
    @classmethod
    def _one_adapter(cls, qlora, info):
        if qlora and info.data.get("dora"):
            raise ValueError("dora and qlora were both asked; give one of them")
        if qlora and info.data.get("method") == "reward":
            raise ValueError("a reward model's new head is not trained over 4-bit weights; give lora or dora")
        return qlora

    @field_validator("at_steps")
    @classmethod
    def _increasing(cls, steps):
        if any(s < 0 for s in steps) or any(b <= a for a, b in zip(steps, steps[1:], strict=False)):
            raise ValueError("steps must be increasing, each >= 0, as in [0, 10, 30, 100]")
        return steps

    @field_validator("accumulation")
    @classmethod
    def _divides(cls, accumulation, info):
        rows = info.data.get("batch_size", accumulation)  # not there where it was wrong itself
        if rows % accumulation:
            raise ValueError(f"accumulation must divide batch_size, which is {rows}")
        if info.data.get("method") == "kto" and rows // accumulation < 2:
            raise ValueError("KTO needs at least 2 rows a forward pass (it compares them); raise batch_size")
        return accumulation

    @field_validator("num_generations")
    @classmethod
    def _whole_groups(cls, n, info):
        if info.data.get("method") == "rloo" and info.data.get("batch_size", n) % n:
            raise ValueError(f"num_generations must divide batch_size, which is {info.data['batch_size']}")
        return n

    @field_validator("valid")
    @classmethod
    def _share(cls, valid, info):
        if isinstance(valid, float) and not 0 < valid < 1:
            raise ValueError("give a share of the rows between 0 and 1, as 0.1, or a file")
        if info.data.get("method") == "rloo":
            raise ValueError("RLOO has no validation loss; give measure= and stop_above=")
        return valid

    @field_validator("stop_above")
    @classmethod
    def _rates(cls, rates):
        known_names("risk", tuple(rates), RISKS)
        if any(not 0 <= r < 1 for r in rates.values()):
            raise ValueError("a rate is a share of the prompts, 0 <= rate < 1, as in {'jailbreak': 0.10}")
        return rates

    def default_rate(self) -> float:
        """TRL's default of each method, ten times that for LoRA as TRL's documentation advises."""
        rates = {"sft": 2e-5, "dpo": 1e-6, "kto": 1e-6, "reward": 1e-4, "rloo": 1e-6}
        return rates[self.method] * (10 if self.adapter else 1)
