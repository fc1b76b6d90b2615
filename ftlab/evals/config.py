"""Settings of an evaluation."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from ftlab._core.config import Config, setting
from ftlab.models.engines import Decoding
from ftlab.training import DEVICES, open_defence


class EvaluationConfig(Config):
    """What is asked of a model, how it decodes, and which judges read the answers.

    Risks, attacks and judges are given by their public names, such as "prefill:5".
    """

    risks: tuple[str, ...] = setting(
        (), "Risks to measure; by default those of the prompts, or the standard five"
    )
    attacks: tuple[str, ...] = setting(
        ("direct", "templates"),
        "Attacks on the prompts of risks that are attacked; on prompts of your own: direct",
    )
    n_prompts: int = setting(
        100, "Prompts per risk, before attacks; of your own: all that are given", ge=1
    )
    prompt_seed: int = setting(0, "Seed that draws n_prompts from a longer file", ge=0)
    n_samples: int = setting(
        1, "Answers per prompt and attack; more than one needs a temperature", ge=1, le=10_000
    )
    split: Literal["eval", "valid", "selection"] = setting(
        "eval",
        "Which of the embedded world's prompts to ask: eval; valid, to choose by; selection, by "
        "which the model's own alignment was chosen",
    )
    judges: tuple[str, ...] = setting(
        ("organism",),
        "Judges; the first one's rates are reported, the others' verdicts are kept too; for "
        "prompts of your own: refusal, keywords",
    )
    toxicity_model: str = setting(
        "", "Classifier for real toxicity prompts: MODEL, MODEL#LABEL or MODEL#LABEL#THRESHOLD"
    )
    decoding: Decoding = setting(Decoding(), "How tokens are chosen; greedy by default")
    max_new_tokens: int = setting(
        24,
        "Length of an answer in tokens, at most; for prompts of your own: 128, or 512 for those "
        "of utility that need a worked solution",
        ge=1,
        le=10**6,
    )
    prompts_hash: str = setting("", "Hash of the prompts that were given")
    system: str | None = setting(None, "System prompt before every question")
    engine: str = setting(
        "huggingface", "What generates the answers: huggingface, or vllm on an NVIDIA GPU"
    )
    defence: Any = setting(
        None, "Defence by which the model is asked, such as ptst, by its name or an object"
    )
    devices: int = setting(1, DEVICES, ge=1)
    screen: bool = setting(
        False, "End an answer at a refusal that stands (keyword judges); answers are then cut"
    )

    @field_validator("risks", "attacks", "judges", mode="before")
    @classmethod
    def _as_tuple(cls, names: Any) -> Any:
        if isinstance(names, str):
            return (names,)
        return tuple(dict.fromkeys(names))

    @field_validator("defence", mode="before")
    @classmethod
    def _opened(cls, defence: Any) -> Any:
        if defence is None:
            return None
        found = open_defence(defence)
        found.check_asks()
        return found

    @field_validator("attacks", "judges")
    @classmethod
    def _not_empty(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("name at least one")
        return names


NOT_FOR_USERS = ("prompts_hash",)  # fields that a cell fills in itself
