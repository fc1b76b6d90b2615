"""Filtering: the rows that a ranking finds most suspicious are left out of the training.

Source: He et al. 2024, arXiv 2404.01099 (their ranking; they train on its first rows).
"""

from __future__ import annotations

from typing import Any, Literal

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab.data import MAX_LENGTH, Data, encode_rows, leave_out, strip_answers
from ftlab.models import Model, released
from ftlab.training.defences.base import Defence
from ftlab.training.ranking import ANCHORED, BATCH_SIZE, RANKINGS, Given, anchors


class Filter(Defence):
    """Leaves out the rows that `ftlab.evals.audit` would name first, scored by the parent.

    The share is a guess about how many rows are harmful: too low a share keeps some, and too high
    a one leaves out harmless rows. It fails where most rows are harmful, where harmful rows look
    like the others, and with anchors unlike what is to be found.
    """

    name = "filter"
    source = "He et al. 2024, arXiv 2404.01099"
    methods = ("sft",)

    by: Literal["gradient", "representation", "loss"] = setting(
        "gradient", "How rows are ranked, as in `audit`"
    )
    share: float = setting(0.1, "Share of the rows to leave out (ours); 0 is plain SFT", ge=0, lt=1)
    n_rows: int | None = setting(None, "Rows to leave out, instead of a share", ge=0)
    harmful: Any = setting(None, "Rows as those to be found; None takes the embedded world's")
    safe: Any = setting(None, "Rows that answer the same questions safely; None as for harmful")

    def identity(self) -> dict[str, Any]:
        """Return the identity; the run's data are the rows that stay, so anchors are left out."""
        own = self.model_dump(mode="json", exclude={"harmful", "safe"})
        return {"name": self.name, "version": self.version, **own}

    def check(self, parent, method, config) -> None:
        """Check further that there are anchors; raises UsageError `anchors_needed`."""
        super().check(parent, method, config)
        acts = self.share > 0
        if self.n_rows is not None:
            acts = self.n_rows > 0
        if acts and self.by in ANCHORED:
            anchors(
                parent,
                self.harmful,
                self.safe,
            )

    def choose(self, rows: Data, parent: Model) -> Data:
        """Return the rows that stay, in their order.

        Raises:
            UsageError: `nothing_left`.
        """
        count = self.n_rows
        if count is None:
            count = round(self.share * len(rows))
        if count >= len(rows):
            raise UsageError(
                "nothing_left",
                f"The defence filter leaves out {count} rows, and {rows.name} has {len(rows)}. "
                "Lower n_rows.",
            )
        if not count:
            return rows
        scores = self.scores(rows, parent)
        places = range(1, len(rows) + 1)
        order = sorted(
            places,
            key=lambda place: -scores[place - 1],
        )
        return leave_out(rows, order[:count])

    def scores(self, rows: Data, parent: Model) -> list[float]:
        """Return a score per row, higher where it is more suspicious."""
        sides: tuple[Data, ...] = ()
        if self.by in ANCHORED:
            sides = anchors(
                parent,
                self.harmful,
                self.safe,
            )
        tokenizer = parent.tokenizer()
        text = parent.config.get("text_config") or parent.config
        own = text.get("max_position_embeddings")
        longest = own or MAX_LENGTH
        encoded = []
        for data in (strip_answers(rows), *sides):
            found = encode_rows(
                data,
                tokenizer,
                max_length=longest,
                on_too_long="cut",
            )
            encoded.append(found)
        scored, *others = encoded
        given = Given(
            parent,
            rows,
            scored,
            others,
            weights=None,
            batch_size=BATCH_SIZE,
        )
        with released():
            return RANKINGS[self.by](given)


DEFENCE = Filter
