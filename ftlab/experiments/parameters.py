"""Parameters of notebooks: an unknown name or a value of a wrong type is an error."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ftlab._core.errors import NotFoundError, UsageError
from ftlab._core.text import did_you_mean, redacted

TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (float, int),
    "str": (str,),
    "bool": (bool,),
    "list": (list, tuple),
    "dict": (dict,),
}
ANY = (object, bool)


@dataclass(frozen=True)
class Parameter:
    """A parameter of a notebook: the code of its type and default, and its comment."""

    name: str
    annotation: str
    default: str
    help: str


def check_parameters(notebook: str | Path, parameters: dict[str, Any]) -> None:
    """Check that a notebook has these parameters, with values of these types. Starts no kernel.

    Args:
        notebook: A local .ipynb file.
        parameters: Values by name.

    Raises:
        NotFoundError: `no_such_notebook`.
        UsageError: `wrong_parameters` with every problem, `secret_in_parameter`.
    """
    if not isinstance(parameters, dict):
        raise UsageError("wrong_parameters", f"{parameters!r} is not a dict of parameters.")
    check_secrets(parameters)
    known = known_parameters(notebook)
    problems = []
    for name, value in parameters.items():
        problem = parameter_problem(name, value, known)
        if problem:
            problems.append(problem)
    if problems:
        lines = [f"\n  {p.name}: {p.annotation} = {p.default}  {p.help}" for p in known.values()]
        allowed = "".join(lines) or " none"
        raise UsageError(
            "wrong_parameters",
            f"{Path(notebook).name}: {'; '.join(problems)}. Allowed parameters:{allowed}",
            problems=problems,
        )


def known_parameters(notebook: str | Path) -> dict[str, Parameter]:
    """Return the parameters of a notebook: the assignments of its cell tagged `parameters`.

    papermill's own reader misses lines with "=" in their value or comment.
    """
    import nbformat

    path = Path(str(notebook))
    if path.suffix != ".ipynb" or not path.is_file():
        raise NotFoundError(
            "no_such_notebook", f"No notebook {notebook}. Give the path of a local .ipynb file."
        )
    for cell in nbformat.read(path, 4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            found = _assignments(cell.source)
            return {parameter.name: parameter for parameter in found}
    return {}


def _assignments(source: str) -> Iterator[Parameter]:
    lines = source.splitlines()
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise UsageError(
            "parameters_not_python",
            f"Line {error.lineno} of the parameters cell is not Python ({error.msg}). Keep plain "
            "assignments there.",
        ) from None
    for node in tree.body:
        if isinstance(node, ast.AnnAssign):
            target, annotation = node.target, ast.unparse(node.annotation)
        elif isinstance(node, ast.Assign):
            target, annotation = node.targets[0], ""
        else:
            continue
        if not isinstance(target, ast.Name):
            continue
        comment = lines[node.end_lineno - 1][node.end_col_offset :]
        text = comment.strip().removeprefix("#").strip()
        if not annotation and text.startswith("type:"):
            annotation, _, text = text.removeprefix("type:").strip().partition(" ")
        yield Parameter(
            target.id,
            annotation,
            ast.unparse(node.value),
            text,
        )


def default_parameters(notebook: str | Path) -> dict[str, Any]:
    """Return the value of each parameter of a notebook where none is given."""
    import nbformat

    found = {}
    for cell in nbformat.read(Path(notebook), 4).cells:
        if "parameters" in cell.metadata.get("tags", []):
            for line in ast.parse(cell.source).body:
                if isinstance(line, ast.AnnAssign):
                    found[line.target.id] = ast.literal_eval(line.value)
    return found


def parameter_problem(name: str, value: Any, known: dict[str, Parameter]) -> str:
    """Return what is wrong with a value of a notebook's parameter, or ""."""
    if name not in known:
        return f"unknown parameter {name!r}.{did_you_mean(name, known)}".removesuffix(".")
    annotation = known[name].annotation
    allowed = TYPES.get(annotation.split("[")[0].strip(), ANY)
    is_flag = isinstance(value, bool) and bool not in allowed
    if is_flag or not isinstance(value, allowed):
        return f"{name} = {value!r} is {type(value).__name__}, not {annotation}"
    return ""


def check_secrets(parameters: dict[str, Any]) -> None:
    """Raise UsageError `secret_in_parameter` where a value holds a token or a password."""
    held = [name for name, value in parameters.items() if redacted(str(value)) != str(value)]
    if held:
        names = ", ".join(redacted(name) for name in held)
        raise UsageError(
            "secret_in_parameter",
            f"Parameter {names} holds a token or a password, which the executed notebook would "
            "show. Set HF_TOKEN or OPENAI_API_KEY in the environment instead.",
        )


def parse_parameters(pairs: list[str]) -> dict[str, Any]:
    """Return {name: value} of texts such as `seeds=2`; values are read as YAML.

    Raises:
        UsageError: `not_a_parameter`, `given_twice`.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign:
            raise UsageError(
                "not_a_parameter", f"Parameter {pair!r} is not NAME=VALUE, such as seeds=2."
            )
        if name in found:
            raise UsageError("given_twice", f"Parameter {name!r} is given twice. Give it once.")
        found[name] = _value(name, text)
    return found


def _value(name: str, text: str) -> Any:
    """Return a value from its YAML text. No text is the empty string, and 5e-4 is a number."""
    import yaml

    if not text:
        return ""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UsageError(
            "not_a_parameter",
            f"Parameter {name} = {text!r} cannot be read. Give a number, a word or a list.",
        ) from None
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value
