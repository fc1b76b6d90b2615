"""Errors with a code: what was found, what is allowed, one fix, in at most two short sentences.

Every error that a user can cause is one of these classes. `code` is stable and is what tests and
callers rely on; the sentence may be reworded at any time. The command line prints the sentence
without a traceback and ends with `exit_code`; a notebook shows it with the traceback folded.
"""

from __future__ import annotations

import functools
import html
import traceback


class Sentence(BaseException):
    """An error that IPython shows as one sentence, with the traceback folded above it."""

    folded = False  # IPython renders an error more than once

    def _render_traceback_(self) -> list[str]:
        from ftlab._core.progress import in_jupyter
        from ftlab._core.text import redacted, safe

        lines = traceback.format_exception(self)
        trace = safe(redacted("".join(lines)), 20_000)
        if in_jupyter() and not self.folded:
            self.folded = True
            from IPython.display import display

            shown = f"<summary>details</summary><pre>{html.escape(trace)}</pre>"
            content = {"text/plain": "details", "text/html": f"<details>{shown}</details>"}
            display(content, raw=True)
        return [f"{type(self).__name__}: {safe(redacted(str(self)), 20_000)}"]


class Interrupted(Sentence, KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop button."""


class FtlabError(Sentence, Exception):
    """Base class of all errors that ftlab raises on purpose.

    Args:
        code: A stable name in snake case, such as "unknown_risk".
        message: What was found, what is allowed, one fix.
        **details: Values a caller may want to read, kept as attributes in `details`.
    """

    exit_code = 2

    def __init__(self, code: str, message: str, **details):
        super().__init__(message)
        self.code = code
        self.details = details

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self):
        kind = functools.partial(type(self), self.code, str(self))
        return kind, (), self.__dict__  # with the details, from one process to another


class UsageError(FtlabError, ValueError):
    """A wrong value, an unknown name, or settings that do not go together."""


class NoSuchName(FtlabError, AttributeError):
    """A name that a module of ftlab does not have."""


class NotFoundError(FtlabError, FileNotFoundError):
    """A file, folder, model or run that does not exist."""


class DataError(FtlabError, ValueError):
    """Rows that cannot be used. `problems` lists every one of them with its place in the file."""

    exit_code = 1

    def __init__(self, code: str, message: str, problems: list[str] | None = None, **details):
        super().__init__(code, message, **details)
        self.problems = problems or [message]


class TrainingFailed(FtlabError, ValueError):
    """The training itself went wrong: neither the call nor the data was at fault."""

    exit_code = 1


class NotebookFailed(FtlabError, RuntimeError):
    """A notebook did not run to its end."""

    exit_code = 1


class StorageFull(FtlabError, OSError):
    """The disk has no room left, or refuses to write."""

    exit_code = 1


class ProcessFailed(FtlabError, RuntimeError):
    """A process that shares a call's work has failed or is gone."""

    exit_code = 1


class Busy(FtlabError, RuntimeError):
    """Another process is working on this run."""

    exit_code = 1


class FtlabDeprecationWarning(FutureWarning):
    """A name of version 0.3 that will be removed in the next release."""
