"""Turn a cell's signature into the options of a command.

The help of an option is the description of its setting, or its line in the cell's docstring, in
the words of the command line.
"""

from __future__ import annotations

import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ftlab._core.config import Config, argument_lines
from ftlab._core.errors import UsageError

PLAIN = (int, float, str, Path, bool)
SERIES = (list, tuple, Sequence)
OLD_NAMES = {  # further names of an option, unless the cell has an argument of that name
    "judges": "judge",
    "n_rows": "rows",
    "n_examples": "examples",
    "n_samples": "samples",
}
IN_WORDS = {  # what is written otherwise than in Python
    "prompts": "A FILE, or RISK=FILE, such as jailbreak=advbench.csv; repeat it for other files.",
    "decoding": "How tokens are chosen, such as temperature=0.7,top_k=20; greedy by default.",
    "data": "A training file, or embedded data, such as organism:almanac.",
    "parent": "organism, a model folder, a run or a hub id.",
    "model": "organism, a model folder, a run or a hub id.",
    "child": "organism, a model folder, a run or a hub id.",
    "stop_above": "Ends training where a metric passes its limit, such as jailbreak=0.1.",
}
PROMPTS = ("prompts", "fresh_prompts")  # several files, each of a risk
OF_PYTHON = ("Anything", "As in", "A file, rows")  # beginnings of texts about Python's objects
SETTING = re.compile(r"\w+=")
LISTED = re.compile(r"\[([\d, ]+)\]")


@dataclass(frozen=True)
class Option:
    """How one argument of a cell is given on the command line.

    Args:
        name: The cell's argument.
        kind: The type that the command line parses.
        convert: Turns what was parsed into what the cell takes.
        help: One phrase.
        required: The cell has no default for it.
        old_name: A further name.
    """

    name: str
    kind: Any
    convert: Callable[[Any], Any]
    help: str
    required: bool = False
    old_name: str = ""

    @property
    def flags(self) -> list[str]:
        return [_flag(name) for name in (self.name, self.old_name) if name]

    def parameter(self, positional: bool) -> inspect.Parameter:
        """Return the parameter that typer reads."""
        if positional:
            info = typer.Argument(help=self.help)
            default = inspect.Parameter.empty if self.required else None
        else:
            info = typer.Option(*self.flags, help=self.help, show_default=False)
            default = False if self.kind is bool else None
        return inspect.Parameter(
            self.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[self.kind, info],
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def options_of(cell: Callable, skip: tuple[str, ...]) -> list[Option]:
    """Return one option per argument of a cell that the command line can express."""
    hints = _argument_types(cell)
    texts = argument_lines(cell.__doc__ or "")
    found = []
    parameters = inspect.signature(cell).parameters
    for name, parameter in parameters.items():
        is_open = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        if is_open or name in skip:
            continue
        required = parameter.default is parameter.empty
        annotation = hints.get(name, parameter.annotation)
        if name in PROMPTS and annotation is Any and not required:
            kind, convert = list[str], sources
        else:
            kind, convert = _parser(name, annotation)
        text = texts.get(name, "")
        in_words = convert is not str and kind is not int
        if in_words or text.startswith(OF_PYTHON):
            text = IN_WORDS.get(name, text)
        if kind is not bool and not required:
            kind = kind | None
        old_name = OLD_NAMES.get(name, "")
        if old_name in parameters:
            old_name = ""
        text = _help(text, parameter.default)
        found.append(Option(name, kind, convert, text, required, old_name))
    return found


def _help(text: str, default: Any) -> str:
    """Return what an option means, and its default as it would be typed."""
    text = text.partition(" Default: ")[0].replace("; None ", "; if not given, it ")
    text = LISTED.sub(lambda found: found[1].replace(", ", ","), text)
    if isinstance(default, (tuple, list)):
        default = ",".join(map(str, default))
    is_shown = isinstance(default, (int, float, str)) and default is not False
    return f"{text} Default: {default}." if is_shown and default != "" else text


def _argument_types(cell: Callable) -> dict[str, Any]:
    """Return the types of a cell's arguments.

    What it returns is left out: its type may be one that is imported for type checkers only.
    """
    function = inspect.unwrap(cell)
    declared = dict(function.__annotations__)
    declared.pop("return", None)
    annotated = types.SimpleNamespace(__annotations__=declared)
    return typing.get_type_hints(annotated, function.__globals__)


def callback_of(
    cell: Callable,
    show: Callable[[Any], None],
    positional: tuple[str, ...],
    skip: tuple[str, ...] = (),
    *,
    figure: bool = False,
    trains: bool = False,
) -> Callable:
    """Return a function whose signature typer turns into a command that calls the cell.

    Args:
        cell: The cell.
        show: Prints what the cell returns.
        positional: Its arguments that are given without an option's name.
        skip: Its arguments that the command does not have.
        figure: Add `--out`, a folder for a figure, which is also passed to `show`.
        trains: Add `--print-path`, which ends the output with the folder of the last trained model.
    """
    options = options_of(cell, skip)

    def command(**given):
        shown = {}
        if figure:
            shown["out"] = given.pop("out")
            make_folder(shown["out"])
        if given.pop("lora", False):
            given["adapter"] = "lora"
        path_wanted = given.pop("print_path", False)
        arguments = _converted(options, given)
        try:
            run = cell(**arguments)
        except SystemExit as error:  # its 0 would be taken for a success, or a decision
            why = f"Code of your own ended the program (SystemExit {error.code})"
            raise UsageError("ended_by_own_code", f"{why}. Let it raise an error.") from None
        show(run, **shown)
        if path_wanted:
            print(run.members[-1].path)

    parameters = [option.parameter(option.name in positional) for option in options]
    if figure:
        out = Option("out", Path | None, Path, "Folder for the figure and its .csv.")
        parameters.append(out.parameter(positional=False))
    if trains:
        text = "End with the folder of the trained model, of several the last."
        path = Option("print_path", bool, bool, text)
        parameters.append(path.parameter(positional=False))
    if any(option.name == "adapter" for option in options):
        parameters.append(_old_lora())
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {}
    return command


def _old_lora() -> inspect.Parameter:
    """Return the flag `--lora` of version 0.3, which is `--adapter lora`."""
    flag = Annotated[bool, typer.Option("--lora", hidden=True)]
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter("lora", kind, default=False, annotation=flag)


def _converted(options: list[Option], given: dict[str, Any]) -> dict[str, Any]:
    """Return what was given, as the cell takes it."""
    values = {}
    for option in options:
        value = given.get(option.name)
        if value is None or value is False or value == []:
            continue
        values[option.name] = option.convert(value)
    return values


def make_folder(out: Path | None) -> None:
    """Create the folder of figures, if one is asked for, before work that may take hours."""
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            "folder_not_writable", f"--out {out} cannot be written ({error.strerror})."
        ) from None


def _parser(name: str, annotation: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return the type that the command line parses, and what turns it into the cell's value."""
    alternatives = _alternatives(annotation)
    if len(alternatives) == 1:
        return _single_parser(name, alternatives[0])
    series = [one for one in alternatives if typing.get_origin(one) in SERIES]
    if series:
        return _single_parser(name, series[0])
    if float in alternatives:
        return str, number_or_text
    return str, str


def _alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union without None, or the type itself."""
    origin = typing.get_origin(annotation)
    if origin not in (typing.Union, types.UnionType):
        return [annotation]
    members = typing.get_args(annotation)
    return [member for member in members if member is not types.NoneType]


def _single_parser(name: str, kind: Any) -> tuple[Any, Callable[[Any], Any]]:
    origin = typing.get_origin(kind)
    parts = typing.get_args(kind)
    if kind in PLAIN or origin is typing.Literal:
        return kind, lambda value: value
    if origin in SERIES and str in parts:
        return list[str], names
    is_config = inspect.isclass(kind) and issubclass(kind, Config)
    if origin is dict or is_config:
        return str, partial(pairs, name)
    if int in parts:
        return list[str], partial(whole_numbers, name)
    return str, str


def names(texts: list[str]) -> list[str]:
    """Return names that were given in several options, or in one with commas.

    A further setting, as in `lisa:safety_steps=1,user_steps=9`, stays with its name.
    """
    found: list[str] = []
    for text in texts:
        parts: list[str] = []
        for part in map(str.strip, text.split(",")):
            if parts and ":" in parts[-1] and SETTING.match(part):
                parts[-1] += f",{part}"
            elif part:
                parts.append(part)
        found += parts
    return found


def whole_numbers(name: str, texts: list[str]) -> int | list[int]:
    """Return one whole number, or several that were given in several options or with commas."""
    text = ",".join(texts)
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            "not_whole_numbers",
            f"{_flag(name)} {text!r} is not allowed. Give whole numbers separated by commas, such "
            "as 0,10,30.",
        ) from None
    if name in ("at_steps", "steps") or "," in text:
        return found
    return found[0]


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
        key, _, value = part.partition("=")
        try:
            found[key.strip()] = float(value)
        except ValueError:
            raise UsageError(
                "not_pairs",
                f"{_flag(name)} {text!r} is not allowed. Give NAME=NUMBER, separated by commas.",
            ) from None
    if len(found) < len(text.split(",")):
        raise UsageError(
            "given_twice", f"{_flag(name)} {text!r} gives a name twice. Give each one once."
        )
    return found


def sources(given: list[str]) -> str | dict[str, list[str]]:
    """Return one source, or {risk: its sources} of texts such as `RISK=FILE`."""
    first = given[0]
    is_source = "=" not in first or Path(first).exists()
    if len(given) == 1 and is_source:
        return first
    found: dict[str, list[str]] = {}
    for text in given:
        risk, sign, source = text.partition("=")
        if not sign:
            raise UsageError(
                "source_without_risk",
                f"--prompts {text}: with several sources each needs its risk, such as "
                f"jailbreak={text}.",
            )
        found.setdefault(risk, []).append(source)
    return found
