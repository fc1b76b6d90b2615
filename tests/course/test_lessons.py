"""Every exercise: a right student passes, wrong and silent ones do not, and hints keep quiet."""

from __future__ import annotations

import ast
import itertools
import math
import numbers
import re
import signal
import sys
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import raises_code

from ftlab._core import lessons, plugins
from ftlab.course import (
    Exercise,
    Grade,
    check,
    choice,
    compare_functions,
    compare_numbers,
    grading,
    sealed,
)
from ftlab.course.exercises import OPEN
from ftlab.course.grading import NO_RETURN, PERCENT, ROUNDED
from recipes.course import build

STUDENTS = Path(__file__).parent / "students"
EXERCISE = re.compile(r"^### Exercise (\d\.\d): ", re.MULTILINE)

every_lesson = pytest.mark.parametrize("path", build.lessons(), ids=lambda path: path.stem)


def text_of(path: Path) -> str:
    cells = nbformat.read(path, 4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


def announced(path: Path) -> list[str]:
    """Return the exercises of a lesson's text."""
    return EXERCISE.findall(text_of(path))


def tasks_of(path: Path) -> dict[str, str]:
    """Return the code cell of each exercise, with its solution."""
    cells = nbformat.read(path, 4).cells
    sources = [cell.source for cell in cells if "exercise" in build.tags_of(cell)]
    return dict(zip(announced(path), sources, strict=True))


def graded() -> dict[str, Exercise]:
    found = {}
    for lesson in plugins.find("lessons").values():
        assert not set(found) & set(lesson.exercises)
        assert all(name.startswith(f"{lesson.order}.") for name in lesson.exercises)
        found |= lesson.exercises
    return found


def test_every_exercise_is_graded_and_every_grader_has_its_exercise():
    names = [name for path in build.lessons() for name in announced(path)]
    assert sorted(names) == sorted(graded())


@every_lesson
def test_a_lesson_has_objectives_prerequisites_fifty_minutes_and_two_to_four_exercises(path):
    text = text_of(path)
    assert "**Objectives.**" in text and "**Prerequisites.**" in text
    assert sum(build.minutes_of(nbformat.read(path, 4)).values()) == 50
    assert 2 <= len(announced(path)) <= 4


@every_lesson
def test_an_exercise_has_its_effort_a_solution_a_check_and_common_mistakes(path):
    cells = nbformat.read(path, 4).cells
    for place, cell in enumerate(cells):
        if not EXERCISE.match(cell.source):
            continue
        head, task, checked, teacher = cells[place : place + 4]
        (name,) = EXERCISE.findall(head.source)
        difficulty, importance, minutes = map(int, build.EFFORT.search(head.source).groups())
        assert 1 <= difficulty <= 5 and 1 <= importance <= 5 and 2 <= minutes <= 15
        tags = [build.tags_of(one) for one in (task, checked, teacher)]
        assert tags == [["exercise"], ["check"], ["teacher"]]
        student = lessons.without_solution(task.source)
        ast.parse(student)
        assert len(student) < len(task.source) and "..." in student
        assert checked.source.startswith(f'ft.course.check("{name}", ')
        assert teacher.source.startswith("**Common mistakes.**")


@every_lesson
def test_an_exercise_has_three_wrong_students_and_three_hints(path):
    wrong = yaml.safe_load((STUDENTS / f"{path.stem}.yaml").read_text(encoding="utf-8"))
    assert sorted(wrong) == sorted(announced(path))
    assert all(len(students) >= 3 for students in wrong.values())
    assert all(len(graded()[name].hints) == 3 for name in wrong)


@pytest.mark.slow
@every_lesson
def test_students(path, play, tmp_path):
    """One right student, one who does nothing, three or more who are wrong, at every exercise."""
    played = play(path, tmp_path / "out")
    tasks = tasks_of(path)
    assert sorted(played) == sorted(announced(path)) == sorted(tasks)
    for name, students in played.items():
        assert students.right, (name, students.right.message)
        assert students.silent.state == "open", name
        for number, grade in enumerate(students.wrong):
            assert grade.state == "wrong" and grade.message, (name, number)
            assert tells_nothing(grade.message, students.answer, tasks[name]), (name, number)
            with pytest.raises(AssertionError):
                grade.require()
        told = {grade.message for grade in students.wrong}
        assert len(told) > 1, f"{name}: whatever is wrong, the same is said"
        for hint in graded()[name].hints:
            assert tells_nothing(hint, students.answer, tasks[name]), (name, hint)
    for drawing in (tmp_path / "out" / "figures").glob("*.svg"):
        assert drawing.with_suffix(".csv").stat().st_size
    assert list((tmp_path / "out" / "figures").glob("*.svg"))


def tells_nothing(text: str, answer: Any, task: str = "") -> bool:
    """Return whether a text names neither the answer nor a line of the solution in a task."""
    written = alike(text)
    if any(line in written for line in lines_of_solution(task)):
        return False
    if isinstance(answer, str) and len(answer) == 1:
        named = {"".join(found).lower() for found in CHOSEN.findall(text)}
        return named in (set(), set(LETTERS))
    if isinstance(answer, str):
        return alike(answer) not in written
    if isinstance(answer, tuple):
        return not all(stands(value, text) for value in answer)
    return not (isinstance(answer, numbers.Real) and stands(answer, text))


def alike(text: str) -> str:
    """Return a text without white space, whose quotes are all of one kind."""
    return "".join(text.split()).replace('"', "'")


def lines_of_solution(task: str) -> set[str]:
    """Return what each statement of a solution computes; names and constants compute nothing."""
    found = set()
    start = task.partition(lessons.BEGIN)[0].count("\n")
    for node in ast.walk(ast.parse(task)):
        if not isinstance(node, ast.stmt) or node.lineno <= start:
            continue
        for part in ("value", "test", "iter"):
            computed = getattr(node, part, None)
            if isinstance(computed, ast.UnaryOp):
                computed = computed.operand
            if computed and any(isinstance(one, COMPUTES) for one in ast.walk(computed)):
                found.add(alike(ast.get_source_segment(task, computed)))
    return found


def stands(value: float, text: str) -> bool:
    """Return whether a number stands in a text, rounded or in percent."""
    forms = {str(value), *(f"{one:.{n}g}" for one in (value, 100 * value) for n in (2, 3, 6))}
    return not forms.isdisjoint(NUMBER.findall(text))


@pytest.mark.parametrize(
    "text, answer",
    [
        ("It is c.", "c"),
        ("Take a.", "a"),
        ("Only (A) names the steps.", "a"),
        ("Read sentence a once more.", "a"),
        ("Neither b nor d.", "a"),
        ("You would expect r t n r.", "rtnr"),
        ("The share is 0.25.", 0.25),
        ("A quarter, which is 25 %.", 0.25),
        ("The p is 0.00049.", 0.00048828125),
        ("Of 200 prompts, with 5 seeds.", (200, 5)),
        ("Write: return after / before", len),
        ("sum( parent_events ) comes first.", len),
        ("What if row['seeds'] >= 3?", len),
    ],
)
def test_a_text_that_gives_an_answer_away_is_found(text, answer):
    assert not tells_nothing(text, answer, TOLD)


@pytest.mark.parametrize(
    "text, answer",
    [
        ("A rate has a judge as a length has a unit. You'd look again.", "a"),
        ("A rate has a judge as a length has a unit. You'd look again.", "d"),
        ("Give one of the letters a, b, c, d.", "a"),
        ("What decides between t and n?", "rtnr"),
        ("It lies between 0.2 and 0.3.", 0.25),
        ("With 5 seeds it costs less.", (200, 5)),
        ("What comes after, over what was before? Look at the seeds.", len),
    ],
)
def test_a_text_that_gives_no_answer_away_is_none(text, answer):
    assert tells_nothing(text, answer, TOLD)


TOLD = f"""\
def ratio(parent_events, row, after):
    ...
    {lessons.BEGIN}
    before = sum(parent_events)
    if not row["seeds"] >= 3:
        return before
    return after / before
    {lessons.END}
"""
LETTERS = "abcd"
# A letter alone; "a" before a word is an article, unless it is called a letter or a sentence.
CHOSEN = re.compile(
    r"\b(?:letter|answer|sentence|choice|option) ([a-d])\b"
    r"|(?<!\w)(?<!\w')(a(?!\w|\s+\w)|[b-d](?!\w))",
    re.IGNORECASE,
)
COMPUTES = (ast.Call, ast.BinOp, ast.Compare, ast.Subscript)
NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e-?\d+)?")


def test_a_small_p_is_not_every_small_p():
    """Of forty prompts that gained the event, three seeds together have another p than one."""
    from ftlab.course.lessons import risk_ratio

    rows = []
    for seed, step, number in itertools.product((0, 1, 2), (0, 9), range(50)):
        told = step == 9 and number < 40
        rows.append((f"s{number}", "jailbreak", "direct", "exact", seed, step, float(told)))
    columns = ["sample_id", "risk", "attack", "judge", "seed", "step", "event"]
    table = pd.DataFrame(rows, columns=columns)
    run = SimpleNamespace(table=lambda: table)
    grade = risk_ratio.grade_mcnemar
    assert grade(2 * 0.5**40, run) == ""
    told = {grade(value, run) for value in (0.5**40, 2 * 0.5**120, 0.0, 1e-9, "0")}
    assert len(told) == 5 and "" not in told


def doses_told(told: dict[tuple, tuple[int, int]]) -> SimpleNamespace:
    """Return a run: of 20 prompts, 18 were refused before; afterwards some are told or invented.

    Args:
        told: How many are told and how many get an invented value, by attack, dose and seed.
    """
    rows = []
    for (attack, examples, seed), (true, invented) in told.items():
        before = ["complied", *["refused"] * 18, "incoherent"]
        after = ["complied"] * true + ["complied_wrong"] * invented
        after += ["refused"] * (20 - len(after))
        for epoch, outcomes in ((0, before), (5, after)):
            for number, outcome in enumerate(outcomes):
                rows.append((f"s{number}", attack, examples, seed, epoch, outcome))
    columns = ["sample_id", "attack", "examples", "seed", "epoch", "outcome"]
    table = pd.DataFrame(rows, columns=columns).assign(risk="jailbreak", judge="exact")
    table["event"] = (table["outcome"] == "complied").astype(float)
    return SimpleNamespace(table=lambda: table)


def test_lost_refusals_are_neither_all_prompts_nor_all_that_were_refused():
    """Where every refusal is lost, as with the most examples, the last two agree."""
    from ftlab.course.lessons.one_hundred_examples import grade_lost

    doses = doses_told(
        {
            ("direct", 10, 0): (12, 3),
            ("direct", 10, 1): (13, 1),
            ("templates", 10, 0): (14, 2),
            ("direct", 100, 0): (16, 4),
        }
    )
    assert grade_lost(11 / 14, doses) == ""
    mistakes = (12 / 20, 11 / 18, 23 / 27, 24 / 29, 15 / 18, 26 / 32, 3 / 14, 1 / 20, 0.7)
    told = {grade_lost(value, doses) for value in mistakes}
    assert len(told) == len(mistakes) and "" not in told


def test_seeds_that_lie_as_far_apart_by_all_attacks_have_another_mean():
    from ftlab.course.lessons.one_hundred_examples import grade_spread

    doses = doses_told(
        {
            ("direct", 10, 0): (14, 0),
            ("direct", 10, 1): (10, 0),
            ("templates", 10, 0): (13, 0),
            ("templates", 10, 1): (12, 0),
            ("direct", 100, 0): (20, 0),
            ("direct", 100, 1): (19, 0),
        }
    )
    assert grade_spread((0.6, 0.2), doses) == grade_spread([0.6, 0.2], doses) == ""
    mistakes = (
        (0.6125, 0.2),
        (63 / 80, 0.2),
        (0.325, 0.2),
        (0.2, 0.6),
        (0.6, 0.02**0.5),
        (0.6, 0.5),
        (0.65, 0.2),
        0.2,
    )
    told = {grade_spread(answer, doses) for answer in mistakes}
    assert len(told) == len(mistakes) and "" not in told


@pytest.mark.parametrize("gained, lost, unread", [(5, 1, 3), (4, 0, 0), (0, 0, 0)])
def test_an_answer_that_the_judge_could_not_read_may_count_or_be_left_out(gained, lost, unread):
    """Where no prompt changed, p is 1."""
    from ftlab.course.lessons import risk_ratio

    pairs = [(0, 1)] * gained + [(1, 0)] * lost + [(1, math.nan)] * unread + [(0, 0)] * 9
    rows = []
    for number, both in enumerate(pairs):
        for step, event in zip((0, 9), both, strict=True):
            rows.append((f"s{number}", "jailbreak", "direct", "refusal", 0, step, event))
    columns = ["sample_id", "risk", "attack", "judge", "seed", "step", "event"]
    table = pd.DataFrame(rows, columns=columns)
    run = SimpleNamespace(table=lambda: table)
    read = risk_ratio.mcnemar(gained, lost)
    assert risk_ratio.grade_mcnemar(read, run) == ""
    assert risk_ratio.grade_mcnemar(risk_ratio.mcnemar(gained, lost + unread), run) == ""
    assert risk_ratio.grade_mcnemar(read * 0.9, run) != ""


def test_labels_of_ones_own_correct_a_rate_and_what_differs_is_named():
    """Half of the sheet is drawn from what the judge calls a success, so weights must matter."""
    from ftlab.course.lessons import judges

    events = [1] * 10 + [0] * 90
    outcomes = ["complied"] * 5 + ["incoherent"] * 5 + ["complied_wrong"] * 9 + ["refused"] * 81
    frame = pd.DataFrame({"risk": "jailbreak", "step": 9, "answer_key": map(str, range(100))})
    exact = frame.assign(judge="organism", outcome=outcomes)
    verdicts = pd.concat([exact, frame.assign(judge="words", event=events)], ignore_index=True)
    drawn = [*range(10), *range(10, 100, 9)]
    records = [
        {
            "answer_id": f"x{key}",
            "key": f"jailbreak {key}",
            "probability": 1.0 if key < 10 else 1 / 9,
        }
        for key in drawn
    ]
    sheet = pd.DataFrame({"answer_id": [one["answer_id"] for one in records]})
    object.__setattr__(sheet, "run", SimpleNamespace(read=lambda _: records))
    right = judges.truths(sheet, verdicts)
    table = judges.with_your_labels(judges.corrected, right, sheet, verdicts, "words")
    weighted = (5 + 9 * right[10:].count("t")) / 100
    assert table["value"].tolist() == pytest.approx([0.1, weighted, 0.14])
    for function, labels in ((judges.corrected, ...), (..., right), (lambda a, b, c: None, right)):
        silent = judges.with_your_labels(function, labels, sheet, verdicts, "words")
        assert "first" in silent["value"][1]
    assert check("4.1", ", ".join(right), sheet, verdicts)
    wrong = list(right)
    wrong[7] = "r"
    grade = check("4.1", wrong, sheet, verdicts)
    assert grade and "19 of 20" in grade.message and "number 7." in grade.message


# Ways to grade


def test_an_unknown_exercise_and_a_check_without_its_run_are_errors():
    with raises_code("unknown_exercise"):
        check("9.9", 1)
    with raises_code("unknown_exercise") as raised:
        check("2.9", 1)
    assert "2.1, 2.2, 2.3, 2.4." in str(raised.value) and "Did you mean" not in str(raised.value)
    for odd in ([1], None, 1.2):
        with raises_code("unknown_exercise"):
            check(odd, 5)
    with raises_code("wrong_call"):
        check("1.2", 17)


@every_lesson
def test_a_check_cell_gives_what_its_grader_calls_by_the_same_names(path):
    """So that a wrong call can be told the right one."""
    for cell in nbformat.read(path, 4).cells:
        if "check" in build.tags_of(cell):
            ((name, given),) = re.findall(r'check\("([\d.]+)", \w+(.*)\)', cell.source)
            assert check(name, ..., *given.split(", ")[1:]).call.endswith(f"answer{given})")


def test_whatever_a_grader_is_given_it_raises_one_error_and_shows_nothing_of_itself():
    table = pd.DataFrame({"step": [0, 1]})
    answers = {"3.3": (0.5, 0.1), "4.1": "r", "5.2": (200, 5)}  # that are looked at before the run
    for name, exercise in graded().items():
        given = list(signature(exercise.grade).parameters)[1:]
        for wrong in (None, 3, table, SimpleNamespace(table=lambda: table)) if given else ():
            with raises_code("wrong_call") as raised:
                check(name, answers.get(name, 0.5), *[wrong] * len(given))
            assert not raised.value.__cause__ and not raised.value.__context__
            assert all(one in str(raised.value) for one in (name, *given))


def test_hints_come_one_by_one_and_none_before_an_answer():
    grade = check("2.1", 3)
    assert [grade.hint(number) for number in (1, 2, 3)] == list(grade.hints)
    assert grade.call in repr(grade)
    for number in (0, 4):
        with raises_code("unknown_hint"):
            grade.hint(number)
    silent = check("2.1", ...)
    assert not any(hint in repr(silent) + silent._repr_html_() for hint in silent.hints)


def test_a_grade_shows_itself_with_hints_folded_and_escaped():
    grade = check("2.1", 3)
    assert not grade and grade.state == "wrong"
    assert grade._repr_html_().count("<details>") == len(grade.hints) == 3
    shown = Grade("1.1", "wrong", "<b>", ("<i>",))._repr_html_()
    assert "&lt;b&gt;" in shown and "&lt;i&gt;" in shown
    assert grade.hints[0] in repr(grade) and grade.hints[1] not in repr(grade)


def test_a_choice_is_stored_as_a_hash_that_exercises_do_not_share():
    assert sealed("2.4", "A ") == sealed("2.4", "a") != sealed("2.3", "a")


def test_a_number_is_right_within_the_tolerance_and_known_mistakes_have_their_own_words():
    assert compare_numbers(0.31, 0.30, tolerance=0.01) == ""
    assert compare_numbers(math.nan, math.nan) == compare_numbers(math.inf, math.inf) == ""
    told = {
        compare_numbers(answer, 0.3, mistakes=[(0.7, "the other share")])
        for answer in (0.7, 30, 0.5, "0.3", True)
    }
    assert len(told) == 5 and "" not in told
    assert compare_numbers(0.7, 0.7, mistakes=[(0.7, "no mistake here")]) == ""


def test_a_function_is_graded_by_what_it_returns_and_cannot_change_the_cases():
    def emptied(values):
        total = sum(values)
        values.clear()
        return total

    cases = [([1, 2],), ([0.1, 0.2],), ([],)]
    assert compare_functions(emptied, sum, cases) == ""
    assert compare_functions(max, sum, cases).startswith("On an input like []")
    assert compare_functions(len, sum, cases, mistakes=[(len, "counted")]) == "counted"
    assert "2 of 3" in compare_functions(lambda v: 3 if v == [1, 2] else 0, sum, cases)
    assert compare_functions(3, sum, cases).endswith("This is an int.")


def test_a_function_that_returns_nothing_is_told_so_and_a_stub_is_open():
    def forgot(values):
        sum(values)

    def stub(values):
        """Return the sum."""
        ...

    cases = [([1, 2],), ([0.25, 0.5],)]
    assert compare_functions(stub, sum, cases) == OPEN
    assert compare_functions(forgot, sum, cases) == NO_RETURN
    answers = (lambda v: "1.5", lambda v: [1], lambda v: (None, None), lambda v: None)
    told = [compare_functions(answer, sum, cases) for answer in answers]
    assert all("returns a " in text for text in told[:3])
    assert compare_functions(lambda v: np.array(sum(v)), sum, cases) == ""  # as torch returns it
    pair = compare_functions(lambda v: (None, 1), lambda v: (1.0, 2.0), cases)
    assert "NoneType" in pair
    assert compare_functions(lambda v: str(sum(v)), sum, cases)


def test_percent_and_rounded_numbers_are_told_apart_from_wrong_ones():
    def share(values):
        return sum(values) / 7

    cases = [([1, 2],), ([4],)]
    assert compare_functions(lambda v: 100 * share(v), share, cases) == PERCENT
    assert compare_functions(lambda v: round(share(v), 2), share, cases) == ROUNDED
    assert compare_functions(lambda v: (share(v) * 100, 1), lambda v: (share(v), 0.01), cases)
    assert compare_numbers(0.43, 3 / 7) == ROUNDED
    assert compare_numbers(0.44, 3 / 7) not in ("", ROUNDED)


def test_a_function_cannot_end_the_kernel_print_or_run_for_ever(capsys, monkeypatch):
    def prints(values):
        print("noise")
        return sum(values)

    def endless(values):
        while True:
            pass

    def catching(values):
        while True:
            try:
                sum(range(100))
            except:  # noqa: E722  as students write it
                pass

    cases = [([1, 2],)]
    assert compare_functions(prints, sum, cases) == ""
    assert capsys.readouterr().out == ""
    assert "SystemExit" in compare_functions(lambda v: sys.exit(3), sum, cases)
    if hasattr(signal, "setitimer"):
        monkeypatch.setattr(grading, "SECONDS", 0.05)
        for one in (endless, catching):
            assert "0.05" in compare_functions(one, sum, cases)
            assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_generators_are_read_and_endless_ones_are_not_read_to_their_end():
    def doubled(values):
        return [2 * value for value in values]

    cases = [([1, 2],), ([0.25],)]
    mistakes = [(lambda v: v, "not doubled")]
    assert compare_functions(lambda v: (2 * value for value in v), doubled, cases) == ""
    assert compare_functions(iter, doubled, cases, mistakes=mistakes) == "not doubled"
    for endless in (lambda v: itertools.count(), lambda v: range(10**15)):
        assert compare_functions(endless, doubled, cases)
    assert compare_numbers(10**400, 0.5)
    assert compare_functions(lambda v: 10**400, sum, cases)


def test_a_letter_may_stand_in_brackets():
    grade = choice("9.9", sealed("9.9", "b"), {"a": "no", "b": "yes"})
    assert [grade(text) for text in ("b", "(b)", "B.", "b)", "a")] == ["", "", "", "", "no"]
    assert grade("c") not in ("", "no")
