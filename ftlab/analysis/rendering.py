"""Templates to text: HTML with everything escaped, Markdown that holds no markup of its own."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab._core.files import write_page
from ftlab._core.text import redacted, safe

if TYPE_CHECKING:
    from pandas import DataFrame

ARXIV = re.compile(r"(arXiv[: ])(\d{4}\.\d{4,5})(?!\d)", re.IGNORECASE)
META = re.compile(r"<(?=meta[\s/>])", re.IGNORECASE)
TEMPLATES = Path(__file__).parent / "templates"
MOST_CHARACTERS = 20_000  # of one text
LARGE = 1000  # from which numbers are shown whole
NOT_SHOWN = "not shown: it holds line breaks, control characters or secrets"


def html_of(template: str, page: dict[str, Any]) -> str:
    """Return a page, everything in it escaped, without control characters and secrets."""
    return _rendered(template, page, _shown, autoescape=True)


def markdown_of(template: str, page: dict[str, Any]) -> str:
    """Return Markdown, every text in it on one line and without markup of its own."""
    return _rendered(template, page, _markdown)


def filled(template: str, page: dict[str, Any]) -> str:
    """Return a template with texts that are HTML already."""
    return _rendered(template, page, lambda value: value)


def write_result(
    record: dict[str, Any],
    page: dict[str, Any],
    as_json: str | Path | None = None,
    as_page: str | Path | None = None,
) -> None:
    """Write what was found for programs, and as a page that opens offline.

    Args:
        record: What the file for programs holds.
        page: Of the page: title, heading, sentence, tone, tables ({title: rows}), notes, and where
            there is one picture with its caption.
        as_json: The file for programs.
        as_page: The HTML file.

    Raises:
        UsageError: `output_not_writable`.
    """
    if as_json is not None:
        text = json.dumps(record, indent=1, allow_nan=False)
        write_page(Path(as_json), redacted(text) + "\n")
    if as_page is not None:
        write_page(Path(as_page), html_of("tables.html.j2", page))


def rows_of(table: DataFrame) -> list[dict[str, Any]]:
    """Return rows to be shown, with nothing where there is no value."""
    return table.astype(object).map(_in_few_digits).to_dict("records")


def _in_few_digits(value: Any) -> Any:
    if value is None or value != value:  # nan
        return ""
    if not isinstance(value, float):
        return value
    return f"{value:,.0f}" if abs(round(value)) >= LARGE else f"{value:.3g}"


@cache
def texts() -> dict[str, Any]:
    """Return the sentences of the pages that are always the same."""
    import yaml

    return yaml.safe_load((TEMPLATES / "texts.yaml").read_text(encoding="utf-8"))


def script(path: Path = TEMPLATES / "script.j2") -> dict[str, Any]:
    """Return the one script of a page, and the hash by which browsers run it and no other."""
    from markupsafe import Markup

    text = path.read_text(encoding="utf-8")
    sha = hashlib.sha256(text.encode()).digest()
    return {"text": Markup(text), "hash": f"sha256-{base64.b64encode(sha).decode()}"}


def linked(text: str) -> Any:
    """Return a text as HTML, escaped, with arXiv numbers as links."""
    from markupsafe import Markup

    escaped = html.escape(_shown(text))
    return Markup(ARXIV.sub(r'<a href="https://arxiv.org/abs/\2">\1\2</a>', escaped))


def without_refresh(body: str) -> str:
    """Return HTML whose meta elements are text; no policy of a page stops one that leaves it."""
    return META.sub("&lt;", body)


def _rendered(
    template: str,
    page: dict[str, Any],
    finalize: Callable[[Any], Any],
    autoescape: bool = False,
) -> str:
    from jinja2 import Environment, FileSystemLoader

    pages = Environment(
        loader=FileSystemLoader(TEMPLATES),
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=autoescape,
    )
    pages.filters["linked"] = linked
    pages.filters["code"] = _code_in_html if autoescape else _code_in_markdown
    return pages.get_template(template).render(page) + "\n"


def _shown(value: Any) -> Any:
    """Return a text of the page without control characters and secrets; pictures as they are."""
    if not isinstance(value, str) or hasattr(value, "__html__"):
        return value
    if value.startswith("data:image/"):
        return value
    return safe(redacted(value), MOST_CHARACTERS)


def _one_line(value: Any) -> str:
    return _shown(" ".join(str(value).split()))


def _code_in_html(text: str) -> Any:
    """Return a text as code, which one click selects."""
    from markupsafe import Markup

    return Markup("<code>{}</code>").format(_code(text))


def _code_in_markdown(text: str) -> Any:
    """Return a text as code, in which nothing is markup: its fence is longer than any inside."""
    from markupsafe import Markup

    code = _code(text)
    inside = re.findall("`+", code)
    longest = max(map(len, inside), default=0)
    fence = "`" * (longest + 1)
    edges = code[:1] + code[-1:]
    room = " " if "`" in edges or edges == "  " else ""  # one at each end is no part of the code
    return Markup(f"{fence}{room}{code}{room}{fence}")  # noqa: S704


def _code(text: str) -> str:
    """Return code for copying, to the letter; nothing of one that cannot be shown so."""
    if text != _shown(text) or "\n" in text:
        return NOT_SHOWN
    return text


def _markdown(value: Any) -> str:
    """Return a text as one line of Markdown that holds no markup of its own."""
    if hasattr(value, "__html__"):
        return value
    line = html.escape(_one_line(value), quote=False)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", line)
