"""Write the course from `notebooks/course`: for students, teachers, nbgrader, and as slides.

python -m recipes.course.build OUT [--lessons 1 2] [--no-run] [--requirement ftlab==0.4.0]

A lesson's source is the teacher's version. Cells carry tags: `exercise` (its solution stands
between BEGIN and END), `check`, `teacher` (not for students), `parameters`.
"""

from __future__ import annotations

import argparse
import copy
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import pandas as pd

import ftlab
from ftlab._core.files import resource, write_atomic
from ftlab._core.lessons import for_students, tags_of
from ftlab.analysis import rendering

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
EFFORT = re.compile(r"\*Difficulty (\d) of 5, importance (\d) of 5, (\d+) minutes?\.\*")
SECTION = re.compile(r"^## (.+) \((\d+) min\)$", re.MULTILINE)
MOST_SECONDS = 600  # of computing in a lesson
# A wheel beside the notebook is found first. The second index has torch for CPUs, without several
# GB of CUDA. Where this version is there already, nobody is asked.
INSTALL = """\
# Colab, Binder, or a fresh environment: installs ftlab and what it was tested with.
from importlib.metadata import distributions

if ("ftlab", "{version}") not in [(one.name, one.version) for one in distributions()]:
    %pip install --quiet --find-links . --extra-index-url {index} "{requirement}\""""
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
BINDER_PYTHON = "python-3.11"  # Binder's default is 3.10, which ftlab does not run on
NOT_SHOWN = re.compile(r"<(script|style)\b.*?</\1>\s*|<!--.*?-->\s*", re.DOTALL)
NBGRADER_CONFIG = '''"""nbgrader generate_assignment LESSON; students' cells keep their `...`."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "ftlab"
c.ClearSolutions.code_stub = {"python": "# your answer"}
c.ExecutePreprocessor.timeout = 600
'''


def main() -> None:
    """Write the course."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--lessons", nargs="*", default=[], help="numbers, such as 1 2; all")
    parser.add_argument("--no-run", action="store_true", help="no outputs, slides and times")
    parser.add_argument("--small", action="store_true", help="run with the tests' small parameters")
    parser.add_argument("--requirement", default="", help="what the first cell installs")
    parser.add_argument("--no-wheel", action="store_true", help="no wheel beside the notebooks")
    options = parser.parse_args()
    requirement = options.requirement or f"ftlab[lab]=={ftlab.__version__}"
    too_long = []
    for path in lessons(options.lessons):
        executed = None
        if not options.no_run:
            executed = execute(path, options.out, small=options.small)
        if write(path, options.out, requirement, executed) > MOST_SECONDS:
            too_long.append(path.stem)
    write_atomic(options.out / "nbgrader" / "nbgrader_config.py", NBGRADER_CONFIG)
    pinned = f"--find-links .\n--extra-index-url {CPU_INDEX}\n{requirement}\n"
    write_atomic(options.out / "student" / "requirements.txt", pinned)  # for Binder
    write_atomic(options.out / "student" / "runtime.txt", f"{BINDER_PYTHON}\n")
    if not options.no_wheel:
        build_wheel(options.out / "student")
    print(f"written to {options.out}")
    if too_long:
        raise SystemExit(f"over {MOST_SECONDS // 60} minutes of computing: {', '.join(too_long)}")


def lessons(numbers: list[str] | tuple = ()) -> list[Path]:
    """Return the lessons with these numbers, or all.

    Raises:
        SystemExit: There is no lesson of a number.
    """
    found = sorted((resource("notebooks") / "course").glob("lesson*.ipynb"))
    known = {path.stem[len("lesson")]: path for path in found}
    unknown = [number for number in numbers if number not in known]
    if unknown:
        raise SystemExit(f"no lesson {', '.join(unknown)}; there are {', '.join(known)}")
    return [path for number, path in known.items() if not numbers or number in numbers]


def minutes_of(book: Any) -> dict[str, int]:
    """Return the minutes of every section of a lesson."""
    found = {}
    for cell in book.cells:
        if cell.cell_type == "markdown":
            found |= {title: int(minutes) for title, minutes in SECTION.findall(cell.source)}
    return found


def execute(path: Path, out: Path, *, small: bool = False) -> Any:
    """Run a lesson with the teacher's solutions and return it with its outputs."""
    from ftlab.experiments import run_notebook

    book = nbformat.read(path, 4)
    values = dict(book.metadata["ftlab"]["small"]) if small else {}
    values["out"] = str(out.absolute() / "teacher" / path.stem)
    print(f"{path.stem}: running", flush=True)
    with tempfile.TemporaryDirectory() as folder:  # of runs too: what is found takes no time
        done = Path(folder) / path.name
        env = {"PYTHONPATH": str(ROOT), "FTLAB_RUNS": f"{folder}/runs"}
        run_notebook(path, done, values, env=env)
        text = done.read_text(encoding="utf-8")
        for place in (folder, out.absolute()):
            text = text.replace(f"{place}/", "")
    executed = nbformat.reads(text, 4)
    injected = "injected-parameters"
    executed.cells = [cell for cell in executed.cells if injected not in tags_of(cell)]
    return executed


def seconds_of(executed: Any) -> pd.DataFrame:
    """Return the seconds that each code cell took: section, cell, seconds."""
    rows = []
    section = ""
    for cell in executed.cells:
        for title, _ in SECTION.findall(cell.source):
            section = title
        if cell.cell_type == "code":
            first = cell.source.strip().partition("\n")[0]
            seconds = cell.metadata.papermill.duration
            rows.append({"section": section, "cell": first[:60], "seconds": round(seconds, 1)})
    return pd.DataFrame(rows)


def write(path: Path, out: Path, requirement: str, executed: Any = None) -> float:
    """Write one lesson in all its forms; return the seconds of its computing.

    Args:
        path: The source.
        out: Folder of the course.
        requirement: What the first cell installs.
        executed: The lesson with its outputs; without it there are no slides and times.
    """
    book = nbformat.read(path, 4)
    first = install_cell(requirement)
    save(student(book, first), out / "student" / path.name)
    save(for_nbgrader(book), out / "nbgrader" / "source" / path.stem / path.name)
    if executed is None:
        save(teacher(book, first), out / "teacher" / path.name)
        return 0.0
    times = seconds_of(executed)
    total = times["seconds"].sum()
    print(times.query("seconds >= 0.5").to_string(index=False))
    print(f"{path.stem}: {total / 60:.1f} minutes of computing, at most {MOST_SECONDS // 60}\n")
    save(teacher(executed, first, times), out / "teacher" / path.name)
    times.to_csv(out / "teacher" / f"{path.stem}.times.csv", index=False)
    page = slides(executed, path.stem)
    target = out / "slides" / f"{path.stem}.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(target, page)
    return float(total)


def install_cell(requirement: str) -> Any:
    """Return the first cell, which installs and pins."""
    cell = nbformat.v4.new_code_cell(
        INSTALL.format(version=ftlab.__version__, index=CPU_INDEX, requirement=requirement)
    )
    cell.id = "install"
    cell.metadata["tags"] = ["install"]
    return cell


def student(book: Any, first: Any = None, *, outputs: bool = False) -> Any:
    """Return a lesson as students get it, with its install cell in front."""
    return _finished(for_students(book, outputs=outputs), first)


def teacher(book: Any, first: Any = None, times: pd.DataFrame | None = None) -> Any:
    """Return a lesson with solutions, notes, outputs, and a plan of its minutes in front."""
    made = copy.deepcopy(book)
    lines = ["**For the teacher.** Notes and solutions are in this version only.", ""]
    lines += ["| section | minutes | of these computing |", "|---|---|---|"]
    for title, minutes in minutes_of(book).items():
        computing = ""
        if times is not None:
            computing = f"{times.loc[times['section'] == title, 'seconds'].sum() / 60:.1f}"
        lines.append(f"| {title} | {minutes} | {computing} |")
    plan = nbformat.v4.new_markdown_cell("\n".join(lines))
    plan.id = "plan"
    plan.metadata["tags"] = ["teacher"]
    made.cells.insert(1, plan)
    return _finished(made, first)


def _finished(book: Any, first: Any) -> Any:
    """Return a lesson with its install cell in front, without papermill's notes and progress."""
    for cell in book.cells:
        cell.metadata.pop("papermill", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    book.metadata.pop("papermill", None)
    if first is not None:
        book.cells.insert(0, copy.deepcopy(first))
    return book


def for_nbgrader(book: Any) -> Any:
    """Return a lesson as nbgrader's `source` has it: solutions inside, checks that raise.

    Source: nbgrader's cell metadata, version 3 of its schema.
    """
    made = copy.deepcopy(book)
    made.cells = [cell for cell in made.cells if "teacher" not in tags_of(cell)]
    name = ""
    points = 0
    for cell in made.cells:
        found = EFFORT.search(cell.source)
        if found:
            name = re.search(r"Exercise ([\d.]+)", cell.source)[1].replace(".", "-")
            points = int(found[1])
        if "exercise" in tags_of(cell):
            cell.metadata["nbgrader"] = _graded(f"exercise-{name}", solution=True)
        if "check" in tags_of(cell):
            cell.source += ".require()"
            cell.metadata["nbgrader"] = _graded(f"check-{name}", points=points)
    return made


def _graded(grade_id: str, *, solution: bool = False, points: int = 0) -> dict[str, Any]:
    """Return nbgrader's metadata of a cell."""
    found = {
        "schema_version": 3,
        "grade_id": grade_id,
        "grade": not solution,
        "solution": solution,
        "locked": not solution,
        "task": False,
    }
    return found if solution else {**found, "points": points}


def slides(executed: Any, title: str) -> str:
    """Return a lesson as one HTML page of slides that needs no network; arrow keys turn them."""
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="basic", embed_images=True)
    bodies = []
    for cells in _pages(student(executed, outputs=True).cells):
        page = nbformat.v4.new_notebook(cells=cells)
        body, _ = exporter.from_notebook_node(page)
        body = NOT_SHOWN.sub("", body)
        bodies.append(rendering.without_refresh(body))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # nbconvert has escaped what is text
    )
    own = rendering.script(HERE / "slides.js")
    template = environment.get_template("slides.html.j2")
    return template.render(title=title, slides=bodies, script=own)


def _pages(cells: list[Any]) -> list[list[Any]]:
    """Return the cells of each slide: a heading begins one, and so does a figure."""
    pages: list[list[Any]] = [[]]
    for cell in cells:
        hidden = {"parameters", "install"} & set(tags_of(cell))
        if hidden or cell.source.startswith("import ftlab"):
            continue
        heads = cell.cell_type == "markdown" and cell.source.startswith("#")
        if pages[-1] and (heads or _has_picture(cell)):
            pages.append([])
        cell.metadata = nbformat.NotebookNode()
        pages[-1].append(cell)
    return [page for page in pages if page]


def _has_picture(cell: Any) -> bool:
    outputs = cell.get("outputs", [])
    return any("image/png" in one.get("data", {}) for one in outputs)


def save(book: Any, target: Path) -> None:
    """Write a notebook."""
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.validate(book)
    write_atomic(target, f"{nbformat.writes(book)}\n")


def build_wheel(folder: Path) -> Path:
    """Build ftlab's wheel into a folder and return its path."""
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"The wheel could not be built: {done.stderr or done.stdout}")
        (wheel,) = Path(place).glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(wheel, folder))


if __name__ == "__main__":
    main()
