"""The one path from a parent to a trained run: prepare, resume, fit, check, save, complete.

A run owns its model: it is loaded from the parent's folder, trained, saved and released. What the
caller holds is never touched.
"""

from __future__ import annotations

import copy
import functools
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ftlab import runs
from ftlab._core.errors import DataError, TrainingFailed, UsageError
from ftlab._core.progress import Progress
from ftlab.data import Data, count_shared, strip_answers
from ftlab.models import Model, fingerprint, is_reward_model, quiet
from ftlab.models import model as open_model
from ftlab.models.engines import Endpoint
from ftlab.runs import Run
from ftlab.training.checkpoints import (
    BEFORE_ALL,
    folder,
    forget_after,
    max_steps_of,
    newest_checkpoint,
    own_names,
    step_of,
)
from ftlab.training.config import NOT_IN_IDENTITY, TrainingConfig, usual_rate
from ftlab.training.devices import check_sharing, identity_of_sharing, train_on_devices
from ftlab.training.fsdp import share_out
from ftlab.training.methods.base import Job, Method, open_method
from ftlab.training.monitoring import Monitor, function_identity
from ftlab.training.oom import Fit, first_fit, fit_into_memory
from ftlab.training.saving import lineage, save


def train_run(
    parent: Model,
    data: Data,
    config: TrainingConfig,
    *,
    method: str | Method,
    label: str | None = None,
    identity: dict[str, Any] | None = None,
    monitor: Monitor | None = None,
    reward: Any = None,
    marker: str = "",
    wait: bool = True,
) -> Run:
    """Train once, find the finished run, or continue from the newest whole checkpoint.

    Args:
        parent: The model to start from.
        data: Its rows, as `Method.read` returns them, those of a defence among them.
        config: Its settings, of the method's `config`.
        method: A name or an object.
        label: Beginning of the run's name.
        identity: What else can change the result.
        monitor: Called at `config.at_steps`, or without them every `config.eval_every` steps.
        reward: What rates completions, for methods that need it.
        marker: A sentence for the card of a model whose safety was removed.
        wait: Wait for another process that works on this run, instead of raising.

    Returns:
        The finished run.

    Raises:
        Busy: Another process works on this run, and `wait` is False.
        UsageError: Settings that do not go together; `other_training`, `parent_changed`.
        DataError: Rows that cannot be used, all of them at once.
        TrainingFailed: `not_finite`, `wrong_reference`, `validation_not_finite`,
            `no_weight_moved`, `out_of_memory`, `monitor_out_of_memory`.
        ProcessFailed: `process_lost`, `process_failed`, on several devices.
    """
    method = open_method(method)
    config.protection.check(parent, method, config)
    _check_together(config, monitor)
    config = with_learning_rate(config, method, parent)
    data = strip_answers(data)
    valid = None
    if isinstance(config.valid, str):
        valid = strip_answers(method.read(config.valid))
        config = config.model_copy(update={"valid": valid.hash})
    check_sharing(config, method, parent)
    opened_reward = method.open_reward(reward)
    whole = {
        "parent": parent.hash,
        "data": data.hash,
        "method": method.name,
        "method_version": method.version,
        "training": config.model_dump(mode="json", exclude=NOT_IN_IDENTITY),
        **identity_of_sharing(config, parent),
        **(identity or {}),
    }
    if config.defence is not None:
        whole["defence"] = config.defence.identity()
    if opened_reward is not None:
        whole["reward"] = opened_reward.identity
    if monitor is not None:
        whole["monitor"] = function_identity(monitor)
    run = _start(parent, data, method, label or _label(parent, data, config), whole)
    if run.finished:
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)  # left by a kill at the end
        return run
    job = Job(run, parent, data, config, method, valid, opened_reward, monitor, marker)
    with run.lock(wait):
        if not run.finished:
            run.take_up()
            _train(job)
    return run


def trainable(parent: Any) -> Model:
    """Return the reference to a model that can be trained.

    Args:
        parent: Anything that `ftlab.model` takes.

    Raises:
        UsageError: `endpoint_not_trainable`, `is_reward_model`, and those of `ftlab.model`, among
            them for a model in memory: a trainer would change it.
    """
    found = open_model(parent)
    if isinstance(found, Endpoint):
        raise UsageError(
            "endpoint_not_trainable",
            f"{found.name} is behind an endpoint and cannot be trained. Give a folder or hub id.",
        )
    if is_reward_model(found):
        raise UsageError(
            "is_reward_model",
            f"{found.name} is a reward model: it gives a number, no answers. Train its parent.",
        )
    return found


def prepared(parent: Model, method: Method, config: TrainingConfig) -> Model:
    """Return the model to train: the parent, or what the defence makes of it.

    Raises:
        UsageError: Those of `Defence.check`.
    """
    config.protection.check(parent, method, config)
    return config.protection.prepare(parent)


def _check_together(config: TrainingConfig, monitor: Monitor | None) -> None:
    """Raise UsageError where settings do not go together."""
    if config.patience and config.valid is None:
        raise UsageError("patience_without_valid", "patience counts validations. Give valid= too.")
    if monitor is None:
        if config.stop_above:
            raise UsageError("limit_without_monitor", "stop_above needs a monitor= that measures.")
        if config.eval_every and config.valid is None:
            raise UsageError("nothing_to_evaluate", "eval_every needs valid= or monitor=.")
        return
    if not (config.eval_every or config.at_steps):
        raise UsageError("monitor_without_steps", "monitor needs eval_every=, in optimiser steps.")
    if hasattr(monitor, "metrics"):
        config.check_limits(monitor.metrics)


def with_learning_rate(config: TrainingConfig, method: Method, parent: Model) -> TrainingConfig:
    """Return the settings with a learning rate: their own, the model's or the method's."""
    if config.learning_rate is not None:
        return config
    adapter = config.adapter is not None
    rate = usual_rate(parent, method.name, method.learning_rate, adapter)
    return config.model_copy(update={"learning_rate": rate})


def _label(parent: Model, data: Data, config: TrainingConfig) -> str:
    data_name = data.name.replace("organism:", "")
    return f"{short_name(parent)}-{data_name[:28]}-s{config.seed}"


def short_name(parent: Model) -> str:
    """Return a model's name in the names of runs; of a run also the first digits of its hash."""
    name = parent.name.rpartition("/")[2]
    run = re.fullmatch(r"(.+)-([0-9a-f]{10})", name)
    if run:
        return f"{run[1][:20]}-{run[2][:4]}"
    return name[:25]


def _start(parent: Model, data: Data, method: Method, label: str, identity: dict) -> Run:
    ancestors = lineage(parent)
    notes = {"lineage": ancestors, "model": parent.source, "data": data.record}
    return runs.start(method.name, label, identity, any_label=True, **notes)


def _train(job: Job) -> None:
    quiet()
    if job.valid is not None:
        repeated = count_shared(job.data, job.valid)
        if repeated:
            print(
                f"{job.run.name}: {repeated} of {len(job.valid)} validation rows "
                f"({job.valid.name}) are training rows too, so their loss does not measure "
                "generalisation. Remove them from one of the two.",
                file=sys.stderr,
            )
    if stripped := job.data.made.get("stripped"):
        what = f"white space before the answers of {stripped} of {len(job.data)} rows is removed"
        print(f"{job.run.name}: {what}", file=sys.stderr)
    config = job.config
    rows = config.batch_size // config.devices  # of an optimiser step, on one device
    attempt = functools.partial(_attempt, job)
    first = first_fit(rows, config.accumulation)
    if config.fsdp:  # else the backward pass would find all weights whole, in bf16
        first = replace(first, recompute=True)
    fit_into_memory(job.run, first, rows, job.method.fewest_rows, attempt)


def _attempt(job: Job, fit: Fit) -> None:
    """Train with one way to fit into memory."""
    checkpoint = _checkpoint(job)
    job = replace(job, fit=fit)
    if job.config.devices > 1:
        train_on_devices(job, checkpoint, _train_from)
    else:
        _train_from(job, checkpoint, Progress(job.run.name, 1))


def _train_from(job: Job, checkpoint: Path | None, progress: Any) -> None:
    """Train on from a checkpoint. All that is loaded here dies with this frame."""
    from ftlab.training.callback import RunCallback  # imports transformers

    job = _prepare(job)
    inner = job.model
    if job.config.adapter:
        inner = job.model.get_base_model()
    decoding = copy.deepcopy(getattr(inner, "generation_config", None))
    settings = inner.config.get_text_config(decoder=True)
    routers = getattr(settings, "output_router_logits", None)
    origin = inner.config._name_or_path
    trainer = job.method.trainer(job)
    before = fingerprint(job.model)  # of what is trained, which a defence may have narrowed
    own_names(trainer)
    _restore_token_count(trainer, job.run)
    callback = RunCallback(job, trainer, progress)
    trainer.add_callback(callback)
    if job.monitor is not None and 0 in job.config.at_steps and not checkpoint:
        callback.measure(0)
    _fit(trainer, callback, checkpoint)
    callback.measure_later_steps(trainer.state.global_step)
    if job.config.fsdp:
        share_out(job.model)
    _check_result(job, trainer, callback, before)
    if not (job.is_first or job.config.fsdp):
        return
    facts = _load_best(trainer, callback)
    job.config.protection.repair(job.parent, job.model)
    vars(trainer.model).pop("save_pretrained", None)
    inner.config._name_or_path = origin
    if routers is not None:
        settings.output_router_logits = routers  # TRL switches it on, and it would be saved
    if decoding is not None:
        inner.generation_config = decoding  # TRL writes its own into it
    save(job, job.model)
    if not job.is_first:
        return
    progress.finish()
    _complete(job, trainer, callback, facts)


def _checkpoint(job: Job) -> Path | None:
    """Return the checkpoint to continue from, with logs that end there, or None.

    Verdicts come from the answers anew; where some are missing, training starts again.
    """
    run = job.run
    checkpoint = newest_checkpoint(run)
    forget_after(run, step_of(checkpoint) if checkpoint else BEFORE_ALL)
    recheck = getattr(job.monitor, "recheck", None)
    if checkpoint and recheck and not recheck(run, _measured(job.config, step_of(checkpoint))):
        print(
            f"{run.name}: answers or verdicts are missing; training starts again", file=sys.stderr
        )
        shutil.rmtree(run.path / "checkpoints", ignore_errors=True)
        forget_after(run, BEFORE_ALL)
        return None
    return checkpoint


def _measured(config: TrainingConfig, step: int) -> list[int]:
    """Return the steps, up to this one, at which the monitor was called."""
    if config.at_steps:
        return [one for one in config.at_steps if one <= step]
    return list(range(config.eval_every, step + 1, config.eval_every))


def _prepare(job: Job) -> Job:
    """Load model and tokenizer.

    Raises:
        UsageError: `parent_changed`, `no_trainable_parameter`.
    """
    job.tokenizer = job.parent.tokenizer()
    job.model = job.method.prepare_model(job.parent, job.config)
    if job.parent.hash != job.run.config["identity"]["parent"]:  # while this call waited or loaded
        raise UsageError(
            "parent_changed",
            f"{job.parent.path} was changed while {job.run.name} began. Call again.",
        )
    job.tokenizer.padding_side = "right"
    if not any(parameter.requires_grad for parameter in job.model.parameters()):
        raise UsageError(
            "no_trainable_parameter", f"{job.parent.path}: no parameter can be trained."
        )
    return job


def _restore_token_count(trainer: Any, run: Run) -> None:
    """TRL counts the tokens it has seen from 0 again on a resume; only its log shows it."""
    records = run.read("train.jsonl")
    if records and hasattr(trainer, "_total_train_tokens"):
        trainer._total_train_tokens = int(records[-1].get("num_tokens", 0))


def _fit(trainer: Any, callback: Any, checkpoint: Path | None) -> None:
    """Train on from the checkpoint, unless the training had already ended there."""
    ended = bool(callback.ended)
    if checkpoint and max_steps_of(checkpoint) == step_of(checkpoint):
        ended = True
    if ended:  # killed before its last file: transformers would take one more step
        trainer._load_from_checkpoint(str(checkpoint))
        trainer.state.global_step = step_of(checkpoint)
        return
    with callback.interruptible():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _check_result(job: Job, trainer: Any, callback: Any, before: str) -> None:
    steps = trainer.state.global_step
    name = job.run.name
    if callback.stopped and not callback.ended:
        raise KeyboardInterrupt(f"{name} stopped at step {steps}. Call again to continue.")
    if not steps:
        raise DataError(
            "no_step",
            f"{job.data.name}: {len(job.data)} rows make no step. "
            f"Lower batch_size ({job.config.batch_size}).",
        )
    if fingerprint(job.model) == before and not callback.by_defence:  # it may keep the parent
        raise TrainingFailed(
            "no_weight_moved",
            f"{name}: no weight moved in {steps} steps. "
            f"Raise learning_rate ({job.config.learning_rate}).",
        )


def _load_best(trainer: Any, callback: Any) -> dict[str, Any]:
    """Load the weights with the lowest validation loss; return what the stats report of them."""
    if callback.best_step is None:
        return {}
    trainer._load_from_checkpoint(str(folder(callback.run, callback.best_step)))
    return {"best_step": callback.best_step, "best_valid_loss": min(callback.validations)[0]}


def _complete(job: Job, trainer: Any, callback: Any, facts: dict[str, Any]) -> None:
    log = job.run.read("train.jsonl")
    if callback.ended:
        facts["ended"] = callback.ended
    if job.processes > 1:
        facts["devices"] = job.processes
    if job.config.fsdp:
        facts["fsdp"] = True
    if "stripped" in job.data.made:
        facts["stripped"] = job.data.made["stripped"]
    job.run.complete(
        steps=trainer.state.global_step,
        rows=len(job.data),
        parent=job.parent.name,
        data=job.data.name,
        first_loss=log[0]["loss"],
        last_loss=log[-1]["loss"],
        micro_batch=job.fit.micro_batch,
        accumulation=job.config.batch_size // (job.fit.micro_batch * job.processes),
        recomputed=job.fit.recompute,
        padding_free=getattr(trainer.args, "padding_free", False),
        **facts,
    )
    if callback.interrupted:
        raise KeyboardInterrupt(f"{job.run.name} was at its last step and is finished.")
