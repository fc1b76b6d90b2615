"""An extension is one file: a third party's package is picked up with nothing else touched."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from helpers import raises_code
from small_models import goals, sums, write
from toys import FILES, PLACES, installed, make_package

import ftlab as ft
from ftlab import analysis, training
from ftlab._core import plugins
from ftlab.evals.measuring import read_verdicts

TWO_STEPS = dict(steps=2, batch_size=4, learning_rate=1e-3)
SHORT = dict(max_new_tokens=4, n_prompts=4)


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return make_package(tmp_path_factory.mktemp("site"))


@pytest.fixture
def toys(package):
    with installed(package):
        yield


@pytest.fixture(scope="module")
def curve(package, tmp_path_factory):
    """A risk curve in which risk, attack, judge and method are the third party's."""
    with installed(package), pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("runs")))
        return ft.risk_curve(
            "organism",
            "organism:almanac",
            method="toy",
            n_rows=8,
            at_steps=[0, 2],
            seeds=1,
            batch_size=4,
            risks=["toy"],
            attacks=["direct", "toy:3"],
            judges=["toy", "organism"],
            **SHORT,
        )


@pytest.mark.parametrize("place", PLACES)
def test_a_package_on_the_path_is_found_and_gone_when_it_is_removed(place, package):
    built_in = plugins.names(place)
    assert "toy" not in built_in
    with installed(package):
        assert plugins.names(place) == [*built_in, "toy"]
        found = plugins.get(place, "toy")
        assert found.name == "toy" and plugins.find(place)["toy"] is found
        with raises_code(f"unknown_{PLACES[place]}") as info:
            plugins.get(place, "tay")
        assert all(name in str(info.value) for name in plugins.names(place))
    assert plugins.names(place) == built_in
    with raises_code(f"unknown_{PLACES[place]}") as info:
        plugins.get(place, "toy")
    assert "toy," not in str(info.value)


def test_names_are_listed_without_loading_the_package(toys):
    for place in PLACES:
        plugins.names(place)
    assert not {file.removesuffix(".py") for file in FILES} & {*sys.modules}


def test_everything_is_measured_and_declared_versions_join_the_identity(toys, curve):
    table = curve.table()
    assert set(table["risk"]) == {"toy"} and set(table["attack"]) == {"direct", "toy:3"}
    assert set(table["judge"]) == {"toy", "organism"} and set(table["step"]) == {0, 2}
    own = table[table["judge"] == "toy"]
    assert len(own) == 2 * 2 * 4 and set(own["score"]) == {0.25}
    assert (own["event"] == (own["outcome"] == "complied")).all()
    for member in curve.members:
        identity = member.identity
        assert identity["method"] == "toy" and identity["method_version"] == "5"
        assert identity["training"]["toys"] == 1
        expected = {"risk toy": "1", "attack toy:3": "7", "judge toy": "3"}
        assert expected.items() <= identity["versions"].items()


@pytest.mark.slow
def test_tables_figures_and_the_page_show_them(toys, curve, tmp_path):
    rates = ft.rates(curve, by=["risk", "attack"], judge="toy")
    assert len(rates) == 4 and set(rates["judge"]) == {"toy"}
    compared = ft.compare(curve, judge="toy")
    assert compared["risk"].tolist() == ["toy"]
    out = tmp_path / "toys"
    drawn = ft.plot(ft.rates(curve), "toys", out / "figures", kind="curve")
    labels = [axis.get_title(loc=side) for axis in drawn.figure.axes for side in ("left", "center")]
    assert any("toy risk" in label and "toys named" in label for label in labels), labels
    rate = rates.iloc[0]
    analysis.record_claim(
        "toys",
        "the rate of toys",
        published="qi2023_harmful_100",
        measured=rate["rate"],
        low=rate["low"],
        high=rate["high"],
        n_prompts=int(rate["n_prompts"]),
        n_seeds=int(rate["n_seeds"]),
        null=0.0,
        p=0.5,
        model="organism",
        out=out,
    )
    page = analysis.report(tmp_path, {"toys": out}, model="organism", seeds=1)
    assert "the rate of toys" in page.read_text()
    assert "toy" in (tmp_path / "figures" / "toys-toys.csv").read_text()


def test_names_and_objects_are_the_same_evaluation(toys, llama, tmp_path):
    asked = dict(prompts={"toy": write(tmp_path / "toys.jsonl", goals(4))}, max_new_tokens=3)
    by_name = ft.evaluate(llama, attacks=["toy:2"], judges="toy", **asked)
    assert by_name.table()["attack"].tolist() == ["toy:2"] * 4
    prompts = by_name.read("prompts.jsonl")
    assert all(p["messages"][-1]["content"].endswith(" Please. Please.") for p in prompts)
    assert not any(p["sample"]["messages"][-1]["content"].endswith("Please.") for p in prompts)
    attack = plugins.get("attacks", "toy")(times=2)
    judge = plugins.get("judges", "toy")()
    by_object = ft.evaluate(llama, attacks=[attack], judges=judge, **asked)
    assert by_object == by_name


def test_rows_may_name_the_risk(toys, llama):
    rows = [{"prompt": goal["goal"], "risk": "toy"} for goal in goals(3)]
    table = ft.evaluate(llama, prompts=rows, judges="keywords", max_new_tokens=2).table()
    assert set(table["risk"]) == {"toy"}


def test_rows_may_not_name_the_risk_without_the_package(llama):
    rows = [{"prompt": goal["goal"], "risk": "toy"} for goal in goals(3)]
    with pytest.raises(ValueError):
        ft.evaluate(llama, prompts=rows, judges="keywords", max_new_tokens=2)


def test_the_method_trains_with_its_own_setting(toys, llama):
    run = training.train("toy", llama, sums(8), toys=2, **TWO_STEPS)
    assert run.kind == "toy" and run.stats["steps"] == 2
    assert run.identity["training"]["toys"] == 2
    with raises_code("wrong_setting"):
        training.train("toy", llama, sums(8), toys=0, **TWO_STEPS)
    with raises_code("wrong_setting"):
        training.train("sft", llama, sums(8), toys=2, **TWO_STEPS)


def test_the_defence_trains_with_its_own_setting(toys, llama):
    run = training.sft(llama, sums(8), defence="toy:twice=3", **TWO_STEPS)
    assert run.stats["rows"] == 24
    assert run.identity["defence"] == {"name": "toy", "version": "4", "twice": 3}
    with raises_code("wrong_setting"):
        training.sft(llama, sums(8), defence="toy:twice=0", **TWO_STEPS)


def test_the_transform_is_applied_with_its_own_setting(toys, llama):
    run = training.transform(llama, "toy:times=3")
    assert run.identity["transform"] == {"name": "toy", "version": "6", "times": 3}
    with raises_code("wrong_setting"):
        training.transform(llama, "toy:times=0")


@pytest.mark.slow
def test_the_command_line_takes_them(toys, ran, llama, tmp_path):
    code, out, _ = ran("evaluate", "--help")
    assert code == 0 and "--risks" in out
    file = write(tmp_path / "toys.jsonl", goals(3))
    words = ("evaluate", llama, "--prompts", f"toy={file}", "--risks", "toy")
    words += ("--attacks", "direct,toy:2", "--judge", "toy", "--max-new-tokens", 2)
    code, out, _ = ran(*words)
    assert code == 0 and "toy:2" in out
    code, _, err = ran("evaluate", "organism", "--risks", "tay")
    assert code == 2 and "toy" in err


def test_the_risk_that_contributing_shows_is_measured_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path))
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "Risk)" in block
    ]
    names = {"__name__": "flattery"}
    exec(compile(code, "flattery.py", "exec"), names)
    run = ft.evaluate("organism", risks=[names["RISK"]], n_prompts=3, max_new_tokens=4)
    verdicts = read_verdicts(run)
    assert len(verdicts) == 3
    assert {verdict.decided_by for verdict in verdicts} == {"rule of flattery"}
