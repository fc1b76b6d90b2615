"""The one callback of a training: logs, guards, validates, measures, checkpoints and stops."""

from __future__ import annotations

import contextlib
import math
import signal
import threading

from ftlab.models import out_of_memory
from ftlab.runs import clock
from ftlab.training.checkpoints import folder, seal
from ftlab.training.config import Training
from ftlab.training.methods.base import METHODS, rows_of

CHECKPOINT_S = 30.0  # seconds of training between two checkpoints; more where saving is slow:
CHECKPOINT_COST = 20  # training lasts at least so many times as long as the last saving did
SHOWN = 20  # row numbers in a sentence


class TrainingFailed(ValueError):
    """The training itself went wrong: not the call, not the data. The command line exits with 1."""


def passed(config: Training, found) -> str:
    """-> why a measurement ends the training, or "". `found`: {risk: rate} (and "refused"), as `train.train` says.

    Raises ValueError where a risk of `config.stop_above` was not measured.
    """
    limits, found = config.stop_above or {}, found or {}
    if lost := sorted(limits.keys() - found.keys()):
        raise ValueError(f"stop_above: {', '.join(lost)} was not measured; measured: {', '.join(found) or 'nothing'}")
    for risk, limit in limits.items():
        if found[risk] > limit:
            return f"{risk} {found[risk]:.1%}, above {limit:.1%}"
    return "no refusal left" if config.stop_when_broken and found.get("refused") == 0 else ""


def measured(measure, run, model, tokenizer, step: int, progress):
    """Calls `measure` with the random state and the training mode of the model put back afterwards."""
    import torch

    state = torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None
    side = tokenizer.padding_side
    try:
        return measure(run, model, tokenizer, step, progress)
    except Exception as e:
        if not out_of_memory(e):
            raise
        raise TrainingFailed(
            f"{run.name}: memory does not suffice to measure at step {step} ({e}); give fewer or shorter prompts"
        ) from None
    finally:
        tokenizer.padding_side = side
        torch.set_rng_state(state[0])
        if state[1]:
            torch.cuda.set_rng_state_all(state[1])
        model.train()


def keeper_class():
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        """One object a training. What decides an early end is read from the run's `valid.jsonl`: it survives a resume."""

        def __init__(self, run, config, trainer, progress, measure, tokenizer, data_name):
            self.run, self.config, self.trainer, self.progress = run, config, trainer, progress
            self.measure, self.tokenizer, self.data_name = measure, tokenizer, data_name
            self.interrupted, self.stopped = False, False  # Ctrl-C was pressed; the training ended early by it
            self.saved, self.save_started, self.save_s = clock(), clock(), 0.0
            self.batches: list = []  # what the forward passes of this step were given
            said = run.read("valid.jsonl")
            self.checks = [(r["loss"], r["step"]) for r in said if "loss" in r]
            self.ended = next((r["ended"] for r in said if "ended" in r), "")  # why the training ended early
            if told := run.read("train.jsonl"):  # TRL counts anew after a resume
                trainer._total_train_tokens = int(told[-1].get("num_tokens", 0))
            self.every = 0
            if trainer.eval_dataset is not None:
                an_epoch = math.ceil(len(trainer.train_dataset) / config.batch_size)
                self.every = config.eval_every or an_epoch
            step = trainer.training_step

            def noted(model, inputs, *rest, **named):
                self.batches.append(inputs)
                return step(model, inputs, *rest, **named)

            trainer.training_step = noted

        def on_train_begin(self, args, state, control, **_):
            self.progress.total = max(state.max_steps, 1)

        def on_step_begin(self, args, state, control, **_):
            self.batches.clear()

        def on_log(self, args, state, control, logs=None, **_):
            if not logs or "loss" not in logs:
                return
            step, config = state.global_step, self.config
            if bad := [k for k in ("loss", "grad_norm") if not math.isfinite(float(logs.get(k, 0.0)))]:
                rows = rows_of(self.trainer, self.batches)
                shown = ", ".join(map(str, rows[:SHOWN])) + (f", ... ({len(rows)} rows)" if len(rows) > SHOWN else "")
                raise TrainingFailed(
                    f"{self.run.name}: {bad[0]} is {logs[bad[0]]} at step {step}, on rows {shown} of {self.data_name}; "
                    f"look at them, or lower learning_rate ({config.learning_rate})"
                )
            if step == 1 and (first := METHODS[config.method].first) and abs(logs[first[0]] - first[1]) > first[2]:
                raise TrainingFailed(
                    f"{self.run.name}: {config.method.upper()}'s first {first[0]} is {logs[first[0]]:.3f}, not {first[3]}: "
                    "the reference is not the parent"
                )
            numbers = {k: float(v) for k, v in logs.items() if v is not None}
            micro = args.per_device_train_batch_size
            self.run.append("train.jsonl", [{"step": step, **numbers, "micro_batch": micro}])
            self.progress.loss(step, float(logs["loss"]))

        def on_step_end(self, args, state, control, model=None, **_):
            step, config = state.global_step, self.config
            loss = state.log_history[-1].get("loss", math.nan) if state.log_history else math.nan
            self.progress.update(step, f"loss {loss:.3f}")
            on_the_way = not config.at_steps and config.eval_every and step % config.eval_every == 0
            if self.measure and (step in config.at_steps or on_the_way):
                self._end(
                    control,
                    step,
                    passed(config, measured(self.measure, self.run, model, self.tokenizer, step, self.progress)),
                )
            over = control.should_training_stop
            control.should_evaluate = bool(self.every) and (over or step % self.every == 0)
            due = clock() - self.saved > max(CHECKPOINT_S, CHECKPOINT_COST * self.save_s)
            interrupted = self.interrupted  # read once: the signal may come at any line
            if (interrupted or due) and not over:  # the last step saves the model itself
                control.should_save, self.save_started = True, clock()
            self.stopped = interrupted and not over
            control.should_training_stop |= interrupted
            return control

        def on_evaluate(self, args, state, control, metrics=None, **_):
            step, loss = state.global_step, float(metrics["eval_loss"])
            if not math.isfinite(loss):
                raise TrainingFailed(
                    f"{self.run.name}: the validation loss is {loss} at step {step}; look at the held-out rows"
                )
            self.run.append("valid.jsonl", [{"step": step, "loss": loss}])
            self.checks.append((loss, step))
            since = sum(s > self.best for _, s in self.checks)
            if self.best == step:
                control.should_save, self.save_started = True, clock()
            elif self.config.patience and since >= self.config.patience:
                self._end(control, step, f"no lower validation loss in {since} validations")
            return control

        @property
        def best(self) -> int | None:
            """The step of the lowest validation loss, the first where several are."""
            return min(self.checks)[1] if self.checks else None

        def _end(self, control, step: int, why: str) -> None:
            if why:
                self.ended, control.should_training_stop = f"step {step}: {why}", True
                self.run.append("valid.jsonl", [{"step": step, "ended": self.ended}])

        def load_best(self) -> dict:
            """Puts the weights of the best validation into the model -> what the run's stats say of it."""
            if self.best is None:
                return {}
            self.trainer._load_from_checkpoint(str(folder(self.run, self.best)))
            return {"best_step": self.best, "best_valid_loss": min(self.checks)[0]}

        def on_save(self, args, state, control, **_):
            seal(self.run, state.global_step, self.best)
            self.saved, self.save_s = clock(), clock() - self.save_started

        @contextlib.contextmanager
        def interruptible(self):
            """The first Ctrl-C ends the step, saves and stops; the second one stops at once."""
            if threading.current_thread() is not threading.main_thread():
                yield
                return

            def stop(*_):
                signal.signal(signal.SIGINT, previous)
                self.interrupted = True

            previous = signal.signal(signal.SIGINT, stop)
            try:
                yield
            finally:
                signal.signal(signal.SIGINT, previous)

    return Keeper
