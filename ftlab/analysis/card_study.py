"""What a card is of: one table, the verdicts behind it, and the runs that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pandas as pd

from ftlab.analysis import verdicts
from ftlab.analysis.judge_errors import is_exact
from ftlab.analysis.origins import without_places
from ftlab.analysis.short_tables import summary
from ftlab.analysis.tables import judged_by
from ftlab.runs import Run

BESIDE = ("over_refusal", "utility")  # are not what a study of safety asks first


@dataclass(frozen=True)
class Study:
    """What a card is of.

    Args:
        table: The comparison, or the rates of a single evaluation; empty where nothing was
            measured.
        verdicts: Every verdict behind it: of its judge, risks and attacks, at all steps.
        sides: What was compared, or evaluated.
        runs: The runs among them.
        members: The runs that hold the answers.
        trained: The trainings among them, and those of models that were evaluated.
    """

    table: pd.DataFrame
    verdicts: pd.DataFrame
    sides: list[Any]
    runs: list[Run]
    members: list[Run]
    trained: list[Run]

    @property
    def compared(self) -> bool:
        """Whether there are two sides."""
        return "child" in self.table

    @property
    def model(self) -> str:
        """Name of the model that the study begins with."""
        return str(self.table.attrs.get("model", ""))

    @property
    def judge(self) -> str:
        """The judge of the table; "" where nothing was measured."""
        return judge_of(self.table)

    @property
    def exact(self) -> bool:
        """Whether whoever decided knows the right answers."""
        return is_exact(judged_by(self.verdicts))

    @property
    def by(self) -> list[str]:
        """The columns that tell the rows of the table apart."""
        return self.table.attrs.get("by", [])

    @property
    def seeds(self) -> int:
        """Training seeds behind the table."""
        return int(self.table["n_seeds"].min())

    @cached_property
    def results(self) -> list[dict[str, str]]:
        """The table in words, a row each."""
        return in_words(self.table)

    @cached_property
    def place(self) -> int:
        """The row that the answer is about: the first risk, after the largest dose."""
        risks = list(self.table.get("risk", []))
        asked = [risk for risk in risks if risk not in BESIDE]
        first = (asked or risks or [None])[0]
        places = [number for number, risk in enumerate(risks) if risk == first]
        return places[-1] if places else len(self.table) - 1

    @property
    def first(self) -> dict[str, Any]:
        """The numbers of that row."""
        return self.table.iloc[self.place].to_dict()

    @property
    def words(self) -> dict[str, str]:
        """The same row in words."""
        return self.results[self.place]

    @property
    def silent(self) -> list[float]:
        """Shares of incoherent answers in that row, of each side."""
        row = self.first
        columns = ["incoherent_share"]
        if self.compared:
            columns = [
                "incoherent_parent",
                "incoherent_child",
            ]
        return [row[name] for name in columns]


def judge_of(table: pd.DataFrame) -> str:
    """Return the judge whose verdicts a table is of; "" of an empty one."""
    if table.empty:
        return ""
    name, _, _ = str(table["judge"].iloc[0]).partition(": corrected")
    return name


def behind(table: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return the verdicts that a table is made of: its judge's, in its groups, as selected."""
    judge = judge_of(table)
    rows = verdicts.of_judge(rows, judge)
    options = table.attrs.get("options", {})
    rows = verdicts.select(
        rows,
        risk=options.get("risk"),
        attack=options.get("attack"),
    )
    for name in table.attrs.get("by", []):
        if name in rows:
            rows = rows[rows[name].isin(table[name])]
    return rows


def in_words(table: pd.DataFrame) -> list[dict[str, str]]:
    """Return a table of estimates as `summary` shows it, a row each."""
    if table.empty:
        return []
    words = summary(table).astype(str).to_dict("records")
    return [without_places(row) for row in words]


def sides_of(words: dict[str, str]) -> tuple[str, str]:
    """Return a row's rate before and after, or of the first and the second curve."""
    if "before" in words:
        return words["before"], words["after"]
    return words["first"], words["second"]


def named(row: dict[str, Any], by: list[str]) -> str:
    """Return the groups of a row in words: "Jailbreak", "Jailbreak (100 examples)"."""
    risk = str(row.get("risk", "the event"))
    text = risk.replace("_", "-").capitalize()
    parts = []
    for name in by:
        if name != "risk":
            parts.append(f"{row[name]} {name}")
    if not parts:
        return text
    groups = ", ".join(parts)
    return f"{text} ({groups})"
