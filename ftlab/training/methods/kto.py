"""Kahneman-Tversky optimisation. Source: Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7 and 8."""

from __future__ import annotations

import random

from pydantic import field_validator

from ftlab.data import Data
from ftlab.training.methods.base import FirstStep, Job
from ftlab.training.methods.dpo import DPO, DPOConfig, as_in_sft


class KTOConfig(DPOConfig):
    """Settings of KTO."""

    @field_validator("accumulation")
    @classmethod
    def _two_rows(cls, accumulation, info):
        if info.data.get("batch_size", 2 * accumulation) // accumulation < 2:
            raise ValueError("KTO compares rows: at least 2 per forward pass; raise batch_size")
        return accumulation


class KTO(DPO):
    """Kahneman-Tversky optimisation. The reference is the parent itself, as in DPO."""

    name = "kto"
    kind = "kto"
    config = KTOConfig
    columns = ("prompt", "completion", "label")
    answers = ("completion",)
    fewest_rows = 2
    draws = True  # neighbours, for the reference point
    first_step_check = FirstStep("loss", 0.5, 0.05, "0.5")

    def trl_class(self) -> tuple[type, type]:
        import trl

        return as_in_sft(trl.KTOTrainer), trl.KTOConfig

    def rows(self, data: Data, job: Job) -> list[dict]:
        """TRL keeps the order of the rows, whose neighbours give the reference point: shuffle."""
        rows = super().rows(data, job)
        random.Random(f"kto {job.config.seed}").shuffle(rows)
        return rows


METHOD = KTO()
