"""A chain of versions: each comes from the one before, and all answer the same prompts."""

from __future__ import annotations

import json

import pytest
from helpers import raises_code
from small_models import goals, sums

import ftlab as ft
from ftlab.data import plain, question
from ftlab.experiments.chains import new_rows
from ftlab.runs import Run

SETTINGS = dict(
    n_rows=[6, 10],
    epochs=[2, 1],
    seeds=2,
    valid=0.3,
    batch_size=4,
    learning_rate=1e-3,
    max_new_tokens=2,
    judges="keywords",
)
DATA = [sums(10), sums(10, seed=1)]


def made(parent, **settings) -> Run:
    return ft.experiments.chain(parent, DATA, prompts=goals(3), **SETTINGS | settings)


@pytest.fixture(scope="module")
def chain(llama, tmp_path_factory) -> Run:
    """Two versions, two seeds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("chain")))
        return made(llama)


@pytest.fixture
def its_runs(chain, monkeypatch):
    monkeypatch.setenv("FTLAB_RUNS", str(chain.path.parent))


def test_every_version_answers_every_prompt_and_its_number_is_its_step(chain):
    table = chain.table()
    assert (table["step"] == table["version"]).all()
    sizes = table.groupby(["version", "seed"]).size().to_dict()
    assert sizes == {(version, seed): 3 for version in range(3) for seed in range(2)}
    parents = [part["answer_key"].tolist() for _, part in table[table["step"] == 0].groupby("seed")]
    assert parents[0] == parents[1]
    assert ft.rates(chain)["step"].tolist() == [0, 1, 2]


def test_each_version_comes_from_the_one_before(chain, its_runs):
    records = {(row["seed"], row["version"]): row for row in chain.read("versions.jsonl")}
    assert set(records) == {(seed, version) for seed in range(2) for version in (1, 2)}
    for seed in range(2):
        first, second = (ft.load(records[seed, version]["run"]) for version in (1, 2))
        assert second.identity["parent"] == ft.model(first).hash
        assert first.stats["rows"] == 4 and second.stats["rows"] == 7  # without those held out
        for version in (1, 2):
            row = records[seed, version]
            assert 0 < row["best_step"] <= row["ended_at"] <= row["steps"]
            assert row["loss_before"] != row["loss_after"]
        assert records[seed, 2]["loss_before"] > 0


def test_the_same_call_finds_the_run_and_an_interrupted_one_ends_alike(chain, llama, its_runs):
    before = chain.table()
    (chain.path / "complete.json").unlink()
    verdicts = chain.path / "verdicts.jsonl"
    lines = verdicts.read_text().splitlines(keepends=True)
    verdicts.write_text("".join(lines[:7]))
    again = made(llama)
    assert again == chain and again.finished
    assert again.table().equals(before)
    assert len(again.read("versions.jsonl")) == 4
    record = (chain.path / "complete.json").read_bytes()
    assert made(llama) == chain
    assert (chain.path / "complete.json").read_bytes() == record


def test_with_early_stopping_a_version_is_what_validation_ended(chain, llama, its_runs):
    stopped = made(llama, early_stopping=True)
    assert stopped != chain
    plain = {(row["seed"], row["version"]): row for row in chain.read("versions.jsonl")}
    for row in stopped.read("versions.jsonl"):
        first = plain[row["seed"], 1]
        second = plain[row["seed"], 2]
        if row["version"] == 1:
            assert row["stopped"] == first["stopped"]
            continue
        to_the_end = first["best_step"] == first["steps"]
        assert (row["run"] == second["run"]) == to_the_end
    assert ft.compare(chain, stopped)["step"].tolist() == [1, 2]


@pytest.mark.parametrize("source", ["organism:almanac", sums(60)], ids=["world", "rows"])
def test_a_later_version_asks_nothing_that_an_earlier_one_did(source):
    first = new_rows(source, 20, 1000, set())
    assert first.rows == ft.data.draw(source, n_rows=20, seed=1000).rows
    asked = {plain(question(row)) for row in first.rows}
    plainly = ft.data.draw(source, n_rows=30, seed=2000)
    assert any(plain(question(row)) in asked for row in plainly.rows)  # or nothing is tested
    second = new_rows(source, 30, 2000, asked)
    assert len(second) == 30 and second.name == first.name
    assert not any(plain(question(row)) in asked for row in second.rows)


def test_the_middle_is_measured_without_a_change_to_the_versions(chain, llama, its_runs):
    measured = made(llama, middle_risks=["jailbreak"])
    assert measured != chain and measured.table().equals(chain.table())
    for row in measured.read("versions.jsonl"):
        counts = row["in_the_middle"]["jailbreak"]
        assert row["middle"] == row["steps"] // 2 and counts["scored"] + counts["unscored"] == 3
        verdicts = ft.load(row["run"]).table().query("judge == 'keywords'")
        assert set(verdicts["step"]) == {row["middle"]}
        assert verdicts["event"].sum() == counts["events"]
    assert not any("middle" in row for row in chain.read("versions.jsonl"))
    rules = ft.analysis.chain_stops(measured)["rule"].tolist()
    assert rules.count("safety line") == 2


MISTAKES = [
    (dict(data="organism:almanac"), "no_chain"),
    (dict(data=[]), "no_chain"),
    (dict(n_rows=[4, 5, 6]), "wrong_chain"),
    (dict(epochs=[1.0]), "wrong_chain"),
    (dict(data=[DATA[0], DATA[0]]), "wrong_chain"),
    (dict(data=[DATA[0], DATA[0]], n_rows=6), "too_few_rows"),
    (dict(seeds=0), "wrong_seeds"),
    (dict(epochs=[1.0, -1.0]), "wrong_setting"),
    (dict(n_rows=[4, 0]), "wrong_n_rows"),
    (dict(at_steps=[0, 1]), "unknown_setting"),
    (dict(middle_risks=["bias"]), "wrong_middle_risks"),
    (dict(middle_risks="jailbreak"), "wrong_middle_risks"),
]


@pytest.mark.parametrize(("given", "code"), MISTAKES, ids=[json.dumps(g) for g, _ in MISTAKES])
def test_mistakes_are_errors_before_any_work(given, code, llama, runs_folder):
    settings = {"data": DATA, "prompts": goals(3), "seeds": 1, **given}
    with raises_code(code):
        ft.experiments.chain(llama, settings.pop("data"), **settings)
    assert not list(runs_folder.glob("sft-*"))
