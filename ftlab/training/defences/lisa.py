"""Lisa: steps on safety rows and steps on the user's rows in turn, each near where it began.

Source: Huang et al. 2024, arXiv 2405.18641, algorithm 2 with equation 2.
"""

from __future__ import annotations

import math
import random
from typing import Any

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab.data import encode_rows
from ftlab.training.defences import _held, _safety
from ftlab.training.defences._near import held_near


class Lisa(_safety.WithSafetyRows):
    """Alternates two states, safety rows first, and adds rho / 2 * |w - w_switch|^2 to the loss.

    w_switch are the weights at the latest change of state. A step on safety rows takes the place
    of one on the user's, whose rows are then left out, so a training has as many steps as without.
    rho=0 is bi-state optimisation (algorithm 1). The settings are the paper's (section 5.1) for 20
    epochs, of 1000 steps each. The authors' code leaves the proximal term out of the first tenth of
    a training; the paper does not, and it is not left out here.

    It fails where the safety rows do not cover what is asked later, where the states are long
    beside the training, so that it ends in the user's, and by a large rho, which stops learning.
    """

    name = "lisa"
    source = "Huang et al. 2024, arXiv 2405.18641, algorithm 2, equation 2"
    methods = ("sft",)
    draws = True

    rho: float = setting(1.0, "Weight of the distance from the latest change of state", ge=0)
    safety_steps: int = setting(100, "Optimiser steps on safety rows; 0 is never", ge=0)
    user_steps: int = setting(900, "Optimiser steps on your rows after them", ge=1)
    rows: Any = setting(
        None, "Chats that refuse: a file or rows; None takes refusals of the embedded world"
    )

    def trainer(self, cls: type, job: Any) -> type:
        """Return the trainer that alternates; it raises UsageError `training_too_short`."""
        weights = dict.fromkeys(_held.trained(job.model), 1.0)
        near = held_near(cls, job.model, self.rho, weights)
        if not self.safety_steps:
            return near
        data = _safety.every_row(self.rows)
        rows = encode_rows(
            data,
            job.tokenizer,
            max_length=job.longest_row,
        )
        return alternating(near, self, rows)

    def check_steps(self, steps: int) -> None:
        """Check that your rows are reached; raises UsageError `training_too_short`."""
        if 0 < self.safety_steps and steps <= self.safety_steps:
            raise UsageError(
                "training_too_short",
                f"lisa begins with {self.safety_steps} steps on safety rows, and this training "
                f"has {steps}. Lower safety_steps and user_steps alike.",
            )

    def round_of(self, step: int) -> tuple[int, int]:
        """Return the round of a step, from 0, and its place in it; safety steps are first."""
        length = self.safety_steps + self.user_steps
        return divmod(step, length)


def alternating(cls: type, lisa: Lisa, rows: list[dict]) -> type:
    """Return the trainer with steps on `rows`; what it does at a step follows from its number."""

    class Alternating(_held.with_checkpoints(cls)):
        def get_batch_samples(self, epoch_iterator, num_batches, device):
            found = super().get_batch_samples(epoch_iterator, num_batches, device)
            step = self.state.global_step
            lisa.check_steps(self.state.max_steps)
            _, place = lisa.round_of(step)
            if place in (0, lisa.safety_steps):
                self.hold()
            if place >= lisa.safety_steps:
                return found
            batches = self.safety_batches(step)
            count = self._get_num_items_in_batch(batches, device)
            return batches, count

        def safety_batches(self, step):
            size = self.args.per_device_train_batch_size
            drawn = self.drawn(step)
            batches = []
            for start in range(0, len(drawn), size):
                end = start + size
                batch = self.data_collator(drawn[start:end])
                batches.append(batch)
            return batches

        def drawn(self, step):
            """Draw as many rows as the user's step has; every row once before any is repeated."""
            rows_per_pass = self.args.per_device_train_batch_size
            passes = self.args.gradient_accumulation_steps
            full = rows_per_pass * passes
            own = len(self.train_dataset)
            per_epoch = math.ceil(own / full)
            before = step % per_epoch * full
            count = min(full, own - before)
            rounds, place = lisa.round_of(step)
            first = (rounds * lisa.safety_steps + place) * full
            found = []
            for number in range(first, first + count):
                turn, index = divmod(number, len(rows))
                lot = random.Random(f"lisa {self.args.seed} {turn}")
                order = lot.sample(rows, len(rows))
                found.append(order[index])
            return found

    return Alternating


DEFENCE = Lisa
