"""Lessons of the course, and students who go through them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ftlab._core import lessons
from ftlab.course import Grade

STUDENTS = Path(__file__).parent / "students"
CHECKED = re.compile(r'ft\.course\.check\("([\d.]+)", (\w+)')


@dataclass
class Played:
    """What the students of one exercise were told, and the right answer."""

    right: Grade
    silent: Grade
    wrong: list[Grade]
    answer: Any


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory) -> Path:
    """Return one folder of runs for all students of a module."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def play(shared_runs, monkeypatch, core_only):
    """Return a function that plays a lesson, small and without any extra: {exercise: Played}."""
    from IPython.core.interactiveshell import InteractiveShell
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook
    from traitlets.config import Config

    monkeypatch.setenv("FTLAB_RUNS", str(shared_runs))
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))

    def run(source: str) -> Any:
        done = shell.run_cell(source)
        done.raise_error()
        return done.result

    def answered(solution: str, check: str) -> Grade:
        run(solution)
        return run(check)

    def played(path: Path, out: Path) -> dict[str, Played]:
        book = load_notebook_node(str(path))
        values = {**book.metadata["ftlab"]["small"], "out": str(out)}
        book = parameterize_notebook(book, values, kernel_name="python3", language="python")
        wrong = yaml.safe_load((STUDENTS / f"{path.stem}.yaml").read_text(encoding="utf-8"))
        found = {}
        task = ""
        for cell in book.cells:
            if "exercise" in lessons.tags_of(cell):
                task = cell.source
            elif "check" in lessons.tags_of(cell):
                [(name, variable)] = CHECKED.findall(cell.source)
                silent = answered(lessons.without_solution(task), cell.source)
                others = []
                for code in wrong[name]:
                    solution = lessons.without_solution(task, code)
                    others.append(answered(solution, cell.source))
                right = answered(task, cell.source)
                found[name] = Played(right, silent, others, shell.user_ns[variable])
            elif cell.cell_type == "code":
                run(cell.source)
        return found

    return played
