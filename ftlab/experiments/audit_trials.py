"""Does an audit find planted rows, and does it help to leave out what it finds?

Cells: plant_and_audit, remove_and_retrain.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from ftlab import analysis, stats
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.data import Data, draw, leave_out
from ftlab.evals import ANCHORED, AUDITS, NOT_FOR_USERS, EvaluationConfig, audit, plan_evaluation
from ftlab.experiments.curves import Arm, Curve, divide_settings, is_whole, seeds_of
from ftlab.models import Model
from ftlab.runs import Run
from ftlab.training import TrainingConfig, open_method, short_name, trainable

DECIDED_HERE = ("at_steps", "seed", "epochs", "risks", "defence")
NOTHING = "nothing"
RANDOM = "random"
PLANTED = "planted"
RISK = "jailbreak"
LEFT_OUT = {  # how the arms that no way of auditing chose are shown
    NOTHING: "nothing left out",
    RANDOM: "random rows",
    PLANTED: "the planted rows",
}
PAIRED = ["difference", "difference_low", "difference_high", "p"]
Removals = dict[str, list[set[int]]]  # by arm, per planting: places of rows


@dataclass(frozen=True)
class Planting:
    """Rows of one seed, among which some were planted.

    Args:
        seed: Decides which rows, and their order.
        data: All rows.
        planted: Places of the planted ones, from 1.
    """

    seed: int
    data: Data
    planted: frozenset[int]


@dataclass(frozen=True)
class AuditTrial:
    """Planted rows, and how each way of auditing ranks the rows among which they stand.

    Args:
        model: The model that the rows were audited for.
        plantings: One per seed.
        rankings: By way of auditing, per planting: places of its rows, most suspicious first.
    """

    model: Model
    plantings: tuple[Planting, ...]
    rankings: dict[str, tuple[tuple[int, ...], ...]]

    @property
    def n_planted(self) -> int:
        """How many rows were planted per seed."""
        return len(self.plantings[0].planted)

    def table(self) -> pd.DataFrame:
        """Return precision and recall of each way of auditing.

        Returns:
            Three rows per way: precision among the first n / 2 rows, where n were planted; among
            the first n, which is also the recall there; and recall among the first 2 n. by,
            measure, k, rate, low, high (95 %, over planting seeds), chance (what a random order
            gives), hits, of, n_seeds, method; group and series name the bars of a figure.
        """
        n = self.n_planted
        measures = (
            ("precision", max(n // 2, 1)),
            ("precision", n),
            ("recall", 2 * n),
        )
        rows = []
        for by in self.rankings:
            for measure, k in measures:
                row = {
                    "by": by,
                    "measure": measure,
                    "k": k,
                }
                row |= self._rate(by, measure, k)
                rows.append(row)
        table = analysis_table(rows)
        table["group"] = table["by"]
        table["series"] = table["measure"] + table["k"].map(" at {}".format)
        table.attrs = {
            "by": ["by", "measure", "k"],
            "axis": "share of rows (%)",
        }
        return table

    def _rate(self, by: str, measure: str, k: int) -> dict[str, Any]:
        """Return the pooled share with its interval; a planting seed is a cluster."""
        events = []
        seeds = []
        for planting, ranked in zip(
            self.plantings,
            self.rankings[by],
            strict=True,
        ):
            first = set(ranked[:k])
            hits = len(first & planting.planted)
            n = len(first)
            if measure == "recall":
                n = len(planting.planted)
            events += [1] * hits + [0] * (n - hits)
            seeds += [planting.seed] * n
        found = stats.rate(events, cluster=seeds)
        size = len(self.plantings[0].data)
        chance = self.n_planted / size
        if measure == "recall":
            chance = min(k / size, 1.0)
        return {
            "rate": found.rate,
            "low": found.low,
            "high": found.high,
            "chance": chance,
            "hits": found.events,
            "of": found.n,
            "n_seeds": len(self.plantings),
            "method": found.method,
        }


def analysis_table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return rows as a table whose intervals are drawn as pointwise ones."""
    return pd.DataFrame(rows).assign(band="95 %, pointwise")


@takes()
def plant_and_audit(  # noqa: PLR0913
    model: Any = "organism",
    *,
    benign: Any = None,
    planted: Any = None,
    harmful: Any = None,
    safe: Any = None,
    by: Sequence[str] = AUDITS,
    n_rows: int = 200,
    n_planted: int = 10,
    seeds: int | list[int] = 5,
    weights: str | None = None,
) -> AuditTrial:
    """Plant rows among harmless ones, and rank all of them in several ways.

    Args:
        model: Anything that `ftlab.model` takes, except an endpoint.
        benign: The harmless rows. On the embedded model: organism:almanac.
        planted: The rows to be found; each seed draws its own. On the embedded model:
            organism:adversarial, about other towns than the anchors.
        harmful: Anchors, as in `ftlab.evals.audit`; none of them may be among `planted`.
        safe: Anchors, as in `ftlab.evals.audit`.
        by: Ways of auditing.
        n_rows: Rows per seed, planted ones included.
        n_planted: Planted rows per seed.
        seeds: Number of planting seeds, or a list of them.
        weights: As in `ftlab.evals.audit`.

    Returns:
        A trial: `table()` is precision and recall; `remove_and_retrain` takes it.

    Raises:
        UsageError: `data_needed`, `wrong_planting`, and those of `ftlab.evals.audit` and
            `ftlab.data.load`.
    """
    reference = trainable(model)
    if not reference.is_organism and (benign is None or planted is None):
        why = f"A trial on {reference.name} needs benign=FILE and planted=FILE."
        raise UsageError("data_needed", f"{why} Bring your own chat files.")
    whole = is_whole(n_rows) and is_whole(n_planted)
    if not whole or not 0 < n_planted <= n_rows // 2:
        why = f"n_planted={n_planted!r} of n_rows={n_rows!r}. Plant at least one row, at most half."
        raise UsageError("wrong_planting", why)
    plantings = []
    rows: list[dict] = []
    for seed in seeds_of(seeds):
        one = planting_of(
            benign or "organism:almanac",
            planted or "organism:adversarial",
            n_rows,
            n_planted,
            seed,
        )
        plantings.append(one)
        rows += one.data.rows
    every = Data("plantings", tuple(rows))  # audited at once: a score is of a row alone
    rankings = {}
    for way in by:
        settings: dict[str, Any] = {}
        if way in ANCHORED:
            settings |= {"harmful": harmful, "safe": safe}
        if way == "gradient":
            settings["weights"] = weights
        scored = audit(
            every,
            reference,
            by=way,
            **settings,
        )
        rankings[way] = _per_planting(scored, n_rows, len(plantings))
    return AuditTrial(
        reference,
        tuple(plantings),
        rankings,
    )


def planting_of(
    benign: Any,
    planted: Any,
    n_rows: int,
    n_planted: int,
    seed: int,
) -> Planting:
    """Draw the rows of one seed and shuffle them."""
    n_harmless = n_rows - n_planted
    harmless = draw(benign, n_rows=n_harmless, seed=seed)
    harmful = draw(planted, n_rows=n_planted, seed=seed)
    rows = [*harmless.rows, *harmful.rows]
    order = list(range(n_rows))
    random.Random(f"planting {seed}").shuffle(order)
    places = []
    for place, number in enumerate(order, 1):
        if number >= n_harmless:
            places.append(place)
    made = {
        "by": "planting",
        "seed": seed,
        "from": [harmless.record, harmful.record],
    }
    name = f"{harmless.name} with {n_planted} planted"
    shuffled = tuple(rows[number] for number in order)
    data = Data(name, shuffled, made)
    return Planting(seed, data, frozenset(places))


def _per_planting(
    scored: pd.DataFrame,
    n_rows: int,
    n: int,
) -> tuple[tuple[int, ...], ...]:
    """Return the ranking of each planting from that of all rows, which follow one another."""
    place = scored["row"] - 1
    ranked = []
    for number in range(n):
        own = place[place // n_rows == number]
        places = own % n_rows + 1
        ranked.append(tuple(places))
    return tuple(ranked)


@takes(TrainingConfig, EvaluationConfig, omit=(*DECIDED_HERE, *NOT_FOR_USERS))
def remove_and_retrain(
    trial: AuditTrial,
    by: Sequence[str] = AUDITS[:3],
    *,
    n_removed: int | None = None,
    steps: int = 30,
    schedule: str = "constant",
    prompts: Any = None,
    **settings,
) -> pd.DataFrame:
    """Leave out the most suspicious rows, train again, and compare on the same prompts and seeds.

    Every arm trains for the same number of steps: on all rows; without the rows that each way of
    auditing ranks first; without as many random rows; and without the planted ones, the best that
    a removal can do.

    Args:
        trial: What `plant_and_audit` returned. Its seeds are the training seeds too.
        by: Ways of auditing, of those of the trial.
        n_removed: Rows left out. Default: as many as were planted.
        steps: Optimiser steps.
        schedule: Learning rate over the steps: constant, linear or cosine.
        prompts: As in `evaluate`; by default jailbreaks are measured.
        {settings}

    Returns:
        One row per arm: removed, rate (of jailbreaks after training), low and high (95 %), left
        (planted rows still there, mean over seeds); and against random removal on the same prompts
        and seeds: difference, difference_low, difference_high, p, p_holm (adjusted for all arms
        but the planted one); n_prompts, n_seeds. `attrs["parent"]` is the rate before training.

    Raises:
        UsageError: `not_audited`, `wrong_n_removed`, and those of `sft` and `evaluate`.
    """
    missing = [way for way in by if way not in trial.rankings]
    if missing:
        allowed = ", ".join(trial.rankings)
        raise UsageError("not_audited", f"The trial has no {missing[0]!r}. It has: {allowed}.")
    n = n_removed
    if n is None:
        n = trial.n_planted
    if not is_whole(n) or not 0 < n < len(trial.plantings[0].data):
        raise UsageError("wrong_n_removed", f"n_removed={n!r}. Leave out 1 row or more, not all.")
    sft = open_method("sft")
    for_training, for_evaluation = divide_settings(settings, sft.config)
    for_training |= {
        "schedule": schedule,
        "steps": steps,
        "at_steps": (0, steps),
    }
    if prompts is None:
        for_evaluation |= {"risks": (RISK,)}
    plan = plan_evaluation(trial.model, prompts, for_evaluation)
    removals = _removals(trial, by, n)
    measured = {}
    for name, places in removals.items():
        arms = []
        for planting, out in zip(trial.plantings, places, strict=True):
            config = sft.config.make(**for_training, seed=planting.seed)
            rows = planting.data
            if out:
                rows = leave_out(rows, out)
            arm = Arm(
                sft,
                config,
                rows,
                {"seed": planting.seed},
            )
            arms.append(arm)
        curve = Curve(
            "curve",
            f"{short_name(trial.model)}-audit",
            trial.model,
            arms,
            plan,
        )
        measured[name] = curve.run()
    return _compared(
        trial,
        removals,
        measured,
        steps,
    )


def _removals(
    trial: AuditTrial,
    by: Sequence[str],
    n: int,
) -> Removals:
    """Return by arm, per planting, the places of the rows that are left out."""
    nothing = []
    drawn = []
    planted = []
    for planting in trial.plantings:
        places = range(1, len(planting.data) + 1)
        dice = random.Random(f"removed {planting.seed}")
        nothing.append(set())
        drawn.append(set(dice.sample(places, n)))
        planted.append(set(planting.planted))
    removals: Removals = {NOTHING: nothing, RANDOM: drawn}
    for way in by:
        ranked = trial.rankings[way]
        removals[way] = [set(places[:n]) for places in ranked]
    removals[PLANTED] = planted
    return removals


def _compared(
    trial: AuditTrial,
    removals: Removals,
    measured: dict[str, Run],
    steps: int,
) -> pd.DataFrame:
    """Return each arm's rate and its difference from random removal."""
    last = {"risk": RISK, "steps": [steps]}
    rows = []
    for name, run in measured.items():
        rate = analysis.rates(run, **last).iloc[0]
        pairs = zip(trial.plantings, removals[name], strict=True)
        left = [len(planting.planted - out) for planting, out in pairs]
        row = {
            "removed": name,
            "rate": rate["rate"],
            "low": rate["low_pointwise"],
            "high": rate["high_pointwise"],
            "left": sum(left) / len(left),
        }
        if name != RANDOM:
            paired = analysis.compare(measured[RANDOM], run, **last)
            row |= paired.iloc[0][PAIRED].to_dict()
        for column in ("n_prompts", "n_seeds"):
            row[column] = rate[column]
        rows.append(row)
    table = analysis_table(rows)
    claimed = ~table["removed"].isin([RANDOM, PLANTED])
    table.loc[claimed, "p_holm"] = stats.holm(table.loc[claimed, "p"].tolist())
    table["group"] = table["removed"].map(LEFT_OUT).fillna("by " + table["removed"])
    table["series"] = RISK
    before = analysis.rates(measured[RANDOM], risk=RISK, steps=[0])
    table.attrs = {
        "by": ["removed", "left"],
        "parent": before["rate"].iloc[0],
    }
    return table
