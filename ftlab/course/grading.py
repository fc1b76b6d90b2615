"""Ways to grade: a number, a choice, a function. Each returns "" or what is wrong."""

from __future__ import annotations

import contextlib
import dis
import hashlib
import io
import math
import numbers
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from itertools import islice
from typing import Any

from ftlab._core.text import safe
from ftlab.course.exercises import OPEN

NOT_IT = "This is not what the run shows."
PERCENT = "This looks like a percentage. Give a share between 0 and 1."
CHARACTERS = 16  # of a seal
ROUNDING = 1e-9
ROUNDED = "Nearly: this is rounded. Give the number as it was computed."
NO_RETURN = "Your function returns None. Did you forget return?"
DIGITS = (1, 2, 3, 4)  # that students round to
PERCENT_WITHIN = 0.005
SECONDS = 5.0  # that one call of a student's function may take
AGAIN = 5e-5  # seconds after which one that goes on is stopped again
MOST_VALUES = 100_000  # that are read of what a student's generator yields
EMPTY = {"RESUME", "NOP", "LOAD_CONST", "RETURN_CONST", "RETURN_VALUE"}  # nothing is computed


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
        return f"Give one number. This is {kind_of(answer)}."
    try:
        value = float(answer)
    except OverflowError:
        return NOT_IT
    if _near(value, truth, tolerance):
        return ""
    for wrong, message in mistakes:
        if _near(value, wrong, tolerance):
            return message
    if abs(value) > 1 and _near(value / 100, truth, max(tolerance, PERCENT_WITHIN)):
        return PERCENT
    if value and math.isfinite(truth):
        if any(value == round(truth, digits) for digits in DIGITS):
            return ROUNDED
    return NOT_IT


def kind_of(value: Any) -> str:
    """Return the name of a value's type with its article: "an int"."""
    name = type(value).__name__
    return f"an {name}" if name[0].lower() in "aeiou" else f"a {name}"


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
    found, problem = call_function(answer, cases)
    if problem:
        return problem
    wanted = _results(right, cases)
    same = list(map(_same, found, wanted))
    if all(same):
        return ""
    for mistake, message in mistakes:
        if all(map(_same, found, _results(mistake, cases))):
            return message
    first = same.index(False)
    told = _wrong_kind(found[first], wanted[first]) or _wrong_form(found, wanted)
    if told:
        return told
    right_on = sum(same)
    shown = _shown(cases[first])
    return f"Right on {right_on} of {len(cases)} inputs, and not on one like {shown}."


def call_function(answer: Any, cases: Sequence[tuple]) -> tuple[list[Any], str]:
    """Call a student's function; what it prints is not shown.

    Args:
        answer: The student's function.
        cases: Arguments of each call, which the function cannot change.

    Returns:
        What it returned, and "" or what went wrong. A function that does nothing yet is open.
    """
    if not callable(answer):
        return [], f"Give the function itself, without calling it. This is {kind_of(answer)}."
    found = []
    for case in cases:
        problem = ""
        try:
            with contextlib.redirect_stdout(io.StringIO()), _at_most(SECONDS):
                found.append(_called(answer, case))
        except _TooLong:
            problem = f"did not end within {SECONDS:g} seconds"
        except (Exception, SystemExit) as error:  # the student's code
            problem = f"raised {type(error).__name__}: {safe(error, 200)}"
        if problem:
            return [], f"On an input like {_shown(case)} your function {problem}"
    if all(result is ... for result in found):
        return [], OPEN
    if all(result is None for result in found):
        if _does_nothing(answer):
            return [], OPEN
        return [], NO_RETURN
    return found, ""


def _called(answer: Callable, case: tuple) -> Any:
    """Return what a student's function returns; only in here may `_at_most` stop it."""
    result = answer(*deepcopy(case))
    if isinstance(result, Iterator):  # may be endless, and can be read once only
        return list(islice(result, MOST_VALUES))
    return result


class _TooLong(BaseException):
    """A student's function does not end. Its own `except Exception` must not catch this."""


@contextlib.contextmanager
def _at_most(seconds: float) -> Iterator[None]:
    """Stop a call that takes longer, where the system has a timer and this is the main thread.

    A bare `except:` of the student catches that. So it is raised again and again, until it comes
    where nothing catches it.
    """
    main = threading.current_thread() is threading.main_thread()
    if not (main and hasattr(signal, "setitimer")):
        yield
        return

    def stop(_: int, frame: Any) -> None:
        while frame is not None:
            if frame.f_code is _called.__code__:
                raise _TooLong
            frame = frame.f_back

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _does_nothing(function: Any) -> bool:
    """Return whether a function is still the stub: `...` and no more."""
    code = getattr(function, "__code__", None)
    if code is None:
        return False
    names = {step.opname for step in dis.get_instructions(code)}
    return names <= EMPTY


def _results(function: Callable, cases: Sequence[tuple]) -> list[Any]:
    return [function(*deepcopy(case)) for case in cases]


def _wrong_kind(found: Any, wanted: Any) -> str:
    """Return "" or what a function should return instead of what it does."""
    kind = kind_of(found)
    if isinstance(wanted, str):
        if isinstance(found, str):
            return ""
        return f"Your function returns {kind}. Return a text."
    if isinstance(wanted, tuple):
        if not isinstance(found, (tuple, list)) or len(found) != len(wanted):
            return f"Your function returns {kind}. Return {len(wanted)} values, as (x, y)."
        for one, meant in zip(found, wanted, strict=True):
            told = _wrong_kind(one, meant)
            if told:
                return told.replace("returns", "returns, among others,")
        return ""
    if isinstance(wanted, list):
        wanted_kind = "a list"
        right = hasattr(found, "__iter__") and not isinstance(found, (str, dict))
    else:
        wanted_kind = "a number"
        right = _is_number(found)
    if right:
        return ""
    return f"Your function returns {kind}. Return {wanted_kind}."


def _is_number(value: Any) -> bool:
    if isinstance(value, (str, bytes)):
        return False
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _wrong_form(found: list, wanted: list) -> str:
    """Return what to say where all numbers are right, but in percent or rounded; else ""."""
    shares = [value for value in _numbers(wanted) if not math.isnan(value)]
    if shares and min(shares) >= 0 and max(shares) <= 1:
        percent = _each(wanted, lambda value: 100 * value)
        if _same(found, percent):
            return PERCENT
    for digits in DIGITS:
        rounded = _each(wanted, partial(round, ndigits=digits))
        if _same(found, rounded):
            return ROUNDED
    return ""


def _each(value: Any, change: Callable[[float], float]) -> Any:
    if isinstance(value, (list, tuple)):
        return [_each(one, change) for one in value]
    if isinstance(value, numbers.Real):
        return change(value)
    return value


def _numbers(value: Any) -> list[float]:
    found: list[float] = []
    _each(value, found.append)
    return found


def _shown(case: tuple) -> str:
    return ", ".join(safe(value, 160) for value in case)


def _same(found: Any, wanted: Any) -> bool:
    """Return whether two results are equal; numbers up to rounding, sequences one by one."""
    if isinstance(wanted, str):
        return isinstance(found, str) and found == wanted
    try:
        if isinstance(wanted, (list, tuple)):
            values = list(islice(found, len(wanted) + 1))
            return len(values) == len(wanted) and all(map(_same, values, wanted))
        return _is_number(found) and _near(float(found), float(wanted), 1e-6)
    except (TypeError, ValueError, OverflowError):
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

    def grade(answer: Any) -> str:
        letter = str(answer).strip(" ().'\"").lower()
        if letter not in reasons:
            return f"Give one of the letters {', '.join(reasons)}."
        if sealed(exercise, letter) == seal:
            return ""
        return reasons[letter]

    return grade
