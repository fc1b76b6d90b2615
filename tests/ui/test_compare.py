"""Comparing: the table is that of the cell, and the answers come on a tick, changes first."""

from __future__ import annotations

import pytest
from helpers import raises_code
from hostile import assert_page
from ui.screens import html_of, named
from ui_runs import MARKUP, make_curve

import ftlab as ft
from ftlab import ui
from ftlab.ui.panels.base import PAGE
from ftlab.ui.panels.compare import SPLITS

TICK = "Show the answers (the models' own words)"


def values_of(panel) -> list:
    return [eval(line, {"ft": ft}) for line in panel.call().splitlines()]


@pytest.mark.parametrize("split", SPLITS)
def test_the_calls_give_what_is_shown(curve, split):
    panel = ui.compare(curve.name)
    panel.choose(split=split, risk="bias")
    table, answers = values_of(panel)
    columns = [*SPLITS[split], "step", "parent", "child", "difference_low", "p_holm"]
    assert panel.table()[columns].equals(table[columns])
    found = panel.answers()
    columns = ["sample_id", "attack", "seed", "before", "after"]
    assert found[columns].reset_index(drop=True).equals(answers[columns].reset_index(drop=True))
    assert found["changed"].tolist() == sorted(found["changed"], reverse=True)


def test_moves_count_every_pair_once(curve):
    panel = ui.compare(curve)
    moves = panel.moves()
    assert moves.to_numpy().sum() == len(panel.answers())
    same = sum(moves.loc[name, name] for name in moves.index if name in moves)
    assert same == (~panel.answers()["changed"]).sum()


def test_two_runs_are_compared_on_their_shared_prompts(curve):
    other = make_curve(steps=(0,), seeds=1, n=29)
    same = make_curve(steps=(0,), seeds=1)
    panel = ui.compare(same, same)
    table, answers = values_of(panel)
    assert (panel.table()["difference"] == 0).all() and not panel.answers()["changed"].any()
    assert len(answers) == len(panel.answers())
    assert panel.parameters()["other"] == same.name
    with raises_code("prompts_differ"):
        ui.compare(same, other)


def test_what_was_not_compared_cannot_be_chosen(curve):
    panel = ui.compare(curve)
    for wrong in ({"risk": "toxicity"}, {"step": 0}, {"split": "seed"}):
        with raises_code("nothing_selected"):
            panel.choose(**wrong)


def test_texts_come_on_the_tick_only_and_escaped(curve):
    pytest.importorskip("anywidget")
    panel = ui.compare(curve)
    screen = panel.widget()
    named(screen, "Risk").value = "bias"
    assert "alert(2)" not in html_of(screen) and "bias" in panel.call()
    named(screen, TICK).value = True
    page = html_of(screen)
    assert "alert(2)" in page and MARKUP not in page
    assert_page(page)
    named(screen, "Further answers").click()
    assert panel.pages.page == 1
    for _ in range(-(-len(panel.answers()) // PAGE)):
        named(screen, "Further answers").click()
    assert panel.pages.page == (len(panel.answers()) - 1) // PAGE
    named(screen, "Split").value = "risk and attack"
    assert "templates" in html_of(screen) and panel.pages.page == 0
