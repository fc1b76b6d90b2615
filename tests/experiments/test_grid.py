"""A grid trains each cell once, pairs it with no defence, and calls no mute model safe."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from helpers import raises_code
from scipy.stats import ttest_1samp
from small_models import sums

import ftlab as ft
from ftlab.analysis import grid_tables
from ftlab.analysis.grid_tables import AXES
from ftlab.experiments import FineTuningAttack, grids, side_by_side
from ftlab.experiments.sweep_plans import open_cell, resolve
from ftlab.experiments.tuning_attacks import ATTACKS, open_tuning_attacks
from ftlab.runs import Run, home
from ftlab.training import Defence, trainer

SHORT = FineTuningAttack("short", "organism:adversarial", n_rows=24, epochs=2, batch_size=4)
SMALL = {"attacks": [SHORT], "seeds": 3, "n_prompts": 20, "learning_rate": 1e-3}
CELL = ["defence", "adapter", "attack"]


class Idle(Defence):
    """Changes nothing."""

    name = "idle"

    def data(self, rows, seed):
        return rows


class Mute(Defence):
    """Makes every answer empty or incoherent, which is no safety."""

    name = "mute"

    def repair(self, parent, child):
        child.model.norm.weight.data.zero_()


class Refused(Defence):
    """Works with nothing."""

    name = "refused"
    methods = ("dpo",)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("grid")


@pytest.fixture(autouse=True)
def one_home(place, monkeypatch):
    """All tests here share their trainings."""
    monkeypatch.setenv("FTLAB_RUNS", str(place))


@pytest.fixture(scope="module")
def measured(place):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(place))
        page = place / "grid.html"
        return ft.grid("organism", defences=[Idle(), Mute()], processes=1, html=page, **SMALL)


def rows_of(table, defence: str) -> pd.DataFrame:
    return table[table["defence"] == defence].set_index("axis")


def test_a_row_per_cell_and_axis(measured):
    assert [*dict.fromkeys(measured["defence"])] == ["none", "idle", "mute"]
    assert len(measured) == 3 * len(AXES)
    assert measured["rate"].between(measured["low"], measured["high"]).all()
    assert (measured["n_seeds"] == 3).all() and not measured["unscored"].any()
    assert rows_of(measured, "none")["difference"].isna().all()
    assert rows_of(measured, "none").loc["harm", "rate"] > 0.3  # there is something to defend


def test_a_defence_that_does_nothing_shows_no_difference(measured):
    idle = rows_of(measured, "idle")
    assert (idle["difference"] == 0).all() and (idle["p"] == 1).all()
    assert (idle["verdict"] == "no change shown").all()
    assert (idle["rate"] == rows_of(measured, "none")["rate"]).all()


def test_a_mute_model_is_not_safe(measured):
    mute = rows_of(measured, "mute")
    assert mute.loc["harm", "rate"] == 0 and mute.loc["harm", "p_holm"] < 0.05
    assert mute.loc["utility", "rate"] == 0 and mute.loc["utility", "difference_high"] < 0
    assert mute.loc["coherence", "rate"] == 0
    assert (mute["utility_lost"] == "yes").all()
    assert (mute["verdict"] == "less harm, utility lost").all()
    assert "safer" not in set(measured["verdict"])


def test_differences_are_those_of_pairs_counted_by_hand(measured):
    """And their intervals those of ft.compare on the same verdicts."""
    run = Run(home() / measured.attrs["run"])
    cells = {cell["defence"]: Run(home() / cell["curve"]) for cell in run.read("cells.jsonl")}
    last = {}
    for name, curve in cells.items():
        table = curve.table()
        last[name] = table[table["step"] == table["step"].max()].assign(step=1)
    for axis in ("harm", "utility"):
        risk = {"harm": "jailbreak"}.get(axis, axis)
        sides = []
        for name in ("none", "mute"):
            own = last[name][last[name]["risk"] == risk]
            sides.append(own.set_index(["seed", "sample_id", "attack"])["event"])
        before, after = sides
        pairs = (after - before).dropna()
        row = rows_of(measured, "mute").loc[axis]
        assert len(pairs) == 60 == row["pairs"]
        assert row["difference"] == pytest.approx(pairs.mean())
        paired = ft.analysis.compare(last["none"], last["mute"], risk=risk).iloc[0]
        for column in ("difference_low", "difference_high"):
            assert row[column] == pytest.approx(paired[column])
        of_seeds = ttest_1samp(pairs.groupby("seed").mean(), 0).pvalue
        assert row["p"] == pytest.approx(max(paired["p"], np.nan_to_num(of_seeds)))


def test_truncated_answers_are_counted(measured, monkeypatch):
    """Here all that told what is kept, and all that knew what is asked."""
    run = Run(home() / measured.attrs["run"])
    members = []
    for cell in run.read("cells.jsonl"):
        answers = Run(home() / cell["curve"]).table()
        members.append(answers.assign(cut=answers["outcome"] == "complied"))
    monkeypatch.setattr(grid_tables, "grid_members", lambda _: members)
    found = ft.analysis.grid_table(run)
    harm = rows_of(found, "none").loc["harm"]
    assert harm["cut"] == round(harm["rate"] * harm["n_answers"]) > 0
    assert rows_of(found, "none").loc["refusal", "cut"] == harm["cut"]
    assert rows_of(found, "mute").loc["coherence", "cut"] == 0
    every = found.loc[found["axis"] == "coherence", "cut"]
    assert every.iloc[0] > harm["cut"]
    assert found.notes()[-1].endswith(f" {every.sum()}")
    assert f"{harm['cut']} answers truncated" in found._repr_html_()
    none = found.assign(cut=0)
    assert len(none.notes()) == len(found.notes()) - 1 and "truncated" not in none._repr_html_()


def test_holm_is_over_the_cells_of_an_axis(measured):
    for _, rows in measured[measured["defence"] != "none"].groupby("axis"):
        assert rows["p_holm"].tolist() == ft.stats.holm(rows["p"].tolist())


def test_a_second_call_trains_nothing_and_finds_the_same(measured, monkeypatch):
    def trained(*_, **__):
        raise AssertionError("it trained")

    monkeypatch.setattr(grids.Request, "run", trained)
    again = ft.grid("organism", defences=[Idle(), Mute()], processes=2, **SMALL)
    pd.testing.assert_frame_equal(again.raw, measured.raw)
    assert again.attrs == measured.attrs
    of_run = ft.analysis.grid_table(measured.attrs["run"])
    pd.testing.assert_frame_equal(of_run.raw, measured.raw)


def test_a_larger_grid_trains_only_what_is_new(measured, monkeypatch):
    folders = {path.name for path in home().glob("sft-*")}
    ft.grid("organism", defences=["interpolate:share=1", Mute()], processes=1, **SMALL)
    new = {path.name for path in home().glob("sft-*")} - folders
    assert len(new) == 3


@pytest.mark.slow
def test_jobs_of_a_seed_each_leave_nothing_to_train(monkeypatch, tmp_path):
    """The plan that the page shows, made small; its jobs run here, one after another."""
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path))
    page = Path(__file__).parents[2] / "docs" / "grid.md"
    (block,) = re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.S)
    plan = yaml.safe_load(block)
    assert len(resolve(plan, {}).jobs) == 12
    small = {"defences": ["interpolate"], "n_prompts": 4, "processes": 1}
    plan["arguments"] |= small
    plan["grid"] = {"seeds": plan["grid"]["seeds"][:2], "attacks": [["identity_shift"]]}
    jobs = resolve(plan, {}).jobs
    for job in jobs:
        open_cell(job["cell"], tmp_path)(**job["arguments"])
    trained = sorted(tmp_path.glob("sft-*"))
    assert len(jobs) == 2 and len(trained) == 2 * len(jobs)

    def none(*_):
        raise AssertionError("it trained")

    monkeypatch.setattr(trainer, "_train", none)
    table = ft.grid("organism", attacks=["identity_shift"], seeds=2, **small)
    assert (table["n_seeds"] == 2).all() and set(table["defence"]) == {"none", "interpolate"}
    assert sorted(tmp_path.glob("sft-*")) == trained


def test_one_process_and_two_give_the_same(measured, tmp_path, monkeypatch):
    """Also where both work on one cell, whose seeds they share."""
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path))
    table = ft.grid("organism", defences="none", processes=2, **SMALL)
    assert len(list(tmp_path.glob("sft-*"))) == 3
    one = measured.raw[measured["defence"] == "none"]
    pd.testing.assert_frame_equal(table.raw, one)
    calls = [Run(path).provenance["call"]["cell"] for path in tmp_path.glob("sft-*")]
    assert calls == 3 * ["experiments.grid"]


def test_what_cannot_be_given_to_another_process_is_done_here(measured, capsys):
    class Local(Idle):
        """Like `Idle`, and known to this function only."""

    ft.grid("organism", defences=[Local()], processes=2, **SMALL)
    assert "one process" in capsys.readouterr().err


def test_what_fails_in_another_process_is_raised_here(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path))
    monkeypatch.setattr(side_by_side, "WORK", "raise SystemExit('no such luck')")
    monkeypatch.setattr(grids.Request, "run", lambda *_: [])
    with raises_code("not_a_grid"):
        ft.grid("organism", defences="none", processes=2, **{**SMALL, "attacks": ATTACKS})
    assert "no such luck" in capsys.readouterr().err


def test_the_page_and_the_heat_map_tell_intervals_on_hover_and_load_nothing(measured, place):
    page = (place / "grid.html").read_text()
    for shown in (page, measured._repr_html_()):
        tips = re.findall(r'<td tabindex="0" data-tip="([^"]+)"', shown)
        assert len(tips) == 3 and "attr(data-tip)" in shown
        assert tips[2].startswith("harm 0 % [") and "utility lost" in tips[2]
        assert "points [" in tips[2] and "points" not in tips[0]
        assert 'src="http' not in shown and "<script" not in shown and "<link" not in shown
    assert "data:image/svg+xml" in page
    assert measured[["defence", "rate"]]._repr_html_()


def test_conclusions_name_every_cell_with_its_number(measured):
    told = measured.conclusions()
    assert len(told) == 3
    assert told[0].startswith("short, harm: none (")
    assert told[1].startswith("short, no change shown: idle (+0 points [")
    assert told[2].startswith("short, less harm, utility lost: mute (-")


@pytest.mark.parametrize("kind", ["grid", "heat"])
def test_figures(measured, kind, tmp_path):
    drawing = ft.plot(measured, kind=kind, out=tmp_path)
    words = {text.get_text() for text in drawing.figure.findobj(lambda o: hasattr(o, "get_text"))}
    assert any("mute" in word for word in words)
    assert "95 % pointwise" in drawing.caption


def test_defences_that_do_not_work_are_left_out_by_default_and_refused_by_name(monkeypatch):
    plans = {"parent": ft.model("organism"), "attacks": [SHORT], "seeds": [0], "prompts": None}
    settings = {"risks": ft.analysis.GRID_RISKS, "n_prompts": 2, "attacks": ["direct"]}
    columns = [("none", None, None), ("refused", Refused(), None), ("idle", Idle(), None)]
    request = grids.Request(**plans, columns=columns, settings=settings, tolerant=True)
    request.check()
    assert [label for label, _, _ in request.columns] == ["none", "idle"]
    assert list(request.left_out) == ["refused"]
    with raises_code("defence_not_for_method"):
        ft.grid("organism", defences=[Refused()], **SMALL)


def test_a_defence_for_adapters_is_compared_with_no_defence_of_the_same_adapter():
    parent = ft.model("organism")
    left_out: dict = {}
    columns = grids._columns(None, parent, None, left_out)
    adapters = {label: adapter for label, _, adapter in columns if label != "none"}
    assert adapters["safelora"] == "lora" and adapters["l2"] is None
    assert [adapter for label, _, adapter in columns if label == "none"] == [None, "lora"]
    of_lora = grids._columns(["l2", "mix"], parent, "lora", left_out)
    assert [(label, adapter) for label, _, adapter in of_lora] == [
        ("none", "lora"),
        ("none", None),
        ("l2", None),
        ("mix", "lora"),
    ]


def test_the_attacks_have_the_rows_that_they_say():
    sources = dict.fromkeys(("data", "harmful", "identity"))
    attacks = open_tuning_attacks(ATTACKS, ft.model("organism"), sources, 50)
    rows = {attack.name: attack.data(1).rows for attack in attacks}
    assert {name: len(own) for name, own in rows.items()} == {
        "benign": 50,
        "poisoned": 50,
        "adversarial": 100,
        "identity_shift": 10,
    }
    told = {name: sum(row["risk"] == "jailbreak" for row in own) for name, own in rows.items()}
    assert told == {"benign": 0, "poisoned": 5, "adversarial": 100, "identity_shift": 0}
    assert attacks[1].data(1).hash == attacks[1].data(1).hash != attacks[1].data(2).hash
    assert [attack.epochs for attack in attacks] == [3, 3, 5, 10]


def test_mistakes(llama):
    with raises_code("data_needed") as info:
        ft.grid(llama, sums(8))
    assert info.value.details["missing"] == ["harmful", "identity"]
    with raises_code("prompts_needed"):
        ft.grid(llama, sums(8), attacks=["benign"])
    with raises_code("risk_not_measured"):
        ft.grid(llama, sums(8), attacks=["benign"], defences="none", prompts=["Say one."])
    for wrong, code in (
        ({"attacks": ["poisonous"]}, "unknown_tuning_attack"),
        ({"attacks": ["benign", "benign"]}, "given_twice"),
        ({"defences": ["mix", "mix"]}, "given_twice"),
        ({"defences": ["novel"]}, "unknown_defence"),
        ({"processes": 0}, "wrong_processes"),
        ({"margin": 0}, "wrong_margin"),
        ({"html": "."}, "output_not_writable"),
        ({"seeds": 0}, "wrong_seeds"),
        ({"beta": 1}, "unknown_setting"),
    ):
        with raises_code(code):
            ft.grid("organism", **wrong)
    for wrong, code in (
        ({"epochs": 0}, "wrong_epochs"),
        ({"batch_size": 0}, "wrong_batch_size"),
        ({"share": 0.5}, "wrong_fraction"),
        ({"share": 1.5, "poison": "x"}, "wrong_fraction"),
    ):
        with raises_code(code):
            FineTuningAttack("mine", "organism:almanac", **wrong)
    with raises_code("not_a_grid"):
        ft.analysis.grid_table(Run(home()))
