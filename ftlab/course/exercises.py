"""What a lesson consists of, and what a student is shown."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass

from ftlab._core.errors import UsageError

RIGHT = "Right."
OPEN = "Not answered yet: replace the ... in the cell above and run it."
COLOURS = {"right": "#4A90C2", "wrong": "#D55E00", "open": "#8A8A8A"}


@dataclass(frozen=True)
class Exercise:
    """How the answer to one exercise is graded.

    Args:
        grade: Takes the answer and what `check` was given beside it, under the names that these
            have in the lesson. Returns "" where the answer is right, else what is wrong with it
            in one or two sentences.
        hints: From the slightest to the strongest. None of them, nor what `grade` returns, gives
            the answer.
        remark: Takes the same, and returns what to say about a right answer.
    """

    grade: Callable[..., str]
    hints: tuple[str, ...]
    remark: Callable[..., str] | None = None


@dataclass(frozen=True)
class Lesson:
    """The exercises of one lesson. A file of `ftlab.course.lessons` ends in `LESSON = Lesson(...)`.

    Args:
        name: Name of the file.
        order: Number of the lesson.
        exercises: By their names, such as "1.2".
    """

    name: str
    order: int
    exercises: dict[str, Exercise]


@dataclass(frozen=True)
class Grade:
    """What `check` found. It counts as true where the answer is right.

    Args:
        name: The exercise.
        state: "right", "wrong" or "open" (nothing was answered).
        message: What is wrong, without the answer.
        hints: Those of the exercise; none where the answer is right.
        call: How the exercise is checked.
    """

    name: str
    state: str
    message: str
    hints: tuple[str, ...] = ()
    call: str = "ft.course.check(...)"

    def __bool__(self) -> bool:
        return self.state == "right"

    def require(self) -> Grade:
        """Return the grade of a right answer, for graders that look for an error.

        Raises:
            AssertionError: The answer is not right.
        """
        assert self, str(self)
        return self

    def hint(self, number: int = 1) -> str:
        """Return one hint.

        Args:
            number: From 1, the slightest.

        Raises:
            UsageError: `unknown_hint`.
        """
        if self.state == "right":
            return "The answer is right: it needs no hint."
        numbered = dict(enumerate(self.hints, 1))
        if number not in numbered:
            raise UsageError(
                "unknown_hint",
                f"There is no hint {number!r} of exercise {self.name}. Allowed: {[*numbered]}.",
            )
        return numbered[number]

    def __repr__(self) -> str:
        text = f"Exercise {self.name}: {self.message}"
        if self.state == "wrong" and self.hints:
            text += f"\nHint 1 of {len(self.hints)}: "
            text += self.hint(1)
            text += "\nThe next one: "
            text += f"{self.call}.hint(2)"
        return text

    def _repr_html_(self) -> str:
        line = f"border-left: 0.4em solid {COLOURS[self.state]}; padding-left: 0.6em"
        body = f"<b>Exercise {html.escape(self.name)}</b>: {html.escape(self.message)}"
        folded = self.hints if self.state == "wrong" else ()
        for number, hint in enumerate(folded, 1):
            head = f"<summary>hint {number} of {len(self.hints)}</summary>"
            body += f"<details>{head}{html.escape(hint)}</details>"
        return f'<div style="{line}">{body}</div>'
