"""Rates from arrays are those of the table, whatever is chosen, with labels and without."""

from __future__ import annotations

import pandas as pd
import pytest
from analysis.verdict_tables import CURVE, made

import ftlab as ft
from ftlab.analysis import Selections
from ftlab.evals import draw
from ftlab.runs import read_labels

CHOICES = [
    {},
    {"attacks": ["direct"]},
    {"steps": [0, 30]},
    {"seeds": [0]},
    {"seeds": [0, 1], "attacks": ["templates"], "steps": [10, 30]},
]


def by_table(table, attacks=None, seeds=None, steps=None, labels=None):
    if seeds is not None:
        table = table[table["seed"].isin(seeds)]
    return ft.rates(table, attack=attacks, steps=steps, labels=labels)


def assert_same(found: list[dict], wanted) -> None:
    for name in ("step", "rate", "low", "high"):
        assert [row[name] for row in found] == pytest.approx(wanted[name].tolist()), name


def two_attacks():
    rows = [made(CURVE, attack="direct"), made(CURVE, attack="templates", risk="jailbreak")]
    table = pd.concat(rows, ignore_index=True)
    odd = table.index % 7 == 3
    table.loc[odd, ["outcome", "event"]] = ["unparsed", float("nan")]
    return table


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_rates_are_those_of_the_table(choice):
    table = two_attacks()
    found = Selections(table).rates("jailbreak", **choice)
    assert_same(found, by_table(table, **choice))


def test_steps_that_a_seed_did_not_reach_are_left_out():
    table = two_attacks()
    table = table[(table["seed"] == 0) | (table["step"] < 30)]
    assert_same(Selections(table).rates("jailbreak"), by_table(table))
    assert_same(Selections(table).rates("jailbreak", seeds=[0]), by_table(table, seeds=[0]))


def test_single_seeds_are_those_of_the_table():
    table = two_attacks()
    wanted = ft.rates(table, per_seed=True)
    found = Selections(table).seed_rates("jailbreak")
    assert len(found) == len(wanted)
    for row in found:
        own = wanted[(wanted["seed"] == row["seed"]) & (wanted["step"] == row["step"])]
        assert row["rate"] == pytest.approx(own["rate"].item())


def test_the_judge_is_the_first_one_or_the_one_that_is_named():
    table = two_attacks()
    both = pd.concat(
        [table, table.assign(judge="other", outcome="complied", event=1.0)], ignore_index=True
    )
    assert Selections(both).judge == "keywords"
    rates = Selections(both, "other").rates("jailbreak")
    assert {row["rate"] for row in rates} == {1.0}


@pytest.fixture
def labelled(tmp_path):
    from ui_runs import make_curve

    run = make_curve()
    sheet = draw(run, 8, out=tmp_path / "a.csv", labeller="organism")
    return run, sheet.path


def test_labels_correct_as_in_the_table(labelled):
    run, path = labelled
    found = Selections(run)
    wanted = ft.rates(run, labels=path)
    for risk in ("jailbreak", "bias"):
        rows = found.rates(risk, labels=read_labels(path))
        own = wanted[wanted["risk"] == risk]
        assert_same(rows, own)
        assert [row["labels"] for row in rows] == own["labels"].tolist()
