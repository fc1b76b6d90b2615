"""Compare before and after: the paired table, what became of the outcomes, the answers. Cell."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ftlab import analysis, runs
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab._core.types import Outcome
from ftlab.runs import Run
from ftlab.ui.panels.base import AnswerPages, Frame, Panel, call_of, html_table

SPLITS = {
    "risk": ["risk"],
    "risk and attack": ["risk", "attack"],
}


@takes()
def compare(
    a: Any,
    b: Any = None,
    *,
    judge: str | None = None,
    split: str = "risk",
    risk: str | None = None,
    step: int = -1,
) -> ComparePanel:
    """Compare a curve's steps with its parent, or two runs, on the same prompts.

    The table is that of `ftlab.compare`. Of a risk and a step it shows how many answers went from
    which outcome to which, and on a tick the answers themselves: escaped, before beside after,
    changes first.

    Args:
        a: A finished curve; or with `b` the evaluation (or curve) before. A run or its name.
        b: The evaluation or curve after.
        judge: Whose verdicts count; by default the first judge's.
        split: The rows of the table: "risk", or "risk and attack".
        risk: The risk whose answers are shown; by default the first.
        step: The step of the later side whose answers are shown; -1 is the last.

    Returns:
        The panel.

    Raises:
        UsageError: `nothing_selected`; those of `ftlab.compare` and of `ftlab.load`.
    """
    sides = []
    for side in (a, b):
        if side is not None and not isinstance(side, Run):
            side = runs.load(side)
        sides.append(side)
    found = ComparePanel(*sides, judge)
    chosen = {"split": split, "risk": risk or found.risk}
    if step != -1:
        chosen["step"] = step
    found.choose(**chosen)
    return found


class ComparePanel(Panel):
    """What is compared, and which part of it is shown.

    Args:
        before: A finished run.
        after: The other side; None for a curve by itself.
        judge: Whose verdicts count; None for the first judge's.

    Attributes:
        split: A key of `SPLITS`.
        risk: The risk whose answers are shown.
        step: The step of the later side.
        pages: The answers.
    """

    name = "compare"
    title = "Before and after"

    def __init__(self, before: Run, after: Run | None, judge: str | None):
        self.before = before
        self.after = after
        self.judge = judge
        self._tables = {
            name: analysis.compare(
                before,
                after,
                by=by,
                judge=judge,
            )
            for name, by in SPLITS.items()
        }
        table = self._tables["risk"]
        self.risks = list(table["risk"].unique())
        self.steps = [int(step) for step in table["step"].unique()]
        # With their texts, so that a choice reads no file; what is shown is another matter.
        self._answers = {step: self._pairs(step) for step in self.steps}
        self.split = "risk"
        self.risk = self.risks[0]
        self.step = self.steps[-1]
        self.pages = AnswerPages(self.answers, _side_by_side)

    def choose(self, **chosen: Any) -> None:
        """Show another `split`, `risk` or `step`.

        Raises:
            UsageError: `nothing_selected`.
        """
        allowed = {
            "split": list(SPLITS),
            "risk": self.risks,
            "step": self.steps,
        }
        for name, value in chosen.items():
            if value not in allowed[name]:
                there = ", ".join(map(str, allowed[name]))
                message = f"{name} {value!r} was not compared. Choose from {there}."
                raise UsageError("nothing_selected", message)
        vars(self).update(chosen)
        self.pages.page = 0

    def table(self) -> pd.DataFrame:
        """Return the comparison, as `ftlab.compare` does."""
        return self._tables[self.split]

    def answers(self) -> pd.DataFrame:
        """Return the pairs of answers of the chosen risk and step, changes first."""
        found = self._answers[self.step]
        return found[found["risk"] == self.risk]

    def moves(self) -> pd.DataFrame:
        """Return how many answers went from which outcome (row) to which (column)."""
        found = self.answers()
        counts = pd.crosstab(found["before"], found["after"])
        return counts.reindex(
            index=[str(name) for name in Outcome if name in counts.index],
            columns=[str(name) for name in Outcome if name in counts],
        )

    def call(self) -> str:
        """Return the calls of the cells."""
        sides = [self.before] if self.after is None else [self.before, self.after]
        by = None if self.split == "risk" else SPLITS[self.split]  # None: the cell's default
        first = call_of(
            "ft.compare",
            *sides,
            by=by,
            judge=self.judge,
        )
        chosen = {
            "step": self.step,
            "risk": self.risk,
            "judge": self.judge,
        }
        if self.after is not None and self.steps == [1]:  # two evaluations, which have no step
            del chosen["step"]
        second = call_of(
            "ft.answers",
            *sides,
            text=self.pages.texts or None,
            **chosen,
        )
        return f"{first}\n{second}"

    def parameters(self) -> dict[str, Any]:
        """Return the notebook's parameters."""
        return {
            "run": self.before.name,
            "other": "" if self.after is None else self.after.name,
            "judge": self._judge(),
            "compare_split": self.split,
            "compare_risk": self.risk,
            "compare_step": self.step,
        }

    def choices(self) -> dict[str, Any]:
        """Return the arguments of the cell, and what it has no argument for."""
        return {
            "a": self.before,
            "b": self.after,
            "judge": self._judge(),
            "split": self.split,
            "risk": self.risk,
            "step": self.step,
            "texts": self.pages.texts or None,
        }

    def plain(self) -> list[Any]:
        """Return the comparison, and what became of the outcomes."""
        return [analysis.summary(self.table()), self.moves()]

    def behind(self) -> str:
        """Return what became of the outcomes as HTML and, on the tick, the answers."""
        moves = self.moves()
        rows = []
        for outcome, counts in moves.to_dict("index").items():
            row: dict[str, Any] = {"from, to": Outcome(outcome).label}
            for name, count in counts.items():
                row[Outcome(name).label] = f"{count:,}"
            rows.append(row)
        shown = html_table(rows, f"Answers about {self.risk} at step {self.step}")
        return shown + self.pages.table()

    def widget(self) -> Any:
        """Return the widgets."""
        return _Widgets(self).box

    def _pairs(self, step: int) -> pd.DataFrame:
        sides = [self.before] if self.after is None else [self.before, self.after]
        at = step
        if self.after is not None and self.steps == [1]:
            at = -1
        return pd.DataFrame(
            analysis.answers(
                *sides,
                step=at,
                judge=self.judge,
                text=True,
            )
        )

    def _judge(self) -> str:
        """Return whose verdicts count."""
        return str(self.table()["judge"].iloc[0])


def _side_by_side(answer: dict[str, Any]) -> dict[str, Any]:
    """Return what is shown of a pair of answers, as plain text."""
    row = {"changed": "changed" if answer["changed"] else "same"}
    row |= {name: answer[name] for name in ("seed", "attack") if name in answer}
    row["question"] = answer["question"]
    for side in ("before", "after"):
        verdict = Outcome(answer[side]).label
        row[side] = f"[{verdict}]\n{answer[f'text_{side}']}"
    return row


class _Widgets:
    """The panel on the screen."""

    def __init__(self, state: ComparePanel):
        from ipywidgets import HTML, Dropdown, HBox

        self.state = state
        self.frame = Frame(state)
        react = self.frame.reacting
        choices = {
            "split": list(SPLITS),
            "risk": state.risks,
            "step": state.steps,
        }
        fields = []
        for name, options in choices.items():
            value = getattr(state, name)
            field = Dropdown(options=options, value=value, description=name.capitalize())
            field.observe(react(lambda change, name=name: self._choose(name, change)), "value")
            fields.append(field)
        self.table = HTML()
        self.behind = HTML()
        self.draw()
        paging = state.pages.controls(react, self.draw)
        self.box = self.frame.show(
            HBox(fields),
            self.table,
            paging,
            self.behind,
        )

    def draw(self) -> None:
        self.table.value = analysis.summary(self.state.table())._repr_html_()
        self.behind.value = self.state.behind()

    def _choose(self, name: str, change: Any) -> None:
        self.state.choose(**{name: change["new"]})
        self.draw()
