"""The risk curve: fine-tune once per seed and measure the risks at the given steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.data import draw
from ftlab.evals import NOT_FOR_USERS, EvaluationConfig, plan_evaluation
from ftlab.experiments.curves import (
    Arm,
    Curve,
    divide_settings,
    is_whole,
    seeds_of,
    whole_numbers,
)
from ftlab.runs import Run
from ftlab.training import (
    TrainingConfig,
    curve_configs,
    open_method,
    prepared,
    short_name,
    trainable,
)

DECIDED_HERE = ("at_steps", "seed", "steps", "epochs")  # follow from at_steps and seeds


@takes(TrainingConfig, *curve_configs(), EvaluationConfig, omit=(*DECIDED_HERE, *NOT_FOR_USERS))
def risk_curve(
    parent: Any,
    data: Any,
    *,
    at_steps: Sequence[int] | int = (0, 10, 30, 100),
    seeds: int | list[int] = 5,
    seed: int | None = None,
    prompts: Any = None,
    method: str = "sft",
    n_rows: int | None = None,
    schedule: str = "constant",
    **settings,
) -> Run:
    """Fine-tune once per seed and measure the risks during training.

    The learning rate is constant unless `schedule` says otherwise, so that a point does not
    depend on later ones.

    Args:
        parent: Anything that `ftlab.model` takes, except an endpoint.
        data: Anything that `ftlab.data.load` takes.
        at_steps: Optimiser steps at which to measure, increasing, from 0: the parent, which is
            measured once for all seeds. Training ends at the last one; 30 is [0, 30].
        seeds: Number of training seeds (0 to n - 1), or a list of them. A seed decides the order
            of the rows, which rows are drawn, and the initial weights of an adapter.
        seed: Only this training seed, for one task of a job array; `seeds` then finds the
            seeds that are there.
        prompts: As in `evaluate`.
        method: How to train: sft, dpo, kto.
        n_rows: Rows drawn per seed; by default all rows of a file.
        schedule: Learning rate over the steps: constant, linear or cosine.
        {settings}

    Returns:
        A finished run over all seeds; `table()` has one row per answer and judge.

    Raises:
        UsageError: `wrong_steps`, `wrong_seeds`, `method_without_curve`, `identical_seeds` (each
            step holds all rows, and nothing else is drawn), and those of `sft` and `evaluate`.
        DataError: Rows that cannot be used.
    """
    reference = trainable(parent)
    chosen = open_method(method)
    if not chosen.has_curve:
        raise UsageError(
            "method_without_curve",
            f"The method {chosen.name} has no curve. Train first, then use evaluate.",
        )
    steps = _steps(at_steps)
    if n_rows is not None and (not is_whole(n_rows) or n_rows < 1):
        raise UsageError("wrong_n_rows", f"n_rows={n_rows!r} is not a whole number >= 1.")
    for_training, for_evaluation = divide_settings(settings, chosen.config)
    for_training |= {"schedule": schedule, "steps": max(steps), "at_steps": steps}
    configs = [chosen.config.make(**for_training, seed=own) for own in seeds_of(seeds, seed)]
    reference = prepared(reference, chosen, configs[0])
    plan = plan_evaluation(reference, prompts, for_evaluation)
    arms = []
    for config in configs:
        rows = draw(data, kind=chosen.kind, n_rows=n_rows, seed=config.seed)
        rows = config.protection.training_rows(rows, reference, config.seed)
        arms.append(Arm(chosen, config, rows, {"seed": config.seed}))
    data_name = arms[0].data.name.replace("organism:", "")
    return Curve("curve", f"{short_name(reference)}-{data_name}", reference, arms, plan).run()


def _steps(at_steps: Sequence[int] | int) -> list[int]:
    given = [0, at_steps] if is_whole(at_steps) else at_steps
    allowed = "0, the parent, and whole numbers after it, such as [0, 10, 30, 100]"
    return whole_numbers("wrong_steps", "at_steps", given, allowed, lambda s: min(s) <= 0 < max(s))
