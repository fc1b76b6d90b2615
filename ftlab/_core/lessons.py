"""Lessons as students get them: without solutions and without notes for teachers.

The build of a wheel runs this file by itself, so it imports nothing that has to be installed.
"""

from __future__ import annotations

import copy
from typing import Any

BEGIN = "### BEGIN SOLUTION"  # as nbgrader has them
END = "### END SOLUTION"


def tags_of(cell: Any) -> list[str]:
    """Return the tags of a cell."""
    return list(cell["metadata"].get("tags", []))


def without_solution(source: str, instead: str = "") -> str:
    """Return an exercise without its solution, or with other code in its place.

    Args:
        source: Code of the cell.
        instead: What a student writes. It stands where the cell is left of, not indented.
    """
    before, begin, rest = source.partition(BEGIN)
    if not begin:
        return source
    _, _, after = rest.partition(END)
    start = before.rstrip()
    if instead:
        return f"{start}\n{instead}{after}"
    return start + after.rstrip()


def for_students(book: Any, *, outputs: bool = False) -> Any:
    """Return a lesson without solutions, teacher's notes and, unless wanted, outputs.

    Outputs of exercises and checks are never there.

    Args:
        book: The notebook as JSON; the source of a cell may be a list of lines.
        outputs: Whether the outputs of other cells stay.
    """
    made = copy.deepcopy(book)
    kept = []
    for cell in made["cells"]:
        tags = tags_of(cell)
        if "teacher" in tags:
            continue
        kept.append(cell)
        if cell["cell_type"] != "code":
            continue
        cell["execution_count"] = None
        if not outputs or "exercise" in tags or "check" in tags:
            cell["outputs"] = []
        if "exercise" in tags:
            source = "".join(cell["source"])
            cell["source"] = without_solution(source)
    made["cells"] = kept
    return made
