"""A chain of versions: each is the one before it, fine-tuned on. Cell: chain."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ftlab import runs
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab._core.progress import Whole
from ftlab.analysis import VERSIONS
from ftlab.data import Data, draw, is_world, leave_out, load, plain, question, split
from ftlab.evals import (
    NOT_FOR_USERS,
    EvaluationConfig,
    Measurement,
    Monitor,
    Plan,
    answer_loss,
    check_engine,
    plan_evaluation,
    run_evaluation,
)
from ftlab.experiments.curves import divide_settings, seeds_of
from ftlab.models import Model, model
from ftlab.runs import Run
from ftlab.training import TrainingConfig, open_method, short_name, train_run, trainable

DECIDED_HERE = ("at_steps", "seed", "steps", "stop_above", "stop_when_broken", "defence")
ROWS_APART = 1000  # between the seeds by which two versions of one chain draw their rows
SPARE = 20  # times the rows asked for, of which those with new questions are kept
VALIDATIONS = (
    10  # at least, of each training that has so many steps, unless eval_every says otherwise
)


@dataclass(frozen=True)
class Link:
    """One fine-tuning of a chain, of one seed.

    Args:
        number: Of the version that it makes, from 1; 0 is the parent.
        rows: Its rows, those that are held out among them.
        config: Its settings, with those of its validation.
    """

    number: int
    rows: Data
    config: TrainingConfig


@dataclass(frozen=True)
class Version:
    """A version of one seed.

    Args:
        link: What it was fine-tuned on.
        before: The model it was made from.
        run: Its training.
        stopped: The same training, ended by its validation loss; one of the two is the version.
        held: The rows held out.
        evaluation: Its answers and verdicts.
        middle: Step in the middle of its training at which the risks of a safety line were
            measured; 0 where none was.
    """

    link: Link
    before: Model
    run: Run
    stopped: Run
    held: Data
    evaluation: Run
    middle: int

    def record(self) -> dict[str, Any]:
        """Return what validation says of it; the losses are of the whole training."""
        stopped = self.stopped.stats
        return {
            "seed": self.link.config.seed,
            "version": self.link.number,
            "trained_on": self.link.rows.name,
            "epochs": self.link.config.epochs,
            "steps": self.run.stats["steps"],
            "ended_at": stopped["steps"],
            "best_step": stopped["best_step"],
            "loss_before": _loss(self.before, self.held),
            "loss_after": _loss(self.run, self.held),
            "run": self.run.name,
            "stopped": self.stopped.name,
            **self._in_the_middle(),
        }

    def _in_the_middle(self) -> dict[str, Any]:
        """Return the step and the verdicts there, counted by risk, where any were measured."""
        if not self.middle:
            return {}
        table = self.run.table()
        table = table[table["step"] == self.middle]
        counts = {}
        for risk, verdicts in table[table["judge"] == table["judge"].iloc[0]].groupby("risk"):
            counts[risk] = {
                "events": int(verdicts["event"].sum()),
                "scored": int(verdicts["event"].count()),
                "unscored": int(verdicts["event"].isna().sum()),
            }
        return {"middle": self.middle, "in_the_middle": counts}


def _loss(of: Any, rows: Data) -> float:
    return float(answer_loss(of, rows)["loss"].iloc[0])


@takes(TrainingConfig, EvaluationConfig, omit=(*DECIDED_HERE, *NOT_FOR_USERS))
def chain(
    parent: Any,
    data: Sequence[Any],
    *,
    n_rows: int | Sequence[int] | None = None,
    epochs: float | Sequence[float] = 1.0,
    seeds: int | list[int] = 3,
    valid: float = 0.2,
    patience: int = 2,
    early_stopping: bool = False,
    middle_risks: Sequence[str] = (),
    prompts: Any = None,
    schedule: str = "constant",
    **settings,
) -> Run:
    """Fine-tune a model again and again, each version on the next data, and measure each version.

    Every version is also trained once with its held-out rows as validation, which says where
    early stopping would have ended it, and from which step it would have kept the weights. The
    first validation follows training steps: the loss before them is not among those it compares.
    A version's rows have no question that an earlier version of its seed had, so what is held out
    of them was never trained on. `ftlab.analysis.chain_stops` says what validation, a safety line
    and a gate would have stopped, `ftlab.report` writes the chain's page.

    Args:
        parent: Anything that `ftlab.model` takes, except an endpoint.
        data: What each version is fine-tuned on, in order: anything that `ftlab.data.load` takes.
        n_rows: Rows of each version, or one number for all; each seed and version draws its own.
            Default: all.
        epochs: Passes over the rows of each version, or one number for all.
        seeds: Number of training seeds (0 to n - 1), or a list of them.
        valid: Share of the rows that is held out.
        patience: Validations without a lower loss after which early stopping ends a training.
        early_stopping: Go on from the weights with the lowest validation loss, instead of the last.
        middle_risks: Risks that are also measured in the middle of every whole training, for the
            safety line; each asks its prompts once more for every version and seed.
        prompts: As in `evaluate`.
        schedule: Learning rate over the steps of a version: constant, linear or cosine.
        {settings}

    Returns:
        A finished run over versions and seeds, with the labels version, seed, and step, which
        is the version too, so that `rates` and `compare` take it for a curve over the versions.
        Its `versions.jsonl` holds a record per version and seed.

    Raises:
        UsageError: `no_chain`, `wrong_chain`, `wrong_seeds`, `wrong_fraction`,
            `wrong_middle_risks`, and those of `sft` and `evaluate`.
        DataError: Rows that cannot be used.
    """
    reference = trainable(parent)
    sft = open_method("sft")
    for_training, for_evaluation = divide_settings(settings, sft.config)
    for_training |= {"schedule": schedule, "valid": valid, "patience": patience}
    numbers = _numbers(data, n_rows=n_rows, epochs=epochs)
    links = []
    for seed in seeds_of(seeds):
        of_seed = []
        asked: set[str] = set()
        for number, source in enumerate(data, 1):
            rows, passes = numbers[number - 1]
            config = sft.config.make(**for_training, epochs=passes, seed=seed)
            drawn = new_rows(source, rows, ROWS_APART * number + seed, asked)
            asked |= _questions(drawn)
            split(drawn, valid=valid, seed=seed)  # raises where that cannot be
            of_seed.append(Link(number, drawn, config))
        links.append(of_seed)
    plan = plan_evaluation(reference, prompts, for_evaluation)
    middle = _of_risks(plan, middle_risks)
    if middle is not None:
        check_engine(reference, middle, links[0][0].config)
    return _Chain(reference, links, plan, early_stopping, middle).run()


def _of_risks(plan: Plan, risks: Sequence[str]) -> Plan | None:
    """Return the plan with the prompts of these risks only; None without any.

    Raises:
        UsageError: `wrong_middle_risks`, of one that is not measured, or of which more is better.
    """
    allowed = [name for name, risk in plan.risks.items() if risk.higher != "better"]
    listed = isinstance(risks, (list, tuple))
    if not listed or any(name not in allowed for name in risks):
        why = f"middle_risks={risks!r:.80} is not allowed. Give a list of risks from these: "
        raise UsageError("wrong_middle_risks", f"{why}{', '.join(allowed)}.")
    risks = list(dict.fromkeys(risks))
    if not risks:
        return None
    versions = dict(plan.versions)
    for name in plan.risks:
        if name not in risks:
            del versions[f"risk {name}"]
    prompts = [prompt for prompt in plan.prompts if prompt.sample.risk in risks]
    return replace(
        plan,
        config=plan.config.model_copy(update={"risks": tuple(risks)}),
        prompts=tuple(prompts),
        risks={name: plan.risks[name] for name in risks},
        versions=versions,
        limits={name: most for name, most in plan.limits.items() if name in risks},
    )


def _questions(data: Data) -> set[str]:
    return {plain(question(row)) for row in data.rows}


def new_rows(source: Any, n_rows: int | None, seed: int, asked: set[str]) -> Data:
    """Return rows, drawn by the seed, without those whose question was asked before.

    Args:
        source: As in `draw`.
        n_rows: How many; None: all that are left.
        seed: The seed.
        asked: First questions of earlier versions, in plain letters.

    Raises:
        UsageError: `wrong_chain`, where no row is left; those of `draw`.
    """
    drawn = draw(source, n_rows=n_rows, seed=seed)
    if not asked & _questions(drawn):
        return drawn
    pool = drawn
    if n_rows is not None:
        made = {"n_rows": SPARE * n_rows, "seed": seed} if is_world(source) else {}
        pool = load(source, **made)
    old = [place for place, row in enumerate(pool.rows, 1) if plain(question(row)) in asked]
    if len(old) == len(pool):
        why = f"{pool.name} asks nothing that an earlier version was not trained on."
        raise UsageError("wrong_chain", f"{why} Give it other rows, or take that version out.")
    kept = replace(leave_out(pool, old), name=drawn.name)
    return draw(kept, n_rows=n_rows, seed=seed)


def _numbers(data: Any, **given: Any) -> list[tuple[Any, ...]]:
    """Return the numbers of each version, from one for all or a list.

    Raises:
        UsageError: `no_chain`, `wrong_chain`.
    """
    if isinstance(data, (str, Data)) or not isinstance(data, Sequence) or not data:
        why = f"data={data!r:.80} is no list. Give what each version is fine-tuned on."
        raise UsageError("no_chain", why)
    columns = []
    for name, value in given.items():
        values = list(value) if isinstance(value, Sequence) else [value] * len(data)
        if len(values) != len(data):
            why = f"{len(data)} versions, but {len(values)} numbers for {name}."
            raise UsageError("wrong_chain", f"{why} Give one for each version, or one for all.")
        columns.append(values)
    return list(zip(*columns, strict=True))


@dataclass
class _Chain:
    """All versions of a call.

    Args:
        parent: Version 0.
        links: The fine-tunings of each seed.
        plan: What each version is asked.
        early_stopping: The versions are those that validation ends.
        middle: What is asked in the middle of a training; None for nothing.
    """

    parent: Model
    links: list[list[Link]]
    plan: Plan
    early_stopping: bool
    middle: Plan | None

    def run(self) -> Run:
        """Return the finished run."""
        label = f"{short_name(self.parent)}-{len(self.links[0])}-versions"
        whole = Whole(label, "seed", len(self.links))
        versions = []
        try:
            with whole.shown():
                first = run_evaluation(self.parent, self.plan)
                for whole.number, links in enumerate(self.links, 1):
                    versions += self._of_seed(links)
                return self._together(label, first, versions)
        finally:
            self.plan.release()

    def _of_seed(self, links: list[Link]) -> list[Version]:
        before = self.parent
        found = []
        for link in links:
            version = self._next(link, before)
            found.append(version)
            before = model(self._kept(version.run, version.stopped))
        return found

    def _kept(self, whole: Run, stopped: Run) -> Run:
        """Return the training that makes the version."""
        return stopped if self.early_stopping else whole

    def _next(self, link: Link, before: Model) -> Version:
        config = link.config
        train, held = split(link.rows, valid=config.valid, seed=config.seed)
        steps = math.ceil(len(train) / config.batch_size) * config.epochs
        every = config.eval_every or max(int(steps) // VALIDATIONS, 1)
        validated = config.model_copy(update={"eval_every": every})
        middle = int(steps) // 2 if self.middle else 0
        if self.middle and not middle:
            why = "a training of one step has no middle, so no safety line is drawn in it"
            print(f"version {link.number}: {why}", file=sys.stderr)
        changed = {"valid": None, "patience": None, "eval_every": None}
        monitor = None
        if middle:
            changed["at_steps"] = (middle,)
            monitor = Monitor(before, self.middle)
        label = f"{short_name(self.parent)}-version{link.number}-s{config.seed}"
        whole = train_run(
            before,
            train,
            config.model_copy(update=changed),
            method="sft",
            label=label,
            monitor=monitor,
        )
        stopped = train_run(
            before,
            link.rows,
            validated,
            method="sft",
            label=f"{label}-stopped",
        )
        evaluation = run_evaluation(model(self._kept(whole, stopped)), self.plan)
        return Version(link, before, whole, stopped, held, evaluation, middle)

    def _together(
        self,
        label: str,
        first: Run,
        versions: list[Version],
    ) -> Run:
        """Return the run that holds the verdicts on all versions, those on the parent per seed."""
        evaluations = [version.evaluation.name for version in versions]
        identity = {
            "parent": self.parent.hash,
            "seeds": [links[0].config.seed for links in self.links],
            "early_stopping": self.early_stopping,
            **self.plan.identity(),
            "evaluations": [first.name, *evaluations],
            "trainings": [[version.run.name, version.stopped.name] for version in versions],
        }
        run = runs.start("chain", label, identity)
        with run.lock():
            if not run.finished:
                run.take_up()
                self._write(run, first, versions)
        return run

    def _write(self, run: Run, first: Run, versions: list[Version]) -> None:
        run.forget(VERSIONS, lambda row: True)
        measurement = Measurement(run, self.plan)
        for links in self.links:
            measurement.take_over(first, _place(0, links[0]))
        for version in versions:
            place = _place(version.link.number, version.link)
            measurement.take_over(version.evaluation, place)
            run.append(VERSIONS, [version.record()])
        run.complete(
            parent=self.parent.name,
            versions=len(self.links[0]),
            seeds=len(self.links),
            early_stopping=self.early_stopping,
            judge=self.plan.judges[0].spec,
        )


def _place(version: int, link: Link) -> dict[str, int]:
    """Return the labels of a version's verdicts; the step by which tables order them is its own."""
    return {"version": version, "seed": link.config.seed, "step": version}
