"""Executed notebooks of experiments: title, command, page, and how many a report can hold."""

from __future__ import annotations

import base64
import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

from ftlab._core.files import write_atomic
from ftlab._core.text import CONTROLS
from ftlab.analysis.origins import without_places
from ftlab.analysis.rendering import filled, without_refresh

PYGMENTS = ("default", "monokai")  # colours of code on white and on black
PICTURE = re.compile(r'<img [^>]*src="data:image/png;base64,([^"]+)"[^>]*>')
ABOVE = "<p>(The figure {name} stands above.)</p>"
HEADING = re.compile(r"# (.+)")


def notebook_in(folder: Path) -> Path | None:
    """Return an experiment's executed notebook."""
    for path in sorted(folder.glob("[!.]*.ipynb")):
        if ".failed" not in path.name:
            return path
    return None


def title_of(notebook: Path | None) -> str:
    """Return the first heading of a notebook, or ""."""
    for cell in _content(notebook).get("cells", []):
        lines = cell.get("source", "")
        source = "".join(map(str, lines))
        heading = HEADING.match(source)
        if heading and cell.get("cell_type") == "markdown":
            return heading[1]
    return ""


def command_of(notebook: Path | None) -> str:
    """Return the command that executes a notebook again, with its parameters; "" without one."""
    found: Any = _content(notebook)
    for name in ("metadata", "papermill", "parameters"):
        if not isinstance(found, dict):
            return ""
        found = found.get(name)
    if notebook is None or not found or not isinstance(found, dict):
        return ""
    words = ["ftlab", "notebook", notebook.stem]
    for name, value in found.items():
        if name == "out" or value in ("", None):
            continue
        value = without_places(value)
        text = value
        if not isinstance(value, str):
            text = json.dumps(value)
        words.append("-p")
        words.append(f"{name}={text}")
    return shlex.join(words)


def page_of(notebook: Path | None) -> Path | None:
    """Write an executed notebook as a page beside it, without scripts; return its path."""
    if not _content(notebook).get("cells"):
        return None
    import nbformat
    from nbconvert import HTMLExporter
    from pygments.formatters import HtmlFormatter

    try:
        book = nbformat.read(notebook, 4)
        body, _ = HTMLExporter(template_name="basic").from_notebook_node(book)
    except Exception:  # somebody's notebook, of any content: the page can do without it
        return None
    colours = {}
    for name in PYGMENTS:
        formatter = HtmlFormatter(style=name)
        colours[name] = formatter.get_style_defs(".highlight")
    title = title_of(notebook) or notebook.stem
    page = {"title": title, "body": without_refresh(body), "colours": colours}
    path = notebook.with_suffix(".html")
    write_atomic(path, filled("notebook.html.j2", page))
    return path


def embedded(pages: list[Path | None], folders: list[Path], room: int) -> list[Any]:
    """Return pages of notebooks as attributes of frames, as many as there is room for.

    Where all are too long, figures that the report shows itself are left out of them; where that
    does not suffice, the longest pages are.

    Args:
        pages: The page of each experiment's notebook.
        folders: The folder of each experiment.
        room: Bytes, in all.

    Returns:
        The escaped page, or "", of each.
    """
    from markupsafe import Markup

    whole = list(map(_read, pages))
    found = list(map(_attribute, whole))
    if _size(found) > room:
        lean = map(_without_figures, whole, folders)
        found = list(map(_attribute, lean))
    while _size(found) > room and any(found):
        longest = max(found, key=len)
        place = found.index(longest)
        found[place] = ""
    return list(map(Markup, found))


def size(pages: list[Path | None]) -> int:
    """Return the bytes that pages of notebooks take as attributes of frames."""
    texts = map(_read, pages)
    return _size(list(map(_attribute, texts)))


def _read(page: Path | None) -> str:
    if page is None:
        return ""
    return page.read_text(encoding="utf-8")


def _attribute(text: str) -> str:
    """Return a page escaped, without characters that move a cursor or hide text."""
    plain = CONTROLS.sub("", text)
    return html.escape(plain)


def _size(pages: list[str]) -> int:
    """Return the bytes of pages."""
    return sum(len(page.encode()) for page in pages)


def _without_figures(text: str, folder: Path) -> str:
    """Return a notebook's page without the figures that were saved in the experiment's folder."""
    names = {}
    for path in folder.glob("figures/*.png"):
        data = base64.b64encode(path.read_bytes())
        names[data.decode()] = path.stem

    def replaced(image: re.Match) -> str:
        data = "".join(image[1].split())
        if data not in names:
            return image[0]
        name = html.escape(names[data])
        return ABOVE.format(name=name)

    return PICTURE.sub(replaced, text)


def _content(notebook: Path | None) -> dict[str, Any]:
    """Return a notebook; {} where it cannot be read."""
    try:
        found = json.loads(notebook.read_bytes()) if notebook else {}
        cells = list(found["cells"]) if found else []
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    if isinstance(found, dict) and all(map(_is_cell, cells)):
        return found
    return {}


def _is_cell(cell: Any) -> bool:
    if not isinstance(cell, dict):
        return False
    source = cell.get("source", "")
    return isinstance(source, (str, list))
