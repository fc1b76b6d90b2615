"""The one callback of a training: logs, guards, validates, measures, checkpoints and stops.

transformers' own early stopping is not used: it keeps its state in the newest checkpoint only, so a
training killed between its early end and its last file would take further steps on a resume.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace

from transformers import TrainerCallback

from ftlab._core.errors import TrainingFailed
from ftlab._core.progress import Progress, clock
from ftlab.training.checkpoints import checkpoint_is_due, seal, validations_of
from ftlab.training.fsdp import whole_model
from ftlab.training.methods.base import Job
from ftlab.training.monitoring import (
    LoadedModel,
    call_monitor,
    passed_limit,
    repaired,
    undisturbed,
)
from ftlab.training.sharing import decided, wait_for_all


class RunCallback(TrainerCallback):
    """Keeps the records of one training and decides when it validates, saves and ends.

    Early stopping is read from the run's `valid.jsonl`, so it survives a resume.
    """

    def __init__(self, job: Job, trainer, progress: Progress):
        self.job = job
        self.run = job.run
        self.config = job.config
        self.progress = progress
        self.loaded = LoadedModel(trainer.model, job.tokenizer, job.parent, job.run)
        self.ends = getattr(trainer, "ends", None)  # of a defence's trainer
        self.validate_every = 0  # optimiser steps; 0 where there are no validation rows
        if trainer.eval_dataset is not None:
            epoch = math.ceil(len(trainer.train_dataset) / self.config.batch_size)
            self.validate_every = self.config.eval_every or epoch
        self.validations = validations_of(self.run)
        self.ended = ""  # why training ended early
        self.by_defence = False  # whether it was the defence that ended it
        for record in self.run.read("valid.jsonl"):
            self.ended = record.get("ended", self.ended)
            self.by_defence |= record.get("by") == "defence"
        self.interrupted = False  # Ctrl-C was pressed
        self.stopped = False  # training ended early because of it
        self.saved = clock()  # when the last checkpoint was finished
        self.saving_since = clock()
        self.saving_s = 0.0  # seconds that the last checkpoint took

    def on_train_begin(self, args, state, control, **_):
        log = self.run.log()
        losses = []
        if len(log):
            losses = list(zip(log["step"], log["loss"], strict=True))
        self.progress.begin(state.max_steps, state.global_step, losses)

    def on_log(self, args, state, control, logs=None, **_):
        if not logs or "loss" not in logs:
            return
        step = state.global_step
        self._refuse_nonsense(step, logs)
        if step == 1:
            self._check_first_step(logs)
        record = {"step": step}
        for name, value in logs.items():
            if value is not None:
                record[name] = float(value)
        record["micro_batch"] = args.per_device_train_batch_size
        self.run.append("train.jsonl", [record])
        self.progress.update(step, f"loss {record['loss']:.3f}")
        self.progress.loss(step, record["loss"])

    def _refuse_nonsense(self, step: int, logs: dict) -> None:
        for name in ("loss", "grad_norm"):
            value = float(logs.get(name, 0.0))
            if not math.isfinite(value):
                raise TrainingFailed(
                    "not_finite",
                    f"learning_rate {self.config.learning_rate:g} is probably too high: "
                    f"{name} is {value} at step {step} of {self.run.name}. Lower it, or look for "
                    "extreme rows.",
                    step=step,
                    quantity=name,
                )

    def _check_first_step(self, logs: dict) -> None:
        """Hold that policy and reference were one model at the first step."""
        check = self.job.method.first_step_check
        if check is None:
            return
        found = logs[check.metric]
        if abs(found - check.value) > check.tolerance:
            raise TrainingFailed(
                "wrong_reference",
                f"{self.run.name}: the first {check.metric} of {self.job.method.name} is "
                f"{found:.3f}, not {check.shown}: the reference is not the parent.",
            )

    def on_step_begin(self, args, state, control, **_):
        self.passes = 0

    def on_substep_end(self, args, state, control, **_):
        self.passes += 1
        share = self.passes / args.gradient_accumulation_steps
        self.progress.update(state.global_step + share, self.progress.note)

    def on_step_end(self, args, state, control, **_):
        step = state.global_step
        if self.ends:
            reason = self.ends(step)
            self._end(control, step, reason, by="defence")
        if self._monitor_is_due(step):
            self._end(control, step, self.measure(step))
        ending = control.should_training_stop
        validates = bool(self.validate_every)
        control.should_evaluate = validates and (ending or step % self.validate_every == 0)
        interrupted, due = decided(self.job, self._must_save)
        if (interrupted or due) and not ending:  # the last step saves the model itself
            self._save(control)
        self.stopped = interrupted and not ending
        control.should_training_stop |= interrupted
        return control

    def _must_save(self) -> tuple[bool, bool]:
        """Return whether Ctrl-C was pressed, which may be at any line, and whether it is time."""
        return self.interrupted, checkpoint_is_due(clock() - self.saved, self.saving_s)

    def measure(self, step: int) -> str:
        """Measure in the first process; return in all why that ends the training, or ""."""
        loaded = self.loaded
        if self.config.fsdp:
            with undisturbed(loaded):
                loaded = replace(loaded, module=whole_model(self.job))
        return decided(self.job, lambda: self._limit_passed(loaded, step))

    def _limit_passed(self, loaded: LoadedModel, step: int) -> str:
        """Measure, the parent without a repair, and return why that ends the training, or ""."""
        repair = repaired(self.job, loaded.module) if step else contextlib.nullcontext()
        with repair:
            found = call_monitor(self.job.monitor, loaded, step, self.progress)
        return passed_limit(self.config, self.job.monitor, found)

    def measure_later_steps(self, last: int) -> None:
        """Measure the model that a defence left at the steps that the training did not reach."""
        if not self.by_defence:
            return
        if self.job.monitor is None:
            return
        for step in self.config.at_steps:
            if step > last:
                self.measure(step)

    def _monitor_is_due(self, step: int) -> bool:
        config = self.config
        if self.job.monitor is None:
            return False
        if config.at_steps:
            return step in config.at_steps
        return config.eval_every is not None and step % config.eval_every == 0

    def on_evaluate(self, args, state, control, metrics=None, **_):
        step = state.global_step
        loss = float(metrics["eval_loss"])
        if not math.isfinite(loss):
            raise TrainingFailed(
                "validation_not_finite",
                f"{self.run.name}: the validation loss is {loss} at step {step}. "
                "Check the validation rows.",
            )
        self.run.append("valid.jsonl", [{"step": step, "loss": loss}])
        self.validations.append((loss, step))
        waited = sum(checked > self.best_step for _, checked in self.validations)
        if self.best_step == step:
            self._save(control)
        elif self.config.patience and waited >= self.config.patience:
            self._end(control, step, f"no lower validation loss in {waited} validations")
        return control

    @property
    def best_step(self) -> int | None:
        """The first step with the lowest validation loss, or None."""
        return min(self.validations)[1] if self.validations else None

    def _end(self, control, step: int, reason: str, by: str = "") -> None:
        if reason:
            self.ended = f"step {step}: {reason}"
            self.by_defence |= by == "defence"
            record = {"step": step, "ended": self.ended}
            if by:
                record["by"] = by
            self.run.append("valid.jsonl", [record])
            control.should_training_stop = True

    def _save(self, control) -> None:
        control.should_save = True
        self.saving_since = clock()

    def on_save(self, args, state, control, **_):
        wait_for_all(self.job)  # each has a file of its own in the checkpoint
        if self.job.is_first:
            seal(self.run, state.global_step, self.best_step)
        wait_for_all(self.job)
        self.saved = clock()
        self.saving_s = self.saved - self.saving_since

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """On the first Ctrl-C or SIGTERM end the step, save, stop; on the second stop at once.

        Processes that share a training are ended by their caller.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(*_):
            if self.job.processes == 1:
                restore()
            self.interrupted = True

        def restore():
            for number, handler in previous.items():
                signal.signal(number, handler)

        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, stop) for number in numbers}
        try:
            yield
        finally:
            restore()
