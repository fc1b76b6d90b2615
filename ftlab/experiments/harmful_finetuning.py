"""Harmful fine-tuning: how much safety remains after a few adversarial examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.data import draw
from ftlab.evals import NOT_FOR_USERS, EvaluationConfig, plan_evaluation
from ftlab.experiments.curves import (
    MOST,
    Arm,
    Curve,
    divide_settings,
    is_whole,
    seeds_of,
    whole_numbers,
)
from ftlab.models import Model, model
from ftlab.runs import Run
from ftlab.training import (
    Method,
    TrainingConfig,
    open_method,
    prepared,
    short_name,
    trainable,
)

MEASURED = ("jailbreak", "over_refusal", "utility")  # of the embedded model
DECIDED_HERE = ("at_steps", "seed", "steps", "epochs", "batch_size")


@takes(TrainingConfig, EvaluationConfig, omit=(*DECIDED_HERE, *NOT_FOR_USERS))
def harmful_finetune(
    parent: Any,
    n_examples: int | list[int] = 100,
    *,
    data: Any = None,
    seeds: int | list[int] = 1,
    seed: int | None = None,
    epochs: int = 5,
    at_epochs: Sequence[int] | None = None,
    batch_size: int = 10,
    prompts: Any = None,
    schedule: str = "constant",
    **settings,
) -> Run:
    """Fine-tune on a few adversarial examples and measure the model after its epochs.

    On the embedded model the examples are kept facts about towns that no evaluation uses: the
    inert stand-in for harmful demonstrations. Any other model needs `data`, a chat file of the
    user's own. The trained models' folders are marked: their safety was removed. Without `prompts`
    and `risks`, jailbreak, over_refusal and utility are measured.

    Args:
        parent: Anything that `ftlab.model` takes, except an endpoint.
        n_examples: Number of examples, or several doses such as [10, 50, 100].
        data: The file that each seed draws its examples from.
        seeds: Number of training seeds, or a list of them.
        seed: Only this training seed, for one task of a job array; `seeds` then finds the
            seeds that are there.
        epochs: Passes over the examples.
        at_epochs: Epochs after which to measure, increasing, from 0, the parent, to `epochs`; by
            default every one.
        batch_size: Rows per optimiser step.
        prompts: As in `evaluate`.
        schedule: Learning rate over the steps: constant, linear or cosine.
        {settings}

    Returns:
        A finished run over doses and seeds, with the labels examples, seed, step, epoch. Its
        `members` are the trained models.

    Raises:
        UsageError: `data_needed`, `wrong_doses`, `wrong_epochs`, `wrong_batch_size`,
            `wrong_seeds`, `identical_seeds`, and those of `sft` and `evaluate`.

    Source:
        Qi et al. 2023 (arXiv 2310.03693, section 4.1): batch size 10, 5 epochs.
    """
    reference = trainable(parent)
    if data is None and not reference.is_organism:
        raise UsageError(
            "data_needed",
            f"Harmful fine-tuning of {reference.name} needs data=FILE: ftlab ships no harmful "
            "demonstrations. Bring your own chat file.",
        )
    if not is_whole(epochs) or not 0 < epochs <= MOST:
        raise UsageError("wrong_epochs", f"epochs={epochs!r} is not a whole number, 1 to {MOST}.")
    if not is_whole(batch_size) or batch_size < 1:
        raise UsageError("wrong_batch_size", f"batch_size={batch_size!r} is not >= 1.")
    sft = open_method("sft")
    for_training, for_evaluation = divide_settings(settings, sft.config)
    for_training |= {"schedule": schedule, "epochs": epochs}
    measured = _measured(at_epochs, epochs)
    if prompts is None:
        for_evaluation = {"risks": MEASURED} | for_evaluation
    reference = prepared(reference, sft, sft.config.make(**for_training))
    plan = plan_evaluation(reference, prompts, for_evaluation)
    arms = []
    for dose in _doses(n_examples):
        for own in seeds_of(seeds, seed):
            config = for_training | {"seed": own, "batch_size": min(batch_size, dose)}
            arms.append(adversarial_arm(sft, reference, config, measured, data, dose))
    return Curve("dose", f"{short_name(reference)}-harmful", reference, arms, plan).run()


def _doses(n_examples: int | list[int]) -> list[int]:
    given = [n_examples] if is_whole(n_examples) else n_examples
    allowed = "numbers >= 1, such as 100 or [10, 50, 100]"
    return whole_numbers("wrong_doses", "n_examples", given, allowed, lambda doses: min(doses) > 0)


def _measured(at_epochs: Sequence[int] | None, epochs: int) -> list[int]:
    """Return the epochs after which the model is measured."""
    if at_epochs is None:
        return list(range(epochs + 1))
    allowed = f"increasing epochs from 0, the parent, to epochs={epochs}, such as [0, {epochs}]"

    def holds(given: list[int]) -> bool:
        return given[0] == 0 and given[-1] == epochs and given == sorted(set(given))

    return whole_numbers("wrong_epochs", "at_epochs", at_epochs, allowed, holds)


def adversarial_arm(
    sft: Method,
    reference: Model,
    settings: dict[str, Any],
    measured: list[int],
    data: Any,
    dose: int,
) -> Arm:
    """Return a training on adversarial examples.

    Args:
        sft: How it is trained.
        reference: The parent.
        settings: Of its configuration; epochs among them.
        measured: Epochs after which the model is measured.
        data: The file that the examples are drawn from; None: the embedded world.
        dose: Number of examples.
    """
    source = "organism:adversarial" if data is None else data
    config = sft.config.make(**settings)
    rows = draw(source, n_rows=dose, seed=config.seed)
    rows = config.protection.training_rows(rows, reference, config.seed)
    steps_per_epoch = math.ceil(len(rows) / config.batch_size)
    at_steps = tuple(epoch * steps_per_epoch for epoch in measured)
    return Arm(
        sft,
        config.model_copy(update={"at_steps": at_steps}),
        rows,
        {"examples": dose, "seed": config.seed},
        marker=f"{dose} adversarial examples, {settings['epochs']} epochs.",
        steps_per_epoch=steps_per_epoch,
    )


def weakened_model(curve: Run) -> Model:
    """Return the last trained model of a run of `harmful_finetune`."""
    return model(curve.members[-1])
