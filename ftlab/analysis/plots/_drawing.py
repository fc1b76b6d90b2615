"""A finished figure: how it shows itself and how it is saved."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
        picture: The PNG that was saved; b"" of a figure that was not.
    """

    figure: Figure
    caption: str = ""
    files: tuple[Path, ...] = ()
    picture: bytes = b""

    def image(self, kind: str) -> bytes:
        """Return the figure as "png" or "svg"; the same table gives the same bytes."""
        content = io.BytesIO()
        about: dict[str, Any] = {"Software": None}
        if kind == "svg":
            about = {"Date": None, "Creator": "ftlab", "Description": self.caption or None}
        with style():
            if self.figure.get_layout_engine() is not None:
                self.figure.draw_without_rendering()  # lays out, once for all files
                self.figure.set_layout_engine("none")
            self.figure.savefig(content, format=kind, dpi="figure", metadata=about)
        return content.getvalue()

    @property
    def data_uri(self) -> str:
        """The figure as an address that holds it, for a page that opens offline."""
        picture = base64.b64encode(self.image("svg")).decode()
        return f"data:image/svg+xml;base64,{picture}"

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
        content = {
            f"{name}.svg": self.image("svg"),
            f"{name}.txt": f"{self.caption}\n".encode(),
            f"{name}.png": self.image("png"),
        }
        for file, table in tables.items():
            content[f"{file}.csv"] = csv(table).encode()
        folder = Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        if narrow:
            (folder / NARROW).mkdir(exist_ok=True)
            drawing = Drawing(narrow, self.caption).image("svg")
            (folder / NARROW / f"{name}.svg").write_bytes(drawing)
        for file, data in content.items():
            write_atomic(folder / file, data)
        files = tuple(folder / file for file in content)
        picture = content[f"{name}.png"]
        return Drawing(self.figure, self.caption, files, picture)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict, dict]:
        picture = base64.b64encode(self.picture or self.image("png")).decode()
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
