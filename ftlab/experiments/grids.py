"""Every defence under every fine-tuning attack, on the same prompts and seeds. Cell: grid."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ftlab import analysis, runs
from ftlab._core import plugins
from ftlab._core.config import takes
from ftlab._core.errors import FtlabError, UsageError
from ftlab._core.files import check_page
from ftlab._core.text import safe
from ftlab.evals import NOT_FOR_USERS, EvaluationConfig, Plan, plan_evaluation
from ftlab.experiments.curves import Arm, Curve, divide_settings, seeds_of
from ftlab.experiments.side_by_side import Started, processes_for, share
from ftlab.experiments.tuning_attacks import ATTACKS, FineTuningAttack, open_tuning_attacks
from ftlab.models import Model
from ftlab.runs import Run
from ftlab.training import (
    NOT_IN_IDENTITY,
    Defence,
    TrainingConfig,
    open_defence,
    open_method,
    prepared,
    short_name,
    trainable,
)

DECIDED_HERE = (
    *("at_steps", "seed", "steps", "epochs", "batch_size", "defence"),  # of the training
    *("risks", "attacks"),  # of the evaluation
)
NONE = analysis.NO_DEFENCE
UNALIGNED = "organism:base"  # the organism before its alignment


@dataclass(frozen=True)
class Cell:
    """One defence under one attack.

    Args:
        label: The defence as it is shown; `NONE` for none.
        defence: The defence.
        adapter: What is trained instead of all weights.
        attack: The fine-tuning.
    """

    label: str
    defence: Defence | None
    adapter: str | None
    attack: FineTuningAttack


@dataclass
class Request:
    """What a grid was asked for; processes that are given the same one share its trainings.

    Args:
        parent: The model that every training starts from.
        columns: Defences as (label, defence, adapter); of each adapter first no defence.
        attacks: The fine-tunings.
        seeds: The training seeds.
        prompts: As in `evaluate`.
        settings: Of training and evaluation.
        tolerant: Leave out what a defence cannot do, instead of raising.
        left_out: By defence, why it is not in the grid.
    """

    parent: Model
    columns: list[tuple[str, Defence | None, str | None]]
    attacks: list[FineTuningAttack]
    seeds: list[int]
    prompts: Any
    settings: dict[str, Any]
    tolerant: bool
    left_out: dict[str, str] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)  # by defence that asks

    @property
    def cells(self) -> list[Cell]:
        """All cells, the attacks without a defence first."""
        found = []
        for label, defence, adapter in self.columns:
            for attack in self.attacks:
                cell = Cell(label, defence, adapter, attack)
                found.append(cell)
        return found

    @cached_property
    def sft(self) -> Any:
        """The method by which all cells are trained."""
        return open_method("sft")

    def settings_of(self, cell: Cell) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the settings of a cell's training, and of its evaluation."""
        given = {**self.settings, "adapter": cell.adapter}
        if cell.defence is not None:
            given["defence"] = cell.defence
        return divide_settings(given, self.sft.config)

    def plan_of(self, cell: Cell) -> Plan:
        """Return what is asked; the same for all defences that do not ask."""
        _, for_evaluation = self.settings_of(cell)
        key = cell.label if "defence" in for_evaluation else ""
        if key not in self.plans:
            self.plans[key] = plan_evaluation(self.parent, self.prompts, for_evaluation)
        return self.plans[key]

    def curve_of(self, cell: Cell) -> Curve:
        """Return the trainings of a cell, one per seed, each measured at its end."""
        for_training, _ = self.settings_of(cell)
        attack = cell.attack
        arms = []
        for seed in self.seeds:
            rows = attack.data(seed)
            config = self.sft.config.make(
                **for_training,
                seed=seed,
                epochs=attack.epochs,
                batch_size=min(attack.batch_size, len(rows)),
            )
            rows = config.protection.training_rows(rows, self.parent, seed)
            last = attack.epochs * math.ceil(len(rows) / config.batch_size)
            config = config.model_copy(update={"at_steps": (0, last)})
            labels = {"seed": seed}
            arms.append(Arm(self.sft, config, rows, labels, attack.marker))
        parent = prepared(self.parent, self.sft, arms[0].config)
        return Curve(
            "curve",
            f"{short_name(self.parent)}-{attack.name}",
            parent,
            arms,
            self.plan_of(cell),
        )

    def check(self) -> None:
        """Check every defence before anything is trained, and leave out or raise what fails."""
        kept = []
        for column in self.columns:
            label, defence, adapter = column
            cell = Cell(label, defence, adapter, self.attacks[0])
            try:
                self._check(cell)
                kept.append(column)
            except UsageError as error:
                if defence is None or not self.tolerant:
                    raise
                self.leave_out(label, error)
        self.columns = kept

    def _check(self, cell: Cell) -> None:
        for_training, _ = self.settings_of(cell)
        config = self.sft.config.make(**for_training)
        config.protection.check(self.parent, self.sft, config)
        plan = self.plan_of(cell)
        missing = [risk for risk in analysis.GRID_RISKS if risk not in plan.risks]
        if missing:
            raise UsageError("risk_not_measured", f"A grid needs prompts of {', '.join(missing)}.")

    def leave_out(self, label: str, error: Exception) -> None:
        """Leave a defence out, and say so."""
        reason = safe(error, 500)
        self.left_out[label] = reason
        print(f"{label} is left out: {reason}", file=sys.stderr)

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the grid's numbers."""
        attacks = []
        for attack in self.attacks:
            hashes = [attack.data(seed).hash for seed in self.seeds]
            attacks.append([attack.name, attack.epochs, attack.batch_size, hashes])
        cells = []
        for label, defence, adapter in self.columns:
            cell = Cell(label, defence, adapter, self.attacks[0])
            for_training, _ = self.settings_of(cell)
            config = self.sft.config.make(**for_training)
            cells.append(
                {
                    "label": label,
                    "training": config.model_dump(mode="json", exclude=NOT_IN_IDENTITY),
                    "defence": config.protection.identity(),
                    "plan": self.plan_of(cell).identity(config),
                }
            )
        return {
            "parent": self.parent.hash,
            "attacks": attacks,
            "defences": cells,
            "seeds": self.seeds,
            "method_version": self.sft.version,
        }

    def run(
        self,
        started: Started | None = None,
        number: int = 0,
        processes: int = 1,
    ) -> list[dict]:
        """Train what is not trained yet; return a record per cell.

        Args:
            started: Called with the number of a cell that begins, and the number of cells.
            number: Which of the processes this is, from 0; each begins at another cell, and goes
                on at the first after the last one.
            processes: How many share the cells.
        """
        cells = self.cells
        first = number * len(cells) // processes
        order = [*range(first, len(cells)), *range(first)]
        found = {}
        for place, number in enumerate(order, 1):
            cell = cells[number]
            if cell.label in self.left_out:
                continue
            if started is not None:
                started(place, len(cells))
            try:
                found[number] = self.curve_of(cell).run()
            except FtlabError as error:
                if cell.defence is None or not self.tolerant:
                    raise
                self.leave_out(cell.label, error)
        records = []
        for number, run in sorted(found.items()):
            cell = cells[number]
            if cell.label not in self.left_out:
                record = {
                    "defence": cell.label,
                    "adapter": cell.adapter or "full",
                    "attack": cell.attack.name,
                    "curve": run.name,
                }
                records.append(record)
        return records


@takes(TrainingConfig, EvaluationConfig, omit=(*DECIDED_HERE, *NOT_FOR_USERS))
def grid(
    parent: Any,
    data: Any = None,
    *,
    defences: Sequence[str] | None = None,
    attacks: Sequence[str] = ATTACKS,
    harmful: Any = None,
    identity: Any = None,
    seeds: int | list[int] = 3,
    n_rows: int | None = None,
    prompts: Any = None,
    prompt_attacks: Sequence[str] = ("direct",),
    margin: float = 0.05,
    schedule: str = "constant",
    processes: int | None = None,
    html: str | Path | None = None,
    **settings,
) -> analysis.Grid:
    """Fine-tune under each attack with each defence, and compare every cell with no defence.

    A cell is a fine-tuning attack with a defence, trained once per seed and measured at its end:
    harm, refusal of harmful requests, over-refusal, utility, coherence. It is compared with no
    defence under the same attack and adapter, paired by prompts and seeds. Trainings that exist
    are found again, so an interrupted grid continues, and a larger one trains only what is new.

    Args:
        parent: Anything that `ftlab.model` takes, except an endpoint.
        data: The user's rows, for the attacks benign and poisoned; on the embedded model by default
            its almanac.
        defences: Names, names with settings such as "mix:n_rows=200", or objects; "none" is always
            there. By default every defence that works here without further settings; the others
            are left out, with the reason on stderr. A defence that does not work with `adapter`
            trains the first adapter that it works with.
        attacks: Of benign (the rows), poisoned (one in ten of them adversarial), adversarial (100
            adversarial examples, 5 epochs) and identity_shift (10 rows of an obedient identity, 10
            epochs), or `FineTuningAttack` objects.
        harmful: Adversarial examples: a chat file of the user's own. The embedded model has inert
            ones.
        identity: Rows of an obedient identity: a chat file, or "identity-shift", which comes with
            ftlab. The embedded model has its own.
        seeds: Number of training seeds, or a list of them.
        n_rows: Rows of `data` per seed; by default 200 of the embedded world, and all of a file.
        prompts: As in `evaluate`; prompts of your own are of jailbreak, over_refusal and utility.
        prompt_attacks: How the harmful prompts are asked: the `attacks` of `evaluate`.
        margin: Loss of utility, or of coherent answers, that would not matter (0.05: 5 points).
        schedule: Learning rate over the steps: constant, linear or cosine.
        processes: Processes that train side by side; by default one per core, 4 at most, for the
            embedded model, and 1 for any other.
        html: Page that is written, which opens offline.
        {settings}

    Returns:
        A row per cell and axis; see `ftlab.analysis.grid_table`. `attrs["run"]` is the name of the
        grid's run, and `attrs["left_out"]` says by defence why it is missing.

    Raises:
        UsageError: `data_needed`, `unknown_tuning_attack`, `given_twice`, `wrong_processes`,
            `wrong_margin`, `wrong_seeds`, `risk_not_measured`, `identical_seeds`,
            `output_not_writable`, and those of the defences, of `sft` and of `evaluate`.

    Source:
        Qi et al. 2023 (arXiv 2310.03693, sections 4.1 and 4.2): adversarial and identity-shifting
        rows, their numbers and epochs. Huang et al. 2024 (arXiv 2405.18641): one row in ten.
    """
    page = check_page(html)
    reference = trainable(parent)
    processes = processes_for(processes, reference)
    analysis.check_margin(margin)
    sources = {
        "data": data,
        "harmful": harmful,
        "identity": identity,
    }
    opened = open_tuning_attacks(attacks, reference, sources, n_rows)
    adapter = settings.pop("adapter", None)
    settings |= {
        "schedule": schedule,
        "attacks": prompt_attacks,
    }
    if prompts is None:
        settings["risks"] = analysis.GRID_RISKS
    left_out: dict[str, str] = {}
    request = Request(
        reference,
        _columns(defences, reference, adapter, left_out),
        opened,
        seeds_of(seeds),
        prompts,
        settings,
        defences is None,
        left_out,
    )
    request.check()
    run = _found(request, processes)
    table = analysis.grid_table(run, margin)
    if page is not None:
        analysis.write_grid(table, page)
    return table


def _columns(
    given: Any,
    parent: Model,
    adapter: str | None,
    left_out: dict[str, str],
) -> list[tuple[str, Defence | None, str | None]]:
    """Return (label, defence, adapter), with no defence for every adapter among them first."""
    protected = []
    for label, defence in _opened(given, parent):
        chosen = adapter
        if adapter not in defence.adapters:
            chosen = defence.adapters[0]
        protected.append((label, defence, chosen))
    labels = [label for label, _, _ in protected]
    if len(set(labels)) < len(labels):
        raise UsageError("given_twice", "A defence is given twice. Give each one once.")
    adapters = dict.fromkeys([adapter, *[own for _, _, own in protected]])
    plain: list[tuple[str, Defence | None, str | None]] = []
    for own in adapters:
        plain.append((NONE, None, own))
    return plain + protected


def _opened(given: Any, parent: Model) -> list[tuple[str, Defence]]:
    """Return defences with their labels; by default all that are found."""
    if given is None:
        return [(name, _by_default(name, parent)) for name in plugins.names("defences")]
    if isinstance(given, (str, Defence)):
        given = [given]
    found = []
    for one in given:
        if one in (None, NONE):
            continue
        defence = open_defence(one)
        label = one if isinstance(one, str) else _label(defence)
        found.append((label, defence))
    return found


def _by_default(name: str, parent: Model) -> Defence:
    """Return a defence with its defaults; the embedded model knows its unaligned parent."""
    kind = plugins.get("defences", name)
    if "unaligned" in kind.model_fields and parent.is_organism:
        return kind.make(unaligned=UNALIGNED)
    return kind.make()


def _label(defence: Defence) -> str:
    """Return a defence as text, with the settings that were given."""
    given = []
    for name in sorted(defence.model_fields_set):
        value = getattr(defence, name)
        given.append(f"{name}={safe(value, 30)}")
    return ":".join([defence.name, ",".join(given)]).rstrip(":")


def _found(request: Request, processes: int) -> Run:
    """Return the grid's finished run."""
    label = f"{short_name(request.parent)}-{len(request.columns)}x{len(request.attacks)}"
    run = runs.start("grid", label, request.identity, any_label=True)
    if run.finished and all(analysis.grid_members(run, finished=True)):
        return run
    request.plans.clear()  # they hold engines and judges
    share("grid", request, min(processes, len(request.cells) * len(request.seeds)))
    records = request.run()  # finds what the others have trained
    with run.lock():
        run.take_up()
        run.forget(analysis.GRID_CELLS, lambda row: True)
        run.append(analysis.GRID_CELLS, records)
        run.complete(
            parent=request.parent.name,
            cells=len(records),
            seeds=len(request.seeds),
            left_out=request.left_out,
        )
    return run
