"""Runs: verified as by the cell, and nothing is removed that was not listed."""

from __future__ import annotations

import pytest
from helpers import raises_code
from ui.screens import html_of, named

from ftlab import runs, ui


def begin(label: str):
    return runs.start("sft", label, {"label": label})


def test_the_list_and_the_problems_are_those_of_the_cells(curve):
    panel = ui.runs()
    assert panel.table["name"].tolist() == [curve.name]
    assert panel.verify().empty
    with open(curve.path / "answers.jsonl", "a") as file:
        file.write("{}\n")
    found = panel.verify(curve.name)
    assert found[["run", "file", "problem"]].to_numpy().tolist() == [
        [curve.name, "answers.jsonl", "changed"]
    ]
    with raises_code("no_such_run"):
        panel.verify("nobody")


def test_only_what_was_listed_is_removed(curve):
    first = begin("first")
    panel = ui.runs()
    with raises_code("not_listed"):
        panel.clean()
    assert panel.list_removable()["name"].tolist() == [first.name] and first.path.exists()
    second = begin("second")
    with raises_code("not_listed"):
        panel.clean()
    assert first.path.exists() and second.path.exists()
    removed = panel.clean()  # of the new list
    assert "clean_runs()" in panel.call()  # a copied call would remove what is removable then
    assert set(removed["name"]) == {first.name, second.name}
    assert not first.path.exists() and curve.path.exists()
    assert panel.table["name"].tolist() == [curve.name]


def test_interrupted_runs_stay_unless_they_are_asked_for(curve):
    run = begin("interrupted")
    run.append("train.jsonl", [{"step": 1, "loss": 1.0}])
    panel = ui.runs()
    assert panel.list_removable().empty
    assert panel.list_removable(abandoned=True)["name"].tolist() == [run.name]
    assert "abandoned=True" in panel.call() and "yes" not in panel.call()


def test_the_screen_lists_before_it_removes(curve):
    pytest.importorskip("anywidget")
    run = begin("first")
    panel = ui.runs()
    screen = panel.widget()
    button = named(screen, "Remove what is listed")
    assert button.disabled
    named(screen, "Verify").click()
    assert "nothing wrong" in html_of(screen)
    named(screen, "List what could be removed").click()
    assert not button.disabled and run.path.exists() and run.name in html_of(screen)
    button.click()
    assert not run.path.exists() and button.disabled
    later = begin("later")
    named(screen, "Refresh").click()
    assert later.name in named(screen, "Run").options
