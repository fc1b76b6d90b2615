"""Cells: sft, dpo, kto, train_reward_model, rloo, and train for any method."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

from ftlab._core.config import Config, setting, takes
from ftlab._core.errors import FtlabDeprecationWarning, UsageError
from ftlab._core.progress import Progress
from ftlab.runs import Run
from ftlab.training.config import TrainingConfig
from ftlab.training.methods.base import Method, open_method
from ftlab.training.methods.dpo import DPOConfig
from ftlab.training.methods.kto import KTOConfig
from ftlab.training.methods.reward_model import RewardModelConfig
from ftlab.training.methods.rloo import RLOOConfig
from ftlab.training.monitoring import LoadedModel, function_identity
from ftlab.training.trainer import prepared, train_run, trainable

CURVES_ONLY = ("at_steps", "stop_when_broken")  # settings that a curve decides


class CellConfig(Config):
    """Arguments of every training cell that are not settings of its method."""

    n_rows: int | None = setting(None, "Rows to take; None takes all", ge=1)
    data_seed: int = setting(0, "Seed by which rows are drawn", ge=0)
    label: str | None = setting(None, "Beginning of the run's name")
    monitor: Callable[[Any, int], dict[str, float]] | None = setting(
        None,
        "Function that is called every eval_every steps with the model in training (LoadedModel) "
        "and the step, and returns {metric: rate}",
    )


class OldMonitor:
    """A function of version 0.3, measure(run, model, tokenizer, step, progress), as a monitor."""

    def __init__(self, measure: Callable):
        self.measure = measure
        self.identity = function_identity(measure)

    def __call__(self, loaded: LoadedModel, step: int) -> dict[str, float]:
        bar = Progress(f"{loaded.run.name}: measure", 1)
        return self.measure(loaded.run, loaded.module, loaded.tokenizer, step, bar)


def current_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Translate the settings lora, dora, qlora, rows and measure of version 0.3, with a warning.

    Raises:
        UsageError: `two_adapters`.
    """
    current = dict(settings)
    adapters = [kind for kind in ("lora", "dora", "qlora") if current.pop(kind, None)]
    if {"qlora", "dora"} <= {*adapters} or (adapters and current.get("adapter")):
        raise UsageError("two_adapters", "Two adapters were asked for. Give adapter= one of them.")
    if adapters:
        current["adapter"] = adapters[-1]
    if "rows" in current:
        current["n_rows"] = current.pop("rows")
    if current.get("measure"):
        current["monitor"] = OldMonitor(current["measure"])
    current.pop("measure", None)
    old = sorted(settings.keys() - current.keys())
    if old:
        warnings.warn(
            f"{', '.join(old)}: a setting of version 0.3. Use adapter=, n_rows= and monitor=.",
            FtlabDeprecationWarning,
            stacklevel=3,
        )
    return current


def takes_old_settings(cell: Callable) -> Callable:
    """Let a cell accept the names of version 0.3, with a warning."""

    @functools.wraps(cell)
    def translated(*args, **settings):
        return cell(*args, **current_settings(settings))

    return translated


@takes_old_settings
@takes(CellConfig, TrainingConfig, omit=CURVES_ONLY)
def sft(parent: Any, data: Any, **settings) -> Run:
    """Fine-tune a model on chats (supervised).

    The loss falls on the assistant's tokens and their end of turn only. The same call finds the
    finished run; an interrupted one continues where it stopped.

    Args:
        parent: Anything that `ftlab.model` takes, except an endpoint. It is left untouched.
        data: A file, rows, or the name of data of the embedded world.
        {settings}

    Returns:
        A finished run, which is a model too. With `valid` it keeps the best validated weights.

    Raises:
        UsageError: `wrong_setting`, `unknown_setting`, `epochs_and_steps`, and settings that do
            not go together.
        DataError: Rows that cannot be used, all of them at once.
        TrainingFailed: As `train_run`.
    """
    return train("sft", parent, data, **settings)


@takes_old_settings
@takes(CellConfig, DPOConfig, omit=CURVES_ONLY)
def dpo(parent: Any, pairs: Any, **settings) -> Run:
    """Train on preference pairs (direct preference optimisation).

    The reference is the parent; its log-probabilities are computed once, before the first step.

    Args:
        parent: As in `sft`, and so are the result and the errors.
        pairs: Rows of prompt, chosen and rejected.
        {settings}

    Source:
        Rafailov et al. 2023, arXiv 2305.18290, equation 7.
    """
    return train("dpo", parent, pairs, **settings)


@takes_old_settings
@takes(CellConfig, KTOConfig, omit=CURVES_ONLY)
def kto(parent: Any, data: Any, **settings) -> Run:
    """Train on answers that are desirable or not (Kahneman-Tversky optimisation).

    The reference point is estimated from the rows of one forward pass, so another `accumulation`
    is another estimate.

    Args:
        parent: As in `sft`, and so are the result and the errors.
        data: Rows of prompt, completion and label (true: desirable), or pairs.
        {settings}

    Source:
        Ethayarajh et al. 2024, arXiv 2402.01306, equations 7 and 8.
    """
    return train("kto", parent, data, **settings)


@takes_old_settings
@takes(CellConfig, RewardModelConfig, omit=CURVES_ONLY)
def train_reward_model(parent: Any, pairs: Any, **settings) -> Run:
    """Train a reward model on preference pairs, for `rloo`.

    It is the parent's body under a new head of one number. The folder holds a sequence
    classification model, with adapters merged.

    Args:
        parent: As in `sft`, and so are the result and the errors.
        pairs: Rows of prompt, chosen and rejected.
        {settings}

    Source:
        Ouyang et al. 2022, arXiv 2203.02155, equation 1.
    """
    return train("reward_model", parent, pairs, **settings)


@takes_old_settings
@takes(CellConfig, RLOOConfig, omit=(*CURVES_ONLY, "valid", "patience"))
def rloo(parent: Any, prompts: Any, reward: Any, **settings) -> Run:
    """Train on rewards of sampled completions (REINFORCE leave-one-out).

    Args:
        parent: As in `sft`, and so are the result and the errors.
        prompts: Prompts, or pairs or chats whose answers are left out.
        reward: A run of `train_reward_model`, its folder, or a function
            (prompts, completions, **_) that returns one number per completion.
        {settings}

    Source:
        Ahmadian et al. 2024, arXiv 2402.14740.
    """
    return train("rloo", parent, prompts, reward=reward, **settings)


def check_length(settings: dict[str, Any]) -> None:
    """Check that settings say once how long a training is; raises `epochs_and_steps`."""
    if settings.get("epochs") is not None and settings.get("steps") is not None:
        raise UsageError("epochs_and_steps", "epochs and steps were both given. Give one of them.")


@takes_old_settings
def train(method: str | Method, parent: Any, data: Any, *, reward: Any = None, **settings) -> Run:
    """Train with any method.

    Args:
        method: The name of a method (a file of `ftlab.training.methods`, or a third party's), or
            a `Method` object.
        parent: As in `sft`.
        data: Rows of the method's kind.
        reward: What rates completions, for methods that need it.
        **settings: Fields of `CellConfig` and of the method's `config`.

    Raises:
        UsageError: `unknown_method`, and those of `sft`.
    """
    method = open_method(method)
    check_length(settings)
    own = {name: settings.pop(name) for name in CellConfig.model_fields if name in settings}
    cell = CellConfig.make(**own)
    config = method.config.make(**settings)
    config.protection.check_trains()
    reference = prepared(trainable(parent), method, config)
    rows = method.read(data, n_rows=cell.n_rows, seed=cell.data_seed)
    rows = config.protection.training_rows(rows, reference, config.seed)
    return train_run(
        reference,
        rows,
        config,
        method=method,
        label=cell.label,
        monitor=cell.monitor,
        reward=reward,
    )
