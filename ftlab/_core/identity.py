"""Tell two identities apart, field by field."""

from __future__ import annotations

import json
from typing import Any

from ftlab._core.errors import UsageError


def refuse_other(what: str, there: dict[str, Any], here: dict[str, Any]) -> None:
    """Raise UsageError `other_training`, naming every field in which two identities differ.

    Args:
        what: The folder that was found.
        there: Its identity.
        here: The identity of this call.
    """
    found = flat(there)
    called = flat(json.loads(json.dumps(here)))  # as written: lists instead of tuples
    differing = []
    shown = []
    for name in sorted(found.keys() | called.keys()):
        there_value = found.get(name)
        here_value = called.get(name)
        if there_value != here_value:
            differing.append(name)
            shown.append(f"{name} = {there_value!r} (here {here_value!r})")
    if differing:
        fields = ", ".join(shown)
        raise UsageError(
            "other_training",
            f"{what} belongs to another call: {fields}. Move that folder away to start again.",
            fields=differing,
        )


def flat(nested: dict[str, Any], head: str = "") -> dict[str, Any]:
    """Return nested dictionaries as {"a.b": value}."""
    found = {}
    for name, value in nested.items():
        path = f"{head}{name}"
        if isinstance(value, dict):
            found |= flat(value, f"{path}.")
        else:
            found[path] = value
    return found
