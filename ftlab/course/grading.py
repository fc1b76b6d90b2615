"""Ways to grade: a number, a choice, a function. Each returns "" or what is wrong."""

from __future__ import annotations

import hashlib
import math
import numbers
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from ftlab._core.text import safe
from ftlab.course.exercises import OPEN

NOT_IT = "This is not what the run shows."
PERCENT = "This looks like a percentage. Give a share between 0 and 1."
CHARACTERS = 16  # of a seal
ROUNDING = 1e-9
PERCENT_WITHIN = 0.005


def compare_numbers(
    answer: Any,
    truth: float,
    *,
    tolerance: float = 0.0,
    mistakes: Sequence[tuple[float, str]] = (),
) -> str:
    """Grade a number.

    Args:
        answer: The student's.
        truth: What was computed here.
        tolerance: Largest difference that still counts as right, such as half a prompt.
        mistakes: Numbers that usual mistakes lead to, each with what to say about it. One that
            happens to be the truth is no mistake.

    Returns:
        "" where the answer is right.
    """
    if isinstance(answer, bool) or not isinstance(answer, numbers.Real):
        return f"Give one number. This is a {type(answer).__name__}."
    value = float(answer)
    if _near(value, truth, tolerance):
        return ""
    for wrong, message in mistakes:
        if _near(value, wrong, tolerance):
            return message
    if abs(value) > 1 and _near(value / 100, truth, max(tolerance, PERCENT_WITHIN)):
        return PERCENT
    return NOT_IT


def _near(value: float, other: float, tolerance: float) -> bool:
    if math.isnan(value) and math.isnan(other):
        return True
    within = tolerance + ROUNDING
    return math.isclose(value, other, rel_tol=ROUNDING, abs_tol=within)


def compare_functions(
    answer: Any,
    right: Callable,
    cases: Sequence[tuple],
    *,
    mistakes: Sequence[tuple[Callable, str]] = (),
) -> str:
    """Grade a function by what it returns.

    Args:
        answer: The student's function.
        right: A function that returns what is right.
        cases: Arguments of each call.
        mistakes: Functions as usual mistakes write them, each with what to say where the student's
            returns the same.

    Returns:
        "" where the function is right on every case.
    """
    if not callable(answer):
        return f"Give the function itself, without calling it. This is a {type(answer).__name__}."
    found = []
    for case in cases:
        try:
            found.append(answer(*deepcopy(case)))
        except Exception as error:  # the student's code
            raised = f"{type(error).__name__}: {safe(error, 200)}"
            return f"On an input like {_shown(case)} your function raised {raised}"
    if all(result is None or result is ... for result in found):
        return OPEN
    wanted = _results(right, cases)
    same = list(map(_same, found, wanted))
    if all(same):
        return ""
    for mistake, message in mistakes:
        if all(map(_same, found, _results(mistake, cases))):
            return message
    first = _shown(cases[same.index(False)])
    right_on = sum(same)
    return f"Right on {right_on} of {len(cases)} inputs, and not on one like {first}."


def _results(function: Callable, cases: Sequence[tuple]) -> list[Any]:
    return [function(*deepcopy(case)) for case in cases]


def _shown(case: tuple) -> str:
    return ", ".join(safe(value, 160) for value in case)


def _same(found: Any, wanted: Any) -> bool:
    """Return whether two results are equal; numbers up to rounding, sequences one by one."""
    if isinstance(wanted, str):
        return isinstance(found, str) and found == wanted
    try:
        if isinstance(wanted, (list, tuple)):
            values = list(found)
            return len(values) == len(wanted) and all(map(_same, values, wanted))
        return _near(float(found), float(wanted), 1e-6)
    except (TypeError, ValueError):
        return False


def sealed(exercise: str, answer: str) -> str:
    """Return a choice as it is stored: a hash with the exercise's name as salt.

    Args:
        exercise: Its name.
        answer: The letter of the right choice.
    """
    text = f"ftlab.course {exercise} {answer.strip().lower()}"
    return hashlib.sha256(text.encode()).hexdigest()[:CHARACTERS]


def choice(exercise: str, seal: str, reasons: dict[str, str]) -> Callable[..., str]:
    """Return what grades a choice between letters.

    Args:
        exercise: Its name.
        seal: What `sealed` returns for the right letter.
        reasons: What to say about each letter; what is written about the right one is not shown.
    """

    def grade(answer: Any, *given: Any) -> str:
        letter = str(answer).strip().lower()
        if letter not in reasons:
            return f"Give one of the letters {', '.join(reasons)}."
        if sealed(exercise, letter) == seal:
            return ""
        return reasons[letter]

    return grade
