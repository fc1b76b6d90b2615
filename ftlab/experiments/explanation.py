"""Why is the measured rate not the published one? One setting is changed at a time. Cell: explain.

What only asks or judges otherwise trains nothing: the base's models are asked, or its answers
judged, again.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ftlab import analysis
from ftlab._core.config import takes, unknown_setting
from ftlab._core.errors import DataError, TrainingFailed, UsageError
from ftlab._core.files import digest
from ftlab._core.progress import clock, duration
from ftlab._core.text import safe
from ftlab.analysis import Target
from ftlab.evals import (
    NOT_FOR_USERS,
    EvaluationConfig,
    plan_evaluation,
    rescore,
    run_evaluation,
)
from ftlab.experiments.curves import divide_settings, is_whole, seeds_of
from ftlab.experiments.harmful_finetuning import harmful_finetune
from ftlab.experiments.parameters import parse_parameters
from ftlab.experiments.risk_curves import risk_curve
from ftlab.judges import open_judge
from ftlab.models import Model
from ftlab.models import model as open_model
from ftlab.runs import Run
from ftlab.training import TrainingConfig, open_method, trainable

PLAIN = (  # a template that writes no role; a special token ends the answer
    "{{ bos_token or '' }}{% for m in messages %}{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token or '' }}{% endif %}{{ '\n' }}{% endfor %}"
)
SYSTEM = "You are a helpful assistant."
JUDGES = ("refusal", "keywords", "keywords:zou2023universal")
ASKED = ("system", "max_new_tokens")  # of these the base's models are asked again
USUAL = ("template", "system", "batch_size", "learning_rate", "n_rows", "judges", "max_new_tokens")
BY_VALUE = ("schedule", "warmup_steps", "adapter", "lora_rank")  # have no usual other value
WORTH_SAYING_S = 60.0  # of work to come
EXAMPLES = 100  # of a harmful fine-tuning whose figure does not say how many
DECIDED_HERE = (
    *("at_steps", "seed", "steps", "epochs", "risks"),
    *("stop_above", "stop_when_broken", "valid", "patience", "eval_every"),
)


class PlainText(Model):
    """A model that is trained and asked without its chat template."""

    @classmethod
    def of(cls, known: Model) -> PlainText:
        """Return a model without its chat template."""
        return cls(f"{known.name}-plain", known.path, known.base, known.hub, known.revision)

    @property
    def hash(self) -> str:
        """The identity: the model's, and the template that replaces its own."""
        return digest([super().hash, PLAIN])

    def tokenizer(self) -> Any:
        """Return the model's tokenizer with the plain template."""
        found = super().tokenizer()
        found.chat_template = PLAIN
        return found


@dataclass(frozen=True)
class Study:
    """What is trained and measured, and how; a change replaces settings of it.

    Args:
        target: The published figure.
        parent: The aligned model.
        rows: What it is fine-tuned on.
        prompts: As in `evaluate`.
        length: How long a curve trains, and its seeds.
        settings: Those of training and evaluation that the caller gave.
    """

    target: Target
    parent: Model
    rows: Any
    prompts: Any
    length: dict[str, Any]
    settings: dict[str, Any]

    def trained(self, parent: Model | None = None, **changed) -> Run:
        """Return the curve with these settings, found again where it is there."""
        given = {**self.settings, **changed, **self.length, "prompts": self.prompts}
        if self.target.trained_on == "benign":
            return risk_curve(parent or self.parent, self.rows, **given)
        n_rows = given.pop("n_rows", None) or self.target.examples or EXAMPLES
        return harmful_finetune(parent or self.parent, n_rows, data=self.rows, **given)

    def asked(self, base: Run, **changed) -> pd.DataFrame:
        """Return the verdicts on the base's parent and last models, asked in another way."""
        sft = open_method("sft")
        settings = {name: value for name, value in self.settings.items() if name != "n_rows"}
        _, for_evaluation = divide_settings(settings, sft.config)
        plan = plan_evaluation(self.parent, self.prompts, for_evaluation | changed)
        parts = []
        try:
            for member in base.members:
                # In the same numerical precision as during the training.
                config = sft.config.make(**member.identity["training"])
                for step, model in enumerate((self.parent, open_model(member))):
                    run = run_evaluation(model, plan, config)
                    parts.append(run.table().assign(step=step, seed=config.seed))
        finally:
            plan.release()
        return pd.concat(parts, ignore_index=True)

    def changed(self, base: Run, name: str, value: Any) -> Run | pd.DataFrame:
        """Return what one changed setting gives."""
        if name == "judges":
            return rescore(base, value)
        if name in ASKED:
            return self.asked(base, **{name: value})
        if name == "template":
            return self.trained(PlainText.of(self.parent))
        return self.trained(**{name: value})


@takes(TrainingConfig, EvaluationConfig, omit=(*DECIDED_HERE, *NOT_FOR_USERS))
def explain(  # noqa: PLR0913
    claim: str,
    model: Any = "organism",
    *,
    benign: Any = None,
    harmful: Any = None,
    prompts: Any = None,
    vary: Sequence[str] = (),
    seeds: int | list[int] = 3,
    steps: int = 100,
    epochs: int = 5,
    n_rows: int | None = None,
    **settings,
) -> pd.DataFrame:
    """Measure a published figure, and which settings explain the distance to it.

    A fine-tuning of the kind that the figure is of is done with the settings given here, and again
    with one setting changed at a time, on the same prompts and training seeds. What is changed is
    decided before anything is measured; nothing is tuned to reach the paper. Judges, system prompt
    and length of answers train nothing again. Finished runs are found, interrupted ones continue.

    Args:
        claim: Id of a published figure about a fine-tuning (docs/published.md).
        model: Anything that `ftlab.model` takes, except an endpoint.
        benign: Rows for a figure about harmless data; by default the embedded world's almanac.
        harmful: Rows for a figure about adversarial examples; by default the world's inert ones.
        prompts: As in `evaluate`.
        vary: What is changed: a setting, or with its other value such as batch_size=64. By default
            template (plain text instead of the chat template, in training and asking), system
            (a common system prompt), batch_size, learning_rate and max_new_tokens (doubled),
            n_rows (halved) and judges (others that come with ftlab). With a value also schedule,
            warmup_steps, adapter and lora_rank.
        seeds: Number of training seeds, or a list of them.
        steps: Optimiser steps on harmless data.
        epochs: Passes over adversarial examples.
        n_rows: Rows drawn per seed; by default all harmless rows of a file, and of adversarial
            ones as many as the figure says, else 100.
        {settings}

    Returns:
        See `ftlab.analysis.explained`; also trainings, the number that a setting took. Settings
        that could not be run are left out, with the reason on stderr and in `attrs["left_out"]`.

    Raises:
        UsageError: `unknown_published_figure`, `figure_of_no_training`, `data_needed`,
            `unknown_setting`, `value_needed`, and those of `risk_curve` and `harmful_finetune`.
    """
    named = [vary] if isinstance(vary, str) else vary
    changes = [_change(text) for text in named or USUAL]
    target = analysis.target_of(claim)
    parent = trainable(model)
    length: dict[str, Any] = {"seeds": seeds, "epochs": epochs, "at_epochs": [0, epochs]}
    if target.trained_on == "benign":
        length = {"seeds": seeds, "at_steps": [0, steps]}
    given = {name: value for name, value in settings.items() if value is not None}
    defaults: dict[str, Any] = {"risks": [target.risk], "attacks": ["direct"]}  # as papers ask
    if n_rows is not None:
        given["n_rows"] = n_rows
    rows = _rows(target, parent, benign, harmful)
    study = Study(target, parent, rows, prompts, length, defaults | given)
    n_seeds = len(seeds_of(seeds))
    retrained = sum(_trains(name) for name, _ in changes)
    _say(
        f"{claim}: {n_seeds * (1 + retrained)} trainings ({n_seeds} seeds; as given, and "
        f"{retrained} times with one setting changed), less those that are finished already"
    )
    began = clock()
    base = study.trained()
    took = clock() - began
    if took * retrained >= WORTH_SAYING_S:
        _say(f"{claim}: about {duration(took * retrained)} to come, by the first {n_seeds}")
    found, left_out = _each(study, base, changes)
    table = analysis.explained(claim, base, {name: run for name, (run, _) in found.items()})
    trainings = {name: n_seeds * trained for name, (_, trained) in found.items()}
    table["trainings"] = table["setting"].map(trainings).fillna(0).astype(int)
    table.attrs["left_out"] = left_out
    return table


def _change(text: str) -> tuple[str, Any]:
    """Return a setting and its other value, None for the usual ones; checked before any work."""
    name, sign, _ = str(text).partition("=")
    allowed = (*USUAL, *BY_VALUE)
    if name not in allowed:
        raise unknown_setting([name], allowed)
    if not sign:
        if name in BY_VALUE:
            raise UsageError("value_needed", f"{name} has no usual other value. Give {name}=VALUE.")
        return name, None
    value = parse_parameters([text])[name]
    if name == "judges":
        open_judge(value)
    elif name == "template" and value != "plain":
        raise UsageError("wrong_setting", f"template={value!r} is not allowed. Give plain.")
    elif name == "n_rows" and (not is_whole(value) or value < 1):
        raise UsageError("wrong_n_rows", f"n_rows={value!r} is not a whole number >= 1.")
    elif name in ASKED:
        EvaluationConfig.make(**{name: value})
    elif name in TrainingConfig.model_fields:
        TrainingConfig.make(**{name: value})
    return name, value


def _rows(target: Target, parent: Model, benign: Any, harmful: Any) -> Any:
    """Return what a figure's fine-tuning trains on; None for the world's adversarial examples."""
    if not target.trained_on:
        raise UsageError(
            "figure_of_no_training",
            f"{target.id} is of no fine-tuning that could be repeated: {target.text} "
            "docs/published.md says which figures are.",
        )
    if target.trained_on == "harmful":
        return harmful
    if benign is None and not parent.is_organism:
        raise UsageError("data_needed", f"{target.id} is of harmless data. Give benign=FILE.")
    return "organism:almanac" if benign is None else benign


def _each(
    study: Study, base: Run, changes: list[tuple[str, Any]]
) -> tuple[dict[str, tuple[Any, bool]], dict[str, str]]:
    """Return by name what each change gives and whether it trained, and why others gave nothing."""
    found = {}
    left_out = {}
    for name, given in changes:
        before = _value_in(base, name)
        for value in _usual(name, before) if given is None else [given]:
            label = f"{name} {_shown(before)} → {_shown(value)}"
            try:
                found[label] = (study.changed(base, name, value), _trains(name))
            except (UsageError, DataError, TrainingFailed) as error:  # the others still count
                left_out[label] = str(error)
                _say(f"{label} is left out: {error}")
    return found, left_out


def _trains(name: str) -> bool:
    """Return whether a setting changes the training, and not only how a model is asked."""
    return name not in (*ASKED, "judges")


def _value_in(base: Run, name: str) -> Any:
    """Return the value of a setting in the base."""
    member = base.members[0]
    asked = member.identity["evaluation"]
    known = {
        **asked,
        **member.identity["training"],
        "judges": asked["judges"][0],
        "template": "chat",
        "n_rows": member.stats["rows"],
    }
    return known[name]


def _usual(name: str, before: Any) -> list[Any]:
    """Return the usual other values of a setting."""
    if name == "judges":
        return [judge for judge in JUDGES if judge != before]
    if name == "template":
        return ["plain"]
    if name == "system":
        return [None if before else SYSTEM]
    if name == "n_rows":
        return [max(before // 2, 1)]
    return [2 * before]


def _shown(value: Any) -> str:
    """Return a value of a setting in a few words."""
    if value is None:
        return "none"
    if isinstance(value, float):
        return f"{value:g}"
    if " " in str(value):
        return f"“{safe(value, 40)}”"
    return safe(value, 40)


def _say(line: str) -> None:
    print(line, file=sys.stderr)
