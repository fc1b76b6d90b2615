"""What a log of another tool is, and how it is recognised.

A tool is one file that defines a subclass of `LogFormat` and ends in `LOG = Subclass()`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftlab._core import plugins
from ftlab._core.errors import DataError, UsageError
from ftlab._core.files import digest

HEAD = 1 << 16  # bytes by which a format is recognised
PLAIN_ID = re.compile(r"[\w.:/#-]{1,40}")  # one that is no sentence
WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


@dataclass(frozen=True, slots=True)
class Logged:
    """What a log says of one answer.

    Args:
        id: The sample, by which answers of two logs pair; "" where the log has none.
        question: What was asked. Answers without ids pair by it, and with ids it must be the same
            in both logs; "" where it may differ.
        answer: What the model said; None where the log does not tell.
        scores: Number by name of the score; NaN where there is none.
        repeat: Which of several answers to one sample.
        asked: What a judge reads in place of `question`, where that is no text.
    """

    id: str = ""
    question: str = ""
    answer: str | None = None
    scores: dict[str, float] = field(default_factory=dict)
    repeat: str = ""
    asked: str = ""


@dataclass(frozen=True)
class About:
    """What a log says of itself.

    Args:
        task: What was asked; logs of different tasks are not compared.
        model: Who answered.
        note: What is odd about it.
    """

    task: str = ""
    model: str = ""
    note: str = ""


class LogFormat:
    """The logs of one tool.

    Attributes:
        name: Name of the file.
        higher: Whether a higher score is "better" or "worse"; "" where that must be said.
        order: Position in which formats are tried.
    """

    name = ""
    higher = ""
    order = 10

    def recognises(self, path: Path, head: bytes) -> bool:
        """Return whether a file is of this tool.

        Args:
            path: The file, for its name.
            head: Its first `HEAD` bytes.
        """
        raise NotImplementedError

    def about(self, path: Path) -> About:
        """Return what a log says of itself.

        Args:
            path: The log.

        Raises:
            DataError: It cannot be read.
        """
        return About()

    def rows(self, path: Path, score: str | None) -> Iterator[tuple[str, Logged | str]]:
        """Yield each answer with its place, such as "a.csv:7"; a text says what is wrong there.

        Args:
            path: The log.
            score: Name of the score that is asked for, where a file does not name its own.

        Raises:
            DataError: The rest of the file cannot be read.
        """
        raise NotImplementedError


def number(value: Any) -> float | None:
    """Return a score as a number: NaN where there is none, None where it is no number."""
    if value is None or value == "":
        return math.nan
    if isinstance(value, str):
        value = WORDS.get(value.strip().lower(), value)
    if isinstance(value, (list, dict)):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isinf(found) else found


def format_of(path: Path) -> LogFormat:
    """Return the format of a log.

    Raises:
        DataError: `empty_log`.
        UsageError: `unknown_log`.
    """
    with open(path, "rb") as file:
        head = file.read(HEAD)
    if not head.strip():
        raise DataError("empty_log", f"{path} is empty. Give the log of a finished evaluation.")
    formats = plugins.find("logs")
    for form in formats.values():
        if form.recognises(path, head):
            return form
    names = ", ".join(formats)
    raise UsageError("unknown_log", f"{path} is no log that can be read. Known tools: {names}.")


def shown_id(name: str) -> str:
    """Return an id as it may be shown: one that is a sentence may be the prompt itself."""
    return name if PLAIN_ID.fullmatch(name) else f"{digest(name)} (hashed)"
