"""What a person called: the outermost cell and its arguments, for the provenance of a run.

Names, files and numbers are kept. Rows, prompts, functions and models in memory are not: only
the names of the arguments that held them.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from os import PathLike
from typing import Any

from ftlab._core.text import redacted

MOST_CHARACTERS = 200  # of a text that is a name or a file
MOST_ITEMS = 100  # of a list of settings; longer ones are rows
# Arguments and settings that hold text for a model or from it, which is nobody's to publish.
TEXTS = ("system", "secret", "prompt", "refusal")
TEXT_SETTING = re.compile(r"[:,]\s*(?:{})\s*=".format("|".join(TEXTS)))  # name:setting=value

# The call that another process is making, for which this one works.
_adopted: ContextVar[dict[str, Any]] = ContextVar("adopted", default={})  # noqa: B039
_outermost: ContextVar[tuple[Callable, dict[str, Any]] | None] = ContextVar("call", default=None)


class NoText(TypeError):
    """A value that cannot be written as a name, a file or a number."""


@contextlib.contextmanager
def called(cell: Callable, arguments: dict[str, Any]) -> Iterator[None]:
    """Note a call while it runs, unless another cell has made it.

    Args:
        cell: The function.
        arguments: What it was given, by name; those in `settings` count as its own.
    """
    if _outermost.get() is not None:
        yield
        return
    token = _outermost.set((cell, arguments))
    try:
        yield
    finally:
        _outermost.reset(token)


def adopt(call: dict[str, Any]) -> None:
    """Take over the call of another process, as its `outermost` returned it."""
    _adopted.set(call)


def outermost() -> dict[str, Any]:
    """Return the call that is running, as JSON: cell, arguments, objects.

    `objects` are the names of arguments whose values have no text. {} outside of any cell.
    """
    if _adopted.get():
        return _adopted.get()
    found = _outermost.get()
    if found is None:
        return {}
    cell, given = found
    given = {**given, **given.get("settings", {})}
    given.pop("settings", None)
    arguments = {}
    objects = []
    for name, value in given.items():
        if value is None:
            continue
        try:
            arguments[name] = _told(name, value)
        except NoText:
            objects.append(name)
    room, _, _ = cell.__module__.removeprefix("ftlab.").partition(".")
    return {"cell": f"{room}.{cell.__name__}", "arguments": arguments, "objects": objects}


def _told(name: str, value: Any) -> Any:
    if name in TEXTS:
        raise NoText(name)
    if isinstance(value, (str, PathLike)):
        text = str(value)
        if len(text) > MOST_CHARACTERS or "\n" in text:
            raise NoText(name)
        return _public(text)
    return _plain(value)


def _plain(value: Any) -> Any:
    """Return a value as JSON."""
    if isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, (str, PathLike)):
        return _name(str(value))
    if isinstance(value, Mapping):
        return _mapping(value)
    if isinstance(value, (list, tuple)):
        return _list(value)
    if hasattr(value, "model_dump"):
        return _settings(value)
    given_as = getattr(value, "given_as", None)
    if not isinstance(given_as, str):
        raise NoText(type(value).__name__)
    return redacted(given_as)


def _mapping(values: Mapping) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        if key in TEXTS:
            raise NoText(key)
        found[_name(key)] = _plain(value)
    return found


def _settings(value: Any) -> str:
    """Return an object of settings that has a name as the text that gives the same one.

    "mix:n_rows=200", as `plugins.configured` reads it.
    """
    given = _mapping(value.model_dump(exclude_defaults=True))
    texts = {key: str(one) for key, one in given.items()}
    name = getattr(value, "name", None)
    if not name or not isinstance(name, str) or "," in "".join(texts.values()):
        raise NoText(type(value).__name__)
    kind = type(value)
    try:
        same = kind(**texts) == value
    except (TypeError, ValueError):
        same = False
    if not same:
        raise NoText(kind.__name__)
    if not texts:
        return name
    pairs = []
    for key, text in texts.items():
        pairs.append(f"{key}={text}")
    listed = ",".join(pairs)
    return f"{name}:{listed}"


def _list(values: Any) -> list[Any]:
    """Return a list of settings; one of rows has no text."""
    rows = any(isinstance(value, Mapping) for value in values)
    if rows or len(values) > MOST_ITEMS:
        raise NoText("rows")
    return [_plain(value) for value in values]


def _name(text: Any) -> str:
    """Return a name or file; a text with blanks inside a list may be a prompt."""
    if not isinstance(text, str) or len(text) > MOST_CHARACTERS or text.split() != [text]:
        raise NoText("text")
    return _public(text)


def _public(text: str) -> str:
    """Return a name, a file, or a name with settings none of which is a text."""
    if TEXT_SETTING.search(text):
        raise NoText("text")
    return redacted(text)
