"""Rates of a run for views that choose other steps, seeds and attacks again and again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ftlab import stats
from ftlab._core.types import Outcome
from ftlab.analysis import verdicts
from ftlab.analysis.plots import ordered
from ftlab.analysis.tables import band_of
from ftlab.runs import Labels

OUTCOMES = tuple(Outcome)
MISSING = -1  # of an outcome or an answer, where a prompt was not asked


@dataclass(frozen=True)
class Cube:
    """Verdicts on one risk; arrays are [seeds, steps, items].

    Args:
        events: 1, 0, or NaN where unscored or missing.
        outcomes: Place in `OUTCOMES`, or `MISSING`.
        answers: Place of the answer's key in `Selections.keys`, or `MISSING`.
        samples, attacks: Of each item.
        clusters: Of each item.
    """

    events: np.ndarray
    outcomes: np.ndarray
    answers: np.ndarray
    samples: np.ndarray
    attacks: np.ndarray
    clusters: np.ndarray

    def part(self, seeds: np.ndarray, steps: np.ndarray, items: np.ndarray) -> Cube:
        """Return the verdicts at these places of each axis."""
        place = np.ix_(
            seeds,
            steps,
            items,
        )
        return Cube(
            events=self.events[place],
            outcomes=self.outcomes[place],
            answers=self.answers[place],
            samples=self.samples[items],
            attacks=self.attacks[items],
            clusters=self.clusters[items],
        )


class Selections:
    """A judge's verdicts as arrays. `rates` gives the numbers of `ftlab.rates`, in milliseconds.

    Args:
        source: As in `ftlab.rates`; of several judges the given one, or the first.
        judge: Its name.

    Attributes:
        judge: Whose verdicts these are.
        risks, attacks, steps, seeds: What was measured.
        keys: Keys of the answers.
    """

    def __init__(self, source: verdicts.Source, judge: str | None = None):
        table = verdicts.of_judge(verdicts.prepare(source), judge).reset_index(drop=True)
        verdicts.columns_of(table, ())  # refuses several doses
        self.judge: str = table["judge"].iloc[0]
        self.attacks = list(table["attack"].unique())
        self.seeds = sorted(map(int, set(table["seed"])))
        self.steps = sorted(map(int, set(table["step"])))
        self.risks = ordered(table["risk"])
        codes, keys = pd.factorize(table["answer_key"])
        self.keys = list(keys)
        known = {str(outcome): code for code, outcome in enumerate(OUTCOMES)}
        table["code"] = table["outcome"].map(known)
        table["answer"] = codes
        self._cubes = {risk: self._cube(table[table["risk"] == risk]) for risk in self.risks}

    def chosen(
        self,
        risk: str,
        *,
        attacks: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
    ) -> Cube:
        """Return the verdicts on a risk under some attacks, of some seeds at some steps.

        Args:
            risk: Its name.
            attacks: Their names; by default all.
            seeds: Training seeds; by default all.
            steps: Optimiser steps; by default all.
        """
        whole = self._cubes[risk]
        items = np.arange(len(whole.attacks))
        if attacks is not None:
            items = items[np.isin(whole.attacks, list(attacks))]
        return whole.part(
            _places(self.seeds, seeds),
            _places(self.steps, steps),
            items,
        )

    def rates(
        self,
        risk: str,
        *,
        attacks: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
        labels: Labels | None = None,
    ) -> list[dict[str, Any]]:
        """Return the rate of a risk at each step that all seeds reached, with its interval.

        Args:
            risk: Its name.
            attacks, seeds, steps: As in `chosen`.
            labels: What corrects the rates.

        Returns:
            A row per step: risk, step, rate, low, high (simultaneous over the steps), labels.
        """
        cube = self.chosen(
            risk,
            attacks=attacks,
            seeds=seeds,
        )
        events, kept = self._events(
            risk,
            cube,
            labels,
        )
        reached = kept.any(axis=2).all(axis=0)  # the steps of every seed
        wanted = set(self.steps if steps is None else steps)
        at = [k for k, step in enumerate(self.steps) if reached[k] and step in wanted]
        items = kept.any(axis=(0, 1))
        if not at:
            return []
        events = events.part(
            *np.ix_(
                range(len(kept)),
                at,
                items,
            )
        )
        band = band_of(events, cube.clusters[items])
        rows = []
        for k, place in enumerate(at):
            row = {
                "risk": risk,
                "step": self.steps[place],
                "rate": float(band.estimate[k]),
            }
            row["low"], row["high"] = float(band.low[k]), float(band.high[k])
            row["labels"] = events.part(slice(None), k).n_labels
            rows.append(row)
        return rows

    def seed_rates(
        self,
        risk: str,
        *,
        attacks: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
    ) -> list[dict[str, Any]]:
        """Return the rate of a risk by each seed at each step that was scored, as in `rates`."""
        cube = self.chosen(
            risk,
            attacks=attacks,
            seeds=seeds,
            steps=steps,
        )
        scored = ~np.isnan(cube.events)
        counts = scored.sum(axis=2)
        sums = np.where(scored, cube.events, 0).sum(axis=2)
        rows = []
        for place in np.argwhere(counts):
            seed, step = map(int, place)
            row = {
                "risk": risk,
                "rate": float(sums[seed, step] / counts[seed, step]),
            }
            row["seed"] = (self.seeds if seeds is None else sorted(seeds))[seed]
            row["step"] = (self.steps if steps is None else sorted(steps))[step]
            rows.append(row)
        return rows

    def _events(
        self,
        risk: str,
        cube: Cube,
        labels: Labels | None,
    ) -> tuple[stats.Rectified, np.ndarray]:
        """Return the events, corrected where there are labels, and which verdicts enter."""
        asked = cube.outcomes != MISSING
        nothing = np.zeros_like(cube.events)
        if labels is None:
            return stats.Rectified(cube.events, nothing, nothing), asked
        events = labels.events.get(risk, {})
        chances, truths = [], []
        for key in self.keys:
            name = f"{risk} {key}"
            chances.append(labels.probabilities.get(name, np.nan))
            truths.append(events.get(str(labels.outcomes.get(name)), np.nan))
        inclusion = np.where(asked, np.array(chances)[cube.answers], np.nan)
        truth = np.where(asked, np.array(truths)[cube.answers], np.nan)
        could_be_drawn = ~np.isnan(inclusion)
        drawn_from = could_be_drawn.any(axis=(0, 2))[None, :, None]  # the steps
        kept = could_be_drawn | (asked & drawn_from & np.isnan(cube.events))
        judged = np.where(kept, cube.events, np.nan)
        return _rectified(
            judged,
            truth,
            inclusion,
            drawn_from.ravel(),
        ), kept

    def _cube(self, rows: pd.DataFrame) -> Cube:
        events, clusters = verdicts.cube_of(rows, self.steps)
        codes, _ = verdicts.cube_of(
            rows,
            self.steps,
            "code",
        )
        answers, _ = verdicts.cube_of(
            rows,
            self.steps,
            "answer",
        )
        items = rows.drop_duplicates("item").sort_values("item")
        shape = (len(self.seeds), *events.shape[1:])
        own = np.isin(self.seeds, sorted(set(rows["seed"])))  # a risk may lack a seed
        filled = []
        for values, missing in ((events, np.nan), (codes, MISSING), (answers, MISSING)):
            whole = np.full(shape, np.nan)
            whole[own] = values
            filled.append(np.where(np.isnan(whole), missing, whole))
        return Cube(
            events=filled[0],
            outcomes=filled[1].astype(int),
            answers=filled[2].astype(int),
            samples=items["sample_id"].to_numpy(str),
            attacks=items["attack"].to_numpy(str),
            clusters=clusters,
        )


def _rectified(
    judged: np.ndarray,
    truth: np.ndarray,
    inclusion: np.ndarray,
    drawn_from: np.ndarray,
) -> stats.Rectified:
    """Return the corrected events of the steps that were drawn from, as `verdicts.events_of`."""
    parts = np.full((3, *judged.shape), np.nan)
    parts[1:] = 0
    for k in np.flatnonzero(drawn_from):
        cubes = np.stack([judged[:, k], truth[:, k], inclusion[:, k]])
        parts[:, :, k] = verdicts.corrected_at(cubes)
    return stats.Rectified(*parts)


def _places(every: list, wanted: Sequence | None) -> np.ndarray:
    """Return where the wanted values stand among all."""
    if wanted is None:
        return np.arange(len(every))
    return np.flatnonzero(np.isin(every, list(wanted)))
