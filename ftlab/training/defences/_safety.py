"""Safety rows: harmful questions with refusals, for the defences that learn from them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from ftlab._core.errors import UsageError
from ftlab.data import Data, load, strip_answers
from ftlab.models import Model
from ftlab.training.defences.base import Defence

WORLD = "organism:alignment"  # its rows of the risk jailbreak are refusals
KINDS = {"rows": "rows that refuse", "utility": "harmless rows"}


def check(name: str, rows: Any, parent: Model, setting: str = "rows") -> None:
    """Raise UsageError `safety_rows_needed` where there are no rows for the parent."""
    if rows is None and not parent.is_organism:
        raise UsageError(
            "safety_rows_needed",
            f"The defence {name} needs {KINDS[setting]} for {parent.name}: ftlab ships none. Give "
            f"a chat file, as in {name}:{setting}=FILE.",
        )


def every_row(rows: Any) -> Data:
    """Return the rows that were given, or all refusals of the embedded world."""
    if rows is not None:
        return strip_answers(load(rows))
    found = load(WORLD)
    refusals = tuple(row for row in found.rows if row["risk"] == "jailbreak")
    return replace(found, rows=refusals)


def drawn(name: str, rows: Any, n_rows: int, seed: int) -> Data:
    """Return `n_rows` of the safety rows.

    Raises:
        UsageError: `too_few_safety_rows`.
    """
    found = every_row(rows)
    if len(found) < n_rows:
        raise UsageError(
            "too_few_safety_rows",
            f"{found.name} holds {len(found)} safety rows, {name} takes {n_rows}. Lower n_rows.",
        )
    lot = random.Random(f"safety rows {seed}")
    return replace(found, rows=tuple(lot.sample(found.rows, n_rows)))


def identity(rows: Any) -> str:
    """Return what stands for the rows in a run's identity: what they hold, not their place."""
    return every_row(rows).hash


class WithSafetyRows(Defence):
    """A defence that learns from safety rows, its setting `rows`."""

    def check(self, parent, method, config) -> None:
        """Check further that safety rows were given; raises UsageError `safety_rows_needed`."""
        super().check(parent, method, config)
        check(self.name, self.rows, parent)

    def identity(self) -> dict[str, Any]:
        """Return the identity; the safety rows are in it by what they hold."""
        return super().identity() | {"rows": identity(self.rows)}
