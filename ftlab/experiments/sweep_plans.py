"""The plan of a sweep: one cell or notebook, its arguments, and what is crossed.

A plan is checked before anything runs: every problem at once, with its line.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ByteSize, Field, model_validator

from ftlab._core import plugins
from ftlab._core.config import Config, setting, unknown_setting
from ftlab._core.errors import FtlabError, NotFoundError, UsageError
from ftlab._core.files import digest, file_hash
from ftlab._core.text import did_you_mean, safe
from ftlab.analysis import NO_DEFENCE
from ftlab.data import ENDINGS, check_source, first_lines
from ftlab.evals.attacks import open_attack
from ftlab.experiments.backends import Needs
from ftlab.experiments.notebooks import find_notebook
from ftlab.experiments.parameters import check_secrets, known_parameters, parameter_problem
from ftlab.judges import open_judge
from ftlab.models import check_reference
from ftlab.training import check_length, open_defence

ROOMS = ("training", "evals", "experiments")  # of the cells that a plan may name
OF_JOBS = ("cell", "notebook", "arguments", "grid", "jobs")  # fields without which there are none
OURSELVES = ("sweep",)  # no cells of a sweep
MOST_JOBS = 10_000
MOST_CHARACTERS = 40  # of a value in a job's name
MOST_OF_A_PATH = 1000  # characters
MOST_PLACES = 300_000  # in a plan, aliases of YAML written out
# Arguments of ftlab's cells that name data or models:
DATA = "data pairs benign harmful safe planted clean covert identity valid".split()
MODELS = "parent model child teacher children".split()
CHECKS = dict.fromkeys(DATA, check_source) | dict.fromkeys(MODELS, check_reference)
OPENS = {  # and those that name extensions
    "risks": partial(plugins.get, "risks"),
    "attacks": open_attack,
    "judges": open_judge,
    "defences": open_defence,
}
NUMBERS = {"int", "float", "None", "list", "Sequence"}
OF_PROMPTS = ("prompts", "fresh_prompts")  # a file, or files by risk; lists may be of questions
OUTPUTS = ("out", "output", "html", "json", "csv")  # arguments that name what a job writes
OF_MODELS = ("config.json", "adapter_config.json")  # one of them is in a model's folder
Place = tuple[str | int, ...]  # where something is in the plan, such as ("grid", "seed", 0)
Values = Annotated[list[Any], Field(min_length=1)]
Named = dict[str, Any]
Source = str | Path | Named | None  # of a plan
Problem = tuple[int, str]  # a line, or 0, and a sentence


class Plan(Config):
    """What a sweep is to do."""

    cell: str | None = setting(
        None,
        "The cell that every job calls: sft, dpo, evaluate, risk_curve, grid, ..., or a function "
        "of your own as MODULE:FUNCTION",
    )
    notebook: str | None = setting(
        None, "Or the notebook that every job runs: a file, or a shipped one, such as 02_risk_ratio"
    )
    arguments: Named | None = setting(None, "Arguments that all jobs share")
    grid: dict[str, Values] | None = setting(
        None, "Values of further arguments, crossed: {'seed': [0, 1, 2], 'epochs': [1, 3]}"
    )
    jobs: Annotated[list[Named], Field(min_length=1)] | None = setting(
        None, "Rows of further arguments, each crossed with the grid"
    )
    name: str = setting("", "Name of the sweep's folder; by default the cell's or notebook's")
    retries: int = setting(
        2,
        "Attempts after the first, where the process was killed or memory or a file failed",
        ge=0,
        le=100,
    )
    cpus: int = setting(1, "Cores of a job", ge=1)
    memory: ByteSize | None = setting(None, "Memory of a job, such as 4GB", ge=2**20)
    estimate_memory: bool = setting(
        False, "Take the memory of a job from ftlab.models.estimate_memory, of its parent or model"
    )
    gpus: int | None = setting(
        None,
        "Accelerators of a job; None: one of this machine's, if it has any, and none elsewhere",
        ge=0,
    )
    backends: dict[str, Named] | None = setting(
        None, "Settings of backends: {'slurm': {'time': '01:00:00'}}"
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> Plan:
        if (self.cell is None) == (self.notebook is None):
            raise ValueError("A plan has a `cell` or a `notebook`, one of them")
        if self.estimate_memory and (self.memory or self.gpus):
            raise ValueError("`estimate_memory` goes without `memory`, and on no accelerator")
        return self

    @property
    def needs(self) -> Needs:
        """What each job takes of a machine."""
        memory = None if self.memory is None else int(self.memory)
        return Needs(self.cpus, memory, self.gpus)


@dataclass
class Problems:
    """What is wrong with a plan, by its place."""

    lines: dict[Place, int] = field(default_factory=dict)  # {} where the plan is no file
    found: set[Problem] = field(default_factory=set)

    def add(self, place: Place, sentence: str) -> None:
        """Note a problem once, at the nearest place that has a line."""
        while place and place not in self.lines:
            place = place[:-1]
        line = self.lines.get(place, 0)
        self.found.add((line, sentence))

    def refuse(self, name: str) -> None:
        """Raise UsageError `wrong_plan` with every problem, if there is one."""
        if not self.found:
            return
        sentences = []
        for line, sentence in sorted(self.found):
            start = f"line {line}: " if line else ""
            sentences.append(start + sentence)
        message = "\n".join([f"{name} cannot be used:", *first_lines(sentences)])
        raise UsageError("wrong_plan", message, problems=sentences)


class PlanLoader(yaml.SafeLoader):
    """YAML in which 5e-4 is a number, and 12:00:00 is none."""


SIXTIES = re.compile(r"[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?$")  # 12:00:00 is a text, not 43200
PlanLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("+-0123456789")
)
for first in "+-0123456789":
    PlanLoader.yaml_implicit_resolvers[first].insert(0, ("tag:yaml.org,2002:str", SIXTIES))


@dataclass(frozen=True)
class Resolved:
    """A checked plan.

    Args:
        plan: As it was given.
        name: Of the sweep.
        directory: From which relative names start: the plan's folder, or the working directory.
        jobs: Of each name, cell, notebook, arguments, varied and files.
    """

    plan: Plan
    name: str
    directory: Path
    jobs: list[Named]


def resolve(source: Source, settings: Named, *, imports: bool = True) -> Resolved:
    """Return a checked plan.

    Args:
        source: A YAML file, its content as a dict, or None.
        settings: Fields of `Plan`, which replace those of the file.
        imports: Whether to import the module of a function of one's own and check the arguments
            against it, and whether what ftlab's cells are to read is there. The jobs are the same
            without.

    Raises:
        NotFoundError: `no_such_plan`.
        UsageError: `wrong_plan` with every problem, with their lines if the plan is a file;
            `secret_in_parameter`.
    """
    problems = Problems()
    content: Any = source or {}
    shown = "The plan"
    directory = Path.cwd()
    if isinstance(source, (str, Path)):
        path = Path(source).absolute()
        content = _content(path, problems)
        shown = safe(source, 200)
        directory = path.parent
    if not isinstance(content, dict):
        problems.add((), "It is not a mapping. Write lines such as `cell: sft`.")
        problems.refuse(shown)
    given = {str(name): value for name, value in content.items()}
    for name, value in settings.items():
        if value is not None:
            given[name] = value
    plan = _plan_of(given, problems)
    if plan is None:
        problems.refuse(shown)
    _check_backends(plan, problems)
    jobs = _Jobs(plan, directory, problems, imports).made()
    problems.refuse(shown)
    work = plan.cell or Path(str(plan.notebook)).stem
    return Resolved(plan, plan.name or work, directory, jobs)


def _check_backends(plan: Plan, problems: Problems) -> None:
    """Note settings of backends that they would refuse."""
    for name, settings in (plan.backends or {}).items():
        try:
            found = plugins.get("backends", name).problems(settings)
        except UsageError as error:
            found = {(): str(error)}
        for place, sentence in found.items():
            problems.add(("backends", name, *place), sentence)


def _plan_of(content: Named, problems: Problems) -> Plan | None:
    """Note what is wrong; return the plan, without that if the rest can be checked still."""
    found = Plan.problems(content)
    usable = dict(content)
    for place, sentence in found.items():
        problems.add(place, sentence)
        name = place[0] if place else ""
        if name == "grid" and len(place) > 1:
            usable["grid"] = {**usable["grid"], place[1]: [None]}
        elif name and name not in OF_JOBS:
            usable.pop(str(name), None)
        else:
            return None
    left = Plan.problems(usable)
    for place, sentence in left.items():
        problems.add(place, sentence)
    return None if left else Plan(**usable)


def _content(path: Path, problems: Problems) -> Any:
    """Return what a YAML file holds, and note the line of everything in it."""
    if not path.is_file():
        raise NotFoundError(
            "no_such_plan", f"There is no plan {path}. Give a YAML file; docs/sweep.md has one."
        )
    try:
        loader = PlanLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is not None:
            _note_lines(node, (), problems)
            return loader.construct_document(node)
        return {}
    except yaml.MarkedYAMLError as error:
        problems.lines[()] = error.problem_mark.line + 1 if error.problem_mark else 1
        problems.add((), f"This is not YAML: {error.problem}.")
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problems.lines.clear()
        problems.add((), f"This is not YAML: {safe(error, 200)}.")
    problems.refuse(safe(path, 200))


def _note_lines(node: yaml.Node, place: Place, problems: Problems) -> None:
    lines = problems.lines
    if len(lines) > MOST_PLACES:
        raise yaml.YAMLError(f"it holds more than {MOST_PLACES:,} entries")
    lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            _note_lines(item, (*place, number), problems)
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = str(key.value)
            inner = (*place, name)
            first = lines.get(inner)
            lines[inner] = key.start_mark.line + 1
            if first is not None:
                problems.add(inner, f"{name!r} stands in line {first}, too.")
            _note_lines(value, inner, problems)


@dataclass
class _Row:
    """The arguments of one job, and the place of each in the plan."""

    arguments: Named = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)

    def put(self, name: str, value: Any, *place: str | int) -> None:
        self.arguments[name] = value
        self.places[name] = place

    @property
    def varied(self) -> Named:
        """Those arguments that tell the jobs apart."""
        found = dict(self.arguments)
        for name, place in self.places.items():
            if place[0] == "arguments":
                del found[name]
        return found

    @property
    def where(self) -> Place:
        """The place of the first of them; () where nothing varies."""
        for name in self.varied:
            return self.places[name]
        return ()


@dataclass
class _Jobs:
    """Makes the jobs of a plan and notes every problem."""

    plan: Plan
    directory: Path
    problems: Problems
    imports: bool = True
    known: Named = field(default_factory=dict)  # parameters of the cell or notebook
    hashes: dict[str, str] = field(default_factory=dict)  # of files and folders, by their names
    checked: dict[tuple[str, str], str] = field(default_factory=dict)  # names: what is wrong, or ""
    cell: Any = None
    cell_name: str = ""
    notebook: str = ""

    def made(self) -> list[Named]:
        """Return every job."""
        if self.plan.notebook is None:
            self._find_cell()
        else:
            self._find_notebook()
        jobs: list[Named] = []
        seen: dict[str, str] = {}  # names of jobs by what they do
        for row in self._rows():
            self._make_plain(row)
            self._check(row)
            varied = row.varied
            name = self._name(varied)
            text = json.dumps(row.arguments, sort_keys=True)
            if text in seen:
                self.problems.add(row.where, f"{name} is the same job as {seen[text]}.")
            seen[text] = name
            jobs.append(
                {
                    "name": name,
                    "cell": self.cell_name,
                    "notebook": self.notebook,
                    "arguments": row.arguments,
                    "varied": varied,
                    "files": self._files(row.arguments),
                }
            )
        return jobs

    def _find_cell(self) -> None:
        wanted = str(self.plan.cell)
        is_own = ":" in wanted
        try:
            self.cell_name = wanted if is_own else _full_name(wanted)
            if self.imports or not is_own:
                self.cell = open_cell(self.cell_name, self.directory)
                self.known = dict(inspect.signature(self.cell).parameters)
        except FtlabError as error:
            self.problems.add(("cell",), str(error))

    def _find_notebook(self) -> None:
        wanted = str(self.plan.notebook)
        beside = self.directory / wanted
        try:
            found = find_notebook(beside if beside.is_file() else wanted)
            self.known = known_parameters(found)
            self.notebook = str(found.absolute())
        except FtlabError as error:
            self.problems.add(("notebook",), str(error))

    def _rows(self) -> Iterator[_Row]:
        grid = self.plan.grid or {}
        rows = self.plan.jobs or [{}]
        count = len(rows)
        for values in grid.values():
            count *= len(values)
        if count > MOST_JOBS:
            sentence = f"The plan makes {count:,} jobs; {MOST_JOBS:,} are allowed."
            self.problems.add((), sentence)
            return
        for number, given in enumerate(rows):
            for name in given.keys() & grid.keys():
                self.problems.add(("jobs", number, name), f"{name!r} is in the grid, too.")
            for chosen in product(*map(enumerate, grid.values())):
                row = _Row()
                for name, value in (self.plan.arguments or {}).items():
                    row.put(name, value, "arguments", name)
                for name, value in given.items():
                    row.put(name, value, "jobs", number, name)
                for name, (index, value) in zip(grid, chosen, strict=True):
                    row.put(name, value, "grid", name, index)
                yield row

    def _make_plain(self, row: _Row) -> None:
        """Turn arguments into JSON; a run or a model is written as its name."""
        for name, value in row.arguments.items():
            plain = None
            try:
                plain = json.loads(json.dumps(value, default=_name_of))
            except (TypeError, ValueError):
                kind = type(value).__name__
                sentence = f"{name} is a {kind}, which JSON cannot hold."
                self.problems.add(row.places[name], sentence)
            row.arguments[name] = plain

    def _check(self, row: _Row) -> None:
        """Note what is wrong with the arguments of a job."""
        check_secrets(row.arguments)
        if self.notebook:
            for name, value in row.arguments.items():
                sentence = parameter_problem(name, value, self.known)
                if sentence:
                    self.problems.add(row.places[name], f"{sentence}.")
        elif self.cell is not None:
            self._check_names(row)
            self._check_settings(row)
            if self.imports and ":" not in self.cell_name:
                self._check_inputs(row)
                self._check_numbers(row)

    def _check_names(self, row: _Row) -> None:
        takes_any = False
        for name, parameter in self.known.items():
            if parameter.kind == parameter.VAR_KEYWORD:
                takes_any = True
            elif parameter.kind == parameter.VAR_POSITIONAL or name in row.arguments:
                continue
            elif parameter.default is parameter.empty:
                self.problems.add(("cell",), f"{self.plan.cell} needs the argument {name!r}.")
        for name, place in row.places.items():
            if name not in self.known and not takes_any:
                error = unknown_setting([name], self.known)
                self.problems.add(place, str(error))

    def _check_settings(self, row: _Row) -> None:
        """Note settings that the cell would refuse."""
        plain = inspect.unwrap(self.cell)
        checked = set(inspect.signature(plain).parameters)
        if self.cell_name.startswith("training."):
            try:
                check_length(row.arguments)
            except UsageError as error:
                self.problems.add(row.places["steps"], str(error))
        for config in getattr(self.cell, "configs", ()):
            names = config.model_fields.keys() - checked
            checked |= names
            given = {}
            for name in names:
                value = row.arguments.get(name)
                if value is not None:
                    given[name] = value
            for place, sentence in config.problems(given).items():
                where: Place = ("cell",)
                if place:
                    where = row.places.get(str(place[0]), where)
                self.problems.add(where, sentence)

    def _check_inputs(self, row: _Row) -> None:
        """Note data and models that are not here; nothing is read or fetched."""
        for name, value in row.arguments.items():
            check = self._check_of(name)
            if check is None:
                continue
            named = _names_in(value, lists=name not in OF_PROMPTS)
            for text in named:
                if name == "defences" and text == NO_DEFENCE:
                    continue
                if (name, text) not in self.checked:
                    self.checked[name, text] = self._problem(check, text)
                if self.checked[name, text]:
                    self.problems.add(row.places[name], f"{name}: {self.checked[name, text]}")

    def _check_of(self, name: str) -> Any:
        """Return what checks a name in an argument: (text, folder) -> None; None where nothing."""
        if name in OF_PROMPTS:
            return _check_prompts
        is_fine_tuning = name == "attacks" and self.cell_name == "experiments.grid"
        if name in OPENS and not is_fine_tuning:
            return lambda text, folder: OPENS[name](text)
        return CHECKS.get(name)

    def _check_numbers(self, row: _Row) -> None:
        """Note arguments of a cell's own that are to be numbers and are none."""
        for name, value in row.arguments.items():
            parameter = self.known.get(name)
            annotation = str(getattr(parameter, "annotation", ""))
            words = set(re.findall("[A-Za-z]+", annotation))
            if not words or not words <= NUMBERS:
                continue
            given = value
            if not isinstance(value, list):
                given = [value]
            kinds = (int, float) if "float" in words else int
            for one in given:
                if one is None and "None" in words:
                    continue
                is_number = isinstance(one, kinds) and not isinstance(one, bool)
                if not is_number or one - one != 0:  # inf, nan
                    sentence = f"{name} = {one!r:.100}. Allowed: {annotation}."
                    place = row.places[name]
                    self.problems.add(place, sentence)

    def _problem(self, check: Any, text: str) -> str:
        """Return what is wrong with a name, seen from the folder of the plan."""
        try:
            check(text, self.directory)
        except (FtlabError, OSError, ValueError) as error:
            return safe(error, 300)
        return ""

    def _name(self, varied: Named) -> str:
        parts = [str(self.plan.cell or Path(self.notebook).stem)]
        for name, value in varied.items():
            text = value
            if not isinstance(value, str):
                text = json.dumps(value, ensure_ascii=False)
            elif text.startswith("/"):
                text = Path(text).name
            if len(text) > MOST_CHARACTERS:
                text = f"...{text[-MOST_CHARACTERS:]}"
            part = f"{name}={text}"
            parts.append(part)
        return " ".join(parts)

    def _files(self, arguments: Named) -> dict[str, str]:
        """Return the hashes of files and models that a job reads.

        They are those that its arguments name, the notebook, and the module of one's own function,
        where it lies beside the plan.
        """
        named = [self.notebook]
        if ":" in self.cell_name:
            module = self.cell_name.partition(":")[0]
            named.append(module.replace(".", "/") + ".py")
        for name, value in arguments.items():
            if name not in OUTPUTS:
                named += _texts(value)
        found = {}
        for name in named:
            if not name or len(name) > MOST_OF_A_PATH:
                continue
            if name not in self.hashes:
                self.hashes[name] = _hash_of(self.directory / name)
            if self.hashes[name]:
                found[name] = self.hashes[name]
        return found


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in plain lists and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _names_in(value: Any, lists: bool) -> list[str]:
    """Return the texts of an argument that names files or models; rows are no names.

    Args:
        value: A text, several by their names, or a list of them.
        lists: Whether a list is one of names.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [one for one in value.values() if isinstance(one, str)]
    if not lists or not isinstance(value, list):
        return []
    is_rows = not all(isinstance(one, str) for one in value)
    return [] if is_rows else value


def _check_prompts(text: str, folder: Path) -> None:
    """Check that what has the form of a file is one; other texts are names of their own."""
    if Path(text).suffix.lower() in ENDINGS:
        check_source(text, folder)


def _hash_of(path: Path) -> str:
    """Return the hash of a file, or of the files in a model's folder; "" where this is neither."""
    try:
        if path.is_file():
            return file_hash(path)
        if any((path / name).is_file() for name in OF_MODELS):
            files = {one.name: file_hash(one) for one in path.iterdir() if one.is_file()}
            return digest(files)
    except (OSError, ValueError):  # a text that is no name
        pass
    return ""


def open_cell(name: str, directory: Path) -> Any:
    """Return a cell by its name.

    Args:
        name: "room.name", or "module:function" of a module on Python's path or in the directory.
        directory: The folder of the plan.

    Raises:
        UsageError: `no_such_cell`.
    """
    module, sign, function = name.partition(":")
    if not sign:
        room, _, function = name.rpartition(".")
        module = f"ftlab.{room}"
    sys.path.append(str(directory))
    try:
        found = getattr(import_module(module), function)
        inspect.signature(found)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            "no_such_cell",
            f"There is no cell {name}: {safe(error, 200)}. Give the name of a cell, such as sft, "
            "or MODULE:FUNCTION.",
        ) from None
    finally:
        sys.path.remove(str(directory))
    return found


def _full_name(name: str) -> str:
    """Return "room.name" of a cell of ftlab.

    Raises:
        UsageError: `no_such_cell`.
    """
    offered: list[str] = []
    for place in ROOMS:
        room = import_module(f"ftlab.{place}")
        offered += room.__all__
        if name in room.__all__ and name not in OURSELVES:
            if hasattr(getattr(room, name), "configs"):
                return f"{place}.{name}"
    hint = did_you_mean(name, offered)
    raise UsageError(
        "no_such_cell",
        f"There is no cell {name!r}.{hint} Cells are sft, dpo, kto, evaluate, risk_curve, "
        "harmful_finetune, grid, ..., or your own as MODULE:FUNCTION.",
    )


def _name_of(value: Any) -> str:
    """Return the name by which another process finds a file, a run or a model."""
    if isinstance(value, Path):
        return str(value)
    name = getattr(value, "given_as", None)
    if not isinstance(name, str):
        raise TypeError
    return name
