"""A finished figure: how it shows itself and how it is saved."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab._core.files import resource, write_atomic
from ftlab._core.text import csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

NARROW = "narrow"  # folder of the drawings for narrow screens


@dataclass(frozen=True, eq=False)
class Drawing:
    """A figure that shows itself in Jupyter.

    Args:
        figure: The matplotlib figure.
        caption: What it shows, in words.
        files: The files that were written.
    """

    figure: Figure
    caption: str = ""
    files: tuple[Path, ...] = ()

    def image(self, kind: str) -> bytes:
        """Return the figure as "png" or "svg"; the same table gives the same bytes."""
        content = io.BytesIO()
        about: dict[str, Any] = {"Software": None}
        if kind == "svg":
            about = {"Date": None, "Creator": "ftlab", "Description": self.caption or None}
        with style():
            self.figure.savefig(content, format=kind, dpi="figure", metadata=about)
        return content.getvalue()

    def save(
        self, name: str, out: str | Path, tables: dict[str, DataFrame], narrow: Figure | None = None
    ) -> Drawing:
        """Write NAME.svg, .png, .txt (the caption) and every table as CSV into a folder.

        Args:
            name: Name of the files.
            out: The folder.
            tables: By name of the file.
            narrow: The same for a narrow screen, which becomes narrow/NAME.svg.
        """
        folder = Path(out)
        names = [f"{name}.{ending}" for ending in ("svg", "txt", "png")]
        names += [f"{file}.csv" for file in tables]
        saved = Drawing(self.figure, self.caption, tuple(folder / file for file in names))
        written = [saved.image("svg"), f"{self.caption}\n".encode(), saved.png]
        written += [csv(table).encode() for table in tables.values()]
        folder.mkdir(parents=True, exist_ok=True)
        if narrow:
            (folder / NARROW).mkdir(exist_ok=True)
            drawing = Drawing(narrow, self.caption).image("svg")
            (folder / NARROW / f"{name}.svg").write_bytes(drawing)
        for file, data in zip(saved.files, written, strict=True):
            write_atomic(file, data)
        return saved

    @cached_property
    def png(self) -> bytes:
        """The figure as it was when first shown or saved."""
        return self.image("png")

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        picture = base64.b64encode(self.png).decode()
        width, height = (round(100 * inches) for inches in self.figure.get_size_inches())
        data = {"image/png": picture, "text/plain": self.caption or "Drawing"}
        return data, {"image/png": {"width": width, "height": height}}


@contextmanager
def style() -> Iterator[None]:
    """Apply the project's style inside the context; nothing global changes."""
    from matplotlib import style as styles

    sheet = resource("figures") / "style.mplstyle"
    with warnings.catch_warnings(), styles.context(sheet, after_reset=True):
        # A character that the font lacks becomes a box.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield
