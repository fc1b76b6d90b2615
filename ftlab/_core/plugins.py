"""Finds extensions by their place: one file in a folder, or a third party's entry point.

A built-in extension is a module in one of the folders below; its file name is its name, and a
leading underscore keeps a file out. A third party declares an entry point in the group
`ftlab.<place>`, such as

    [project.entry-points."ftlab.risks"]
    flattery = "my_package.flattery:RISK"

No list of names is kept anywhere.
"""

from __future__ import annotations

import pkgutil
import sys
from functools import cache
from importlib import import_module, metadata, util
from typing import Any

from ftlab._core.errors import UsageError

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
}


LAST = 100  # place in the order of an extension that declares none


def names(place: str) -> list[str]:
    """Return the names of all extensions in a place, built-in ones first, without loading them.

    In the room `judges`, whose folder also holds other modules, only files that define the
    place's attribute count.
    """
    package, attribute = PLACES[place]
    return [*_built_in(package, attribute), *sorted(_third_party(place))]


def get(place: str, name: str) -> Any:
    """Return one extension.

    Args:
        place: A key of `PLACES`.
        name: The extension's name.

    Raises:
        UsageError: `unknown_<place>` where there is no extension of that name.
    """
    package, attribute = PLACES[place]
    if name in _built_in(package, attribute):
        return getattr(import_module(f"{package}.{name}"), attribute)
    third_party = _third_party(place)
    if name in third_party:
        return third_party[name].load()
    kind = place.removesuffix("s")
    allowed = ", ".join(names(place)) or "none is installed"
    raise UsageError(f"unknown_{kind}", f"Unknown {kind} {name!r}. Allowed: {allowed}.")


def find(place: str) -> dict[str, Any]:
    """Return all extensions of a place by name.

    They are ordered by their attribute `order` where they have one, then by name.
    """
    found = {name: get(place, name) for name in names(place)}
    ordered = sorted(found, key=lambda name: (_order(found[name]), name))
    return {name: found[name] for name in ordered}


def _order(extension: Any) -> int:
    return getattr(extension, "order", LAST)


@cache
def _built_in(package: str, attribute: str) -> tuple[str, ...]:
    folder = util.find_spec(package)
    if folder is None or folder.submodule_search_locations is None:
        return ()
    found = []
    for module in pkgutil.iter_modules(folder.submodule_search_locations):
        public = not module.name.startswith("_")
        if public and _defines(f"{package}.{module.name}", attribute):
            found.append(module.name)
    return tuple(sorted(found))


def _defines(module: str, attribute: str) -> bool:
    """Whether a module assigns the attribute at its top level, read without importing it."""
    spec = util.find_spec(module)
    if spec is None or spec.loader is None:
        return False
    source = spec.loader.get_source(module) or ""
    start = f"{attribute} = "
    return any(line.startswith(start) for line in source.splitlines())


def _third_party(place: str) -> dict[str, metadata.EntryPoint]:
    """Return entry points by name; the search is repeated only when the import path changed."""
    return _entry_points(f"ftlab.{place}", tuple(sys.path))


@cache
def _entry_points(group: str, _path: tuple[str, ...]) -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=group)}
