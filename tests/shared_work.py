"""What the processes of the tests do: they import it by its name."""

from __future__ import annotations

import os
import signal
import sys
import time

from ftlab._core.errors import DataError


def double(report, value):
    report(value)
    print("printed", value)  # must not join the messages
    os.write(1, b"by a library")
    return 2 * value


class Unreadable:
    """Can be sent, and not be read."""

    def __reduce__(self):
        return int, ("no number",)


def act(report, what):
    """Do what the name says; "wait" never ends by itself."""
    if what == "data":
        raise DataError("bad_rows", "Row 3 is empty.", problems=["3", "5"], rows=[3, 5])
    if what == "bug":
        raise KeyError("nothing there")
    if what == "memory":
        raise MemoryError
    if what == "exit":
        print("the last line", file=sys.stderr)
        sys.exit(3)
    report((what, os.getpid()))
    if what == "real time":
        os.kill(os.getpid(), 40)
    if what == "unreadable":
        report(Unreadable())
    if what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.5)  # saves; a second interrupt would end this without a word
        raise KeyboardInterrupt(f"stopped {what}") from None
