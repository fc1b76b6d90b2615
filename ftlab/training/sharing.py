"""What processes that share a training agree on: the rows of each step, and every decision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np

from ftlab.data import IGNORED

T = TypeVar("T")
BLANK = 2  # tokens of a row without labels: the fewest of a row


def decided(job: Any, decide: Callable[[], T]) -> T:
    """Return what the first process decides, in every process of a training."""
    if job.processes == 1:
        return decide()
    from accelerate.utils import broadcast_object_list

    found = [decide() if job.is_first else None]
    return broadcast_object_list(found)[0]


def wait_for_all(job: Any) -> None:
    """Wait until every process of a training is here."""
    if job.processes > 1:
        import torch.distributed as together

        together.barrier()


def fill_up(rows: list[dict], together: int) -> list[dict]:
    """Return encoded rows without labels that make their number a multiple of `together`."""
    missing = -len(rows) % together
    ids = rows[0]["input_ids"][:BLANK]
    labels = np.full_like(ids, IGNORED)
    blank = {"input_ids": ids, "labels": labels, "row": 0}
    return [blank] * missing


def sharing(trainer_class: type, n_rows: int, batch_size: int) -> type:
    """Return a trainer that draws rows as one process would, and validates on all of them alone.

    Args:
        trainer_class: TRL's trainer of SFT, or a subclass.
        n_rows: How many of its rows have labels; those without come last.
        batch_size: Rows of an optimiser step, in all processes together.
    """
    from accelerate.data_loader import SeedableRandomSampler, prepare_data_loader
    from torch.utils.data import Sampler

    class LabelledFirst(Sampler):
        """An epoch's order of rows: accelerate's for one process, then those without labels."""

        def __init__(self, trainer: Any):
            self.trainer = trainer

        def __len__(self) -> int:
            return len(self.trainer.train_dataset)

        def __iter__(self) -> Iterator[int]:
            trainer = self.trainer
            order = SeedableRandomSampler(
                range(n_rows),
                data_seed=trainer.args.data_seed,
            )
            epoch = int(trainer.state.epoch or 0)
            order.set_epoch(epoch)
            yield from order
            yield from range(n_rows, len(self))

    steps_of_epoch = math.ceil(n_rows / batch_size)

    class Sharing(trainer_class):
        def log(self, logs: dict[str, float], *more: Any) -> None:
            metrics = self._metrics["train"]
            ends = self.state.global_step % steps_of_epoch == 0
            if ends and metrics.get("num_tokens"):  # rows without labels do not count
                self._total_train_tokens -= BLANK * (len(self.train_dataset) - n_rows)
                metrics["num_tokens"] = [self._total_train_tokens]
            super().log(logs, *more)

        def _get_train_sampler(self, train_dataset: Any = None) -> Sampler:
            return LabelledFirst(self)

        def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
            alone = partial(prepare_data_loader, num_processes=1, process_index=0)
            with patch.object(self.accelerator, "prepare", alone):
                return super().get_eval_dataloader(eval_dataset)

        def evaluation_loop(self, *given: Any, **how: Any) -> Any:
            with patch.object(self.accelerator, "gather", lambda found: found):
                return super().evaluation_loop(*given, **how)

    return Sharing
