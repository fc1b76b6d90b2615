"""RLHF by REINFORCE leave-one-out. Source: Ahmadian et al. 2024, arXiv 2402.14740."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import field_validator

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab.data import Data, encode_rows, load, load_prompts
from ftlab.models import Model, is_reward_model, local_model, open_folder, stop_ids
from ftlab.runs import Run
from ftlab.training.config import TrainingConfig
from ftlab.training.methods.base import FirstStep, Job, Method
from ftlab.training.monitoring import function_identity


class RLOOConfig(TrainingConfig):
    """Settings of RLOO."""

    beta: float = setting(
        0.1, "Weight of the divergence from the parent in the reward; TRL's: 0.05", gt=0
    )
    num_generations: int = setting(2, "Completions per prompt; must divide batch_size", ge=2)
    max_completion_length: int = setting(64, "Most tokens of a completion; TRL's: 512", ge=1)

    @field_validator("num_generations")
    @classmethod
    def _whole_groups(cls, number, info):
        batch_size = info.data.get("batch_size", number)
        if batch_size % number:
            raise ValueError(f"num_generations must divide batch_size, which is {batch_size}")
        return number

    @field_validator("valid")
    @classmethod
    def _no_validation(cls, valid):
        if valid is not None:
            raise ValueError("RLOO has no validation loss; give monitor= and stop_above=")
        return valid


@dataclass(frozen=True)
class Reward:
    """What rates completions: a function, or a reward model that is loaded when needed."""

    identity: Any
    function: Callable | None = None
    model: Model | None = None

    def load(self) -> tuple[Any, Any]:
        """Return what TRL calls for rewards, and its tokenizer or None."""
        if self.function:
            return self.function, None
        import torch

        loaded = open_folder(self.model.path, torch.float32, "AutoModelForSequenceClassification")
        return loaded, self.model.tokenizer()


class RLOO(Method):
    """Samples completions, and moves towards those with a higher reward than their siblings."""

    name = "rloo"
    kind = "prompts"
    config = RLOOConfig
    learning_rate = 1e-6
    columns = ("prompt",)
    first_step_check = FirstStep("kl", 0.0, 0.05, "0")

    def trl_class(self) -> tuple[type, type]:
        import trl

        return trl.RLOOTrainer, trl.RLOOConfig

    def read(self, source: Any, *, n_rows: int | None = None, seed: int = 0) -> Data:
        """Return prompts; of pairs and chats the answers are left out."""
        if isinstance(source, str) and source.startswith("organism:"):
            kind = "pairs" if source.endswith(("preferences", "pairs")) else "chats"
            source = load(source, kind=kind, n_rows=n_rows, seed=seed)
        name = None
        if isinstance(source, Data):
            name = source.name
            source = [_without_answers(row) for row in source.rows]
        asked = load_prompts(source, n_rows=n_rows)
        rows = tuple({"prompt": sample.messages} for sample in asked.samples)
        return Data(name or asked.name, rows)

    def open_reward(self, reward: Any) -> Reward:
        if callable(reward) and not isinstance(reward, Run):
            return Reward(function_identity(reward), function=reward)
        allowed = "Give a run of train_reward_model, its folder, or a function."
        if reward is None:
            raise UsageError("reward_missing", f"RLOO needs a reward. {allowed}")
        model = local_model(reward)
        if not is_reward_model(model):
            raise UsageError("not_a_reward_model", f"{model.name} is no reward model. {allowed}")
        return Reward(model.hash, model=model)

    def fit_lengths(self, data: Data, job: Job) -> Data:
        return data

    def rows(self, data: Data, job: Job) -> list[dict]:
        """Check each prompt with the shortest answer, leaving room for the completion."""
        answer = {"role": "assistant", "content": "."}
        chats = tuple({"messages": [*row["prompt"], answer]} for row in data.rows)
        room = job.longest_row - job.config.max_completion_length
        encode_rows(Data(data.name, chats), job.tokenizer, max_length=room)
        return self.numbered(data)

    def settings(self, job: Job, rows: list[dict]) -> dict[str, Any]:
        config = job.config
        return {
            "beta": config.beta,
            "num_generations": config.num_generations,
            "max_completion_length": config.max_completion_length,
            "disable_dropout": True,
        }

    def extra(self, job: Job) -> dict[str, Any]:
        from transformers import GenerationConfig

        inner = job.model
        if job.config.adapter:
            inner = job.model.get_base_model()
        # The model's own penalties would make the samples those of another policy.
        inner.generation_config = GenerationConfig(
            eos_token_id=stop_ids(job.tokenizer, inner),
            bos_token_id=job.tokenizer.bos_token_id,
            pad_token_id=job.tokenizer.pad_token_id,
        )
        if job.parent.adapter and not job.config.adapter:
            # TRL reads the reference from a path, and a merged parent has none.
            inner.config._name_or_path = str(job.run.path / "checkpoints" / "reference")
            inner.save_pretrained(inner.config._name_or_path)
        for module in inner.modules():  # a function's rate, which TRL's disable_dropout misses
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0
        function, tokenizer = job.reward.load()
        return {"reward_funcs": function, "reward_processing_classes": tokenizer}


def _without_answers(row: dict) -> dict:
    """Return the prompt of a row: its messages, or a text."""
    prompt = row.get("prompt") or row["messages"]
    if isinstance(prompt, str):
        return {"prompt": prompt}
    return {"messages": prompt}


METHOD = RLOO()
