"""Early stopping by a safety line: the last weights below the line are kept.

Source: no paper defines it so; Lyu et al. 2024, arXiv 2402.18540, compare PTST with early stopping.
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab.data import encode_rows
from ftlab.training.defences import _held, _safety
from ftlab.training.ranking import BATCH_SIZE, in_batches, row_losses


class EarlyStop(_safety.WithSafetyRows):
    """Ends a training where refusals have become less likely, and keeps the weights before that.

    What is measured every few steps, and at the last one, is the loss of refusals on safety rows:
    nats per token of their answers, the mean over rows. The line lies `margin` above the parent's;
    e^margin is the ratio of perplexities. The first measurement above it ends the training with
    the weights of the latest one below it, which are the parent's where there is none.

    A measure of training, not of behaviour: it fails where refusals stay likely word by word while
    the model answers, as by a harmful answer after a refusal's first words, and where safety is
    lost within fewer steps than lie between two measurements: then nothing was learned.
    """

    name = "early_stop"
    source = "ours; a comparator in Lyu et al. 2024, arXiv 2402.18540"
    methods = ("sft",)

    every: int = setting(10, "Optimiser steps between measurements (ours)", ge=1)
    margin: float = setting(
        0.1, "Nats per token by which the loss of refusals may rise (ours)", ge=0
    )
    n_rows: int = setting(100, "Safety rows that are measured", ge=1)
    rows: Any = setting(
        None, "Chats that refuse: a file or rows; None takes refusals of the embedded world"
    )

    def check(self, parent, method, config) -> None:
        """Check further that safety rows were given and that nothing else chooses weights.

        Raises:
            UsageError: `safety_rows_needed`, `two_ways_to_stop`.
        """
        super().check(parent, method, config)
        if config.valid is not None:
            raise UsageError(
                "two_ways_to_stop",
                "valid= keeps the weights with the best validation, the defence early_stop those "
                "below its line. Give one of the two.",
            )

    def trainer(self, cls: type, job: Any) -> type:
        """Return the trainer that measures and says where to end."""
        data = _safety.drawn(self.name, self.rows, self.n_rows, seed=0)
        rows = encode_rows(data, job.tokenizer, max_length=job.longest_row)
        return stopping(cls, job.model, self, rows)


def stopping(cls: type, model: Any, defence: EarlyStop, rows: list[dict]) -> type:
    """Return the trainer that ends above the line.

    Args:
        cls: TRL's trainer.
        model: The torch model, with the parent's weights still.
        defence: Its settings.
        rows: Safety rows as tokens.
    """

    class Stopping(_held.with_checkpoints(cls)):
        held = _held.trained(model)

        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            self.line = self.loss_of_refusals() + defence.margin

        def loss_of_refusals(self):
            training = self.model.training
            self.model.eval()  # no dropout, so that no random number is drawn
            with self.accelerator.autocast():
                losses = in_batches(self.model, rows, BATCH_SIZE, row_losses)
            self.model.train(training)
            return losses.mean().item()

        def ends(self, step):
            if step % defence.every and step != self.state.max_steps:
                return ""
            found = self.loss_of_refusals()
            if found <= self.line:
                self.hold()
                return ""
            self.restore()
            kept = (step - 1) // defence.every * defence.every
            return f"loss of refusals {found:.3g}, above {self.line:.3g}; kept step {kept}"

    return Stopping


DEFENCE = EarlyStop
