"""Finds extensions by their place: one file in a folder, or a third party's entry point.

A built-in extension is a module in one of the folders below; its file name is its name, and a
leading underscore keeps a file out. A third party declares an entry point in the group
`ftlab.<place>`, such as

    [project.entry-points."ftlab.risks"]
    flattery = "my_package.flattery:RISK"

No list of names is kept anywhere.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib import import_module, metadata, util
from pathlib import Path
from typing import Any

from ftlab._core.errors import UsageError
from ftlab._core.text import did_you_mean

PLACES = {  # place: (package, attribute of a module that holds the extension)
    "risks": ("ftlab.evals.risks", "RISK"),
    "attacks": ("ftlab.evals.attacks", "ATTACK"),
    "judges": ("ftlab.judges", "JUDGE"),
    "engines": ("ftlab.models.engines", "ENGINE"),
    "methods": ("ftlab.training.methods", "METHOD"),
    "defences": ("ftlab.training.defences", "DEFENCE"),
    "transforms": ("ftlab.training.transforms", "TRANSFORM"),
    "backends": ("ftlab.experiments.backends", "BACKEND"),
    "panels": ("ftlab.ui.panels", "PANEL"),
    "logs": ("ftlab.evals.logs", "LOG"),
    "lessons": ("ftlab.course.lessons", "LESSON"),
    "trackers": ("ftlab.analysis.trackers", "TRACKER"),
}
LAST = 100  # place in the order of an extension that declares none


def names(place: str) -> list[str]:
    """Return the names of all extensions in a place, built-in ones first, without loading them.

    A folder may hold other modules too: only files that assign the place's attribute count.
    """
    package, attribute = PLACES[place]
    third_party = sorted(_third_party(place))
    return [*_built_in(package, attribute), *third_party]


def get(place: str, name: str) -> Any:
    """Return one extension.

    Args:
        place: A key of `PLACES`.
        name: The extension's name.

    Raises:
        UsageError: `unknown_<place>` where there is no extension of that name.
    """
    package, attribute = PLACES[place]
    name = str(name)
    built_in = _built_in(package, attribute)
    if name in built_in:
        module = import_module(f"{package}.{name}")
        return getattr(module, attribute)
    third_party = _third_party(place)
    if name in third_party:
        return third_party[name].load()
    kind = place.removesuffix("s")
    allowed = ", ".join(names(place)) or "none is installed"
    code = f"unknown_{kind}"
    hint = did_you_mean(name, names(place))
    message = f"Unknown {kind} {name!r}.{hint} Allowed: {allowed}."
    raise UsageError(code, message)


def configured(place: str, text: str) -> Any:
    """Return an object of a place whose extensions are classes of settings.

    Args:
        place: A key of `PLACES`.
        text: `name` or `name:setting=value,setting=value`.

    Raises:
        UsageError: `unknown_<place>`, `<place>_settings`, `wrong_setting`.
    """
    name, _, rest = text.partition(":")
    extension = get(place, name)
    settings = {}
    for part in filter(None, rest.split(",")):
        key, sign, value = part.partition("=")
        if not sign:
            kind = place.removesuffix("s")
            raise UsageError(
                f"{kind}_settings",
                f"The {kind} {name}: {part!r} is not SETTING=VALUE. Write them as in "
                f"{name}:SETTING=VALUE, or give an object.",
            )
        settings[key.strip()] = value.strip()
    return extension.make(**settings)


def find(place: str) -> dict[str, Any]:
    """Return all extensions of a place by name.

    They are ordered by their attribute `order` where they have one, then by name.
    """
    found = [(name, get(place, name)) for name in sorted(names(place))]
    found.sort(key=_order)
    return dict(found)


def _order(named: tuple[str, Any]) -> int:
    _, extension = named
    return getattr(extension, "order", LAST)


@cache
def _built_in(package: str, attribute: str) -> tuple[str, ...]:
    """Return the modules of a package that assign the attribute, without importing them."""
    spec = util.find_spec(package)
    if spec is None:
        return ()
    found = []
    for folder in spec.submodule_search_locations or ():
        for file in Path(folder).glob("[!_]*.py"):
            source = file.read_text(encoding="utf-8")
            if f"\n{attribute} = " in source:
                found.append(file.stem)
    return tuple(sorted(found))


def _third_party(place: str) -> dict[str, metadata.EntryPoint]:
    """Return entry points by name; the search is repeated only when the import path changed."""
    path = tuple(sys.path)
    return _entry_points(f"ftlab.{place}", path)


@cache
def _entry_points(group: str, _path: tuple[str, ...]) -> dict[str, metadata.EntryPoint]:
    points = metadata.entry_points(group=group)
    return {point.name: point for point in points}
