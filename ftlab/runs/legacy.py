"""Read run folders of versions 0.1 to 0.3, whose verdict table had one row per answer.

There the columns of further judges had a number at their end (`judge_2`, `verdict_2`).
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ftlab.runs import records

LONG_TABLE = 3  # the first layout with a row per judge
REQUIRED = {"key": str, "risk": str, "prompt_id": str, "verdict": str}
RENAMED = {
    "prompt_id": "sample_id",
    "verdict": "outcome",
    "why": "reason",
    "template": "wording",
    "truth": "target",
    "sample": "repeat",
}
RANKED = re.compile(r"(judge|verdict|event)_(\d+)$")
BY_JUDGE = ("judge", "verdict", "event", "score", "why")

Row = dict[str, Any]


def verdicts(folder: Path) -> list[Row]:
    """Return the verdicts of an old run folder as records of the present layout."""
    config = json.loads((folder / "config.json").read_bytes())
    identity = config.get("identity", {})
    judges = identity.get("evaluation", {}).get("judges", [])
    found: list[Row] = []
    for row in records.parse(folder / "verdicts.jsonl", REQUIRED):
        if row is not None:
            found += _split(row, judges)
    return found


def _split(row: Row, judges: list[str]) -> list[Row]:
    """Split an old row into one per judge."""
    shared: Row = {}
    by_rank: dict[int, Row] = {1: {}}
    for name, value in row.items():
        ranked = RANKED.match(name)
        if ranked:
            rank = int(ranked[2])
            by_rank.setdefault(rank, {})[ranked[1]] = value
        elif name in BY_JUDGE:
            by_rank[1][name] = value
        else:
            shared[name] = value
    return [_renamed(shared | by_rank[rank], rank, judges) for rank in sorted(by_rank)]


def _renamed(old: Row, rank: int, judges: list[str]) -> Row:
    row = {RENAMED.get(name, name): value for name, value in old.items()}
    judge = str(row.get("judge", ""))
    if judge.startswith("rule of "):  # there the judge's column named who decided
        row["decided_by"] = judge
        if rank <= len(judges):
            row["judge"] = judges[rank - 1]
    return row
