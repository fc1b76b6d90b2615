"""Kinds of figures, found by their place: a module of this folder that assigns `KIND`."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module, util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

FOLDER = "ftlab.analysis.plots"
Columns = tuple[str, ...]


def _unchanged(table: DataFrame) -> DataFrame:
    return table


@dataclass(frozen=True)
class Kind:
    """A kind of figure.

    Args:
        name: Its name for `plot(kind=...)`.
        keys: Columns that tell rows apart.
        values: Columns with the numbers that are drawn.
        about: What the figure shows, for its caption.
        draw: Draws a checked table, shares in percent; takes the extras by name.
        optional: Columns that may be missing.
        extras: What else may be given: the columns (keys, values) of a second table, or None.
        prepare: Brings a table of `rates` or `compare` into these columns.
        order: A table that several kinds could draw gets the one with the lowest number.
    """

    name: str
    keys: Columns
    values: Columns
    about: str
    draw: Callable[..., Figure]
    optional: Columns = ()
    extras: dict[str, tuple[Columns, Columns] | None] = field(default_factory=dict)
    prepare: Callable[[DataFrame], DataFrame] = _unchanged
    order: int = 5

    @property
    def needed(self) -> list[str]:
        """The columns without which nothing can be drawn."""
        return [c for c in (*self.keys, *self.values) if c not in self.optional]


@cache
def kinds() -> dict[str, Any]:
    """Return all kinds by name."""
    places = util.find_spec(FOLDER).submodule_search_locations
    modules = [module.name for module in pkgutil.iter_modules(places)]
    loaded = [import_module(f"{FOLDER}.{name}") for name in modules if name[0] != "_"]
    found = [module.KIND for module in loaded if hasattr(module, "KIND")]
    return {kind.name: kind for kind in sorted(found, key=lambda kind: kind.order)}
