"""Safety rows mixed into the rows of a fine-tuning.

Source: Bianchi et al. 2023, arXiv 2309.07875; Qi et al. 2023, arXiv 2310.03693.
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from ftlab._core.config import setting
from ftlab._core.errors import UsageError
from ftlab.data import Data, load
from ftlab.training.defences.base import Defence

WORLD = "organism:alignment"  # its rows of the risk jailbreak are refusals


class Mix(Defence):
    """Adds safety rows: harmful questions with refusals.

    Fails where the rows of the fine-tuning outnumber them, where they do not cover what is asked
    later, and by over-refusal where there are many.
    """

    name = "mix"
    source = "Bianchi et al. 2023, arXiv 2309.07875"
    methods = ("sft",)
    draws = True

    n_rows: int = setting(100, "Safety rows to add; the papers add 100 to 500", ge=1)
    rows: Any = setting(
        None, "Chats that refuse: a file or rows; None takes refusals of the embedded world"
    )

    def check(self, parent, method, config) -> None:
        """Check further that safety rows were given; raises UsageError `safety_rows_needed`."""
        super().check(parent, method, config)
        if self.rows is None and not parent.is_organism:
            raise UsageError(
                "safety_rows_needed",
                f"The defence mix needs safety rows for {parent.name}: ftlab ships none. Give a "
                "chat file of refusals, as in mix:rows=FILE.",
            )

    def data(self, rows: Data, seed: int) -> Data:
        """Return the rows with `n_rows` safety rows after them; each epoch shuffles all."""
        safety = self._safety()
        if len(safety) < self.n_rows:
            raise UsageError(
                "too_few_safety_rows",
                f"{safety.name} holds {len(safety)} safety rows, mix adds {self.n_rows}. "
                "Lower n_rows.",
            )
        drawn = random.Random(f"safety rows {seed}").sample(safety.rows, self.n_rows)
        made = {
            "by": "defence mix",
            "n_rows": self.n_rows,
            "seed": seed,
            "from": [rows.record, safety.record],
        }
        return replace(rows, rows=(*rows.rows, *drawn), made=made)

    def identity(self) -> dict[str, Any]:
        """Return the identity; the file is in it by what it holds, not by its place."""
        return {
            "name": self.name,
            "version": self.version,
            "n_rows": self.n_rows,
            "rows": self._safety().hash,
        }

    def _safety(self) -> Data:
        if self.rows is not None:
            return load(self.rows)
        found = load(WORLD)
        refusals = tuple(row for row in found.rows if row["risk"] == "jailbreak")
        return replace(found, rows=refusals)


DEFENCE = Mix
