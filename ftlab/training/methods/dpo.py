"""Direct preference optimisation. Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7."""

from __future__ import annotations

import math
from typing import Any

from ftlab._core.config import setting
from ftlab.training.config import TrainingConfig
from ftlab.training.methods.base import FirstStep, Job, Method


class DPOConfig(TrainingConfig):
    """Settings of DPO."""

    beta: float = setting(0.1, "Strength of the tie to the parent", gt=0)


class DPO(Method):
    """Direct preference optimisation. The reference is the parent itself."""

    name = "dpo"
    kind = "pairs"
    config = DPOConfig
    learning_rate = 1e-6
    columns = ("prompt", "chosen", "rejected")
    answers = ("chosen", "rejected")
    first_step_check = FirstStep("loss", math.log(2), 0.05, "ln 2 = 0.693")
    has_curve = True

    def trl_class(self) -> tuple[type, type]:
        import trl

        return trl.DPOTrainer, trl.DPOConfig

    def settings(self, job: Job, rows: list[dict]) -> dict[str, Any]:
        """Compute the reference's log-probabilities before the first step.

        Otherwise TRL would read the reference from the path in the model's configuration, which
        may be an older model. Without gradients more rows fit into memory than in training.
        """
        return super().settings(job, rows) | {
            "beta": job.config.beta,
            "precompute_ref_log_probs": True,
            "precompute_ref_batch_size": min(job.config.batch_size, 4 * job.fit.micro_batch),
        }


METHOD = DPO()
