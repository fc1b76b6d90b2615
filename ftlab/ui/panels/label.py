"""Label drawn answers by keyboard, blind, and watch the corrected rate. Cell: label."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ftlab import analysis, evals, runs, stats
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab._core.progress import clock, duration
from ftlab._core.types import Outcome
from ftlab.analysis import plots
from ftlab.runs import DRAW, Labels, Run
from ftlab.ui.panels.base import Frame, Panel, call_of, escaped, pad, pre

KEYS = {
    "r": Outcome.REFUSED,
    "p": Outcome.PARTIAL,
    "c": Outcome.COMPLIED,
    "w": Outcome.COMPLIED_WRONG,
    "i": Outcome.INCOHERENT,
    "e": Outcome.EMPTY,
}
UNDO = ("u", "Backspace")
MOVES = {
    "ArrowLeft": -1,
    "ArrowRight": 1,
}
LABELLER = re.compile(r"\w[\w.-]{0,39}")
UNNAMED = "Write your initials into Labeller first."


@takes()
def label(  # noqa: PLR0913
    run: Any,
    n: int = 100,
    *,
    labeller: str = "",
    out: str | Path = "labels.csv",
    risk: str | list[str] | None = None,
    steps: list[int] | None = None,
    judge: str | None = None,
    seed: int = 0,
) -> Labelling:
    """Label answers that were drawn by lot, a key for each.

    The panel shows question and answer, and neither the judge's verdict nor whose answer it is.
    After every key the sheet of the labeller is written; the same call goes on where it was left.
    The order is by lot, so what is labelled so far corrects the rate already, with a wider
    interval.

    Args:
        run: A finished evaluation or curve, or its name.
        n: As in `ftlab.evals.draw`: answers of each risk and step.
        labeller: Your name or initials; it may also be written into the panel.
        out: Where sheets go: that of the labeller AB to `labels-AB.csv`.
        risk: As in `ftlab.evals.draw`.
        steps: As in `ftlab.evals.draw`.
        judge: As in `ftlab.evals.draw`.
        seed: As in `ftlab.evals.draw`.

    Returns:
        The panel. Its `path` is the sheet, for `ftlab.rates(run, labels=...)` once it is full.

    Raises:
        UsageError: Those of `ftlab.evals.draw`; `wrong_labeller`; `file_exists` where the
            labeller's sheet is one of another draw.
    """
    if not isinstance(run, Run):
        run = runs.load(run)
    drawing = {
        "risk": risk,
        "steps": steps,
        "judge": judge,
        "seed": seed or None,
    }
    found = Labelling(
        run,
        n,
        Path(out),
        drawing,
    )
    if labeller:
        found.become(labeller)
    return found


@dataclass
class Position:
    """Labels of one labeller: one for each row of the sheet, and what was done, for undo."""

    labels: list[str]
    at: int = 0
    done: list[tuple[int, str]] = field(default_factory=list)  # row, and its label before


class Labelling(Panel):
    """The sheet that is being filled in.

    Args:
        run: The run whose answers are labelled.
        n: Answers of each risk and step.
        out: File whose name begins those of the sheets.
        drawing: Further arguments of `ftlab.evals.draw`; None for its defaults.
    """

    name = "label"
    title = "Label answers"

    def __init__(self, run: Run, n: int, out: Path, drawing: dict[str, Any]):
        self.run = run
        self.n = n
        self.out = out
        self.drawing = {name: value for name, value in drawing.items() if value is not None}
        with tempfile.TemporaryDirectory() as folder:
            sheet = evals.draw(
                run,
                n,
                out=Path(folder) / "sheet.csv",
                **self.drawing,
            )
        self.sheet = pd.DataFrame(sheet)
        self.rows = self.sheet.to_dict("records")
        self.draw = sheet.run
        self.who = ""
        self.mine = Position([""] * len(self.rows))
        self.began = clock()
        self._population = _Population(
            self.draw,
            run,
        )

    @property
    def path(self) -> Path:
        """The sheet of the present labeller."""
        return self.out.with_name(f"{self.out.stem}-{self.who}{self.out.suffix}")

    @property
    def n_done(self) -> int:
        """Number of answers with a label."""
        return sum(map(bool, self.mine.labels))

    def become(self, who: str) -> None:
        """Go on as a labeller, with the labels of that labeller's sheet if there is one.

        Raises:
            UsageError: `wrong_labeller`, `file_exists`.
        """
        who = who.strip()
        if not LABELLER.fullmatch(who):
            raise UsageError(
                "wrong_labeller",
                f"labeller={who!r:.60} is not allowed. Give initials: letters, digits, - and dots.",
            )
        before = self.who
        self.who = who
        try:
            labels = self._read(self.path)
        except UsageError:
            self.who = before
            raise
        self.mine = Position(labels)
        self.began = clock()
        self._go_to_next(0)

    def press(self, key: str) -> bool:
        """Do what a key stands for; return whether it stands for something here.

        Raises:
            UsageError: `wrong_labeller` where nobody has given a name.
        """
        if key in MOVES:
            last = len(self.rows) - 1
            self.mine.at = min(max(self.mine.at + MOVES[key], 0), last)
        elif key in UNDO:
            return self.undo()
        elif key in KEYS:
            self.give(KEYS[key])
        return key in MOVES or key in KEYS

    def give(self, outcome: Outcome) -> None:
        """Label the answer that is shown, write the sheet and go to the next one without a label.

        Raises:
            UsageError: `wrong_labeller`.
            StorageFull: `storage_full`; the label does not count then.
        """
        if not self.who:
            raise UsageError("wrong_labeller", UNNAMED)
        at = self.mine.at
        before = self.mine.labels[at]
        self.mine.labels[at] = str(outcome)
        try:
            self._write()
        except BaseException:
            self.mine.labels[at] = before
            raise
        self.mine.done.append((at, before))
        self._go_to_next(at)

    def undo(self) -> bool:
        """Take the last label back and show its answer; return whether there was one."""
        if not self.mine.done:
            return False
        at, before = self.mine.done.pop()
        self.mine.labels[at] = before
        self.mine.at = at
        self._write()
        return True

    def rates(self) -> pd.DataFrame:
        """Return the judge's rates, and beside them what the labels so far make of them.

        Of the labels those up to the first gap count: the order is by lot, and which answers
        somebody chose to leave out is not.

        Returns:
            One row per risk and step that was drawn from: judge_rate with _low and _high; labels
            (their number), and rate, low and high as `ftlab.rates(labels=...)` gives them.
        """
        return self._population.rates(
            self.mine.labels,
            self.who,
        )

    def agreement(self) -> str:
        """Return in words how far the labeller agrees with the others; "" before the end.

        Earlier it would tell a labeller which label to take back.
        """
        if self.n_done < len(self.rows):
            return ""
        told = []
        for path in sorted(self.out.parent.glob(f"{self.out.stem}-*{self.out.suffix}")):
            if path != self.path:
                told += self._agreement_with(path)
        return "; ".join(told)

    def call(self) -> str:
        """Return how the sheet is drawn and what it corrects, as Python code."""
        path = self.path if self.who else self.out
        draw = call_of(
            "ft.evals.draw",
            self.run,
            self.n,
            out=path,
            **self.drawing,
        )
        return f"{draw}\n{call_of('ft.rates', self.run, labels=path)}"

    def parameters(self) -> dict[str, Any]:
        """Return the notebook's parameters."""
        chosen = {
            "run": self.run.name,
            "n_labels": self.n,
            "labeller": self.who,
        }
        risk = self.drawing.get("risk")
        if isinstance(risk, str):
            chosen["risk"] = risk
        return chosen

    def left_out(self) -> list[str]:
        """Return what the notebook has no parameter for."""
        return [name for name in self.drawing if name not in self.parameters()]

    def plain(self) -> list[Any]:
        """Return how far the labels are, and the rates."""
        return [self.progress(), *self.told()]

    def told(self) -> list[str]:
        """Return the rates in words, a line per risk and step."""
        lines = []
        for row in self.rates().to_dict("records"):
            judged = _interval(
                row["judge_rate"],
                row["judge_low"],
                row["judge_high"],
            )
            line = f"{row['risk']}, step {row['step']}: judge {judged}"
            if row["labels"]:
                corrected = _interval(
                    row["rate"],
                    row["low"],
                    row["high"],
                )
                line += f"; corrected by {row['labels']} labels {corrected}"
            lines.append(line)
        return lines

    def progress(self) -> str:
        """Return how many answers have a label, and how long the others will take."""
        done, total = self.n_done, len(self.rows)
        who = self.who or "nobody yet"
        text = f"{done} of {total} answers labelled by {who}"
        now = len(self.mine.done)
        if now and done < total:
            left_s = (clock() - self.began) / now * (total - done)
            text += f", about {duration(left_s)} left"
        agreement = self.agreement()
        if agreement:
            text += f". {agreement}"
        return text

    def shown(self) -> str:
        """Return the present answer as HTML: escaped, without anything that tells whose it is."""
        at = self.mine.at
        row = self.rows[at]
        own = self.mine.labels[at]
        given = Outcome(own).label if own else "no label yet"
        share = 100 * self.n_done / len(self.rows)
        bar = f'<progress value="{share:.0f}" max="100" aria-label="labelled"></progress>'
        return (
            f"<div>{bar} {escaped(self.progress())}</div>"
            f'<p aria-live="polite"><b>Answer {at + 1}</b>, {escaped(row["risk"])}: {given}</p>'
            f"<div><b>Question</b>{pre(row['question'])}</div>"
            f'<div style="margin-top: 0.6em"><b>Answer</b>{pre(row["answer"])}</div>'
        )

    def widget(self) -> Any:
        """Return the widgets."""
        return _Widgets(self).box

    def _go_to_next(self, start: int) -> None:
        """Show the first answer without a label from `start` on, then from the beginning."""
        labels = self.mine.labels
        for at in [*range(start, len(labels)), *range(start)]:
            if not labels[at]:
                self.mine.at = at
                return

    def _read(self, path: Path) -> list[str]:
        """Return the labels of a sheet in the order of this one; empty without a sheet."""
        if not path.exists():
            return [""] * len(self.rows)
        known = runs.known_labels(path)
        keys = list(self._population.keys.values())
        if not set(known) <= set(keys):  # writing this draw would lose those labels
            raise UsageError(
                "file_exists", f"{path} is a sheet of another draw. Give another out=."
            )
        return [known.get(key, ("", ""))[0] for key in keys]

    def _write(self) -> None:
        labels = self.mine.labels
        names = [self.who if own else "" for own in labels]
        evals.write_sheet(self.sheet.assign(label=labels, labeller=names), self.path)

    def _agreement_with(self, path: Path) -> list[str]:
        try:
            theirs = self._read(path)
        except UsageError:  # of another draw
            return []
        pairs = [pair for pair in zip(self.mine.labels, theirs, strict=True) if all(pair)]
        if not pairs:
            return []
        first, second = zip(*pairs, strict=True)
        same = sum(one == other for one, other in pairs)
        who = path.stem.removeprefix(f"{self.out.stem}-")
        kappa = stats.kappa(first, second)
        told = f"{same} of {len(pairs)} labels agree with {who}"
        if kappa.value == kappa.value:  # not where both gave one label only
            told += f", kappa {kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]"
        return [told]


def _interval(rate: float, low: float, high: float) -> str:
    return f"{plots.percent(100 * rate)} [{100 * low:.0f}, {100 * high:.0f}]"


class _Population:
    """The answers that could be drawn, with what corrects their rate while labels come in.

    Args:
        draw: The draw.
        run: The run whose answers it is of.
    """

    def __init__(self, draw: Run, run: Run):
        records = draw.read(DRAW)
        self.judge = draw.stats["judge"]
        self.events = json.loads(draw.stats["events"])
        drawn = [record for record in records if "answer_id" in record]
        drawn.sort(key=lambda record: record["answer_id"])
        self.keys = {record["answer_id"]: record["key"] for record in drawn}
        self.measured = analysis.Selections(run, self.judge)
        self.strata = self._strata({record["key"] for record in records})
        self.sizes = Counter(self.strata.values())
        drawn_from = {(risk, step) for risk, step, _ in self.strata.values()}
        self.judged = {}
        for risk in dict.fromkeys(risk for risk, _ in sorted(drawn_from)):
            for row in self.measured.rates(risk):
                if (risk, row["step"]) in drawn_from:
                    self.judged[risk, row["step"]] = row

    def rates(self, given: list[str], who: str) -> pd.DataFrame:
        """Return the rates without and with the labels; see `Labelling.rates`."""
        labels = self.labels(given, who)
        found = {}
        for risk in dict.fromkeys(risk for risk, _ in self.judged):
            if labels.probabilities:
                for row in self.measured.rates(
                    risk,
                    labels=labels,
                ):
                    found[risk, row["step"]] = row
        rows = []
        for place, own in self.judged.items():
            row = {
                "risk": own["risk"],
                "step": own["step"],
            }
            row |= {f"judge_{name}": own[name] for name in ("rate", "low", "high")}
            corrected = found.get(place, {"labels": 0})
            for name in ("labels", "rate", "low", "high"):
                row[name] = corrected.get(name, math.nan)
            rows.append(row)
        return pd.DataFrame(rows)

    def _strata(self, keys: set[str]) -> dict[str, tuple[str, int, float]]:
        """Return of every answer risk, step and event, within which was drawn."""
        found: dict[str, tuple[str, int, float]] = {}
        for risk in self.measured.risks:
            cube = self.measured.chosen(risk)
            for place in np.argwhere(cube.outcomes >= 0).tolist():
                name = f"{risk} {self.measured.keys[cube.answers[tuple(place)]]}"
                if name in keys and name not in found:
                    step = self.measured.steps[place[1]]
                    found[name] = (risk, step, float(cube.events[tuple(place)]))
        return found

    def labels(self, given: list[str], who: str) -> Labels:
        """Return the labels up to the first gap as if no more had been drawn."""
        count = given.index("") if "" in given else len(given)
        keys = list(self.keys.values())[:count]
        n_labelled = Counter(self.strata[key] for key in keys)
        labelled = {place[:2] for place in n_labelled}  # a risk at a step
        chances = {}
        for place, size in self.sizes.items():
            if place[:2] in labelled:  # where one of two verdicts has no label, the judge's stand
                chances[place] = max(n_labelled[place], 1) / size
        probabilities = {k: chances[place] for k, place in self.strata.items() if place in chances}
        return Labels(
            outcomes={key: Outcome(own) for key, own in zip(keys, given, strict=False)},
            probabilities=probabilities,
            events=self.events,
            judge=self.judge,
            labellers=(who,),
        )


class _Widgets:
    """The panel on the screen."""

    def __init__(self, state: Labelling):
        from ipywidgets import HTML, Button, Checkbox, HBox, Text

        self.state = state
        self.frame = Frame(state)
        keys = ", ".join(f"{key} {outcome.label}" for key, outcome in KEYS.items())
        self.who = Text(
            state.who,
            description="Labeller",
            continuous_update=False,
        )
        self.pad = pad(
            "The answer to label",
            key_names=[*KEYS, *UNDO, *MOVES],
            prompt=f"Keys, here: {keys}; u undo; arrows move",
        )
        self.live = Checkbox(
            value=True,
            description="Show the rate",
            indent=False,
        )
        self.rates = HTML()
        buttons = []
        for key, outcome in KEYS.items():
            button = Button(
                description=f"{outcome.label} ({key})",
                tooltip=str(outcome),
            )
            button.on_click(self.frame.reacting(lambda _, key=key: self.press(key)))
            buttons.append(button)
        undo = Button(
            description="Undo (u)",
            tooltip="Take the last label back",
        )
        undo.on_click(self.frame.reacting(lambda _: self.press("u")))
        self.who.observe(self.frame.reacting(self._become), "value")
        self.live.observe(self.frame.reacting(lambda _: self.draw_rates()), "value")
        self.pad.on_msg(self.frame.reacting(self._on_message))
        self.draw()
        row = HBox([*buttons, undo])
        row.layout.flex_flow = "row wrap"
        self.box = self.frame.show(
            self.who,
            self.pad,
            row,
            self.live,
            self.rates,
        )

    def press(self, key: str) -> None:
        """Do what a key stands for; the next answer is sent before the rates are computed."""
        self.state.press(key)
        self.draw()

    def draw(self) -> None:
        self.pad.html = self.state.shown()
        self.draw_rates()

    def draw_rates(self) -> None:
        lines = self.state.told() if self.live.value else []
        self.rates.value = "".join(f"<div>{escaped(line)}</div>" for line in lines)

    def _become(self, change: Any) -> None:
        self.state.become(change["new"])
        self.draw()

    def _on_message(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        self.press(str(content.get("key", "")))
