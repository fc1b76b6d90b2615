"""Label drawn answers by keyboard, blind, and see what they make of the rate. Cell: label."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ftlab import analysis, evals, runs, stats
from ftlab._core.config import takes
from ftlab._core.errors import DataError, FtlabError, UsageError
from ftlab._core.files import file_hash
from ftlab._core.progress import clock, duration
from ftlab._core.text import safe
from ftlab._core.types import Outcome
from ftlab.analysis import plots
from ftlab.runs import ALLOWED, DRAW, Labels, Run
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
SHOWN = 20  # problems that are listed
BLOCK = 25  # labels after which a rate that is shown moves
WHEN = "rate_shown"  # column: "after" for a label that was given after a rate was shown
FINAL = "final"  # column: "yes" for a label that a shown rate counts
OWN = ("answer_id", "risk", "question", "answer", "label", "labeller", WHEN, FINAL)


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
    Rates are shown when they are asked for, never by themselves. Before the end that is one rate
    of each risk, of all steps together, which moves every 25 labels; what the judges say, single
    steps and how far labellers agree are shown at the end. A label that is in a shown rate is
    final, and the sheet notes which labels were given after one was shown.

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


class Given(NamedTuple):
    """What the sheet says of one answer."""

    label: str = ""
    who: str = ""
    when: str = ""  # WHEN
    final: str = ""  # FINAL


class Labelling(Panel):
    """The sheet that is being filled in.

    Args:
        run: The run whose answers are labelled.
        n: Answers of each risk and step.
        out: File whose name begins those of the sheets.
        drawing: Further arguments of `ftlab.evals.draw`; None for its defaults.

    Attributes:
        who: The present labeller; "" before there is one.
        given: What the sheet says of each answer.
        at: The answer that is shown, from 0.
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
        self.given = [Given()] * len(self.rows)
        self.extra = pd.DataFrame()  # columns that people added to the sheet
        self.at = 0
        self.done: list[tuple[int, Given]] = []  # for undo: row, and what was there before
        self.began = clock()
        self._told: dict[int, list[str]] = {}  # what is told, by the number of final labels
        self._on_disk = ""  # hash of the sheet as it was read or written last
        judge = self.draw.stats["judge"]
        self._population = _Population(
            analysis.Selections(run, judge),
            self.draw.read(DRAW),
            json.loads(self.draw.stats["events"]),
        )

    @property
    def path(self) -> Path:
        """The sheet of the present labeller."""
        return self.out.with_name(f"{self.out.stem}-{self.who}{self.out.suffix}")

    @property
    def labels(self) -> list[str]:
        """The label of each answer; "" where there is none yet."""
        return [own.label for own in self.given]

    @property
    def n_done(self) -> int:
        """Number of answers with a label."""
        return sum(map(bool, self.labels))

    @property
    def n_final(self) -> int:
        """Number of labels that a rate was shown of."""
        return _leading([own.final for own in self.given])

    def become(self, who: str) -> None:
        """Go on as a labeller, with the labels of that labeller's sheet if there is one.

        Raises:
            UsageError: `wrong_labeller`, `file_exists`.
            DataError: `wrong_labels` where the sheet holds a label that is not allowed.
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
            self._open()
        except FtlabError:
            self.who = before
            raise

    def press(self, key: str) -> bool:
        """Do what a key stands for; return whether it stands for something here.

        Raises:
            UsageError: `wrong_labeller` where nobody has given a name; those of `give`.
        """
        if key in MOVES:
            last = len(self.rows) - 1
            self.at = min(
                max(self.at + MOVES[key], 0),
                last,
            )
        elif key in UNDO:
            return self.undo()
        elif key in KEYS:
            self.give(KEYS[key])
        return key in MOVES or key in KEYS

    def give(self, outcome: Outcome) -> None:
        """Label the answer that is shown, write the sheet and go to the next one without a label.

        Raises:
            UsageError: `wrong_labeller`; `label_final`; `sheet_changed` where somebody else wrote
                the sheet, which is read again then.
            StorageFull: `storage_full`. After any error the label does not count.
        """
        if not self.who:
            raise UsageError("wrong_labeller", UNNAMED)
        at = self.at
        own = Given(
            label=str(outcome),
            who=self.who,
            when="after" if self.n_final else "",
        )
        before = self._replace({at: own})
        self.done.append((at, before[at]))
        self._go_to_next(at)

    def undo(self) -> bool:
        """Take the last label back and show its answer; return whether there was one.

        Raises:
            As `give`.
        """
        if not self.done:
            return False
        at, before = self.done[-1]
        self._replace({at: before})
        self.done.pop()
        self.at = at
        return True

    def rates(self) -> pd.DataFrame:
        """Return the judge's rates, and beside them what the labels so far make of them.

        This is not blind: who labels should call `show_rate`. Of the labels those up to the first
        gap count: the order is by lot, and which answers somebody chose to leave out is not.

        Returns:
            One row per risk and step that was drawn from: judge_rate with _low and _high; labels
            (their number), and rate, low and high as `ftlab.rates(labels=...)` gives them.
        """
        return self._population.rates(
            self.labels,
            self.who,
        )

    def show_rate(self) -> list[str]:
        """Return the rate in words. The labels that it counts are final from then on.

        Raises:
            UsageError: `sheet_changed`.
        """
        n_labels = _leading(self.labels)
        if n_labels < len(self.rows):
            n_labels -= n_labels % BLOCK
        if n_labels > self.n_final:
            new = range(self.n_final, n_labels)
            self._replace({at: self.given[at]._replace(final="yes") for at in new})
        return self.told() or [f"The rate is shown from {BLOCK} labels on, or at the end."]

    def agreement(self) -> str:
        """Return in words how far the labeller agrees with the others; "" before all is final.

        Earlier it would tell a labeller which label to take back.
        """
        if self.n_final < len(self.rows):
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
        return {
            "run": self.run.name,
            "n_labels": self.n,
            "labeller": self.who,
            "label_risks": self._risks(),
            "label_steps": [int(step) for step in self.drawing.get("steps", [])],
            "label_seed": self.drawing.get("seed", 0),
            "judge": self._population.judge,
            "out": str(self.out.parent),
            "sheet": self.out.name,
        }

    def choices(self) -> dict[str, Any]:
        """Return the arguments of the cell that stand for what is chosen."""
        return {
            "run": self.run,
            "n": self.n,
            "labeller": self.who,
            "out": f"{self.out.parent}/{self.out.name}",
            "seed": 0,
            **self.drawing,
            "risk": self._risks() or None,
            "judge": self._population.judge,
        }

    def plain(self) -> list[Any]:
        """Return how far the labels are, and the rates that were shown before."""
        return [self.progress(), *self.told()]

    def told(self) -> list[str]:
        """Return in words what the final labels give; a line per risk, at the end also per step."""
        n_labels = self.n_final
        if not n_labels:
            return []
        is_end = n_labels == len(self.rows)  # when others may still write their sheets
        if is_end or n_labels not in self._told:
            self._told = {n_labels: self._told_of(n_labels)}
        return self._told[n_labels]

    def _told_of(self, n_labels: int) -> list[str]:
        labels = [*self.labels[:n_labels], *[""] * (len(self.rows) - n_labels)]
        rates = self._population.rates(labels, self.who)
        if n_labels < len(self.rows):
            return [_pooled(str(risk), rows) for risk, rows in rates.groupby("risk", sort=False)]
        lines = [_of_step(row) for row in rates.to_dict("records")]
        agreement = self.agreement()
        return [*lines, agreement] if agreement else lines

    def progress(self) -> str:
        """Return how many answers have a label, and how long the others will take."""
        done, total = self.n_done, len(self.rows)
        who = self.who or "nobody yet"
        text = f"{done} of {total} answers labelled by {who}"
        now = len(self.done)
        if now and done < total:
            left_s = (clock() - self.began) / now * (total - done)
            text += f", about {duration(left_s)} left"
        if done == total and self.n_final < total:
            text += ". The rate can be shown now, and the labels are final then"
        return text

    def shown(self) -> str:
        """Return the present answer as HTML: escaped, without anything that tells whose it is."""
        at = self.at
        row = self.rows[at]
        own = self.given[at].label
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

    def _risks(self) -> list[str]:
        """Return the risks that were drawn from; none for all."""
        given = self.drawing.get("risk", [])
        return [given] if isinstance(given, str) else list(given)

    def _go_to_next(self, start: int) -> None:
        """Show the first answer without a label from `start` on, then from the beginning."""
        labels = self.labels
        for at in [*range(start, len(labels)), *range(start)]:
            if not labels[at]:
                self.at = at
                return

    def _open(self) -> None:
        """Go on with the sheet as it is on disk."""
        on_disk = self._hash()
        self.given, self.extra = self._read(self.path)
        self._on_disk = on_disk
        self._told = {}
        self.done = []
        self.began = clock()
        self._go_to_next(0)

    def _read(self, path: Path) -> tuple[list[Given], pd.DataFrame]:
        """Return what a sheet says of each answer, and the columns that people added."""
        if not path.exists():
            return [Given()] * len(self.rows), pd.DataFrame()
        table = runs.read_sheet(path)
        keys = list(self._population.keys.values())
        extra = [name for name in table if name not in OWN]
        others = table[~table.index.isin(keys)]
        if (others[["label", *extra]] != "").to_numpy().any():  # writing would lose them
            raise UsageError(
                "file_exists", f"{path} is a sheet of another draw. Give another out=."
            )
        wrong = table[~table["label"].isin(["", *ALLOWED])]
        if len(wrong):
            raise _wrong_labels(path, wrong)
        table = table[table.index.isin(keys)]
        table = table.reindex(
            keys,
            fill_value="",
        )
        columns = ["label", "labeller", WHEN, FINAL]
        given = table.reindex(columns=columns, fill_value="").to_numpy().tolist()
        return [Given(*own) for own in given], table[extra]

    def _replace(self, new: dict[int, Given]) -> dict[int, Given]:
        """Write other labels, by row, and return what was there; after an error that stays."""
        now = self._hash()
        if now and now != self._on_disk:
            self._open()
            raise UsageError(
                "sheet_changed",
                f"{self.path.name} was written by somebody else. It was read again, and the last "
                "key does not count. Two people need initials of their own.",
            )
        before = {at: self.given[at] for at in new}
        final = [at for at, own in before.items() if own.final]
        if final:
            raise UsageError(
                "label_final",
                f"Answer {final[0] + 1} is in a rate that was shown, so its label is final.",
            )
        self._fill(new)
        try:
            self._write()
        except BaseException:
            self._fill(before)
            raise
        return before

    def _fill(self, new: dict[int, Given]) -> None:
        for at, own in new.items():
            self.given[at] = own

    def _hash(self) -> str:
        """Return the hash of the sheet on disk; "" where there is none."""
        return file_hash(self.path) if self.path.exists() else ""

    def _write(self) -> None:
        table = self.sheet.assign(
            label=self.labels,
            labeller=[own.who for own in self.given],
        )
        notes = {
            WHEN: [own.when for own in self.given],
            FINAL: [own.final for own in self.given],
        }
        for name, values in notes.items():
            if any(values):
                table[name] = values
        for name in self.extra:
            table[name] = self.extra[name].tolist()
        evals.write_sheet(table, self.path)
        self._on_disk = self._hash()

    def _agreement_with(self, path: Path) -> list[str]:
        try:
            theirs, _ = self._read(path)
        except FtlabError:  # of another draw, or not in order
            return []
        both = zip(
            self.given,
            theirs,
            strict=True,
        )
        pairs = [(own.label, other.label) for own, other in both if own.label and other.label]
        if not pairs:
            return []
        first, second = zip(
            *pairs,
            strict=True,
        )
        same = sum(one == other for one, other in pairs)
        who = path.stem.removeprefix(f"{self.out.stem}-")
        kappa = stats.kappa(first, second)
        told = f"{same} of {len(pairs)} labels agree with {who}"
        if kappa.value == kappa.value:  # not where both gave one label only
            told += f", kappa {kappa.value:.2f} [{kappa.low:.2f}, {kappa.high:.2f}]"
        return [told]


def _leading(values: Sequence[str]) -> int:
    """Return how many values there are before the first one that is empty."""
    return next((place for place, value in enumerate(values) if not value), len(values))


def _wrong_labels(path: Path, rows: pd.DataFrame) -> DataError:
    problems = []
    for row in rows.to_dict("records"):
        problems.append(f"{safe(row['answer_id'], 40)}: {safe(row['label'], 30)!r}")
    message = f"{path.name} has labels that are not allowed: {'; '.join(problems[:SHOWN])}. "
    message += f"Write one of {', '.join(ALLOWED)}, or nothing."
    return DataError(
        "wrong_labels",
        message,
        problems,
    )


def _pooled(risk: str, rows: pd.DataFrame) -> str:
    """Return the mean rate of a risk over its steps, with an interval, in words.

    The interval is the mean of the steps' band, which holds at all steps at once.
    """
    if not rows["labels"].all():
        return f"{risk}: too few labels yet"
    means = rows[["rate", "low", "high"]].mean()
    return f"{risk}, all steps together: {_interval(*means)} by {rows['labels'].sum()} labels"


def _of_step(row: dict[str, Any]) -> str:
    judged = [row[f"judge_{name}"] for name in ("rate", "low", "high")]
    line = f"{row['risk']}, step {row['step']}: judge {_interval(*judged)}"
    if row["labels"]:
        corrected = [row[name] for name in ("rate", "low", "high")]
        line += f"; corrected by {row['labels']} labels {_interval(*corrected)}"
    return line


def _interval(rate: float, low: float, high: float) -> str:
    return f"{plots.percent(100 * rate)} [{100 * low:.0f}, {100 * high:.0f}]"


class _Population:
    """The answers that could be drawn, with what corrects their rate while labels come in.

    Args:
        measured: The judge's verdicts.
        records: Of the draw: keys of answers, and ids of those that were drawn.
        events: Of each risk, the event of every outcome.
    """

    def __init__(
        self,
        measured: analysis.Selections,
        records: list[dict[str, Any]],
        events: dict[str, dict[str, float]],
    ):
        self.measured = measured
        self.judge = measured.judge
        self.events = events
        drawn = [record for record in records if "answer_id" in record]
        drawn.sort(key=lambda record: record["answer_id"])
        self.keys = {record["answer_id"]: record["key"] for record in drawn}
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
            value=False,
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
        self.who.observe(
            self.frame.reacting(self._become),
            "value",
        )
        self.live.observe(
            self.frame.reacting(lambda _: self.draw_rates()),
            "value",
        )
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
        try:
            self.state.press(key)
        finally:  # a sheet that somebody else wrote was read again
            self.pad.html = self.state.shown()
        self.draw_rates()

    def draw(self) -> None:
        self.pad.html = self.state.shown()
        self.draw_rates()

    def draw_rates(self) -> None:
        lines = self.state.show_rate() if self.live.value else []
        self.rates.value = "".join(f"<div>{escaped(line)}</div>" for line in lines)

    def _become(self, change: Any) -> None:
        self.state.become(change["new"])
        self.live.value = False
        self.draw()

    def _on_message(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        self.press(str(content.get("key", "")))
