"""The rooms: who imports whom, what loads without torch, and how long and dense the code may be."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from ftlab._core import plugins

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ftlab"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {
    file: ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for file in FILES
}
# Rooms inside rooms, which have a face of their own.
INNER_ROOMS = (
    "models.engines",
    "training.defences",
    "training.methods",
    "training.transforms",
    "evals.risks",
    "evals.attacks",
    "evals.logs",
    "analysis.plots",
    "analysis.trackers",
    "experiments.backends",
    "ui.panels",
)
LIGHT = ("_core", "analysis", "data", "organism", "runs", "stats")
HEAVY = {"torch", "transformers", "trl", "peft", "accelerate"}
MOST_NODES_A_LINE = 9.0
MOST_CHARACTERS_A_LINE = 100
MOST_CODE_LINES = 41_700  # without docstrings, comments and blank lines
ids = MODULES.get


def room_of(module: str) -> str:
    """Return the room of a module: "data", or "models.engines" for a room inside a room."""
    inside = module.removeprefix("ftlab.")
    for room in INNER_ROOMS:
        if inside == room or inside.startswith(f"{room}."):
            return room
    return inside.partition(".")[0]


def imports_of(file: Path) -> list[str]:
    """Return the modules of ftlab that a file names in imports, also inside functions."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            found.append(node.module)
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.split(".")[0] == "ftlab"]


@pytest.mark.slow
def test_import_contracts_hold():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=ids)
def test_other_rooms_are_imported_through_their_face(file):
    mine = room_of(MODULES[file])
    for name in imports_of(file):
        theirs = room_of(name)
        same_room = theirs.split(".")[0] == mine.split(".")[0]
        if name == "ftlab" or theirs == "_core" or same_room:
            continue
        assert name == f"ftlab.{theirs}", f"{MODULES[file]} imports {name} past its face"


def test_no_module_has_the_name_of_something_its_face_exports():
    for file in FILES:
        if file.name != "__init__.py" or file.parent == PACKAGE:
            continue
        face = importlib.import_module(MODULES[file])
        modules = {path.stem for path in file.parent.glob("*.py")}
        folders = {path.parent.name for path in file.parent.glob("*/__init__.py")}
        exported = set(getattr(face, "__all__", ())) - folders
        assert not exported & modules, MODULES[file]


def test_every_name_of_every_face_exists():
    for file in FILES:
        if file.name == "__init__.py":
            face = importlib.import_module(MODULES[file])
            for name in getattr(face, "__all__", ()):
                assert getattr(face, name) is not None, f"{MODULES[file]}.{name}"


def loaded(code: str) -> set[str]:
    """Return the top-level packages that are loaded after some code ran in a new process."""
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.slow
def test_light_rooms_load_without_torch():
    light = [name for name in MODULES.values() if room_of(name).split(".")[0] in LIGHT]
    assert len(light) > 30
    assert not loaded("\n".join(f"import {name}" for name in light)) & HEAVY


def test_the_package_and_the_command_line_load_nothing_that_takes_time():
    assert not loaded("import ftlab") & {*HEAVY, "numpy", "pandas", "pydantic", "typer"}
    assert not loaded("import ftlab.cli.commands") & {*HEAVY, "numpy", "pandas"}


@pytest.mark.slow
def test_results_of_a_run_open_without_torch(tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'trl', 'peft'): sys.modules[name] = None\n"
        "from ftlab import analysis\n"
        "from ftlab._core import plugins\n"
        "print([risk.title for risk in plugins.find('risks').values()])\n"
        "print(analysis.rates, analysis.compare, analysis.plot)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("place", plugins.PLACES)
def test_every_extension_found_by_its_place_loads(place):
    for name, extension in plugins.find(place).items():
        assert extension is not None, name


def code_lines(source: str) -> int:
    """Count the lines that hold code: no blank lines, comments or docstrings."""
    lines: set[int] = set()
    blank = (
        tokenize.COMMENT,
        tokenize.NL,
        tokenize.NEWLINE,
        tokenize.INDENT,
        tokenize.DEDENT,
        tokenize.ENDMARKER,
    )
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in blank:
            lines.update(range(token.start[0], token.end[0] + 1))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            lines.difference_update(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=ids)
def test_a_file_is_not_dense(file):
    source = file.read_text()
    nodes = sum(1 for _ in ast.walk(ast.parse(source)))
    lines = code_lines(source)
    assert nodes <= MOST_NODES_A_LINE * max(lines, 1), f"{nodes / lines:.2f} nodes per line"
    longest = max((len(line) for line in source.splitlines()), default=0)
    assert longest <= MOST_CHARACTERS_A_LINE


@pytest.mark.slow
def test_functions_are_short():
    lengths = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lengths.append((_body_lines(node), f"{MODULES[file]}.{node.name}"))
    short = sum(length < 40 for length, _ in lengths)
    assert short >= 0.9 * len(lengths)
    assert max(lengths)[0] <= 80, max(lengths)


def _body_lines(node) -> int:
    """Count the lines of a function without its docstring."""
    length = node.end_lineno - node.lineno + 1
    if ast.get_docstring(node, clean=False) is not None:
        length -= node.body[0].end_lineno - node.body[0].lineno + 1
    return length


@pytest.mark.slow
def test_the_package_is_small():
    assert sum(code_lines(file.read_text()) for file in FILES) <= MOST_CODE_LINES


@pytest.mark.slow
def test_the_formatter_is_switched_off_only_for_tables_of_data():
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            lines = file.read_text().splitlines()[node.lineno - 1 : node.end_lineno]
            if any("fmt: skip" in line for line in lines):
                assert isinstance(node, (ast.Assign, ast.AnnAssign)), MODULES[file]


def test_public_cells_show_every_setting():
    ftlab = importlib.import_module("ftlab")
    for name in (
        "sft",
        "dpo",
        "evaluate",
        "risk_curve",
        "harmful_finetune",
        "compare",
        "explain",
        "gate",
        "accept",
        "grid",
    ):
        cell = getattr(ftlab, name)
        parameters = inspect.signature(cell).parameters.values()
        assert not [p for p in parameters if p.kind is p.VAR_KEYWORD], name
        documented = inspect.getdoc(cell)
        for parameter in parameters:
            assert f"{parameter.name}:" in documented, f"{name}: {parameter.name}"
