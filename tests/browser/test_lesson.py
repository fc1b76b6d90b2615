"""A lesson of the course as a student goes through it: by keyboard, with an answer typed in."""

from __future__ import annotations

import re

from lab import ROOT, errors_of
from papermill.iorw import load_notebook_node
from watching import screenshot

LESSON = ROOT / "notebooks" / "course" / "lesson2_benign_finetuning.ipynb"
EXERCISE = "2.4"
SOLUTION = re.compile(r'sentence = "(\w)"')


def students_lesson():
    """Return the lesson without solutions, and the right letter of the exercise."""
    from ftlab._core import lessons

    book = load_notebook_node(str(LESSON))
    right = ""
    for cell in book.cells:
        if "exercise" in lessons.tags_of(cell):
            right += "".join(SOLUTION.findall(cell.source))
            cell.source = lessons.without_solution(cell.source)
    return book, right


def test_lesson_2_runs_by_keyboard_and_grades_what_is_typed(lab, notebook):
    lesson, right = students_lesson()
    wrong = "a" if right != "a" else "b"
    name = lab.put(lesson, LESSON.name, small=True)
    book = notebook(name)
    book.run_all()
    saved = book.save()
    assert errors_of(saved) == []
    assert len(book.figures()) >= 2  # the live figure and the curve
    (check,) = [n for n, cell in enumerate(saved.cells) if f'check("{EXERCISE}"' in cell.source]
    assert "Not answered yet" in book.text(check)
    for letter, said in {wrong: "Exercise 2.4:", right: "Right."}.items():
        book.write(check - 1, f'sentence = "{letter}"')
        book.run(check - 1, check)
        assert said in book.text(check)
    assert "hint" not in book.text(check)
    screenshot(book.page, "lesson")
