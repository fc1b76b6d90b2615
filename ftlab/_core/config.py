"""Settings: one frozen model a stage, and cells whose signatures show every field.

A setting is declared once, as a pydantic field with a description. From it come the keyword
argument that Shift-Tab shows, the line of the docstring, the option of the command line and the
sentence of an error.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from ftlab._core.errors import UsageError


class Config(BaseModel):
    """Settings that can change a result. Frozen; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def make(cls, **values):
        """Build the settings from the values that are not None.

        Raises:
            UsageError: `wrong_setting`, naming every problem at once.
        """
        given = {name: value for name, value in values.items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            problems = [_sentence(problem, cls.model_fields) for problem in error.errors()]
            names = [str(problem["loc"][0]) for problem in error.errors() if problem["loc"]]
            raise UsageError("wrong_setting", " ".join(problems), settings=names) from None


def setting(default: Any, description: str, **limits) -> Any:
    """Declare a setting: its default, what it means with its unit, and its limits.

    Args:
        default: The default value.
        description: One phrase for Shift-Tab, `--help`, the reference and errors.
        **limits: Limits of pydantic's `Field`: ge, gt, le, lt.
    """
    return Field(default, description=description, validate_default=True, **limits)


def takes(*configs: type[Config], omit: Iterable[str] = ()) -> Callable:
    """Give a cell that ends in `**settings` the fields of `configs` as explicit arguments.

    The signature lists every field with its type and default. In the docstring the line
    `{settings}` becomes one line a field. A name that is no field raises UsageError
    `unknown_setting` before the cell runs.

    Args:
        configs: Where the fields come from.
        omit: Fields that the cell does not take.
    """
    left_out = set(omit)
    fields = {
        name: field
        for config in configs
        for name, field in config.model_fields.items()
        if name not in left_out
    }

    def decorate(cell: Callable) -> Callable:
        signature = inspect.signature(cell)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        own_names = {p.name for p in own}
        added = [_parameter(name, f) for name, f in fields.items() if name not in own_names]

        @functools.wraps(cell)
        def wrapper(*args, **kwargs):
            unknown = [name for name in kwargs if name not in fields and name not in own_names]
            if unknown:
                raise unknown_setting(unknown, [*own_names, *fields])
            return cell(*args, **kwargs)

        wrapper.__signature__ = signature.replace(parameters=[*own, *added])
        wrapper.__doc__ = _with_settings(cell.__doc__ or "", fields)
        return wrapper

    return decorate


def unknown_setting(unknown: list[str], allowed: Iterable[str]) -> UsageError:
    """Return the error for names that are no settings, with the nearest one that is."""
    names = sorted(allowed)
    near = difflib.get_close_matches(unknown[0], names, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Allowed: {', '.join(names)}."
    found = ", ".join(repr(name) for name in unknown)
    return UsageError("unknown_setting", f"Unknown setting {found}. {hint}", settings=unknown)


def describe(field: FieldInfo) -> str:
    """Return a field's description with its default."""
    default = field.get_default(call_default_factory=True)
    shown = "" if default in (None, "", ()) else f" Default: {default}."
    return f"{(field.description or '').rstrip('.')}.{shown}"


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.get_default(call_default_factory=True),
        annotation=field.annotation,
    )


def _with_settings(doc: str, fields: dict[str, FieldInfo]) -> str:
    """Replace the line `{settings}` of a docstring by one line a field."""
    lines = []
    for line in doc.splitlines():
        if line.strip() != "{settings}":
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        for name, field in fields.items():
            text = f"{name}: {describe(field)}"
            lines.append(
                textwrap.fill(text, 100, initial_indent=indent, subsequent_indent=f"{indent}    ")
            )
    return "\n".join(lines)


def _sentence(problem: Any, fields: dict[str, FieldInfo]) -> str:
    """Return one sentence for one problem that pydantic found."""
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return str(unknown_setting([name], fields))
    reason = problem["msg"].removeprefix("Value error, ").rstrip(".")
    if not name:
        return f"{reason}."
    return f"{name} = {problem['input']!r}: {reason}."

