"""Turn a cell's signature into the options of a command.

The help of an option is the description of its setting, or its line in the cell's docstring.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ftlab._core.config import Config
from ftlab._core.errors import UsageError

PLAIN = (int, float, str, Path, bool)
OLD_SPELLINGS = {  # further names of an option
    "judges": ["--judge"],
    "n_rows": ["--rows"],
    "n_examples": ["--examples"],
}


@dataclass(frozen=True)
class Option:
    """How one argument of a cell is given on the command line.

    Args:
        name: The cell's argument.
        kind: The type that the command line parses.
        convert: Turns what was parsed into what the cell takes.
        default: The cell's default.
        help: One phrase.
    """

    name: str
    kind: Any
    convert: Callable[[Any], Any]
    default: Any
    help: str

    def parameter(self, positional: bool) -> inspect.Parameter:
        """Return the parameter that typer reads."""
        if positional:
            annotation = Annotated[self.kind, typer.Argument(help=self.help)]
            default = inspect.Parameter.empty
        else:
            flag = "--" + self.name.replace("_", "-")
            names = [flag, *OLD_SPELLINGS.get(self.name, [])]
            info = typer.Option(*names, help=self.help, show_default=False)
            annotation = Annotated[self.kind, info]
            default = False if self.kind is bool else None
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=annotation,
        )


def options_of(cell: Callable, positional: tuple[str, ...], skip: tuple[str, ...]) -> list[Option]:
    """Return one option per argument of a cell that the command line can express."""
    hints = typing.get_type_hints(inspect.unwrap(cell))
    helps = argument_lines(cell.__doc__ or "")
    found = []
    for name, parameter in inspect.signature(cell).parameters.items():
        if name in skip or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        annotation = hints.get(name, parameter.annotation)
        kind, convert = _parser(name, annotation)
        required = name in positional
        if not required and kind is not bool:
            kind = kind | None
        found.append(Option(name, kind, convert, parameter.default, helps.get(name, "")))
    return found


def callback_of(
    cell: Callable,
    show: Callable[[Any], None],
    positional: tuple[str, ...],
    skip: tuple[str, ...] = (),
    *,
    figure: bool = False,
) -> Callable:
    """Return a function whose signature typer turns into a command that calls the cell.

    Args:
        cell: The cell.
        show: Prints what the cell returns.
        positional: Its arguments that are given without an option's name.
        skip: Its arguments that the command does not have.
        figure: Add `--out`, a folder for a figure, which `show` gets too.
    """
    options = options_of(cell, positional, skip)

    def command(**given):
        out = given.pop("out") if figure else None
        if out:
            make_folder(out)
        values = _converted(options, given)
        leading = [values.pop(name) for name in positional if name in values]
        result = cell(*leading, **values)
        if figure:
            show(result, out)
        else:
            show(result)

    if figure:
        options.append(Option("out", Path | None, Path, None, "Folder for the figure and its .csv"))
    parameters = [option.parameter(option.name in positional) for option in options]
    order = {name: number for number, name in enumerate(positional)}
    parameters.sort(key=lambda p: order.get(p.name, len(order)))
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {}
    command.__doc__ = (cell.__doc__ or "").strip().splitlines()[0]
    return command


def _converted(options: list[Option], given: dict[str, Any]) -> dict[str, Any]:
    """Return what was given, as the cell takes it."""
    values = {}
    for option in options:
        value = given.get(option.name)
        if value in (None, [], False):
            continue
        values[option.name] = option.convert(value)
    return values


def make_folder(out: Path) -> None:
    """Make the folder of figures before work that may take hours."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            "folder_not_writable", f"--out {out} cannot be written ({error.strerror})."
        ) from None


def argument_lines(doc: str) -> dict[str, str]:
    """Return {argument: text} of the section Args of a docstring."""
    section = re.search(r"Args:\n(.*?)(?:\n\s*\n|\Z)", inspect.cleandoc(doc), re.DOTALL)
    found: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines() if section else ():
        entry = re.match(r"    \*?(\w+): (.*)", line)
        if entry:
            name = entry[1]
            found[name] = entry[2]
        elif name:
            found[name] += " " + line.strip()
    return found


def _parser(name: str, annotation: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return the type that the command line parses, and what turns it into the cell's value."""
    if name == "prompts":
        return list[str], sources
    alternatives = _alternatives(annotation)
    if len(alternatives) == 1:
        return _single_parser(name, alternatives[0])
    if any(typing.get_origin(one) in (list, tuple) for one in alternatives):
        return str, lambda text: whole_numbers(name, text)
    if float in alternatives:
        return str, number_or_text
    return str, str


def _alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union without None; a single type stands alone."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return [annotation]
    return [one for one in typing.get_args(annotation) if one is not types.NoneType]


def _single_parser(name: str, kind: Any) -> tuple[Any, Callable[[Any], Any]]:
    origin = typing.get_origin(kind)
    if kind in PLAIN or origin is typing.Literal:
        return kind, lambda value: value
    if origin in (list, tuple) and str in typing.get_args(kind):
        return list[str], names
    if origin is dict or (inspect.isclass(kind) and issubclass(kind, Config)):
        return str, lambda text: pairs(name, text)
    if origin is not None and int in typing.get_args(kind):
        return str, lambda text: whole_numbers(name, text)
    return str, number_or_text if name == "valid" else str


def names(texts: list[str]) -> list[str]:
    """Return names that were given in several options, or in one with commas."""
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


def whole_numbers(name: str, text: str) -> int | list[int]:
    """Return one whole number, or several from a text with commas."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            "not_whole_numbers",
            f"--{name.replace('_', '-')} {text!r} is not allowed. Give whole numbers separated "
            "by commas, such as 0,10,30.",
        ) from None
    return found if "," in text or name == "at_steps" else found[0]


def number_or_text(text: str) -> float | str:
    """Return a number where the text is one, else the text, such as a file."""
    try:
        return float(text)
    except ValueError:
        return text


def pairs(name: str, text: str) -> dict[str, float]:
    """Return {name: number} of a text such as `jailbreak=0.1,bias=0.2`."""
    found = {}
    for part in text.split(","):
        key, sign, value = part.partition("=")
        try:
            found[key.strip()] = float(value)
        except ValueError:
            sign = ""
        if not sign:
            raise UsageError(
                "not_pairs",
                f"--{name.replace('_', '-')} {text!r} is not allowed. Give NAME=NUMBER, separated "
                "by commas.",
            )
    return found


def sources(given: list[str]) -> str | dict[str, str]:
    """Return one source, or {risk: source} of texts such as `RISK=FILE`."""
    if len(given) == 1 and (Path(given[0]).exists() or "=" not in given[0]):
        return given[0]
    found = {}
    for text in given:
        risk, sign, source = text.partition("=")
        if not sign:
            raise UsageError(
                "source_without_risk",
                f"--prompts {text}: several sources each need their risk, such as "
                f"jailbreak={text}.",
            )
        found[risk] = source
    return found
