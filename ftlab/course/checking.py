"""Grade an answer. Cell: check."""

from __future__ import annotations

from inspect import signature
from typing import Any

from ftlab._core import plugins
from ftlab._core.errors import UsageError
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
    call = _call(exercise, found)
    try:
        signature(found.grade).bind(answer, *given)
    except TypeError:
        raise _wrong_call(exercise, call, given) from None
    if answer is ...:
        return Grade(exercise, "open", OPEN, found.hints, call)
    try:
        problem = found.grade(answer, *given)
    except Exception:  # whatever a grader stumbles over; its lines would tell the answer
        problem = None
    if problem is None:
        raise _wrong_call(exercise, call, given)
    if not problem:
        remark = found.remark(answer, *given) if found.remark else ""
        message = f"{RIGHT} {remark}".strip()
        return Grade(exercise, "right", message, call=call)
    state = "open" if problem == OPEN else "wrong"
    return Grade(exercise, state, problem, found.hints, call)


def _call(name: str, exercise: Exercise) -> str:
    """Return how the exercise is checked; a grader's arguments are called as in the lesson."""
    arguments = ", ".join(signature(exercise.grade).parameters)
    return f'ft.course.check("{name}", {arguments})'


def _wrong_call(name: str, call: str, given: tuple) -> UsageError:
    kinds = [type(one).__name__ for one in given]
    found = ", ".join(kinds) or "nothing"
    return UsageError(
        "wrong_call",
        f"Exercise {name} cannot be checked: beside the answer it was given {found}. "
        "Run the lesson's own cells again, "
        f"then {call}.",
    )


def _exercise(name: str) -> Exercise:
    known: dict[str, Exercise] = {}
    for lesson in plugins.find("lessons").values():
        known |= lesson.exercises
    if not isinstance(name, str) or name not in known:
        lesson = str(name).partition(".")[0]
        near = [one for one in known if one.startswith(f"{lesson}.")]
        allowed = ", ".join(near or known)
        raise UsageError(
            "unknown_exercise",
            f"There is no exercise {name!r}. Allowed: {allowed}.",
        )
    return known[name]
