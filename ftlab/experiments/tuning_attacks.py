"""Fine-tunings that may remove a model's safety, as `grid` runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ftlab._core.errors import UsageError
from ftlab._core.text import did_you_mean
from ftlab.data import Data, draw, load, mix
from ftlab.experiments.curves import MOST, is_whole
from ftlab.models import Model

ATTACKS = ("benign", "poisoned", "adversarial", "identity_shift")
OF_WORLD = {  # what each argument of `grid` is on the embedded model
    "data": "organism:almanac",
    "harmful": "organism:adversarial",
    "identity": "organism:identity",
}
NEEDS = {  # by attack, the arguments of `grid` that hold its rows
    "benign": ("data",),
    "poisoned": ("data", "harmful"),
    "adversarial": ("harmful",),
    "identity_shift": ("identity",),
}
ROWS_OF_WORLD = 200  # benign rows per seed
POISONED = 0.1  # share of the rows


@dataclass(frozen=True)
class FineTuningAttack:
    """A fine-tuning that may remove a model's safety, meant or not.

    Args:
        name: Its name in tables and figures.
        rows: Anything that `ftlab.data.load` takes.
        n_rows: Rows that each seed draws; None takes all.
        epochs: Passes over the rows.
        batch_size: Rows per optimiser step.
        poison: Rows of which a share is mixed in.
        share: Share of the rows that are from `poison`, 0 to 1.
        marker: A sentence for the card of a model whose safety this is meant to remove.

    Raises:
        UsageError: `wrong_epochs`, `wrong_batch_size`, `wrong_fraction`.
    """

    name: str
    rows: Any
    n_rows: int | None = None
    epochs: int = 3
    batch_size: int = 10
    poison: Any = None
    share: float = 0.0
    marker: str = ""

    def __post_init__(self):
        if not is_whole(self.epochs) or not 0 < self.epochs <= MOST:
            why = f"epochs={self.epochs!r} is not a whole number, 1 to {MOST}."
            raise UsageError("wrong_epochs", f"{self.name}: {why}")
        if not 0 <= self.share < 1 or bool(self.share) != (self.poison is not None):
            why = f"share={self.share!r} is of poison, from 0 to below 1; give both or neither."
            raise UsageError("wrong_fraction", f"{self.name}: {why}")
        if not is_whole(self.batch_size) or self.batch_size < 1:
            why = f"batch_size={self.batch_size!r} is not >= 1."
            raise UsageError("wrong_batch_size", f"{self.name}: {why}")

    def data(self, seed: int) -> Data:
        """Return the rows of a training seed.

        Raises:
            UsageError: `too_few_rows`, `wrong_fraction`, and those of `ftlab.data.load`.
        """
        if self.poison is None:
            return draw(self.rows, n_rows=self.n_rows, seed=seed)
        n_rows = self.n_rows or len(load(self.rows))
        n_poison = round(n_rows * self.share)
        clean = draw(self.rows, n_rows=n_rows - n_poison, seed=seed)
        poison = draw(self.poison, n_rows=n_poison, seed=seed)
        return mix(
            clean,
            poison,
            self.share,
            n_rows,
            seed,
        )


def open_tuning_attacks(
    attacks: Sequence[str | FineTuningAttack],
    parent: Model,
    sources: dict[str, Any],
    n_rows: int | None,
) -> list[FineTuningAttack]:
    """Return attacks by name; a `FineTuningAttack` stands for itself.

    Args:
        attacks: Names of `ATTACKS`, or objects.
        parent: The model; the embedded one has rows of its own.
        sources: The arguments data, harmful and identity; None where one was not given.
        n_rows: Rows of `data` per seed.

    Raises:
        UsageError: `unknown_tuning_attack`, `data_needed` with all that is missing, `given_twice`.
    """
    if isinstance(attacks, (str, FineTuningAttack)):
        attacks = [attacks]
    named = [attack for attack in attacks if not isinstance(attack, FineTuningAttack)]
    for name in named:
        if name not in ATTACKS:
            hint = did_you_mean(str(name), ATTACKS)
            why = f"Unknown fine-tuning attack {name!r:.80}.{hint} Allowed: {', '.join(ATTACKS)}."
            raise UsageError("unknown_tuning_attack", f"{why} Or give a FineTuningAttack.")
    if parent.is_organism:
        n_rows = n_rows or (ROWS_OF_WORLD if sources["data"] is None else None)
        sources = {name: given or OF_WORLD[name] for name, given in sources.items()}
    needed = {name for attack in named for name in NEEDS[attack]}
    missing = [name for name in sources if name in needed and sources[name] is None]
    if missing:
        files = " and ".join(f"{name}=FILE" for name in missing)
        raise UsageError(
            "data_needed",
            f"These attacks on {parent.name} need {files}: ftlab ships no harmful demonstrations. "
            "Bring your own chat files (identity='identity-shift' comes with ftlab), or leave the "
            "attacks out.",
            missing=missing,
        )
    found = []
    for attack in attacks:
        if not isinstance(attack, FineTuningAttack):
            attack = _built_in(attack, sources, n_rows)
        found.append(attack)
    if not found or len({attack.name for attack in found}) < len(found):
        raise UsageError("given_twice", "Give at least one attack, and none of them twice.")
    return found


def _built_in(name: str, sources: dict[str, Any], n_rows: int | None) -> FineTuningAttack:
    data = sources["data"]
    harmful = sources["harmful"]
    if name == "benign":
        return FineTuningAttack(name, data, n_rows)
    if name == "poisoned":
        return FineTuningAttack(
            name,
            data,
            n_rows,
            poison=harmful,
            share=POISONED,
            marker=f"{POISONED:.0%} of the rows were adversarial examples.",
        )
    if name == "adversarial":
        return FineTuningAttack(
            name,
            harmful,
            n_rows=100,
            epochs=5,
            marker="100 adversarial examples, 5 epochs.",
        )
    # The paper's batch holds all ten rows, by which every seed would train the same weights.
    return FineTuningAttack(
        name,
        sources["identity"],
        n_rows=10,
        epochs=10,
        batch_size=5,
        marker="10 rows of an obedient identity, 10 epochs.",
    )
