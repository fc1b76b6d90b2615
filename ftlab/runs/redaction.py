"""What of a run may be handed on: settings without secrets, folders of this machine, or texts."""

from __future__ import annotations

import re
from typing import Any

from ftlab._core.calls import TEXTS
from ftlab._core.files import digest
from ftlab._core.text import redacted
from ftlab.runs.store import Run

MOST_CHARACTERS = 500  # of a setting; longer ones are texts
MOST_NUMBERS = 50  # of a list; a longer one may be a direction of a model
LEFT_OUT = "left out, hash "
SEPARATOR = " > "
SAFETY_REMOVED = "SAFETY_REMOVED"  # a file beside weights whose safety was removed, and why
# A path, or one behind names as in "keywords:/home/me/list.txt".
PATH = re.compile(r"((?:[\w.-]{2,}[:=])*)(?:file://|~|[A-Za-z]:)?[\\/](?![\\/])[^\n,;]*")
# The folders of a path within a text; none of an address.
FOLDERS = re.compile(
    r"(?<![\w./\\])(?:file://|~|[A-Za-z]:)?[\\/](?![\\/])(?:[^\\/\s,;:\"']+[\\/])+(?=[^\\/\s])"
)


def public_text(text: str) -> str:
    """Return a text without secrets, and of the paths of this machine their last part only."""
    text = redacted(text)
    path = PATH.fullmatch(text)
    if path:
        last = re.split(r"[\\/]", text.rstrip("\\/"))[-1]
        return path[1] + last
    return FOLDERS.sub("", text)


def public(value: Any, *, texts: bool = True) -> Any:
    """Return a JSON value as it may be handed on.

    Args:
        value: Settings or results.
        texts: Keep system prompts and other texts for a model, and long lists of numbers; otherwise
            their hashes stand in their places.
    """
    if isinstance(value, dict):
        found = {}
        for key, one in value.items():
            is_text = key in TEXTS and isinstance(one, str) and one
            hidden = is_text and not texts
            found[key] = _hashed(one) if hidden else public(one, texts=texts)
        return found
    if isinstance(value, list):
        numbers = all(isinstance(one, float) for one in value)
        if numbers and len(value) > MOST_NUMBERS and not texts:
            return _hashed(value)
        return [public(one, texts=texts) for one in value]
    if not isinstance(value, str):
        return value
    if len(value) > MOST_CHARACTERS and not texts:
        return _hashed(value)
    return public_text(value)


def _hashed(value: Any) -> str:
    if isinstance(value, str) and value.startswith(LEFT_OUT):  # of a run that was imported
        return value
    return f"{LEFT_OUT}{digest(value)}"


def public_label(name: str) -> str:
    """Return a name as it is, and the hash of a sentence, which may be a text of the prompt set.

    Wordings under a template are "TEMPLATE > WORDING", of which each is a name of its own.
    """
    parts = []
    for part in name.split(SEPARATOR):
        is_sentence = len(part.split()) > 1
        parts.append(digest(part) if is_sentence else part)
    return SEPARATOR.join(parts)


def safety_note(run: Run) -> str:
    """Return why the safety of a run's model is gone, as its marker says; "" without one."""
    marker = run.path / "model" / SAFETY_REMOVED
    if not marker.is_file():
        return ""
    note = marker.read_text(encoding="utf-8", errors="replace")
    return public_text(note.strip()) or "no reason is given"
