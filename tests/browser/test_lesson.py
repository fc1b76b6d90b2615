"""A lesson of the course as a student goes through it: by keyboard, with an answer typed in."""

from __future__ import annotations

from lab import ROOT, errors_of
from papermill.iorw import load_notebook_node
from watching import screenshot

LESSON = ROOT / "notebooks" / "course" / "lesson2_benign_finetuning.ipynb"
EXERCISE = "2.4"
LETTERS = {"a": "Exercise 2.4:", "b": "Right."}  # what is typed, and what is said


def students_lesson():
    """Return the lesson without solutions."""
    from recipes.course import build

    book = load_notebook_node(str(LESSON))
    for cell in book.cells:
        if "exercise" in build.tags_of(cell):
            cell.source = build.without_solution(cell.source)
    return book


def test_lesson_2_runs_by_keyboard_and_grades_what_is_typed(lab, notebook):
    name = lab.put(students_lesson(), LESSON.name, small=True)
    book = notebook(name)
    book.run_all()
    saved = book.save()
    assert errors_of(saved) == []
    assert len(book.figures()) >= 2  # the live figure and the curve
    (check,) = [n for n, cell in enumerate(saved.cells) if f'check("{EXERCISE}"' in cell.source]
    assert "Not answered yet" in book.text(check)
    for letter, said in LETTERS.items():
        book.write(check - 1, f'sentence = "{letter}"')
        book.run(check - 1, check)
        assert said in book.text(check)
    assert "hint" not in book.text(check)
    screenshot(book.page, "lesson")
