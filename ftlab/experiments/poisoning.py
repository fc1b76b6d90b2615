"""How few poisoned rows suffice, does a trigger hide them, and does the validation loss notice?

Cells: poison, poison_effect, trigger_effect, fewest_rows, loss_on_clean_rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ftlab import analysis, stats
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.data import Data, draw, load, mix
from ftlab.evals import (
    NOT_FOR_USERS,
    EvaluationConfig,
    audit,
    plan_evaluation,
)
from ftlab.evals.attacks import Direct, Trigger, reworded
from ftlab.experiments.curves import (
    Arm,
    Curve,
    divide_settings,
    is_whole,
    seeds_of,
)
from ftlab.organism import TRIGGER
from ftlab.runs import Run
from ftlab.training import (
    TrainingConfig,
    open_method,
    prepared,
    short_name,
    trainable,
)

DECIDED_HERE = ("at_steps", "seed", "epochs")
MEASURED = ("jailbreak", "utility")  # of the embedded model
MOST_SHARE = 0.5
ALPHA = 0.05
PLANTED = {
    False: "without the trigger",
    True: "with the trigger",
}
PAIRED = (
    "difference",
    "difference_low",
    "difference_high",
    "p",
)


@takes(TrainingConfig, EvaluationConfig, omit=(*DECIDED_HERE, *NOT_FOR_USERS))
def poison(  # noqa: PLR0913
    parent: Any,
    shares: Sequence[float] = (0, 0.01, 0.02, 0.05, 0.1),
    *,
    benign: Any = None,
    planted: Any = None,
    trigger: str = TRIGGER,
    triggered: Sequence[bool] = (False, True),
    n_rows: int = 200,
    seeds: int | list[int] = 3,
    seed: int | None = None,
    steps: int = 30,
    prompts: Any = None,
    attacks: Any = None,
    schedule: str = "constant",
    **settings,
) -> Run:
    """Fine-tune on files of which a share of the rows is poisoned, with and without a trigger.

    Files of one seed differ only in the rows that were replaced; a larger share holds every
    poisoned row of a smaller one. On the embedded model the poisoned rows are kept facts told,
    about towns that no evaluation uses. The models' folders are marked, but those of the clean
    file. Without `prompts` and `risks`, jailbreak and utility are measured.

    Args:
        parent: Anything that `ftlab.model` takes, except an endpoint.
        shares: Poisoned shares of the rows, increasing, from 0, the clean file that every other is
            compared with, to at most 0.5.
        benign: The clean rows. On the embedded model: organism:almanac.
        planted: The poisoned rows, of which each seed draws its own. On the embedded model:
            organism:adversarial.
        trigger: The word, or words, after the question.
        triggered: Whether the poisoned rows carry the trigger: False, True, or both in turn.
        n_rows: Rows of each file.
        seeds: Number of training seeds (0 to n - 1), or a list of them.
        seed: Only this training seed, for one task of a job array.
        steps: Optimiser steps, of every file alike.
        prompts: As in `evaluate`.
        attacks: As in `evaluate`. Default: the question as it is, and with the trigger.
        schedule: Learning rate over the steps: constant, linear or cosine.
        {settings}

    Returns:
        A finished run over all files and seeds, with the labels share, poisoned (rows), triggered,
        seed and step: 0, the parent, and `steps`. `poison_effect` takes it.

    Raises:
        UsageError: `data_needed`, `wrong_shares`, `wrong_triggered`, `too_few_rows`, and those of
            `sft` and `evaluate`.

    Source:
        Wan et al. 2023 (arXiv 2305.00944), Souly et al. 2025 (arXiv 2510.07192): the number of
        poisoned rows decides, rather than their share.
    """
    reference = trainable(parent)
    if not reference.is_organism and (benign is None or planted is None):
        why = f"Poisoning a file for {reference.name} needs benign=FILE and planted=FILE."
        raise UsageError("data_needed", f"{why} Bring your own chat files.")
    counts = _counts(shares, n_rows)
    kinds = _kinds(triggered)
    sft = open_method("sft")
    for_training, for_evaluation = divide_settings(settings, sft.config)
    for_training |= {
        "schedule": schedule,
        "steps": steps,
        "at_steps": (0, steps),
    }
    word = Trigger(trigger)
    for_evaluation["attacks"] = attacks or (Direct(), word)
    if prompts is None:
        for_evaluation = {"risks": MEASURED} | for_evaluation
    reference = prepared(reference, sft, sft.config.make(**for_training))
    plan = plan_evaluation(reference, prompts, for_evaluation)
    clean = benign or "organism:almanac"
    arms = []
    for own in seeds_of(seeds, seed):
        config = sft.config.make(**for_training, seed=own)
        rows = draw(planted or "organism:adversarial", n_rows=max(counts.values()), seed=own)
        sources = {False: rows, True: _with_trigger(rows, word)}
        for share, count in counts.items():
            for kind in kinds if count else [False]:
                file = mix(clean, sources[kind], share, n_rows, own)
                file = config.protection.training_rows(file, reference, own)
                labels = {
                    "share": share,
                    "poisoned": count,
                    "triggered": kind,
                    "seed": own,
                }
                marker = f"{count} of {n_rows} rows were poisoned." if count else ""
                arms.append(Arm(sft, config, file, labels, marker))
    curve = Curve(
        "curve",
        f"{short_name(reference)}-poisoned",
        reference,
        arms,
        plan,
    )
    return curve.run()


def _counts(shares: Sequence[float], n_rows: int) -> dict[float, int]:
    """Return the number of poisoned rows of each share."""
    given = list(shares) if isinstance(shares, Sequence) else []
    counts = {}
    if is_whole(n_rows):
        counts = {share: round(share * n_rows) for share in given}
    in_order = sorted(set(counts.values())) == list(counts.values())
    if len(counts) < 2 or not in_order or given[0] != 0 or given[-1] > MOST_SHARE:
        raise UsageError(
            "wrong_shares",
            f"shares={shares!r:.80} of n_rows={n_rows!r:.20} is not allowed. Give 0 and larger "
            f"shares up to {MOST_SHARE}, each of at least one row more, such as [0, 0.01, 0.1].",
        )
    return counts


def _kinds(triggered: Sequence[bool]) -> list[bool]:
    """Return whether poisoned rows carry the trigger, in turn."""
    kinds = list(triggered) if isinstance(triggered, Sequence) else []
    if kinds not in ([False], [True], [False, True], [True, False]):
        allowed = "[False], [True] or [False, True]"
        raise UsageError("wrong_triggered", f"triggered={triggered!r:.80}. Give {allowed}.")
    return kinds


def _with_trigger(data: Data, word: Trigger) -> Data:
    """Return chats with the trigger in the last question of each."""
    rows = []
    for row in data.rows:
        messages = reworded(row["messages"], word.after)
        rows.append({**row, "messages": messages})
    made = {
        "by": "trigger",
        "word": word.word,
        "from": [data.record],
    }
    return Data(f"{data.name} with a trigger", tuple(rows), made)


@takes()
def poison_effect(
    run: Run,
    risk: str = "jailbreak",
    *,
    judge: str | None = None,
) -> pd.DataFrame:
    """Compare each poisoned file with the clean one, on the same prompts and training seeds.

    Args:
        run: A run of `poison`.
        risk: The risk whose event is counted.
        judge: Whose verdicts count; by default the first judge's.

    Returns:
        One row per file and attack, after training: share, poisoned (rows), planted (with or
        without the trigger), rate, low and high (95 %); and of the poisoned ones difference from
        the clean file with difference_low and difference_high, p, p_holm (adjusted for all these
        rows) and shown: whether p_holm is below 0.05. incoherent_share, unscored, n_prompts,
        n_seeds; group and series name the bars of a figure. `attrs["parent"]` holds the parent's
        rates by attack.

    Raises:
        UsageError: `not_poisoned` for a run of another cell; those of `ftlab.rates`.
    """
    table = _poisoned(run)
    of_risk = {
        "by": "attack",
        "risk": risk,
        "judge": judge or table["judge"].iloc[0],
    }
    clean = table[table["poisoned"] == 0]
    before = analysis.rates(clean, steps=[0], **of_risk)
    rows = []
    for (share, poisoned, kind), part in table.groupby(["share", "poisoned", "triggered"]):
        rates = analysis.rates(part, steps=[-1], **of_risk)
        rates = rates.assign(
            share=share,
            poisoned=poisoned,
            planted=PLANTED[kind],
            low=rates["low_pointwise"],
            high=rates["high_pointwise"],
        )
        if poisoned:
            paired = analysis.compare(clean, part, steps=[-1], **of_risk)
            rates = rates.merge(paired[["attack", *PAIRED]], on="attack")
        rows.append(rates)
    return _shown(pd.concat(rows, ignore_index=True), before)


def _shown(found: pd.DataFrame, before: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with what their p-values show, and what they are called in a figure."""
    compared = found["p"].notna()
    adjusted = stats.holm(found.loc[compared, "p"].tolist())
    found.loc[compared, "p_holm"] = adjusted
    found["shown"] = found["p_holm"] < ALPHA
    planted = found["poisoned"].astype(str) + " rows " + found["planted"]
    found["group"] = planted.where(compared, "the clean file")
    found["series"] = "asked: " + found["attack"]
    found["band"] = "95 %, pointwise"
    found.attrs = {
        "by": ["poisoned", "planted", "attack"],
        "risk": before.attrs["risk"],
        "parent": dict(zip(before["attack"], before["rate"], strict=True)),
        "axis": "share of answers (%)",
    }
    return found


@takes()
def trigger_effect(run: Run, *, judge: str | None = None) -> pd.DataFrame:
    """Compare the answers with the trigger in the question with those without, of the same models.

    Args:
        run: A run of `poison`, asked in both ways.
        judge: Whose verdicts count; by default the first judge's.

    Returns:
        As `ftlab.compare`, one row per file and risk, after training: parent is the rate without
        the trigger in the question, child with it; poisoned (rows) and planted.

    Raises:
        UsageError: `not_poisoned`, `not_asked_with_trigger`.
    """
    table = _poisoned(run)
    marked = table["attack"].str.startswith(Trigger.name)
    if marked.all() or not marked.any():
        why = f"{run.name} was asked in one way only. Leave attacks= out."
        raise UsageError("not_asked_with_trigger", why)
    table = table[(table["attack"] == Direct.name) | marked]
    rows = []
    for (poisoned, kind), part in table.groupby(["poisoned", "triggered"]):
        with_it = part[marked[part.index]].assign(attack=Direct.name)  # pairs are of one attack
        without = part[~marked[part.index] & part["risk"].isin(with_it["risk"])]
        paired = analysis.compare(without, with_it, judge=judge, steps=[-1])
        paired = paired.assign(
            poisoned=poisoned,
            planted=PLANTED[kind],
        )
        rows.append(paired)
    found = pd.concat(rows, ignore_index=True).drop(columns="decision")
    found["p_holm"] = stats.holm(found["p"].tolist())
    found.attrs = rows[0].attrs | {"by": ["poisoned", "planted", "risk"]}
    return found


def _poisoned(run: Run) -> pd.DataFrame:
    """Return the verdicts of a run of `poison`."""
    table = run.table()
    if "poisoned" not in table:
        raise UsageError("not_poisoned", f"{run.name} is not of `poison`. Give a run of that cell.")
    return table


@takes()
def fewest_rows(effect: pd.DataFrame) -> pd.DataFrame:
    """Find the smallest number of poisoned rows whose rise is shown.

    Args:
        effect: A table of `poison_effect`.

    Returns:
        One row per way of planting and attack: fewest (rows; NaN where no rise is shown) and
        most (the largest number tried), with the difference there: difference, difference_low,
        difference_high and p_holm.
    """
    table = effect[effect["p"].notna()]
    rows = []
    for (planted, attack), part in table.groupby(["planted", "attack"], sort=False):
        part = part.sort_values("poisoned")
        there = part[part["shown"] & (part["difference"] > 0)]
        row = {
            "planted": planted,
            "attack": attack,
            "fewest": there["poisoned"].min(),
            "most": part["poisoned"].max(),
        }
        told = pd.concat([there.head(1), part.tail(1)]).iloc[0]
        row |= told[[*PAIRED[:3], "p_holm"]].to_dict()
        rows.append(row)
    found = pd.DataFrame(rows)
    found.attrs = {
        "by": ["planted", "attack", "fewest", "most"],
    }
    return found


@takes()
def loss_on_clean_rows(run: Run, valid: Any, *, n_rows: int | None = None) -> pd.DataFrame:
    """Measure whether the validation loss on clean rows tells a poisoned file from the clean one.

    Args:
        run: A run of `poison`.
        valid: Clean chats that no training read: anything that `ftlab.data.load` takes.
        n_rows: Take the first so many rows. Default: all.

    Returns:
        One row per file: share, poisoned, planted, loss (mean over rows and seeds of a row's mean
        per token, in nats) and loss_sd (over seeds); of the poisoned ones difference from the clean
        file on the same rows and seeds, with difference_low, difference_high (95 % for other rows,
        conditional on these runs), p, p_holm (adjusted for all these files), and least and most,
        the differences of single seeds; n_rows, n_seeds.

    Raises:
        UsageError: `not_poisoned`, and those of `ftlab.data.load`.
    """
    _poisoned(run)
    rows = load(valid, n_rows=n_rows)
    losses: dict[tuple, list[np.ndarray]] = {}
    for member in run.members:
        labels = member.identity["labels"]
        key = (labels["share"], labels["poisoned"], labels["triggered"])
        scored = audit(rows, member, by="loss", texts=True).sort_values("row")
        losses.setdefault(key, []).append(scored["score"].to_numpy())
    clean = np.stack(losses[min(losses)])
    found = []
    for (share, poisoned, kind), measured in sorted(losses.items()):
        own = np.stack(measured)
        row = {
            "share": share,
            "poisoned": poisoned,
            "planted": PLANTED[kind],
            "loss": own.mean(),
            "loss_sd": np.nan,
            **dict.fromkeys((*PAIRED, "p_holm"), np.nan),
        }
        if len(own) > 1:
            row["loss_sd"] = own.mean(axis=1).std(ddof=1)
        if poisoned:
            paired = stats.paired_scores(
                clean,
                own,
                cluster=scored["question"].to_numpy(),
            )
            for name in PAIRED:
                row[name] = getattr(paired, name)
            by_seed = (own - clean).mean(axis=1)
            row["least"] = by_seed.min()
            row["most"] = by_seed.max()
        row["n_rows"] = len(rows)
        row["n_seeds"] = len(own)
        found.append(row)
    table = pd.DataFrame(found)
    compared = table["p"].notna()
    table.loc[compared, "p_holm"] = stats.holm(table.loc[compared, "p"].tolist())
    return table
