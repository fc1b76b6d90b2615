"""What tests see of a panel's widgets, without a browser."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def parts_of(widget: Any) -> Iterator[Any]:
    """Yield a widget and everything inside it."""
    yield widget
    for child in getattr(widget, "children", ()):
        yield from parts_of(child)


def html_of(widget: Any) -> str:
    """Return all HTML that a widget and its parts show."""
    shown = ""
    for part in parts_of(widget):
        kind = type(part).__name__
        if kind == "Pad":
            shown += part.html
        elif kind == "HTML":
            shown += part.value
    return shown


def named(widget: Any, name: str) -> Any:
    """Return the part with this description, or the pad with this label."""
    found = []
    for part in parts_of(widget):
        label = getattr(part, "label", "") if type(part).__name__ == "Pad" else ""
        if name in (getattr(part, "description", ""), label):
            found.append(part)
    assert len(found) == 1, f"{len(found)} parts are called {name!r}"
    return found[0]


def send(widget: Any, name: str, **content: str) -> None:
    """Send what a pad sends for a key or a click."""
    named(widget, name)._handle_custom_msg(content, [])


def said(widget: Any) -> str:
    """Return the panel's message."""
    values = [str(getattr(part, "value", "")) for part in parts_of(widget)]
    return next((value for value in values if 'role="status"' in value), "")
