"""What a kind of figure is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Columns = tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of figure.

    Args:
        name: Its name for `plot(kind=...)`.
        keys: Columns that tell rows apart.
        values: Columns with the numbers that are drawn.
        about: What the figure shows, for its caption.
        draw: Draws a checked table, shares in percent; takes the extras by name.
        defaults: Columns that may be missing, and their value then.
        extras: What else `plot` may be given: columns (keys, values) of a second table, or None.
        prepare: Brings a table of `rates` into these columns.
    """

    name: str
    keys: Columns
    values: Columns
    about: str
    draw: Callable[..., Figure]
    defaults: dict[str, object] = field(default_factory=dict)
    extras: dict[str, tuple[Columns, Columns] | None] = field(default_factory=dict)
    prepare: Callable[[DataFrame], DataFrame] | None = None

    def fits(self, table: DataFrame) -> bool:
        """Return whether a table has the columns that this kind draws."""
        needed = {*self.keys, *self.values} - set(self.defaults)
        return needed <= set(table.columns)
