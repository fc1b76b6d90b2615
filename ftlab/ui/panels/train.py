"""Train and measure from a panel: choose settings, start, stop, resume, clone. Cell: train."""

from __future__ import annotations

import atexit
import base64
import contextlib
import inspect
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ftlab import analysis, evals, experiments, runs, training
from ftlab._core.config import unknown_setting
from ftlab._core.errors import FtlabError, UsageError
from ftlab._core.progress import clock, duration
from ftlab._core.text import redacted, safe
from ftlab.data import load_prompt_sets
from ftlab.runs import Run
from ftlab.ui.panels.base import Frame, Panel, about, call_of, escaped, has_front_end, name_of

COMMAND = "from ftlab.cli import main; main()"
POLL_S = 0.5
FIGURE_S = 2.0  # seconds between two figures, at least
GRACE_S = 30.0  # for a step to end and a checkpoint to be saved
LINES = 12  # last lines of the training's own output that are shown after a failure
# Fields of the panel, and as what their texts are read.
FIELDS = ("adapter", "learning_rate", "n_rows", "at_steps", "seeds")
LEFT = re.compile(r"\d[\d.]* (s|min|h) left(, until \w+ [\d:]+)?")  # in a line of progress
LINE = "stop_above"  # the safety line: {risk: rate}
EMPTY = {  # what stands for None in the notebook
    "adapter": "",
    "learning_rate": 0.0,
    "n_rows": 0,
    "prompts": "",
    LINE: {},
}
OWN = {"at_steps", "seeds", "n_prompts", "judges", *EMPTY}  # that are parameters of the notebook


def train(parent: Any, data: Any, **settings: Any) -> Training:
    """Fine-tune and measure from a panel; the cell behind it is `ftlab.risk_curve`.

    The training runs in a process of its own, so the notebook stays free, and an interrupt of the
    notebook does not touch it. Stop ends the step, saves, and ends. Start with the same settings
    resumes, also from another notebook or from the call itself: the same settings are one run.
    The safety line ends each training at the first measured step at which the rate of a risk is
    above it.

    Args:
        parent: As in `ftlab.risk_curve`; a name, a folder or what `ftlab.model` returns.
        data: As in `ftlab.risk_curve`; a file or a name.
        **settings: Settings of `ftlab.risk_curve` that the panel begins with. What it has no field
            for stays as it is given here.

    Returns:
        The panel. Its `curve` is the finished run.

    Raises:
        UsageError: `unknown_setting`; `not_on_command_line` for rows or objects, which another
            process cannot be given.
    """
    return Training(
        parent,
        data,
        settings,
    )


train.__signature__ = inspect.signature(experiments.risk_curve)  # for Shift-Tab


class Training(Panel):
    """What is to be trained, and the process that does it.

    Args:
        parent: As in `ftlab.risk_curve`.
        data: As in `ftlab.risk_curve`.
        settings: Those of `ftlab.risk_curve` that were given.

    Attributes:
        settings: Those that are chosen.
        process: The process that trains, or None before the first start.
        members: Runs that it was seen working on.
        curve: The finished run, or None.
    """

    name = "train"
    title = "Train and measure"

    def __init__(self, parent: Any, data: Any, settings: dict[str, Any]):
        self.parent = parent
        self.data = data
        self.settings: dict[str, Any] = {}
        self.process: subprocess.Popen | None = None
        self.members: list[Run] = []
        self.curve: Run | None = None
        self.problem = ""
        self.began = clock()
        self.done_before: float | None = None
        self.output: Path | None = None
        self.asked_to_stop = False
        self.figures = _Figures()
        self.change(**settings)

    def change(self, **settings: Any) -> None:
        """Set settings of `ftlab.risk_curve`; None takes its default.

        Raises:
            UsageError: `unknown_setting`, `not_on_command_line`, `wrong_setting`.
        """
        allowed = _parameters()
        unknown = [name for name in settings if name not in allowed]
        if unknown:
            raise unknown_setting(unknown, allowed)
        wanted = self.settings | settings
        wanted = {name: value for name, value in wanted.items() if value is not None}
        for name, value in {
            "parent": self.parent,
            "data": self.data,
            **wanted,
        }.items():
            _word(name, name_of(value))
        known = training.TrainingConfig.model_fields
        given = {name: value for name, value in wanted.items() if name in known}
        if isinstance(given.get("at_steps"), int):
            given["at_steps"] = [0, given["at_steps"]]
        training.TrainingConfig.make(**given)
        self.settings = wanted

    def read(self, name: str, text: str) -> None:
        """Set a setting from the text of its field; an empty text takes the default.

        Raises:
            UsageError: `not_a_number` where the text is none, such as "ten".
        """
        text = text.strip()
        try:
            value = _value(name, text) if text else None
        except ValueError:
            allowed = "Whole numbers, separated by commas, are"
            if name == "learning_rate":
                allowed = "A number such as 0.0005 is"
            raise _not_a_number(name, text, allowed) from None
        self.change(**{name: value})

    def limit(self, risk: str, text: str) -> None:
        """Set the rate of a risk above which training ends; an empty text sets none.

        Raises:
            UsageError: `not_a_number`; `wrong_setting` for a number that is no rate.
        """
        line = dict(self.settings.get(LINE, {}))
        text = text.strip()
        try:
            line[risk] = float(text) if text else None
        except ValueError:
            raise _not_a_number(risk, text, "A rate such as 0.1 is") from None
        if line[risk] is None:
            del line[risk]
        self.change(**{LINE: line or None})

    def risks(self) -> list[str]:
        """Return the risks that are measured on the way and whose rise is worse.

        Raises:
            FtlabError: The prompts cannot be read.
        """
        settings = self._effective()
        names = settings["risks"]
        if not names:
            prompts = settings["prompts"]
            given = None if prompts is None else load_prompt_sets(prompts)
            names = evals.usual_risks(given)
        found = map(evals.risks.open_risk, _listed(names))
        return [risk.name for risk in found if risk.higher == "worse"]

    def clone(self, **changes: Any) -> Training:
        """Return another panel with the same settings but for those that are given."""
        return Training(
            self.parent,
            self.data,
            self.settings | changes,
        )

    def differs_from(self, other: Training) -> dict[str, tuple[Any, Any]]:
        """Return the settings of another panel that are not those of this one: theirs, ours."""
        names = dict.fromkeys([*other.settings, *self.settings])
        found = {}
        for name in names:
            theirs, ours = other.settings.get(name), self.settings.get(name)
            if theirs != ours:
                found[name] = (theirs, ours)
        return found

    @property
    def running(self) -> bool:
        """Whether the process works."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start the training in a process of its own, or resume it.

        Raises:
            UsageError: `already_running`.
        """
        if self.running:
            raise UsageError("already_running", "The training runs already. Stop it first.")
        self.curve = None
        self.problem = ""
        self.members = []
        self.began = clock()
        self.done_before = None
        self.asked_to_stop = False
        words = self.words()
        handle, name = tempfile.mkstemp(
            prefix="ftlab-train-",
            suffix=".txt",
        )
        self.output = Path(name)
        more: dict[str, Any] = {"start_new_session": True}  # a notebook's interrupt is not for it
        if os.name == "nt":
            more = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
        with os.fdopen(handle, "wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", COMMAND, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ
                | {
                    "FTLAB_BATCH": "1",
                    "FTLAB_RUNS": str(runs.home()),
                },
                **more,
            )
        atexit.register(self.stop)

    def stop(self) -> None:
        """Ask the process to save and end; it does so after its present step."""
        if self.running and not self.asked_to_stop:
            self.asked_to_stop = True
            number = signal.CTRL_BREAK_EVENT if os.name == "nt" else signal.SIGINT
            self.process.send_signal(number)

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait until the process has ended, then note what came of it."""
        self.process.wait(timeout_s)
        self.look()

    def look(self) -> None:
        """Note what the process works on, and after its end what came of it."""
        if self.process is None:
            return
        self._note_members()
        if not self.running and self.output is not None:
            self._note_end()

    def words(self) -> list[str]:
        """Return the words of the command `ftlab curve` for these settings."""
        words = ["curve", str(name_of(self.parent)), str(name_of(self.data))]
        for name, value in self.settings.items():
            option = f"--{name.replace('_', '-')}"
            if value is True:
                words.append(option)
            elif value is not False:
                words += [option, _word(name, name_of(value))]
        return words

    def steps(self) -> list[int]:
        """Return the optimiser steps at which is measured."""
        given = self._effective()["at_steps"]
        return [0, given] if isinstance(given, int) else list(given)

    def n_seeds(self) -> int:
        """Return the number of training seeds."""
        given = self._effective()["seeds"]
        return given if isinstance(given, int) else len(given)

    def _seed_numbers(self) -> list[int]:
        """Return the training seeds where they are not 0 to n - 1."""
        given = self._effective()["seeds"]
        if isinstance(given, int) or list(given) == list(range(len(given))):
            return []
        return list(given)

    def losses(self) -> list[tuple[int, float]]:
        """Return step and loss of all trainings so far, one training after the other."""
        found = []
        for run in self.members:
            for record in run.read("train.jsonl"):
                if "loss" in record:
                    found.append((record["step"], record["loss"]))
        return found

    def points(self) -> list[dict[str, Any]]:
        """Return the rates measured so far: step, metric, rate; one training after the other."""
        found = []
        for run in self.members:
            if (run.path / "verdicts.jsonl").exists():
                found += _measured(run)
        return found

    def share(self) -> float:
        """Return the share of all optimiser steps that is done, 0 to 1."""
        if self.curve:
            return 1.0
        last = max(self.steps(), default=0)
        total = last * self.n_seeds()
        if total <= 0:  # which the process refuses
            return 0.0
        done = 0
        for run in self.members:
            steps = [record["step"] for record in run.read("train.jsonl")]
            done += last if run.finished else max(steps, default=0)
        return min(done / total, 1.0)

    def state(self) -> str:
        """Return in words how far the training is."""
        if self.process is None:
            return "Not started."
        share = self.share()
        working = self.running or self.output is not None  # or its end was not looked at yet
        if working and self.asked_to_stop:
            return f"Stopping after this step, {share:.0%} done."
        if working:
            return f"Running, {share:.0%} done{self._left(share)}."
        if self.curve:
            return f"Finished: {self.curve.name}{self._ended()}"
        if self.asked_to_stop:
            return f"Stopped, {share:.0%} done. Start resumes it."
        return f"Failed. {self.problem}"

    def figure(self) -> Any:
        """Return the live figure of losses and rates; None where there is nothing yet."""
        points, losses = self.points(), self.losses()
        if not (points or losses):
            return None
        return analysis.plots.live_chart(
            self.heading(),
            points,
            losses,
        )

    def heading(self) -> str:
        """Return what tells this training from its clones."""
        chosen = ", ".join(f"{name} {_word(name, name_of(v))}" for name, v in self.settings.items())
        return f"{name_of(self.data)}: {chosen or 'defaults'}"

    def call(self) -> str:
        """Return the call of the cell."""
        return f"curve = {call_of('ft.risk_curve', self.parent, self.data, **self.settings)}"

    def parameters(self) -> dict[str, Any]:
        """Return the notebook's parameters."""
        settings = self._effective()
        chosen = {
            "model": str(name_of(self.parent)),
            "data": str(name_of(self.data)),
            "at_steps": self.steps(),
            "seeds": self.n_seeds(),
            "seed_numbers": self._seed_numbers(),
            "n_prompts": settings["n_prompts"],
            "judges": list(_listed(settings["judges"])),
        }
        for name, empty in EMPTY.items():
            value = name_of(settings[name])
            chosen[name] = empty if value is None else value
        further = {name: _plain(value) for name, value in self.settings.items() if name not in OWN}
        return chosen | {"further": further}

    def choices(self) -> dict[str, Any]:
        """Return the arguments of the cell, those by default included."""
        settings = self._effective()
        return settings | {
            "parent": self.parent,
            "data": self.data,
            "seeds": self._seed_numbers() or self.n_seeds(),
            "at_steps": self.steps(),
            "judges": list(_listed(settings["judges"])),
        }

    def _effective(self) -> dict[str, Any]:
        """Return every setting of the cell: as it is chosen, or its default."""
        defaults = {name: one.default for name, one in _parameters().items()}
        return defaults | self.settings

    def plain(self) -> list[Any]:
        """Return what is chosen, and how far the training is."""
        self.look()
        chosen = [f"{name} = {value}" for name, value in self.settings.items()]
        state = self.state()
        if self.process is None:
            state += " start() begins, wait() waits for its end."
        return ["\n".join([state, *chosen])]

    def widget(self) -> Any:
        """Return the widgets; the live figure is a display of its own."""
        return _Widgets(self, self.figures).box

    def _ipython_display_(self) -> None:
        super()._ipython_display_()
        if has_front_end():
            self.figures.show()

    def _note_members(self) -> None:
        """Note the runs whose lock the process holds."""
        mark = f"process {self.process.pid} on "
        known = {run.path for run in self.members}
        for note in runs.home().glob("*/.owner"):
            folder = note.parent
            if folder in known or folder.name.startswith(("curve-", "evaluate-")):
                continue
            try:
                is_ours = note.read_text(encoding="utf-8", errors="replace").startswith(mark)
            except OSError:  # released meanwhile
                continue
            if is_ours:
                self.members.append(Run(folder))

    def _note_end(self) -> None:
        atexit.unregister(self.stop)
        text = self.output.read_text(encoding="utf-8", errors="replace")
        self.output.unlink()
        self.output = None
        lines = [line for line in text.splitlines() if line.strip()]
        for line in lines:
            folder = Path(line)
            if folder.name.startswith("curve-") and (folder / "config.json").exists():
                run = Run(folder)
                if run.finished:
                    self.curve = run
                    self.members = run.members
        if self.curve is None:
            told = [line for line in lines if line.startswith("ftlab: ")] or lines[-LINES:]
            self.problem = safe(redacted("\n".join(told)), 5000)

    def _left(self, share: float) -> str:
        """Return the time left in words: as the process reports it, else by the steps done."""
        if self.output is not None:
            text = self.output.read_text(encoding="utf-8", errors="replace")
            for line in reversed(text.splitlines()):
                found = LEFT.search(line)
                if found:
                    return f", {found[0]}"
        if self.done_before is None and share:
            self.done_before = share
            self.began = clock()
        own = share - (self.done_before or share)
        if own <= 0:
            return ""
        left_s = (clock() - self.began) / own * (1 - share)
        return f", about {duration(left_s)} left"

    def _ended(self) -> str:
        """Return where trainings ended early, such as at the safety line."""
        ends = []
        for run in self.curve.members:
            ended = run.stats.get("ended") if run.finished else None
            if ended:
                ends.append(f"seed {run.identity['labels'].get('seed')}: {ended}")
        return f". Ended early: {'; '.join(ends)}." if ends else "."


def _parameters() -> dict[str, inspect.Parameter]:
    """Return the arguments of `ftlab.risk_curve` but for parent and data."""
    found = dict(inspect.signature(experiments.risk_curve).parameters)
    del found["parent"], found["data"]
    return found


def _plain(value: Any) -> Any:
    """Return a setting as YAML holds it."""
    value = name_of(value)
    return list(value) if isinstance(value, tuple) else value


def _listed(value: Any) -> Iterable[Any]:
    return [value] if isinstance(value, str) else value


def _measured(run: Run) -> list[dict[str, Any]]:
    """Return the rates of an unfinished training by the first judge."""
    table = run.table()
    table = table[table["judge"] == table["judge"].iloc[0]]
    rates = table.groupby(["step", "risk"], sort=False)["event"].mean()
    points = []
    for (step, risk), rate in rates.dropna().items():
        points.append(
            {
                "step": int(step),
                "metric": risk,
                "rate": float(rate),
            }
        )
    return points


def _value(name: str, text: str) -> Any:
    """Return what a text stands for: numbers, or a word."""
    if name == "learning_rate":
        return float(text)
    if name == "adapter":
        return text
    numbers = [int(part) for part in text.split(",")]
    is_list = "," in text or name == "at_steps"
    return numbers if is_list else numbers[0]


def _not_a_number(name: str, text: str, allowed: str) -> UsageError:
    return UsageError("not_a_number", f"{name}: {text!r:.60} is not allowed. {allowed}.")


def _word(name: str, value: Any) -> str:
    """Return a value as the command line takes it.

    Raises:
        UsageError: `not_on_command_line`.
    """
    if isinstance(value, dict) and all(isinstance(one, (int, float)) for one in value.values()):
        return ",".join(f"{key}={one}" for key, one in value.items())
    if isinstance(value, (list, tuple)) and all(isinstance(one, (int, str)) for one in value):
        return ",".join(map(str, value))
    if isinstance(value, (str, int, float, Path)):
        return str(value)
    raise UsageError(
        "not_on_command_line",
        f"{name} = {value!r:.60} cannot be given to the process that trains. Give a name, a file, "
        "numbers, or call ftlab.risk_curve itself.",
    )


def _choices(name: str) -> Iterable[str]:
    """Return the values that a setting of words allows."""
    annotation = _parameters()[name].annotation
    for part in typing.get_args(annotation):
        yield from filter(lambda value: isinstance(value, str), typing.get_args(part))


class _Figures:
    """The live figures of a panel and its clones: one display of the cell, saved with it."""

    def __init__(self):
        self.handle: Any = None
        self.drawn: dict[int, tuple[str, str]] = {}  # by training: HTML, and as text

    def show(self) -> None:
        """Put the display into the cell that runs now."""
        from IPython.display import display

        self.handle = display(
            self._content(),
            raw=True,
            display_id=True,
        )

    def update(self, training: Training) -> None:
        """Show the newest figure of a training."""
        figure = training.figure()
        if figure is None:
            return
        picture = base64.b64encode(figure.image("png")).decode()
        told = f"{training.heading()}: {training.state()}"
        image = f'<img alt="{escaped(figure.caption)}" src="data:image/png;base64,{picture}"'
        image += ' style="max-width: 100%; background: white">'
        shown = f"<figure>{image}<figcaption>{escaped(told)}</figcaption></figure>"
        self.drawn[id(training)] = (shown, told)
        if self.handle is not None:
            self.handle.update(self._content(), raw=True)

    def _content(self) -> dict[str, str]:
        shown, told = "", []
        for own, text in self.drawn.values():
            shown += own
            told.append(text)
        return {
            "text/html": shown,
            "text/plain": "\n".join(told),
        }


class _Widgets:
    """The panel on the screen."""

    def __init__(self, state: Training, figures: _Figures):
        from ipywidgets import HTML, Button, HBox, VBox

        self.state = state
        self.figures = figures
        self.frame = Frame(state)
        react = self.frame.reacting
        fields = []
        for name in FIELDS:
            field = _field(name, state.settings.get(name))
            field.observe(react(lambda change, name=name: self._read(name, change)), "value")
            fields.append(field)
        line = self._safety_line()
        start = Button(description="Start or resume", tooltip="Call the cell, in a process")
        stop = Button(description="Stop", tooltip="Save and end after this step")
        clone = Button(description="Clone", tooltip="Another panel with these settings")
        start.on_click(react(lambda _: self._start()))
        stop.on_click(react(lambda _: self._stop()))
        clone.on_click(react(lambda _: self._clone()))
        self.progress = HTML()
        self.below = VBox()
        self.watcher: threading.Thread | None = None
        self.box = self.frame.show(
            *fields,
            line,
            HBox([start, stop, clone]),
            self.progress,
            self.below,
        )
        self.show_progress()

    def show_progress(self) -> None:
        text = escaped(self.state.state())
        self.progress.value = f'<div role="log" aria-live="polite">{text}</div>'

    def _read(self, name: str, change: Any) -> None:
        with _shown_as_taken(change):
            self.state.read(name, change["new"])

    def _safety_line(self) -> Any:
        """Return a field for each risk that can end the training; an empty one sets no limit."""
        from ipywidgets import HTML, HBox

        given = self.state.settings.get(LINE, {})
        offered = list(given)
        try:
            offered += self.state.risks()
        except FtlabError as error:  # as Start will report too
            self.frame.tell(redacted(str(error)))
        fields = []
        for risk in dict.fromkeys(offered):
            field = _limit_field(risk, given.get(risk))
            read = self.frame.reacting(lambda change, risk=risk: self._limit(risk, change))
            field.observe(read, "value")
            fields.append(field)
        row = HBox([HTML("<b>Stop where</b>"), *fields])
        row.layout.flex_flow = "row wrap"
        return row

    def _limit(self, risk: str, change: Any) -> None:
        with _shown_as_taken(change):
            self.state.limit(risk, change["new"])

    def _start(self) -> None:
        self.state.start()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def _stop(self) -> None:
        self.state.stop()
        self.show_progress()

    def _clone(self) -> None:
        clone = _Widgets(self.state.clone(), self.figures)
        self.below.children = (*self.below.children, clone.box)

    def _watch(self) -> None:
        """Follow the process until its end; in a thread, so that the notebook stays free."""
        drawn = 0.0
        while True:
            is_running = self.state.running
            self.state.look()
            self.show_progress()
            if not is_running or clock() - drawn >= FIGURE_S:
                drawn = clock()
                self.figures.update(self.state)
            if not is_running:
                return
            time.sleep(POLL_S)


def _field(name: str, value: Any) -> Any:
    """Return the field of a setting; its tip is what the cell's docstring says."""
    from ipywidgets import Dropdown, Text

    tip = about(experiments.risk_curve, name)
    default = _parameters()[name].default
    shown = "" if value is None else _word(name, name_of(value))
    look = {
        "description": name,
        "tooltip": tip,
        "style": {"description_width": "8em"},
    }
    if name == "adapter":
        words = [(word, word) for word in _choices(name)]
        return Dropdown(
            options=[("all weights", ""), *words],
            value=shown,
            **look,
        )
    told = "the model's or the file's own" if default is None else _word(name, default)
    return Text(
        shown,
        placeholder=told,
        continuous_update=False,
        **look,
    )


@contextlib.contextmanager
def _shown_as_taken(change: Any) -> Iterator[None]:
    """Bring a field back where its new value is refused, so that Start takes what is shown."""
    try:
        yield
    except FtlabError:
        change["owner"].value = change["old"]
        raise


def _limit_field(risk: str, limit: float | None) -> Any:
    """Return the field of the rate of a risk above which training ends."""
    from ipywidgets import Text

    field = Text(
        "" if limit is None else str(limit),
        description=f"{risk} above",
        placeholder="no limit",
        tooltip=about(experiments.risk_curve, LINE),
        continuous_update=False,
        style={"description_width": "initial"},
    )
    field.layout.flex = "0 0 17em"
    return field
