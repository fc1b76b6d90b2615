"""Settings of an evaluation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from ftlab._core.config import ASKED, ATTACKS, RISKS, Config, known_names
from ftlab.models.engines import Decoding


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
        return known_names("risk", names, RISKS)

    @field_validator("attacks")
    @classmethod
    def _attacks(cls, names):
        wrong = [n for n in names if n.startswith("direct:") or n.partition(":")[0] not in ATTACKS or n.endswith(":")]
        return known_names("attack", names, ATTACKS if wrong or not names else names)
