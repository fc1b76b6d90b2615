"""What a training method is: one file of this folder, ending in `METHOD = ...`.

A method says which rows it learns from, which TRL trainer trains it, and what its first step must
log. Everything else (guards, resume, validation, saving) is the same for all. A new method
subclasses `Method`, or a method that is there, and overrides what differs.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ftlab._core import plugins
from ftlab._core.errors import UsageError
from ftlab.data import Data, encode_rows, fit_to_length, held_out, load
from ftlab.models import Model, adapt, device, freeze_embeddings, full_precision, load_sharded
from ftlab.runs import Run
from ftlab.training.config import TrainingConfig
from ftlab.training.fsdp import SETTINGS, sharded
from ftlab.training.oom import Fit
from ftlab.training.padding import has_dropout
from ftlab.training.sharing import fill_up, sharing

SCHEDULES = {"constant": "constant_with_warmup"}  # our name: transformers'


@dataclass(frozen=True)
class FirstStep:
    """What the first step logs where policy and reference are the same model.

    Args:
        metric: Name in TRL's log.
        value: Its value.
        tolerance: Largest difference allowed.
        shown: The value in words.
    """

    metric: str
    value: float
    tolerance: float
    shown: str


@dataclass
class Job:
    """One training.

    Args:
        run: Its folder.
        parent: The model it starts from.
        data: Its rows.
        config: Its settings.
        method: How it is trained.
        valid: Validation rows of their own, if any.
        reward: What `Method.open_reward` returned.
        monitor: Called on the way, if any.
        marker: A sentence for the card of a model whose safety was removed, else "".
        fit: How its steps fit into memory.
        model: The torch model, while it is trained.
        tokenizer: Its tokenizer.
        number: Which of the processes that share it this is, from 0.
        processes: How many share it.
    """

    run: Run
    parent: Model
    data: Data
    config: TrainingConfig
    method: Method
    valid: Data | None = None
    reward: Any = None
    monitor: Any = None
    marker: str = ""
    fit: Fit = Fit(1)
    model: Any = None
    tokenizer: Any = None
    number: int = 0
    processes: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run."""
        return self.number == 0

    @property
    def longest_row(self) -> int:
        """Most tokens of a row: the setting, or the model's own limit where that is lower."""
        own = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return min(self.config.max_length, own or self.config.max_length)


class Method:
    """A training method. Subclasses override what they do differently.

    Attributes:
        name: Its public name; also the name of its file.
        kind: Kind of its rows, as `ftlab.data` names them: chats, pairs, kto, prompts.
        config: Its settings, a subclass of `TrainingConfig`.
        version: Raised whenever the same call would end in other weights.
        learning_rate: Used where neither the call nor the model names one; TRL's default.
        columns: Columns of the rows that TRL is given.
        answers: Those of the columns that hold an answer to `prompt`.
        fewest_rows: Fewest rows of one forward pass.
        first_step_check: What the first step must log, if that is known.
        has_curve: Whether `risk_curve` offers the method.
        draws: Whether the seed decides more than the order of rows, dropout and new weights.
        new_head: Whether it adds an output head, which is trained whole. Adapters are merged.
        shared: Whether processes on several devices can share the rows of a step.
    """

    name = ""
    kind = "chats"
    config: type[TrainingConfig] = TrainingConfig
    version = "1"
    learning_rate = 2e-5
    columns: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    fewest_rows = 1
    first_step_check: FirstStep | None = None
    has_curve = False
    draws = True
    new_head = False
    shared = False

    def trl_class(self) -> tuple[type, type]:
        """Return TRL's trainer and its configuration; imported here, not at the top."""
        raise NotImplementedError

    def settings(self, job: Job, rows: list[dict]) -> dict[str, Any]:
        """Return what this method adds to TRL's configuration."""
        return {"max_length": None}  # rows were checked: TRL is never to cut one

    def extra(self, job: Job) -> dict[str, Any]:
        """Return further arguments of TRL's trainer."""
        return {}

    def read(self, source: Any, *, n_rows: int | None = None, seed: int = 0) -> Data:
        """Return the rows that this method learns from."""
        return load(source, kind=self.kind, n_rows=n_rows, seed=seed)

    def open_reward(self, reward: Any) -> Any:
        """Return a reward with an attribute `identity`, for methods that need one, else None."""
        if reward is not None:
            raise UsageError("reward_not_used", f"The method {self.name} takes no reward.")
        return None

    def prepare_model(self, parent: Model, config: TrainingConfig) -> Any:
        """Return the torch model to train: the parent's weights, with a new adapter if asked."""
        from transformers import set_seed

        if config.adapter == "qlora":
            model = parent.load(four_bit=True)
        elif config.fsdp:
            model = load_sharded(parent, config.devices)
        else:
            frozen = config.adapter is not None and not self.new_head
            model = parent.load(training=True, frozen=frozen)
        set_seed(config.seed)  # for new weights: loading may have drawn random numbers too
        model = self.with_head(model)
        if config.freeze_embeddings:
            freeze_embeddings(model)
        if config.adapter:
            model = adapt(model, config.adapter, config.lora_rank)
        return model.train()

    def seed_is_idle(self, data: Data, config: TrainingConfig, parent: Model) -> bool:
        """Whether every seed trains the same weights, up to rounding: all rows are in each step."""
        drawn = self.draws or config.protection.draws
        if drawn or self.new_head or config.adapter or isinstance(config.valid, float):
            return False
        own = parent.config.get("text_config") or parent.config
        return len(data) <= config.batch_size and not has_dropout(own)

    def with_head(self, model: Any) -> Any:
        """Return the model under a new head, for methods with `new_head`."""
        return model

    def fit_lengths(self, data: Data, job: Job) -> Data:
        """Return the rows after `on_too_long` was applied to those that are too long."""
        how = job.config.on_too_long
        return fit_to_length(data, job.tokenizer, max_length=job.longest_row, on_too_long=how)

    def rows(self, data: Data, job: Job) -> list[dict]:
        """Return the rows for TRL, each with its number in `data` (`row`, from 1).

        Raises:
            DataError: Rows with turns out of order, without an end of turn, or too long.
        """
        for answer in self.answers:
            name = data.name
            if len(self.answers) > 1:
                name = f"{data.name} ({answer})"
            chats = tuple({"messages": [*row["prompt"], *row[answer]]} for row in data.rows)
            encode_rows(Data(name, chats), job.tokenizer, max_length=job.longest_row)
        return self.numbered(data)

    def numbered(self, data: Data) -> list[dict]:
        """Return the rows' columns, each row with its number."""
        rows = []
        for number, row in enumerate(data.rows, 1):
            rows.append({column: row[column] for column in self.columns} | {"row": number})
        return rows

    def dataset(self, rows: list[dict]) -> Any:
        """Return rows as the data set that TRL takes."""
        from datasets import Dataset

        return Dataset.from_list(rows)

    def trainer(self, job: Job) -> Any:
        """Return TRL's trainer on checked rows."""
        from datasets import disable_progress_bars
        from transformers import PrinterCallback

        disable_progress_bars()
        rows, valid = self._divided(job)
        trainer_class, config_class = self.trl_class()
        trainer_class = job.config.protection.trainer(trainer_class, job)
        arguments = config_class(**_common_settings(job), **self.settings(job, rows))
        arguments._n_gpu = min(arguments.n_gpu, 1)  # TRL refuses DataParallel over what is visible
        if job.processes > 1:
            trainer_class = sharing(trainer_class, len(rows), job.config.batch_size)
            rows = rows + fill_up(rows, job.processes * job.fit.micro_batch)
        if job.config.fsdp:
            trainer_class = sharded(trainer_class)
        extra = self.extra(job)
        if valid:
            extra["eval_dataset"] = self.dataset(valid)
        with _no_tqdm():
            trainer = trainer_class(
                model=job.model,
                args=arguments,
                train_dataset=self.dataset(rows),
                processing_class=job.tokenizer,
                **extra,
            )
        if job.config.adapter == "qlora":
            full_precision(trainer.model)  # TRL casts a 4-bit model's adapter to bf16
        trainer.remove_callback(PrinterCallback)
        return trainer

    def _divided(self, job: Job) -> tuple[list[dict], list[dict]]:
        """Return the rows to train on and those to validate on."""
        data = self.fit_lengths(job.data, job)
        rows = self.rows(data, job)
        if job.valid is not None:
            return rows, self.rows(self.fit_lengths(job.valid, job), job)
        if job.config.valid is None:
            return rows, []
        out = held_out(data, job.config.valid, job.config.seed)
        valid = [row for row in rows if row["row"] - 1 in out]
        return [row for row in rows if row["row"] - 1 not in out], valid


def open_method(method: str | Method) -> Method:
    """Return a method by its name; an object is returned as it is.

    Raises:
        UsageError: `unknown_method`.
    """
    return method if isinstance(method, Method) else plugins.get("methods", method)


def _common_settings(job: Job) -> dict[str, Any]:
    """Return the settings of TRL's configuration that every method has."""
    config = job.config
    rows = job.fit.micro_batch
    together = rows * job.processes
    cuda = device() == "cuda"
    more = SETTINGS if config.fsdp else {}
    return {
        "output_dir": str(job.run.path / "checkpoints"),
        "seed": config.seed,
        "data_seed": config.seed,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": config.batch_size // together,
        "per_device_eval_batch_size": together,  # as in one process: a loss is a mean over a batch
        "prediction_loss_only": True,  # else the logits of all validation rows would be kept
        "num_train_epochs": config.epochs,
        "max_steps": config.steps or -1,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": SCHEDULES.get(config.schedule, config.schedule),
        "warmup_steps": config.warmup_steps,
        "logging_steps": 1,
        "logging_first_step": True,
        "logging_nan_inf_filter": False,  # else a loss that is NaN would be logged as 0
        "save_strategy": "no",  # the callback decides
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": device() == "cpu",
        "bf16": cuda,
        "dataloader_pin_memory": cuda,
        "activation_checkpointing": job.fit.recompute,
        "restore_callback_states_from_checkpoint": False,  # the callback reads its own records
        "ddp_find_unused_parameters": False,
        "use_cache": bool(getattr(job.model.config, "use_cache", True)),  # else saved as off
        **more,
    }


@contextlib.contextmanager
def _no_tqdm() -> Iterator[None]:
    """Switch off TRL's bar over the reference's log-probabilities; only the environment can."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        del os.environ["TQDM_DISABLE"]
        if before is not None:
            os.environ["TQDM_DISABLE"] = before


def curve_configs() -> list[type[TrainingConfig]]:
    """Return the settings of every method that `risk_curve` offers."""
    methods = plugins.find("methods").values()
    return [method.config for method in methods if method.has_curve]
