"""The course as `make course` writes it, at full size. Not run by default: `make test-course`."""

from __future__ import annotations

import nbformat
import pandas as pd
import pytest

from recipes.course import build

pytestmark = [pytest.mark.course, pytest.mark.timeout(3 * build.MOST_SECONDS)]


@pytest.mark.parametrize("path", build.lessons(), ids=lambda path: path.stem)
def test_a_lesson_ends_within_its_minutes_and_its_solutions_are_right(path, tmp_path, monkeypatch):
    number = path.stem[len("lesson")]
    options = ["--no-wheel", "--lessons", number]
    monkeypatch.setattr("sys.argv", ["build", str(tmp_path), *options])
    build.main()  # ends in an error where a cell does, or where it takes longer
    seconds = pd.read_csv(tmp_path / "teacher" / f"{path.stem}.times.csv")["seconds"]
    assert 0 < seconds.sum() <= build.MOST_SECONDS
    book = nbformat.read(tmp_path / "teacher" / path.name, 4)
    checks = [cell for cell in book.cells if "check" in build.tags_of(cell)]
    told = [output["data"]["text/plain"] for cell in checks for output in cell.outputs]
    assert checks and len(told) == len(checks)
    assert all(": Right." in one for one in told), told
    assert (tmp_path / "slides" / f"{path.stem}.html").stat().st_size
