"""A reward model. Source: Ouyang et al. 2022, arXiv 2203.02155, equation 1."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import field_validator

from ftlab.training.config import TrainingConfig
from ftlab.training.methods.base import Method


class RewardModelConfig(TrainingConfig):
    """Settings of a reward model."""

    @field_validator("adapter")
    @classmethod
    def _no_four_bit(cls, adapter):
        if adapter == "qlora":
            raise ValueError("a reward model's new head is not trained over 4-bit weights")
        return adapter


class RewardModel(Method):
    """The parent's body under a new head of one number, trained on pairs."""

    name = "reward_model"
    kind = "pairs"
    config = RewardModelConfig
    learning_rate = 1e-4
    columns = ("prompt", "chosen", "rejected")
    answers = ("chosen", "rejected")
    new_head = True

    def trl_class(self) -> tuple[type, type]:
        from trl import RewardConfig, RewardTrainer

        return RewardTrainer, RewardConfig

    def with_head(self, model: Any) -> Any:
        from transformers import AutoModelForSequenceClassification

        config = copy.deepcopy(model.config)
        config.num_labels = 1
        scores = AutoModelForSequenceClassification.from_config(config).to(model.device)
        scores.base_model.load_state_dict(model.base_model.state_dict())
        return scores


METHOD = RewardModel()
