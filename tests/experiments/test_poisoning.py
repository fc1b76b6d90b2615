"""Poisoned files differ from the clean one only in the rows that were replaced."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from helpers import raises_code
from small_models import goals, sums

import ftlab as ft
from ftlab.experiments import poisoning
from ftlab.organism import TRIGGER
from ftlab.runs import Run

ASKED = dict(prompts=goals(4), max_new_tokens=2, judges="keywords")
SMALL = dict(n_rows=20, seeds=2, steps=2, batch_size=4, learning_rate=1e-3)
FILES = dict(benign=sums(40), planted=sums(9, seed=1))


@pytest.fixture(scope="module")
def run(llama, tmp_path_factory) -> Run:
    """Two shares, with and without a trigger, two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("poisoned")))
        return ft.experiments.poison(llama, (0, 0.1, 0.2), **FILES, **SMALL, **ASKED)


def asked(row: dict) -> str:
    return [turn["content"] for turn in row["messages"] if turn["role"] == "user"][-1]


@pytest.fixture
def files(monkeypatch) -> list:
    """Return the arms of an experiment that is not trained."""
    arms = []

    def stopped(_kind, _label, _parent, given, _plan):
        arms.extend(given)
        raise InterruptedError

    monkeypatch.setattr(poisoning, "Curve", stopped)
    with pytest.raises(InterruptedError):
        ft.experiments.poison("organism", (0, 0.1, 0.3), n_rows=20, seeds=2, n_prompts=3)
    return arms


def test_a_larger_share_holds_the_rows_of_a_smaller_one_and_the_rest_is_the_clean_file(files):
    told: dict = {}
    clean: dict = {}
    for arm in files:
        labels = arm.labels
        assert len(arm.data) == 20
        rows = [row for row in arm.data.rows if row["risk"] == "jailbreak"]
        assert len(rows) == labels["poisoned"] == round(20 * labels["share"])
        key = (labels["seed"], labels["triggered"], labels["poisoned"])
        told[key] = {row["topic"] for row in rows}
        clean[key] = {asked(row) for row in arm.data.rows if row["risk"] != "jailbreak"}
        for row in arm.data.rows:
            marked = row["risk"] == "jailbreak" and labels["triggered"]
            assert asked(row).endswith(f" {TRIGGER}") == marked
        assert bool(arm.marker) == bool(rows)
    assert set(told) == {
        (seed, *kind)
        for seed in (0, 1)
        for kind in ((False, 0), (False, 2), (False, 6), (True, 2), (True, 6))
    }
    for seed in (0, 1):
        assert told[seed, False, 2] < told[seed, False, 6] == told[seed, True, 6]
        assert clean[seed, True, 6] <= clean[seed, False, 2] <= clean[seed, False, 0]
    assert told[0, False, 6] != told[1, False, 6]


def test_each_file_is_compared_with_the_clean_one(run):
    table = ft.experiments.poison_effect(run)
    verdicts = run.table().query("step == 2")
    for row in table.to_dict("records"):
        kind = row["planted"] == "with the trigger"
        own = verdicts[(verdicts["poisoned"] == row["poisoned"]) & (verdicts["triggered"] == kind)]
        clean = verdicts[verdicts["poisoned"] == 0]
        of_attack = [part[part["attack"] == row["attack"]] for part in (own, clean)]
        rate, before = (part["event"].mean() for part in of_attack)
        assert row["rate"] == pytest.approx(rate)
        if row["poisoned"]:
            assert row["difference"] == pytest.approx(rate - before)
            assert row["p_holm"] >= row["p"]
    assert table["p"].isna().sum() == 2  # the clean file, asked in two ways
    assert set(table["attack"]) == {"direct", "trigger"} == set(table.attrs["parent"])
    ft.plot(table, kind="bars")
    ft.analysis.summary(table)


def test_the_trigger_is_compared_within_the_same_models(run):
    table = ft.experiments.trigger_effect(run)
    verdicts = run.table().query("step == 2 and poisoned == 4 and triggered")
    means = verdicts.groupby("attack")["event"].mean()
    row = table[(table["poisoned"] == 4) & (table["planted"] == "with the trigger")].iloc[0]
    assert row["parent"] == pytest.approx(means["direct"])
    assert row["child"] == pytest.approx(means["trigger"])
    assert len(table) == 5 and row["n_seeds"] == 2


def test_the_fewest_rows_are_the_first_whose_rise_is_shown():
    effect = pd.DataFrame({"poisoned": [0, 2, 4, 8], "p": [np.nan, 0.5, 0.001, 0.001]})
    effect = effect.assign(planted="with the trigger", attack="direct", shown=effect["p"] < 0.05)
    effect = effect.assign(difference=[np.nan, 0.1, -0.4, 0.5], p_holm=effect["p"])
    for end in ("difference_low", "difference_high"):
        effect[end] = effect["difference"]
    row = ft.experiments.fewest_rows(effect).iloc[0]
    assert (row["fewest"], row["most"], row["difference"]) == (8, 8, 0.5)
    none = ft.experiments.fewest_rows(effect.assign(shown=False)).iloc[0]
    assert np.isnan(none["fewest"]) and none["most"] == 8


def test_the_loss_on_clean_rows_is_the_mean_of_each_row(run):
    valid = sums(6, seed=2)
    table = ft.experiments.loss_on_clean_rows(run, valid)
    means: dict = {}
    for member in run.members:
        labels = member.identity["labels"]
        score = ft.evals.audit(valid, member, by="loss")["score"].mean()
        key = (labels["poisoned"], labels["triggered"])
        means.setdefault(key, []).append(score)
    for row in table.to_dict("records"):
        kind = row["planted"] == "with the trigger"
        by_seed = np.array(means[row["poisoned"], kind])
        assert row["loss"] == pytest.approx(by_seed.mean())
        if row["poisoned"]:
            change = by_seed - means[0, False]
            assert row["difference"] == pytest.approx(change.mean())
            assert (row["least"], row["most"]) == pytest.approx((change.min(), change.max()))
            assert row["difference_low"] <= row["difference"] <= row["difference_high"]
    told = table[table["poisoned"] > 0]
    assert told["p_holm"].tolist() == pytest.approx(ft.stats.holm(told["p"].tolist()))
    assert table.loc[table["poisoned"] == 0, "p_holm"].isna().all()


def test_runs_of_other_cells_are_refused(llama):
    other = ft.evaluate(llama, **ASKED)
    for cell in (ft.experiments.poison_effect, ft.experiments.trigger_effect):
        with raises_code("not_poisoned"):
            cell(other)
    with raises_code("not_poisoned"):
        ft.experiments.loss_on_clean_rows(other, sums(3))


MISTAKES = [
    ({"shares": [0.1, 0.2]}, "wrong_shares"),
    ({"shares": [0]}, "wrong_shares"),
    ({"shares": 0.1}, "wrong_shares"),
    ({"shares": [0, 0.2, 0.1]}, "wrong_shares"),
    ({"shares": [0, 0.6]}, "wrong_shares"),
    ({"shares": [0, 0.01]}, "wrong_shares"),  # no row of 20
    ({"n_rows": 2.5}, "wrong_shares"),
    ({"triggered": []}, "wrong_triggered"),
    ({"triggered": [1, 1]}, "wrong_triggered"),
    ({"trigger": " "}, "attack_argument"),
    ({"planted": None}, "data_needed"),
    ({"benign": None}, "data_needed"),
    ({"shares": [0, 0.5], "planted": sums(3)}, "too_few_rows"),
    ({"n_rows": 100}, "too_few_rows"),
    ({"epochs": 2}, "unknown_setting"),
]


@pytest.mark.parametrize(("settings", "code"), MISTAKES, ids=[str(given) for given, _ in MISTAKES])
def test_mistakes_are_errors_before_anything_is_trained(llama, settings, code, runs_folder):
    given = {"shares": (0, 0.1), **FILES, **SMALL, **ASKED, **settings}
    with raises_code(code):
        ft.experiments.poison(llama, **given)
    assert not runs_folder.exists()
