"""What `make course` writes: students get no answer, teachers all, nbgrader its cells."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from packaging.specifiers import SpecifierSet
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from ftlab import __version__
from ftlab._core import lessons
from recipes.course import build

REQUIREMENT = f"ftlab=={__version__}"
SOLUTION = re.compile(rf"{lessons.BEGIN}\n(.*?){lessons.END}", re.DOTALL)
every_lesson = pytest.mark.parametrize("path", build.lessons(), ids=lambda path: path.stem)


def sources(book) -> str:
    return "\n".join(cell.source for cell in book.cells)


@every_lesson
def test_a_student_gets_no_solution_and_no_note_for_teachers(path):
    book = nbformat.read(path, 4)
    made = build.student(book, build.install_cell(REQUIREMENT))
    text = sources(made)
    solutions = SOLUTION.findall(sources(book))
    assert solutions and not any(solution in text for solution in solutions)
    assert lessons.BEGIN not in text and "Common mistakes" not in text
    assert "### Exercise" in text and "ft.course.check(" in text
    assert REQUIREMENT in made.cells[0].source
    kinds = [build.tags_of(cell) for cell in made.cells]
    assert kinds[0] == ["install"] and kinds.count(["parameters"]) == 1
    nbformat.validate(made)


@every_lesson
def test_a_teacher_gets_everything_and_the_minutes(path):
    book = nbformat.read(path, 4)
    made = build.teacher(book, build.install_cell(REQUIREMENT))
    assert set(sources(book).splitlines()) <= set(sources(made).splitlines())
    plan = made.cells[2].source
    for title, minutes in build.minutes_of(book).items():
        assert f"| {title} | {minutes} |" in plan


@every_lesson
def test_nbgrader_finds_a_solution_and_a_test_for_every_exercise(path):
    """Names, types and values as version 3 of nbgrader's schema wants them."""
    made = build.for_nbgrader(nbformat.read(path, 4))
    graded = [cell for cell in made.cells if "nbgrader" in cell.metadata]
    ids = [cell.metadata.nbgrader.grade_id for cell in graded]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[a-zA-Z0-9_\-]+", one) for one in ids)
    for task, test in zip(graded[::2], graded[1::2], strict=True):
        assert task.metadata.nbgrader.grade_id.replace("exercise", "check") == (
            test.metadata.nbgrader.grade_id
        )
        assert lessons.BEGIN in task.source and test.source.endswith(".require()")
        assert task.metadata.nbgrader.solution and test.metadata.nbgrader.grade
        assert "points" not in task.metadata.nbgrader and test.metadata.nbgrader.points >= 1


@pytest.fixture
def executed():
    """Return a lesson with outputs, as papermill leaves it."""
    picture = new_output("display_data", {"image/png": "aGVsbG8="})
    noise = new_output("stream", name="stderr", text="10/100 4 s left")
    markup = new_output("display_data", {"text/plain": "x", "text/html": "<script>x()</script>y"})
    cells = [
        new_markdown_cell("# Lesson 9: a lesson"),
        new_code_cell("import ftlab as ft"),
        new_markdown_cell("## 1. One (20 min)"),
        new_code_cell("draw()", outputs=[picture, noise]),
        new_markdown_cell("a secret of teachers", metadata={"tags": ["teacher"]}),
        new_markdown_cell("## 2. Two (30 min)"),
        new_code_cell(
            f"x = ...\n{lessons.BEGIN}\nx = 'marzipan'\n{lessons.END}",
            metadata={"tags": ["exercise"]},
            outputs=[new_output("stream", text="seventeen")],
        ),
        new_code_cell("show()", outputs=[markup]),
    ]
    for number, cell in enumerate(cells):
        cell.metadata["papermill"] = {"duration": number / 2}
    return new_notebook(cells=cells, metadata={"papermill": {}})


def test_slides_hold_figures_need_no_network_and_tell_no_solution(executed):
    page = build.slides(executed, "lesson9")
    assert page.count("<section") == 4
    assert "aGVsbG8=" in page and "x()" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)
    for secret in ("marzipan", "seventeen", "a secret", "4 s left"):
        assert secret not in page


def test_no_path_of_the_machine_that_built_a_lesson_is_left(tmp_path, monkeypatch):
    def run(path, done, values, env):
        shown = new_output("stream", text=f"{values['out']}/labels.csv {env['FTLAB_RUNS']}")
        cell = new_code_cell("show()", outputs=[shown])
        nbformat.write(new_notebook(cells=[cell]), done)

    monkeypatch.setattr("ftlab.experiments.run_notebook", run)
    made = build.execute(build.lessons(["4"])[0], tmp_path)
    assert made.cells[0].outputs[0].text == "teacher/lesson4_judges/labels.csv runs"


def test_seconds_are_those_of_each_cell_by_section(executed):
    table = build.seconds_of(executed)
    assert table.groupby("section")["seconds"].sum().to_dict() == {
        "": 0.5,
        "1. One": 1.5,
        "2. Two": 6.5,
    }
    plan = build.teacher(executed, None, table).cells[1].source
    assert "| 2. Two | 30 | 0.1 |" in plan


def test_binder_gets_a_python_that_ftlab_runs_on_and_torch_for_cpus(tmp_path, monkeypatch):
    options = ["--no-run", "--no-wheel", "--lessons", "1"]
    monkeypatch.setattr("sys.argv", ["build", str(tmp_path), *options])
    build.main()
    project = tomllib.loads((build.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = SpecifierSet(project["requires-python"])
    for folder, ours in ((tmp_path / "student", REQUIREMENT), (build.ROOT / "binder", "-e .[lab]")):
        language, _, version = (folder / "runtime.txt").read_text().strip().partition("-")
        assert language == "python" and version in wanted
        lines = (folder / "requirements.txt").read_text().splitlines()
        assert f"--extra-index-url {build.CPU_INDEX}" in lines
        assert lines[-1].replace("ftlab[lab]", "ftlab") == ours


# Runs a lesson's cells one after the other, as a notebook does, in an environment without ftlab.
SHELL = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
for source in json.load(open(sys.argv[1])):
    shell.run_cell(source).raise_error()
print(shell.user_ns["ft"].__file__)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="the environment is made of links")
def test_a_lesson_installs_its_wheel_in_a_fresh_environment_and_runs(tmp_path, monkeypatch):
    """The first cell as it is shipped finds the wheel beside it; all that it needs is there."""
    course = lesson_1(tmp_path, monkeypatch)
    python = fresh_environment(tmp_path / "fresh")
    runs_there(python, course, {"PIP_NO_INDEX": "1"})


@pytest.mark.course
@pytest.mark.timeout(3000)
def test_a_lesson_installs_itself_and_all_that_it_needs_and_runs(tmp_path, monkeypatch):
    """As on Colab: there is a notebook's kernel and pip, and no ftlab."""
    course = lesson_1(tmp_path, monkeypatch)
    venv.create(tmp_path / "fresh", with_pip=True)
    python = str(tmp_path / "fresh" / ("Scripts" if sys.platform == "win32" else "bin") / "python")
    pip = [python, "-m", "pip"]
    # An index that does not answer is left out at once; pip asks it for every package.
    patient = {"PIP_RETRIES": "0"}
    if subprocess.run(
        [*pip, "install", "--quiet", "ipython"], env={**os.environ, **patient}
    ).returncode:
        pytest.skip("no package index answers, so nothing can be installed")
    runs_there(python, course, patient)
    subprocess.run([*pip, "check"], check=True)
    subprocess.run([python, "-c", "import jupyterlab, ipywidgets"], check=True)


def lesson_1(folder: Path, monkeypatch) -> Path:
    """Write lesson 1 and the wheel as `make course` does; return the folder of the course."""
    monkeypatch.setattr("sys.argv", ["build", str(folder / "course"), "--no-run", "--lessons", "1"])
    try:
        build.main()
    except SystemExit as error:
        pytest.skip(f"no wheel can be built here: {error}")
    return folder / "course"


def runs_there(python: str, course: Path, env: dict[str, str]) -> None:
    """Run the whole lesson, small and with its solutions, where the students' wheel lies."""
    (path,) = (course / "teacher").glob("*.ipynb")
    book = load_notebook_node(str(path))
    values = {**book.metadata["ftlab"]["small"], "out": str(course / "out")}
    book = parameterize_notebook(book, values, kernel_name="python3", language="python")
    cells = [cell.source for cell in book.cells if cell.cell_type == "code"]
    assert "%pip install" in cells[0] and f'"ftlab[lab]=={__version__}"' in cells[0]
    (course / "cells.json").write_text(json.dumps(cells))
    env = {**os.environ, "FTLAB_RUNS": str(course / "runs"), **env}
    env.pop("PYTHONPATH", None)
    command = [python, "-c", SHELL, str(course / "cells.json")]
    done = subprocess.run(command, cwd=course / "student", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].startswith(str(Path(python).parents[1]))
    checks = [cell for cell in book.cells if "check" in build.tags_of(cell)]
    assert done.stdout.count(": Right.") == len(checks)


def fresh_environment(folder: Path) -> str:
    """Return the interpreter of a new environment in which all packages but ftlab are."""
    venv.create(folder, with_pip=True, symlinks=True)
    python = str(folder / "bin" / "python")
    older = [python, "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools"]
    subprocess.run(older, check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    for entry in Path(pytest.__file__).parents[1].iterdir():
        if "ftlab" in entry.name or entry.name.startswith("pip") or entry.suffix == ".pth":
            continue
        with contextlib.suppress(FileExistsError):
            (site / entry.name).symlink_to(entry)
    if not find_spec("jupyterlab"):  # which the tests do without, and so does the lesson
        (site / "jupyterlab-4.4.0.dist-info").mkdir()
        said = "Metadata-Version: 2.1\nName: jupyterlab\nVersion: 4.4.0\n"
        (site / "jupyterlab-4.4.0.dist-info" / "METADATA").write_text(said)
    return python


def test_a_lesson_that_is_not_there_is_no_empty_course():
    with pytest.raises(SystemExit, match="99"):
        build.lessons(["1", "99"])
