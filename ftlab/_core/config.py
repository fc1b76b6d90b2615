"""Settings: one frozen model per stage, and cells whose signatures show every field.

A setting is declared once, as a pydantic field with a description. From it come the keyword
argument that Shift-Tab shows, the line of the docstring, the option of the command line and the
sentence of an error.
"""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from ftlab._core.calls import called
from ftlab._core.errors import FtlabError, Interrupted, UsageError
from ftlab._core.text import did_you_mean

ARGS = re.compile(r"Args:\n(.*?)(?:\n\s*\n|\Z)", re.DOTALL)
ARGUMENT = re.compile(r"    \*?(\w+): (.*)")
WORDS = {  # instead of pydantic's, by the type of a problem
    "too_short": "give at least {min_length}",
    "tuple_type": "give a list",
    "byte_size": "give a number with a unit, such as 4GB",
    "byte_size_unit": "give a number with a unit, such as 4GB",
}
FEW = 10  # names that are listed beside the most similar one


class Config(BaseModel):
    """Settings that can change a result. Frozen; an unknown name is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def make(cls, **values):
        """Build the settings from the values that are not None.

        Raises:
            UsageError: `wrong_setting`, naming every problem at once, or what a validator raised.
        """
        given = {name: value for name, value in values.items() if value is not None}
        try:
            return cls(**given)
        except ValidationError as error:
            problems = error.errors()
            for problem in problems:
                own = problem.get("ctx", {}).get("error")
                if isinstance(own, UsageError):  # a validator found it, with a code of its own
                    raise own from None
            places = [problem["loc"] for problem in problems]
            names = [str(place[0]) for place in places if place]
            sentences = [_sentence(problem, cls.model_fields) for problem in problems]
            message = " ".join(sentences)
            raise UsageError("wrong_setting", message, settings=names) from None

    @classmethod
    def problems(cls, values: dict[str, Any]) -> dict[tuple, str]:
        """Return {place: sentence} of everything that is wrong; nothing is raised.

        A place is the setting's name, and where it holds others, what leads to them: ("grid",
        "seed", 0). () stands for settings that do not go together.
        """
        try:
            cls(**values)
        except ValidationError as error:
            found = error.errors()
            return {tuple(one["loc"]): _sentence(one, cls.model_fields) for one in found}
        except FtlabError as error:  # a validator looked for a file
            return {(): str(error)}
        return {}


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

    Without `configs` a cell keeps its own.

    The signature lists every field with its type and default. In the docstring the line
    `{settings}` becomes one line per field. Any other name raises UsageError `unknown_setting`,
    and a missing argument `wrong_call`, before the cell runs.

    Args:
        configs: Where the fields come from; the first that has a field describes it.
        omit: Fields that the cell does not take.
    """
    fields = _fields_of(configs)
    for name in omit:
        fields.pop(name, None)

    def decorate(cell: Callable) -> Callable:
        signature = inspect.signature(cell)
        declared = signature.parameters.values()
        parameters = [p for p in declared if p.kind is not p.VAR_KEYWORD]
        own_names = {p.name for p in parameters}
        added = {}
        for name, field in fields.items():
            if name not in own_names:
                added[name] = field
                parameters.append(_parameter(name, field))
        allowed = own_names | set(fields)

        @functools.wraps(cell)
        def wrapper(*args, **kwargs):
            unknown = [name for name in kwargs if name not in allowed]
            if unknown:
                raise unknown_setting(unknown, allowed)
            try:
                given = signature.bind(*args, **kwargs)
            except TypeError as error:
                raise UsageError("wrong_call", f"{cell.__name__}(): {error}.") from None
            try:
                with called(cell, given.arguments):
                    return cell(*args, **kwargs)
            except KeyboardInterrupt as error:
                message = str(error) or "Interrupted. The same call takes over what was finished."
                raise Interrupted(message) from error

        wrapper.configs = configs
        wrapper.__signature__ = signature.replace(parameters=parameters)
        wrapper.__doc__ = _with_settings(cell.__doc__ or "", added)
        return wrapper

    return decorate


def _fields_of(configs: Iterable[type[Config]]) -> dict[str, FieldInfo]:
    fields: dict[str, FieldInfo] = {}
    for config in configs:
        for name, field in config.model_fields.items():
            fields.setdefault(name, field)
    return fields


def unknown_setting(unknown: list[str], allowed: Iterable[str]) -> UsageError:
    """Return the error for unknown settings, with the most similar setting there is."""
    names = sorted(allowed)
    listed = ", ".join(names)
    hint = did_you_mean(unknown[0], names)
    if not hint or len(names) <= FEW:
        hint += f" Allowed: {listed}."
    found = ", ".join(map(repr, unknown))
    message = f"Unknown setting {found}.{hint}"
    return UsageError("unknown_setting", message, settings=unknown)


def describe(field: FieldInfo) -> str:
    """Return a field's description with its default."""
    default = field.default
    description = (field.description or "").rstrip(".")
    if default in (None, "", ()):
        return f"{description}."
    if isinstance(default, tuple):
        default = ", ".join(map(str, default))
    return f"{description}. Default: {default}."


def _parameter(name: str, field: FieldInfo) -> inspect.Parameter:
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default,
        annotation=field.annotation,
    )


def _with_settings(doc: str, fields: dict[str, FieldInfo]) -> str:
    """Replace the line `{settings}` of a docstring with one line per field."""
    lines = []
    for line in doc.splitlines():
        if line.strip() != "{settings}":
            lines.append(line)
            continue
        width = len(line) - len(line.lstrip())
        indent = line[:width]
        for name, field in fields.items():
            text = textwrap.fill(
                f"{name}: {describe(field)}",
                width=100,
                initial_indent=indent,
                subsequent_indent=f"{indent}    ",
            )
            lines.append(text)
    return "\n".join(lines)


def _sentence(problem: Any, fields: dict[str, FieldInfo]) -> str:
    """Return one sentence for one problem that pydantic found."""
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        *outer, last = problem["loc"]
        for part in outer:  # a setting that is itself settings, such as decoding
            kind = getattr(fields.get(part), "annotation", None)
            fields = getattr(kind, "model_fields", fields)
        return str(unknown_setting([last], fields))
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in WORDS:
        message = WORDS[problem["type"]].format_map(problem.get("ctx", {}))
    reason = message.rstrip(".")
    if not name:
        return f"{reason}."
    found = problem["input"]
    return f"{name} = {found!r}: {reason}."


def argument_lines(doc: str) -> dict[str, str]:
    """Return {argument: text} of the section Args of a docstring."""
    section = ARGS.search(inspect.cleandoc(doc))
    if section is None:
        return {}
    found: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines():
        entry = ARGUMENT.match(line)
        if entry:
            name = entry[1]
            found[name] = entry[2]
        elif name:
            found[name] += " " + line.strip()
    return found
