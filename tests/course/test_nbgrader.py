"""A real nbgrader releases a lesson and grades what students hand in: `make test-course`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest
import yaml
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from ftlab._core import lessons
from recipes.course import build

pytestmark = [
    pytest.mark.course,
    pytest.mark.skipif(
        not find_spec("nbgrader"), reason="nbgrader is not here; `make test-course` installs it"
    ),
]
STUDENTS = Path(__file__).parent / "students"
LESSON = build.lessons(["1"])[0].stem
WRONG = yaml.safe_load((STUDENTS / f"{LESSON}.yaml").read_text(encoding="utf-8"))
RIGHT = {  # the exercises that each student solves
    "right": [*WRONG],
    "wrong": [],
    "mixed": [*WRONG][::2],
}
SILENT = "silent"  # hands in what was released


@pytest.fixture(scope="module")
def course(tmp_path_factory) -> Path:
    """Return nbgrader's folder of a course, in which a lesson is small and was released."""
    out = tmp_path_factory.mktemp("course")
    with pytest.MonkeyPatch.context() as patch:
        options = ["--no-run", "--no-wheel", "--lessons", "1"]
        patch.setattr("sys.argv", ["build", str(out), *options])
        build.main()
    source = out / "nbgrader" / "source" / LESSON / f"{LESSON}.ipynb"
    book = load_notebook_node(str(source))
    values = {**book.metadata["ftlab"]["small"], "out": str(out / "out")}
    book = parameterize_notebook(book, values, kernel_name="python3", language="python")
    nbformat.write(book, source)
    nbgrader(out / "nbgrader", "generate_assignment", LESSON, "--create")
    return out / "nbgrader"


def nbgrader(folder: Path, *words: str) -> None:
    """Run nbgrader in its folder; its kernels find this checkout, and one another's runs."""
    env = {**os.environ, "PYTHONPATH": str(build.ROOT), "FTLAB_RUNS": str(folder / "runs")}
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # alembic
    command = [sys.executable, "-m", "nbgrader", *words]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def exercises(book) -> dict:
    """Return the cells that students answer in, by the name of the exercise."""
    found = {}
    for cell in book.cells:
        graded = cell.metadata.get("nbgrader", {})
        if graded.get("solution"):
            found[graded["grade_id"].removeprefix("exercise-").replace("-", ".")] = cell
    return found


def test_what_is_released_holds_no_solution(course):
    released = nbformat.read(course / "release" / LESSON / f"{LESSON}.ipynb", 4)
    source = nbformat.read(course / "source" / LESSON / f"{LESSON}.ipynb", 4)
    solved = exercises(source)
    assert sorted(solved) == sorted(exercises(released)) == sorted(WRONG)
    for name, cell in exercises(released).items():
        assert cell.source.startswith(lessons.without_solution(solved[name].source)), name
    text = "\n".join(cell.source for cell in released.cells)
    assert lessons.BEGIN not in text and "Common mistakes" not in text


def test_it_gives_points_for_right_answers_and_for_no_others(course):
    from nbgrader.api import Gradebook

    solved = exercises(nbformat.read(course / "source" / LESSON / f"{LESSON}.ipynb", 4))
    for student in (*RIGHT, SILENT):
        made = nbformat.read(course / "release" / LESSON / f"{LESSON}.ipynb", 4)
        for name, cell in exercises(made).items():
            if student == SILENT:
                continue
            cell.source = solved[name].source
            if name not in RIGHT[student]:
                cell.source = lessons.without_solution(cell.source, WRONG[name][0])
        handed_in = course / "submitted" / student / LESSON / f"{LESSON}.ipynb"
        handed_in.parent.mkdir(parents=True)
        nbformat.write(made, handed_in)
    nbgrader(course, "autograde", LESSON, "--create")
    with Gradebook(f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        for student in (*RIGHT, SILENT):
            graded = gradebook.find_submission_notebook(LESSON, LESSON, student)
            points = {}
            for grade in graded.grades:
                name = grade.name.removeprefix("check-").replace("-", ".")
                points[name] = grade.score / grade.max_score
            solved_by = RIGHT.get(student, [])
            assert points == {name: float(name in solved_by) for name in WRONG}, student
