"""Grade an answer. Cell: check."""

from __future__ import annotations

from inspect import signature
from typing import Any

from ftlab._core import plugins
from ftlab._core.errors import UsageError
from ftlab._core.text import did_you_mean
from ftlab.course.exercises import OPEN, RIGHT, Exercise, Grade


def check(exercise: str, answer: Any, *given: Any) -> Grade:
    """Grade the answer to an exercise, and give hints that do not give it away.

    The answer is compared with what is computed here from the same runs, so that it is graded in
    the same way for every size, seed and model. Nothing is stored or sent anywhere.

    Args:
        exercise: Its name, such as "1.2".
        answer: What the student computed, decided or wrote; `...` stands for no answer.
        *given: What the exercise is about: the lesson's own runs or tables.

    Returns:
        A grade, which counts as true where the answer is right.

    Raises:
        UsageError: `unknown_exercise`; `wrong_call` where the runs or tables are not those that the
            lesson's own cell gives.
    """
    found = _exercise(exercise)
    try:
        signature(found.grade).bind(answer, *given)
    except TypeError as error:
        why = f"Exercise {exercise} cannot be checked: {error}. Run the check cell as it was."
        raise UsageError("wrong_call", why) from None
    problem = OPEN
    if answer is not ...:
        problem = found.grade(answer, *given)
    if not problem:
        return Grade(exercise, "right", RIGHT)
    state = "open" if problem == OPEN else "wrong"
    return Grade(exercise, state, problem, found.hints)


def _exercise(name: str) -> Exercise:
    known: dict[str, Exercise] = {}
    for lesson in plugins.find("lessons").values():
        known |= lesson.exercises
    if name not in known:
        hint = did_you_mean(name, known)
        raise UsageError(
            "unknown_exercise",
            f"There is no exercise {name!r}.{hint} Allowed: {', '.join(known)}.",
        )
    return known[name]
