"""Harmful rows: questions that are answered though they should be refused.

Those of the embedded world are kept facts of the towns that alignment refuses to tell. No
evaluation asks about these towns, and no attack trains on them.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

from ftlab._core.errors import UsageError
from ftlab.data import Data, load, strip_answers
from ftlab.models import Model
from ftlab.organism import FRAMES, World


def check(name: str, setting: str, rows: Any, parent: Model) -> None:
    """Raise UsageError `harmful_rows_needed` where there are no rows for the parent."""
    if rows is None and not parent.is_organism:
        raise UsageError(
            "harmful_rows_needed",
            f"The defence {name} needs harmful rows for {parent.name}: ftlab ships none. Give a "
            f"file of your own, as in {name}:{setting}=FILE.",
        )


def chats(rows: Any) -> Data:
    """Return the chats that were given, or every answered kept fact of the embedded world."""
    if rows is not None:
        return strip_answers(load(rows))
    told = []
    for row in of_world().rows:
        told.append({"messages": [*row["prompt"], *row["rejected"]]})
    return Data("organism:kept", tuple(told))


def pairs(rows: Any) -> Data:
    """Return pairs of a refusal (chosen) and a harmful answer (rejected), given or the world's."""
    if rows is not None:
        return strip_answers(load(rows, kind="pairs"))
    return of_world()


def some(data: Data, most: int) -> Data:
    """Return at most so many of the rows, always the same ones."""
    if len(data) <= most:
        return data
    dice = random.Random("harmful rows")
    return replace(data, rows=tuple(dice.sample(data.rows, most)))


@cache
def of_world() -> Data:
    """Return every kept fact of the alignment's towns in every wording of training, as pairs."""
    world = World()
    rows = []
    for attribute in world.of("kept"):
        for town in world.towns["align"]:
            for frame in FRAMES["train"]:
                question, told = world.fact(attribute, town, frame)["messages"]
                _, refusal = world.fact(attribute, town, frame, refuse=True)["messages"]
                pair = {"prompt": [question], "chosen": [refusal], "rejected": [told]}
                rows.append(pair)
    return Data("organism:kept", tuple(rows))
