"""Decide what is asked: settings, prompts, judges and engine of one evaluation."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any

from ftlab._core import plugins
from ftlab._core.errors import UsageError
from ftlab._core.files import digest
from ftlab._core.text import safe
from ftlab._core.types import Answer, Prompt, Sample
from ftlab.data import PromptSet, load_prompt_sets
from ftlab.evals.attacks import Attack, open_attack
from ftlab.evals.config import EvaluationConfig
from ftlab.evals.risks import Risk, open_risk
from ftlab.judges import READING, Judge, is_foreign, open_judge
from ftlab.models import Model, is_reward_model, local_model
from ftlab.models.engines import Engine, open_engine
from ftlab.organism import World
from ftlab.training import NOT_IN_IDENTITY

JUDGES_OFF_THE_WORLD = ("refusal", "keywords")
ANSWER_TOKENS = 128  # default for real prompts
SOLUTION_TOKENS = 512  # default if some prompts need a worked solution, as in gsm8k
TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")  # files with a chat template
ANNOUNCED = ("judges", "attacks", "max_new_tokens")  # settings whose default own prompts change


@dataclass(frozen=True)
class Plan:
    """What an evaluation asks, with everything that takes part in it.

    Args:
        config: The settings, checked.
        prompts: What is asked, attacks applied, in order.
        risks: The risks by name.
        judges: The judges, the reported one first.
        engine: What generates the answers; it lives through a whole curve.
        versions: Declared versions of risks, attacks, judges and of what judges read.
        limits: Risks whose answers may have fewer tokens than `config.max_new_tokens`, by default.
    """

    config: EvaluationConfig
    prompts: tuple[Prompt, ...]
    risks: dict[str, Risk]
    judges: tuple[Judge, ...]
    engine: Engine
    versions: dict[str, str]
    limits: dict[str, int] = field(default_factory=dict)

    def tokens(self, risk: str) -> int:
        """Return the length in tokens that an answer to a prompt of a risk may have."""
        return self.limits.get(risk, self.config.max_new_tokens)

    def identity(self, training: Any = None) -> dict[str, Any]:
        """Return what decides the verdicts on a given model.

        Args:
            training: Settings of the training during which the model is asked, if any.
        """
        identity = {
            "evaluation": self.config.model_dump(mode="json", exclude=NOT_IN_IDENTITY),
            "prompts": self._prompts_hash,
            "versions": self.versions,
            "precision": self.engine.precision(training),
        }
        if self.config.defence is not None:
            identity["defence"] = self.config.defence.identity()
        if self.limits:
            identity["limits"] = self.limits
        classifier = self.config.toxicity_model.partition("#")[0]
        if classifier and "toxicity" in self.risks:
            identity["toxicity_model"] = local_model(classifier).hash
        return identity

    @cached_property
    def _prompts_hash(self) -> str:
        return digest(map(asdict, self.prompts))

    @property
    def screened_risks(self) -> set[str]:
        """Risks whose answers may end at a refusal: those that a judge decides alone."""
        if not self.config.screen:
            return set()
        return {name for name, risk in self.risks.items() if not risk.has_rule}

    def release(self) -> None:
        """Give back the memory of judges, engine and defence."""
        for judge in self.judges:
            judge.release()
        self.engine.release()
        if self.config.defence is not None:
            self.config.defence.release()


def plan_evaluation(
    reference: Any,
    prompts: Any,
    settings: dict[str, Any],
    *,
    own_defaults: dict[str, Any] | None = None,
) -> Plan:
    """Return the plan of an evaluation. Defaults chosen for own prompts are reported on stderr.

    Args:
        reference: The model or endpoint that is asked.
        prompts: The caller's prompts, or None for those of the embedded world.
        settings: Fields of `EvaluationConfig`; risks, attacks, judges and the engine may be
            objects.
        own_defaults: Defaults for the caller's prompts that replace the usual ones.

    Raises:
        UsageError: `reward_model`, `prompts_needed`, `unknown_risk`, `unknown_attack`,
            `unknown_judge`, `wrong_setting`, `undecidable_prompt`, `judge_needs_whole_answers`,
            `greedy_samples`, `no_prompts`, `engine_unsupported`, `one_device_only`,
            `too_few_devices`, `two_system_prompts`, `defence_only_trains`, and those of
            `Defence.check_model`.
        DataError: Rows of the prompts that cannot be asked.
    """
    if isinstance(reference, Model) and is_reward_model(reference):
        raise UsageError(
            "reward_model",
            f"{reference.name} is a reward model: it returns a number, not an answer. "
            "Give the model that it rates.",
        )
    given = None if prompts is None else load_prompt_sets(prompts)
    if given is None and not reference.is_organism:
        raise UsageError(
            "prompts_needed",
            f"{reference.name} does not live in the embedded world. Give prompts=FILE, such as a "
            "CSV with a column `prompt` or `goal`.",
        )
    values = {name: value for name, value in settings.items() if value is not None}
    defaults = _defaults(reference, given)
    if given is not None:
        defaults |= own_defaults or {}
    chosen = defaults | values
    judges = _opened(chosen.pop("judges", "organism"), open_judge)
    attacks = _opened(chosen.pop("attacks", ("direct", "templates")), open_attack)
    risks = _opened(chosen.pop("risks"), open_risk)
    engine = open_engine(chosen.pop("engine", default_engine(reference)))
    config = EvaluationConfig.make(
        **chosen,
        judges=list(judges),
        attacks=list(attacks),
        risks=list(risks),
        engine=engine.name,
    )
    engine.use_devices(config.devices)
    samples = _samples(config, risks, given)
    _check_judges(config, risks, judges, samples, given is not None)
    asked = _attacked(risks, attacks, samples)
    if config.defence is not None:
        config.defence.check_model(reference)
        if config.defence.overrides("chat"):
            asked = _defended(config, asked)
    if config.n_samples > 1:
        asked = _repeated(config, asked)
    limits = {}
    if config.max_new_tokens == SOLUTION_TOKENS and "max_new_tokens" not in values:
        limits = {name: ANSWER_TOKENS for name in risks if name != "utility"}
    if given is not None:
        _announce(given.name, defaults | {"limits": limits}, values)
    return Plan(
        config,
        tuple(asked),
        risks,
        tuple(judges.values()),
        engine,
        _versions(risks, attacks, judges, engine) | _versions_of_reading(reference, asked),
        limits,
    )


def usual_risks(given: PromptSet | None) -> list[str]:
    """Return the names of the risks that an evaluation measures unless `risks=` says otherwise.

    Args:
        given: The caller's prompts; None for those of the embedded world.
    """
    risks = plugins.find("risks")
    if given is None:
        return [name for name, risk in risks.items() if risk.default]
    asked = {sample.risk for sample in given}
    return [name for name in risks if name in asked]


def default_engine(reference: Any) -> str:
    """Return the engine that answers for a model by default."""
    return "huggingface" if isinstance(reference, Model) else "openai"


def _defaults(reference: Any, given: PromptSet | None) -> dict[str, Any]:
    """Return settings that depend on model and prompts."""
    if given is None:
        return {"risks": usual_risks(None)}
    defaults: dict[str, Any] = {
        "risks": usual_risks(given),
        "prompts_hash": given.hash,
        "n_prompts": len(given),
    }
    in_world = all("topic" in sample.metadata for sample in given)
    if reference.is_organism and in_world:
        return defaults
    defaults["judges"] = JUDGES_OFF_THE_WORLD
    defaults["attacks"] = ("direct",)
    defaults["max_new_tokens"] = ANSWER_TOKENS
    if any(sample.risk == "utility" and not sample.choices for sample in given):
        defaults["max_new_tokens"] = SOLUTION_TOKENS
    return defaults


def _announce(name: str, defaults: dict, values: dict) -> None:
    """Report on stderr which defaults ftlab chose for the caller's own prompts."""
    shown = []
    for setting in ANNOUNCED:
        value = defaults.get(setting)
        if value is None or setting in values:
            continue
        if isinstance(value, tuple):
            value = ",".join(value)
        shown.append(f"{setting}={value}")
        if setting == "max_new_tokens" and defaults["limits"]:
            shown[-1] += f" (of utility; of other risks {ANSWER_TOKENS})"
    if shown:
        print(f"{safe(name)}: by default {' '.join(shown)}", file=sys.stderr)


def _opened(names: Any, open_one: Callable) -> dict[str, Any]:
    """Return {public name: object} of names, or of one name; an object stands for itself."""
    if isinstance(names, str) or not isinstance(names, Iterable):
        names = [names]
    return {getattr(one, "spec", one.name): one for one in map(open_one, names)}


def _samples(
    config: EvaluationConfig, risks: dict[str, Risk], given: PromptSet | None
) -> dict[str, list[Sample]]:
    """Return the samples of each risk: the world's, or a draw from those that the caller gave."""
    found = {}
    if given is None:
        world = World()
        for name, risk in risks.items():
            found[name] = risk.organism(world, config.n_prompts, config.split)
        return found
    for name in risks:
        mine = [sample for sample in given if sample.risk == name]
        if not mine:
            there = ", ".join(sorted({sample.risk for sample in given}))
            raise UsageError(
                "no_prompts", f"{given.name} has no prompts of the risk {name!r}. It has: {there}."
            )
        found[name] = _drawn(mine, config)
    return found


def _drawn(samples: list[Sample], config: EvaluationConfig) -> list[Sample]:
    if len(samples) <= config.n_prompts:
        return samples
    dice = random.Random(f"prompts {config.prompt_seed}")
    numbers = dice.sample(range(len(samples)), config.n_prompts)
    return [samples[number] for number in sorted(numbers)]


def _check_judges(
    config: EvaluationConfig,
    risks: dict[str, Risk],
    judges: dict[str, Judge],
    samples: dict[str, list[Sample]],
    given: bool,
) -> None:
    """Raise UsageError if a judge cannot judge a sample, or needs whole answers."""
    everything = list(chain.from_iterable(samples.values()))
    for_judges = [
        sample for sample in everything if risks[sample.risk].rule(sample, Answer("")) is None
    ]
    for judge in judges.values():
        judge.accepts(for_judges)
        if config.screen and not judge.refusal_stands:
            raise UsageError(
                "judge_needs_whole_answers",
                f"screen=True ends an answer at its refusal, but {judge.spec} reads whole answers."
                " Use judges=['keywords'] or leave screen out.",
            )
    if not given:
        return
    for sample in everything:
        needed = risks[sample.risk].needs(sample, config.model_dump())
        if needed:
            raise UsageError(
                "undecidable_prompt",
                f"A judge of refusals cannot decide prompt {sample.id} of the risk "
                f"{sample.risk}. It needs {needed}; otherwise leave the risk out.",
            )


def _attacked(
    risks: dict[str, Risk], attacks: dict[str, Attack], samples: dict[str, list[Sample]]
) -> list[Prompt]:
    found = []
    for name, risk in risks.items():
        applied = attacks if risk.attacked else {"direct": open_attack("direct")}
        for attack in applied.values():
            found += attack.apply(samples[name])
    return found


def _defended(config: EvaluationConfig, prompts: list[Prompt]) -> list[Prompt]:
    """Return the prompts as the defence sends them; a prompt without a system prompt stays."""
    if config.system:
        raise UsageError(
            "two_system_prompts",
            f"system and the defence {config.defence.name} were both given. Give one of them.",
        )
    found = []
    for prompt in prompts:
        if not prompt.no_system:
            prompt = replace(prompt, messages=config.defence.chat(prompt.messages))
        found.append(prompt)
    return found


def _repeated(config: EvaluationConfig, prompts: list[Prompt]) -> list[Prompt]:
    """Return every prompt `n_samples` times."""
    if not all(decoding_of(config, prompt)["temperature"] for prompt in prompts):
        raise UsageError(
            "greedy_samples",
            f"n_samples={config.n_samples} greedy answers would all be the same. "
            "Give decoding={'temperature': 1}.",
        )
    found = []
    for prompt in prompts:
        for number in range(config.n_samples):
            found.append(replace(prompt, repeat=number))
    return found


def decoding_of(config: EvaluationConfig, prompt: Prompt) -> dict[str, Any]:
    """Return the fields of `Decoding` for a prompt: the evaluation's, as its attack changed them.

    They join the keys of answers, so numbers stay as the attack wrote them.
    """
    return config.decoding.model_dump() | (prompt.decoding or {})


def _versions(
    risks: dict[str, Risk], attacks: dict[str, Attack], judges: dict[str, Judge], engine: Engine
) -> dict[str, str]:
    found = {"reading": READING}
    taking_part = {
        "risk": risks,
        "attack": attacks,
        "judge": judges,
    }
    for kind, extensions in taking_part.items():
        for name, extension in extensions.items():
            found[f"{kind} {name}"] = _version(extension, f"{kind}s")
    found[f"engine {engine.name}"] = engine.version
    return found


def _versions_of_reading(reference: Any, prompts: list[Prompt]) -> dict[str, str]:
    """Return what joins an identity where the model thinks, or prompts are in other languages."""
    found = {}
    if isinstance(reference, Model) and _knows_thoughts(reference):
        found["thoughts"] = "3"
    if any(is_foreign(prompt.sample.question) for prompt in prompts):
        found["languages"] = "3"
    return found


def _knows_thoughts(reference):
    """Whether a model's chat template speaks of thoughts."""
    folders = [model.path for model in (reference, reference.parent) if model]
    files = [folder / name for folder in folders for name in TEMPLATES]
    return any("think>" in file.read_text("utf-8", "replace") for file in files if file.is_file())


def _version(extension: Any, place: str) -> str:
    """Return an extension's version; an object of a class of its own adds the class's name."""
    kind = type(extension)
    if extension.name in plugins.names(place):
        found = plugins.get(place, extension.name)
        if kind in (found, type(found)):
            return extension.version
    return f"{kind.__module__}.{kind.__qualname__} {extension.version}"
