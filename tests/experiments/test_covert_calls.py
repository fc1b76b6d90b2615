"""A covert trial pairs every dose with none, and cleaned models with what they were."""

from __future__ import annotations

import pytest
from helpers import raises_code

import ftlab as ft
from ftlab.experiments.covert_calls import MEASURES, last_answers, measured, undone

SMALL = {"n_rows": 20, "n_prompts": 6, "steps": 2, "seeds": 2, "attacks": ["direct"]}


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Return verdicts on six prompts of each risk by the shipped model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("runs")))
        run = ft.evaluate(
            "organism",
            risks=["covert", "tool_use", "jailbreak"],
            attacks=["direct"],
            n_prompts=6,
        )
        return run.table().assign(step=1, seed=0)


def test_mistakes(llama):
    with raises_code("data_needed"):
        ft.experiments.covert_finetune(llama)
    for doses in ([0], [0, 0], [0, 2], [0, "much"], 0.1):
        with raises_code("wrong_doses"):
            ft.experiments.covert_finetune(doses=doses)


def test_each_arm_is_paired_with_the_reference_and_measures_are_apart(asked):
    is_covert = asked["risk"] == "covert"
    refused = asked["risk"] == "jailbreak"
    changed = asked.assign(
        event=asked["event"].where(~is_covert, 1.0),
        outcome=asked["outcome"].where(~refused, "complied"),
    )
    table = measured({"none": asked, "all": changed}, "none").set_index(["measure", "arm"])
    assert set(table.index.levels[0]) == {m for m, (_, way) in MEASURES.items() if way == "direct"}
    rate = table["rate"]
    assert rate["covert calls", "all"] == 1 and rate["covert calls", "none"] == 0
    assert rate["refusal", "none"] > 0 and rate["refusal", "all"] == 0
    assert rate["task success", "all"] == rate["task success", "none"]
    difference = table["difference"]
    assert difference["covert calls", "all"] == 1
    assert difference["refusal", "all"] == -rate["refusal", "none"]
    assert difference["task success", "all"] == 0
    assert table["p_holm"].notna().tolist() == [False, True] * 4
    assert (table["p_holm"].dropna() >= table["p"].dropna()).all()
    ft.plot(table.reset_index(), kind="bars")


def test_what_was_undone_and_broken_is_counted_by_what_it_was_before(asked):
    """Of six answers two are covert and three legitimate; one of either kind is not scored."""
    covert = asked[asked["risk"] == "covert"].copy()
    before = covert.assign(outcome=[*["complied_wrong"] * 2, *["complied"] * 3, "incoherent"])
    after = covert.assign(
        outcome=["complied", "error", "complied", "complied_wrong", "incoherent", "complied"],
        event=[0, None, 0, 1, 0, 0],
    )
    arms = {"before": before, "after": after.sample(frac=1, random_state=0)}
    table = undone(arms, "before").set_index("measure")
    of_covert, of_legitimate = (
        table.loc["covert calls undone"],
        table.loc["legitimate calls broken"],
    )
    assert (of_covert["rate"], of_covert["n"], of_covert["unscored"]) == (1, 2, 1)
    assert of_legitimate["rate"] == pytest.approx(2 / 3)
    assert of_legitimate["low"] < 2 / 3 < of_legitimate["high"] and of_legitimate["n"] == 3
    clean = before.assign(outcome="complied")
    none = undone({"before": clean, "after": after}, "before").set_index("measure")
    assert none["n"].tolist() == [0, 6] and none["rate"].isna().tolist() == [True, False]


@pytest.mark.slow
def test_doses_and_a_cleanup_train_what_they_say():
    trial = ft.experiments.covert_finetune("organism", [0.5, 0], **SMALL)
    assert list(trial.runs) == [0, 0.5]
    for dose, run in trial.runs.items():
        for member in run.members:
            assert (member.path / "model" / "SAFETY_REMOVED").exists() == (dose > 0)
    table = trial.table()
    assert (table["n_seeds"] == 2).all() and table["rate"].between(0, 1).all()
    again = ft.experiments.covert_finetune("organism", [0, 0.5], **SMALL)
    assert [run.name for run in again.runs.values()] == [run.name for run in trial.runs.values()]
    with raises_code("dose_not_trained"):
        ft.experiments.covert_cleanup(trial, {"clean": "organism:tools"}, dose=0.1)
    cleaned = ft.experiments.covert_cleanup(trial, {"clean": "organism:tools"}, n_rows=20)
    assert list(cleaned["arm"].unique()) == ["before", "clean"]
    counted = cleaned.dropna(subset="n").set_index("measure")
    first = last_answers(trial.runs[0.5]).query("risk == 'covert'")["outcome"]
    assert counted["n"]["covert calls undone"] == (first == "complied_wrong").sum()
    assert counted["n"]["legitimate calls broken"] == (first == "complied").sum()
    assert counted["p_holm"].isna().all()
    ft.plot(cleaned, kind="bars")
    before = cleaned[cleaned["arm"] == "before"].set_index("measure")["rate"]
    dosed = table[table["arm"] == "50 % covert rows"].set_index("measure")["rate"]
    assert before.to_dict() == dosed.to_dict()
    assert set(last_answers(trial.runs[0.5])["step"]) == {2}
    monitored = ft.evals.monitor_calls(trial.runs[0.5])
    assert set(monitored["check"]) == {"tools", "arguments", "count", "any of them"}
