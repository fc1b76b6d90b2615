"""Look into a risk curve: steps, seeds, risks, attacks, and what lies behind a point."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ftlab import analysis, runs
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab._core.shown import verdict_html
from ftlab._core.text import safe
from ftlab._core.types import Outcome
from ftlab.analysis import plots
from ftlab.runs import Run
from ftlab.ui.panels.base import TABLE, AnswerPages, Frame, Panel, call_of, check_box, escaped, pad

CHOICES = ("risks", "attacks", "seeds")
WIDTH, HEIGHT = 300, 190  # of the chart of one risk, in pixels
LEFT, RIGHT, TOP, BOTTOM = 38, 14, 10, 30  # its margins
TICKS = (0, 25, 50, 75, 100)
MARKS = {  # shapes of the points, by matplotlib's letters
    "o": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0Z",
    "s": "M-4.5-4.5h9v9h-9Z",
    "^": "M0-6 6 5H-6Z",
    "D": "M0-6 6 0 0 6-6 0Z",
    "v": "M0 6 6-5H-6Z",
    "P": "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4Z",
    "X": "M-6-3-3-6 0-3 3-6 6-3 3 0 6 3 3 6 0 3-3 6-6 3-3 0Z",
}
NOTHING = "Nothing of this was scored."
TEMPLATE = "chart.svg.j2"
Rows = list[dict[str, Any]]


@takes()
def explore(
    curve: Any,
    *,
    risks: Iterable[str] = (),
    attacks: Iterable[str] = (),
    steps: Iterable[int] = (),
    seeds: Iterable[int] = (),
    judge: str | None = None,
    per_seed: bool = True,
    point: str = "",
) -> Exploration:
    """Look into a risk curve, or an evaluation.

    A slider chooses the steps, boxes the risks, attacks and training seeds. A point that is
    clicked, or chosen by Tab and Enter, shows how many answers had which outcome. The answers
    themselves are shown only on a tick: escaped, the parent's beside the child's, changes first.

    Args:
        curve: A finished run, or its name.
        risks: Shown at first; by default all.
        attacks: Shown at first; by default all.
        steps: The first and the last step shown at first; by default all.
        seeds: Training seeds that count at first; by default all.
        judge: Whose verdicts count; by default the first judge's.
        per_seed: Whether single seeds are drawn, where there are several.
        point: The point that is chosen at first, such as "jailbreak 10"; by default none.

    Returns:
        The panel.

    Raises:
        UsageError: `nothing_selected`, `judge_not_in_table`, and those of `ftlab.load`.
    """
    if not isinstance(curve, Run):
        curve = runs.load(curve)
    found = Exploration(
        curve,
        judge,
    )
    found.choose(
        "risks",
        _several(risks) or found.every["risks"],
    )
    found.choose(
        "attacks",
        _several(attacks) or found.every["attacks"],
    )
    found.choose(
        "seeds",
        _several(seeds) or found.every["seeds"],
    )
    listed = _several(steps)
    if not all(isinstance(step, Real) for step in listed):
        message = f"steps={steps!r:.80} are no steps. There are: {found.steps}."
        raise UsageError("nothing_selected", message)
    if listed:
        found.limit(min(listed), max(listed))
    found.per_seed = per_seed and found.has_seeds
    if point:
        found.pick(*_place(point))
    return found


def _several(values: Any) -> list[Any]:
    """Return values as a list, also a single one."""
    if values is None:
        return []
    return [values] if isinstance(values, (str, Real)) else list(values)


class Exploration(Panel):
    """What is shown of a curve, and the point that was chosen.

    Args:
        run: A finished run.
        judge: Whose verdicts count; None for the first judge's.

    Attributes:
        every: What there is, by `CHOICES`.
        chosen: What of it is shown.
        steps: All measured steps.
        limits: The first and the last step that are shown.
        has_seeds: Whether there are several training seeds.
        per_seed: Whether single seeds are drawn.
        picked: Risk and step of the chosen point, or None.
        pages: The answers behind it.
    """

    name = "explore"
    title = "Risk curve"

    def __init__(self, run: Run, judge: str | None = None):
        self.run = run
        self.measured = analysis.Selections(run, judge)
        self.judge = self.measured.judge
        self.steps = self.measured.steps
        self.every: dict[str, list] = {
            "risks": self.measured.risks,
            "attacks": self.measured.attacks,
            "seeds": self.measured.seeds,
        }
        self.chosen = {name: list(every) for name, every in self.every.items()}
        self.limits = (self.steps[0], self.steps[-1])
        self.has_seeds = len(self.every["seeds"]) > 1
        self.per_seed = self.has_seeds
        self.picked: tuple[str, int] | None = None
        self.pages = AnswerPages(
            lambda: self.answers() if self.picked else [],
            self._side_by_side,
            read=self._texts,
        )
        self._read: tuple[dict[str, str], dict[str, str]] | None = None

    def choose(self, what: str, values: Iterable[Any]) -> None:
        """Show these risks, attacks or seeds only.

        Raises:
            UsageError: `nothing_selected` for none, or one that was not measured.
        """
        wanted = list(values)
        unknown = [value for value in wanted if value not in self.every[what]]
        if unknown or not wanted:
            found = ", ".join(map(str, unknown)) or "none"
            there = ", ".join(map(str, self.every[what]))
            message = f"{what}: {found} cannot be shown. Choose from {there}."
            raise UsageError("nothing_selected", message)
        self.chosen[what] = [value for value in self.every[what] if value in wanted]
        self.pages.page = 0

    def limit(self, first: int, last: int) -> None:
        """Show the steps from the first to the last one only.

        Raises:
            UsageError: `nothing_selected`.
        """
        self.limits = (first, last)
        if not self._steps():
            self.limits = (self.steps[0], self.steps[-1])
            message = f"No step from {first} to {last} was measured. There are: {self.steps}."
            raise UsageError("nothing_selected", message)

    def pick(self, risk: str, step: int) -> None:
        """Choose a point of the curve.

        Raises:
            UsageError: `nothing_selected`.
        """
        if risk not in self.every["risks"] or step not in self.steps:
            raise UsageError("nothing_selected", f"There is no point of {risk} at step {step}.")
        self.picked = (risk, int(step))
        self.pages.page = 0

    def rates(self) -> pd.DataFrame:
        """Return the rate of each shown risk at each shown step, with its interval."""
        return self._table(self._rates(self.measured.rates))

    def seed_rates(self) -> pd.DataFrame:
        """Return the rate of each shown risk at each shown step by each shown seed."""
        return self._table(self._rates(self.measured.seed_rates))

    def counts(self) -> dict[str, int]:
        """Return how many answers at the chosen point had each outcome; the parent's once."""
        risk, step = self.picked
        codes = self._at(risk, step).outcomes[:, 0]
        if step == 0:
            codes = codes[:1]
        found = Counter(codes.ravel().tolist())
        outcomes = enumerate(analysis.OUTCOMES)
        return {str(outcome): found[code] for code, outcome in outcomes if code in found}

    def answers(self) -> Rows:
        """Return what `ftlab.answers` lists of the chosen point: a pair each, changes first.

        Each has changed, sample_id, attack, seed, before and after (outcomes) and the keys of both
        answers. At step 0 it is the parent alone, without changed, after and seed.
        """
        risk, step = self.picked
        first = self.steps[0]
        old, new = self._at(risk, first), self._at(risk, step)
        answered = (old.outcomes[:, 0] >= 0) & (new.outcomes[:, 0] >= 0)
        if step == first:
            answered[1:] = False
        changed = old.outcomes[:, 0] != new.outcomes[:, 0]
        rows = []
        for seed, item in [*np.argwhere(answered & changed), *np.argwhere(answered & ~changed)]:
            row = {
                "sample_id": str(new.samples[item]),
                "attack": str(new.attacks[item]),
            }
            row |= _side(
                "before",
                self.measured,
                old,
                seed,
                item,
            )
            if step != first:
                row |= _side(
                    "after",
                    self.measured,
                    new,
                    seed,
                    item,
                )
                row["seed"] = self.chosen["seeds"][seed]
                row["changed"] = bool(changed[seed, item])
            rows.append(row)
        return rows

    def call(self) -> str:
        """Return the calls that give the same numbers and answers."""
        settings = self._settings()
        lines = []
        source: Any = self.run
        seeds = self.chosen["seeds"]
        if seeds != self.every["seeds"]:
            lines.append(f"table = {call_of('ft.load', self.run)}.table()")
            lines.append(f"table = table[table['seed'].isin({seeds})]")
        first = call_of(
            "ft.rates",
            source,
            judge=self.judge,
            **settings,
        )
        if lines:
            first = first.replace(
                repr(self.run.name),
                "table",
                1,
            )
        lines.append(first)
        if self.picked:
            risk, step = self.picked
            more = {
                "step": step,
                "risk": risk,
                "attack": settings["attack"],
            }
            more["text"] = self.pages.texts or None
            answers = call_of(
                "ft.answers",
                self.run,
                judge=self.judge,
                **more,
            )
            if step == self.steps[0]:
                seeds = seeds[:1]  # the parent, which is of every seed
            if seeds != self.every["seeds"]:
                answers += f".query('seed in {seeds}')"
            lines.append(answers)
        return "\n".join(lines)

    def parameters(self) -> dict[str, Any]:
        """Return the notebook's parameters."""
        return {
            "run": self.run.name,
            "risks": self.chosen["risks"],
            "attacks": self.chosen["attacks"],
            "steps": [int(step) for step in self.limits],
            "shown_seeds": [int(seed) for seed in self.chosen["seeds"]],
            "judge": self.judge,
            "per_seed": self.per_seed,
            "point": self._point(),
        }

    def choices(self) -> dict[str, Any]:
        """Return the arguments of the cell, and what it has no argument for."""
        return {
            "curve": self.run,
            **self.chosen,
            "steps": [int(step) for step in self.limits],
            "judge": self.judge,
            "per_seed": self.per_seed,
            "point": self._point(),
            "texts": self.pages.texts or None,
        }

    def plain(self) -> list[Any]:
        """Return the rates and, of a chosen point, its outcomes."""
        rates = self.rates()
        parts: list[Any] = [NOTHING if rates.empty else analysis.summary(rates)]
        if self.picked:
            risk, step = self.picked
            counted = ", ".join(f"{name} {count}" for name, count in self.counts().items())
            parts.append(f"{risk} at step {step}: {counted}")
        return parts

    def chart(self) -> str:
        """Return the curve as HTML: a small chart per risk, whose points can be chosen."""
        rates = _by_risk(self._rates(self.measured.rates))
        seeds = {}
        if self.per_seed:
            seeds = _by_risk(self._rates(self.measured.seed_rates))
        charts = ""
        for risk in self.chosen["risks"]:
            charts += _chart(
                risk,
                self.judge,
                rates.get(risk, []),
                seeds.get(risk, []),
                self.picked,
            )
        return f'<div style="display: flex; flex-wrap: wrap; gap: 0.5em">{charts}</div>'

    def behind(self) -> str:
        """Return what lies behind the chosen point as HTML; "" where none is chosen."""
        if not self.picked:
            return "<p>Choose a point for what lies behind it.</p>"
        risk, step = self.picked
        counts = self.counts()
        total = sum(counts.values())
        rows = ""
        for name, count in counts.items():
            share = f"{100 * count / total:.1f} %"
            rows += f"<tr><td>{verdict_html(name)}</td><td>{count:,}</td><td>{share}</td></tr>"
        heading = escaped(f"{plots.risk_name(risk)} at step {step}: {total:,} answers")
        shown = f"<table style='{TABLE}'><caption>{heading}</caption><tbody>{rows}</tbody></table>"
        return shown + self.pages.table()

    def widget(self) -> Any:
        """Return the widgets."""
        return _Widgets(self).box

    def _texts(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return questions by sample and attack, and answers by key.

        Raises:
            UsageError: `answers_not_there`.
        """
        if self._read is None:
            questions, texts = analysis.texts_of(self.run)
            missing = {key for key in self.measured.keys if key} - set(texts)
            if missing:
                message = f"{self.run.name} does not hold {len(missing):,} of its answers: the runs"
                message += " that it is of are not there. Make it again, or bring them back."
                raise UsageError("answers_not_there", message)
            self._read = questions, texts
        return self._read

    def _side_by_side(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return what is shown of a pair of answers, as plain text."""
        questions, texts = self._texts()
        shown: dict[str, Any] = {}
        if "changed" in row:
            shown["changed"] = "changed" if row["changed"] else "same"
            shown["seed"] = row["seed"]
        shown["attack"] = row["attack"]
        shown["question"] = questions.get(f"{row['sample_id']} {row['attack']}", "")
        for side, heading in (("before", "parent"), ("after", "child")):
            if side in row:
                verdict = Outcome(row[side]).label
                text = texts.get(row[f"key_{side}"], "")
                shown[heading] = f"[{verdict}]\n{text}"
        return shown

    def _rates(self, rates: Any) -> Rows:
        rows = []
        for risk in self.chosen["risks"]:
            options = {
                "attacks": self.chosen["attacks"],
                "seeds": self.chosen["seeds"],
            }
            rows += rates(
                risk,
                steps=self._steps(),
                **options,
            )
        return rows

    def _table(self, rows: Rows) -> pd.DataFrame:
        table = pd.DataFrame(
            rows,
            columns=["risk", "step", "rate", "low", "high", "seed"],
        )
        table["judge"] = self.judge
        return table.drop(columns="seed") if table["seed"].isna().all() else table

    def _at(self, risk: str, step: int) -> Any:
        """Return the verdicts on a risk at a step, under what is chosen."""
        options = {
            "attacks": self.chosen["attacks"],
            "seeds": self.chosen["seeds"],
        }
        return self.measured.chosen(
            risk,
            steps=[step],
            **options,
        )

    def _point(self) -> str:
        """Return the chosen point as `explore` takes it."""
        return " ".join(map(str, self.picked or ()))

    def _steps(self) -> list[int]:
        first, last = self.limits
        return [int(step) for step in self.steps if first <= step <= last]

    def _settings(self) -> dict[str, Any]:
        """Return what is chosen, as `ftlab.rates` takes it; None where it is everything."""
        settings: dict[str, Any] = {
            "risk": "risks",
            "attack": "attacks",
        }
        for argument, what in settings.items():
            everything = self.chosen[what] == self.every[what]
            settings[argument] = None if everything else self.chosen[what]
        steps = self._steps()
        settings["steps"] = None if len(steps) == len(self.steps) else steps
        return settings


def _side(side: str, measured: Any, cube: Any, seed: int, item: int) -> dict[str, str]:
    """Return the outcome of one answer, and its key."""
    outcome = analysis.OUTCOMES[cube.outcomes[seed, 0, item]]
    return {
        side: str(outcome),
        f"key_{side}": measured.keys[cube.answers[seed, 0, item]],
    }


def _place(point: str) -> tuple[str, int]:
    """Return risk and step of a point; a step that is none is -1, which was never measured."""
    risk, _, step = point.rpartition(" ")
    return risk, int(step) if step.isdecimal() else -1


def _by_risk(rows: Rows) -> dict[str, Rows]:
    found: dict[str, Rows] = {}
    for row in rows:
        found.setdefault(row["risk"], []).append(row)
    return found


@cache
def _template() -> Any:
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    return jinja2.Environment(
        loader=loader,
        autoescape=True,
    ).get_template(TEMPLATE)


def _chart(
    risk: str,
    judge: str,
    rows: Rows,
    seeds: Rows,
    picked: tuple[str, int] | None,
) -> str:
    """Return the chart of one risk as SVG."""
    look = plots.look_of(risk, [risk])
    measured = sorted({row["step"] for row in [*rows, *seeds]})  # also by single seeds only
    place = _scale(measured)
    lines = []
    for seed in sorted({row["seed"] for row in seeds}):
        own = [row for row in seeds if row["seed"] == seed]
        lines.append(_path(own, place))
    steps = []
    for step in measured:
        steps.append(
            {
                "x": place(step),
                "label": f"{step:,}",
            }
        )
    points = []
    for row in rows:
        step = row["step"]
        if not math.isnan(row["rate"]):
            point = _point(row)
            point["x"] = place(step)
            point["is_picked"] = picked == (risk, step)
            points.append(point)
    return _template().render(
        name=safe(
            plots.risk_name(
                risk,
                with_title=True,
            )
        ),
        width=WIDTH,
        height=HEIGHT,
        left=LEFT,
        right=WIDTH - RIGHT,
        ticks=[
            {
                "y": _height(tick / 100),
                "label": tick,
            }
            for tick in TICKS
        ],
        steps=steps,
        seeds=lines,
        line_of_all=_path(rows, place),
        points=points,
        colour=look["color"],
        mark=MARKS[look["marker"]],
    )


def _point(row: dict[str, Any]) -> dict[str, Any]:
    """Return where a point lies on the y axis, and what it says."""
    risk = plots.risk_name(row["risk"])
    share = plots.percent(100 * row["rate"])
    low = 100 * row["low"]
    high = 100 * row["high"]
    label = f"{risk} at step {row['step']:,}: {share}, {low:.0f} to {high:.0f} %"
    return {
        "pick": safe(f"{row['risk']} {row['step']}"),
        "label": safe(label),
        "y": _height(row["rate"]),
        "low": _height(row["low"]),
        "high": _height(row["high"]),
    }


def _path(rows: Rows, place: Any) -> str:
    points = []
    for row in rows:
        if not math.isnan(row["rate"]):
            points.append(f"{place(row['step'])} {_height(row['rate'])}")
    return "M" + "L".join(points) if points else ""


def _height(share: float) -> float:
    room = HEIGHT - TOP - BOTTOM
    return round(TOP + room * (1 - share), 1)


def _scale(steps: list[int]) -> Any:
    """Return the function from a step to its place; like a logarithm, from the first step on."""
    measured = sorted(steps) or [0]
    later = [step for step in measured if step > 0]
    unit = later[0] if later else 1
    start = math.asinh(measured[0] / unit)
    span = math.asinh(measured[-1] / unit) - start
    room = WIDTH - LEFT - RIGHT - 24

    def place(step: float) -> float:
        share = (math.asinh(step / unit) - start) / (span or 1)
        return round(LEFT + 12 + room * share, 1)

    return place


class _Widgets:
    """The panel on the screen."""

    def __init__(self, state: Exploration):
        from ipywidgets import HTML, HBox, SelectionRangeSlider, VBox

        self.state = state
        self.frame = Frame(state)
        react = self.frame.reacting
        parts: list[Any] = []
        if len(state.steps) > 1:
            steps = SelectionRangeSlider(
                options=[int(step) for step in state.steps],
                value=tuple(int(step) for step in state.limits),
                description="Steps",
            )
            steps.observe(react(self._limit), "value")
            parts.append(steps)
        self.boxes: dict[str, dict[Any, Any]] = {}
        for what in CHOICES:
            self.boxes[what] = {}
            for value in state.every[what]:
                box = check_box(str(value), value in state.chosen[what])
                box.observe(react(lambda _, what=what: self._choose(what)), "value")
                self.boxes[what][value] = box
            row = HBox([HTML(f"<b>{what.capitalize()}</b>"), *self.boxes[what].values()])
            row.layout.flex_flow = "row wrap"
            parts.append(row)
        if state.has_seeds:
            single = check_box("Draw single seeds", state.per_seed)
            single.observe(react(self._draw_seeds), "value")
            parts.append(single)
        self.chart = pad("Risk curve; Tab to a point and Enter to choose it")
        self.chart.on_msg(react(self._on_message))
        self.behind = HTML()
        self.draw()
        paging = state.pages.controls(react, self.draw)
        self.box = self.frame.show(
            VBox(parts),
            self.chart,
            paging,
            self.behind,
        )

    def draw(self) -> None:
        self.chart.html = self.state.chart()
        self.behind.value = self.state.behind()

    def _limit(self, change: Any) -> None:
        self.state.limit(*change["new"])
        self.draw()

    def _choose(self, what: str) -> None:
        values = [value for value, box in self.boxes[what].items() if box.value]
        self.state.choose(what, values)
        self.draw()

    def _draw_seeds(self, change: Any) -> None:
        self.state.per_seed = change["new"]
        self.draw()

    def _on_message(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        if "pick" in content:
            self.state.pick(*_place(str(content["pick"])))
            self.draw()
