"""Frozen configurations, one a stage. Every default lives here; an unknown key is an error.

A configuration holds only what can change a result. Together with the hashes of model and data it is the
identity of a run (`runs.py`).
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

FEWEST_SEEDS = 3  # with fewer training seeds intervals say nothing of other seeds: "conditional on these runs"
SCHEMA = 2  # of the run folder; part of every identity

ASKED = ("jailbreak", "bias", "toxicity", "over_refusal", "utility")  # where nobody says which
RISKS = (*ASKED, "hallucination")
ATTACKS = ("direct", "templates", "prefill", "decoding", "best_of_n")  # all but the first take `name:argument`
VERDICTS = ("complied", "complied_wrong", "partial", "refused", "empty", "incoherent", "unparsed", "error")


class Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def make(cls, **values):
        """-> config from the values that are not None. Raises ValueError: every problem in one sentence each."""
        try:
            return cls(**{k: v for k, v in values.items() if v is not None})
        except ValidationError as e:
            lines = []
            for p in e.errors():
                name = ".".join(str(x) for x in p["loc"])
                if p["type"] == "extra_forbidden":
                    lines.append(f"unknown setting {name!r}; allowed: {', '.join(cls.model_fields)}")
                else:
                    lines.append(f"{name} = {p['input']!r}: {p['msg'].removeprefix('Value error, ')}")
            raise ValueError("; ".join(lines)) from None


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
        _known("risk", tuple(rates), RISKS)
        if any(not 0 <= r < 1 for r in rates.values()):
            raise ValueError("a rate is a share of the prompts, 0 <= rate < 1, as in {'jailbreak': 0.10}")
        return rates

    def default_rate(self) -> float:
        """TRL's default of each method, ten times that for LoRA as TRL's documentation advises."""
        rates = {"sft": 2e-5, "dpo": 1e-6, "kto": 1e-6, "reward": 1e-4, "rloo": 1e-6}
        return rates[self.method] * (10 if self.adapter else 1)


class Decoding(Config):
    """How an answer's tokens are drawn; the default is greedy. Order: temperature, then top-k, then top-p (nucleus)."""

    temperature: float = Field(0.0, ge=0)  # 0: greedy, the most probable token each time
    top_p: float = Field(1.0, gt=0, le=1)  # 1: off
    top_k: int = Field(0, ge=0)  # 0: off


GREEDY = Decoding()


class RedTeam(Config):
    """A search for jailbreaks by an attacker (TAP or PAIR); the defaults are PyRIT's, the papers' are far larger:

    TAP (Mehrotra et al. 2023, section 4) width 10, depth 10, branching 4; PAIR (Chao et al. 2023, section 4) 20
    streams (in later versions 30) of depth 3.
    """

    method: Literal["tap", "pair"] = "tap"
    width: int = Field(3, ge=1)  # TAP: branches kept a level; PAIR: parallel streams
    depth: int = Field(5, ge=1)  # refinements of a branch
    branching: int = Field(2, ge=1)  # TAP: children of a branch, itself included; PAIR has none
    attacker_tokens: int = Field(500, ge=1)  # of one rewrite by an attacker that is a model
    seed: int = Field(0, ge=0)  # of the attacker's sampling


class Evaluation(Config):
    """What is asked of a model, how it decodes and who judges."""

    risks: tuple[str, ...] = ASKED
    attacks: tuple[str, ...] = ("direct", "templates")  # for jailbreak; the other risks are asked directly
    n_prompts: int = Field(100, ge=1)  # of each risk, before attacks
    prompt_seed: int = Field(0, ge=0)  # which of a longer file's prompts are drawn
    samples: int = Field(1, ge=1)  # answers a prompt and attack; more than one needs a temperature
    split: Literal["eval", "valid"] = "eval"
    judges: tuple[str, ...] = ("organism",)  # the first one's verdicts are reported, the others' stand beside them
    toxicity_model: str = ""  # classifier for real toxicity prompts: a folder or hub id
    decoding: Decoding = Decoding()
    max_new_tokens: int = Field(24, ge=1)
    prompts: str = ""  # hash of the caller's own prompts, when there are any
    system: str | None = None  # system prompt before every question
    generator: Literal["transformers", "vllm"] = "transformers"  # vllm: on an NVIDIA GPU, local weights and LoRA
    screen: bool = False  # end an answer at a refusal that stands (keyword judges); what is kept is then not whole

    @field_validator("judges", "risks", "attacks", mode="before")
    @classmethod
    def _one(cls, names):
        return (names,) if isinstance(names, str) else names

    @field_validator("judges")
    @classmethod
    def _judges(cls, names):
        if not names:
            raise ValueError("name at least one judge")
        return tuple(dict.fromkeys(names))

    @field_validator("risks")
    @classmethod
    def _risks(cls, names):
        return _known("risk", names, RISKS)

    @field_validator("attacks")
    @classmethod
    def _attacks(cls, names):
        wrong = [n for n in names if n.startswith("direct:") or n.partition(":")[0] not in ATTACKS or n.endswith(":")]
        return _known("attack", names, ATTACKS if wrong or not names else names)


def _known(kind: str, names: tuple[str, ...], allowed: tuple[str, ...]) -> tuple[str, ...]:
    wrong = [n for n in names if n not in allowed]
    if wrong or not names:
        raise ValueError(
            f"unknown {kind} {', '.join(map(repr, wrong)) or '(none given)'}; allowed: {', '.join(allowed)}"
        )
    return tuple(dict.fromkeys(names))  # named twice is measured once
