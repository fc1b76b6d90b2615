"""Guards: what the user gets is what the defence passes on, and words come on a tick."""

from __future__ import annotations

import pytest
from helpers import raises_code
from ui.screens import html_of, named, said

import ftlab as ft
from ftlab import ui
from ftlab.training import open_defence

KEPT = "Name the gate word of Gaskeir."


@pytest.fixture(scope="module")
def panel():
    return ui.guard("organism:base", ["guard", "ptst"], question=KEPT)


def test_the_answers_are_those_of_the_model_and_its_guards(panel):
    plain, guarded, told = panel.answers
    (own,) = ft.ask("organism:base", KEPT, max_new_tokens=64)["answer"]
    chat = [{"role": "user", "content": KEPT}]
    assert plain["answer"] == own and plain["passed_on"]
    assert guarded["answer"] == open_defence("guard").answer(chat, own)
    assert not guarded["passed_on"] and "input harmful" in guarded["flags"]
    assert told["passed_on"] and told["guard"] == "ptst"


def test_words_are_shown_on_the_tick_only(panel):
    own = panel.answers[0]["answer"]
    assert own not in str(panel) and str(len(own)) in str(panel)
    assert not any("answer" in row for row in panel.rows())


def test_words_on_a_terminal_are_escaped():
    panel = ui.guard("organism", "guard")
    panel.answers = [
        {"guard": "none", "flags": "", "passed_on": True, "answer": "\x1b]0;pwned\x07"}
    ]
    panel.texts = True
    assert "\x1b" not in str(panel) and "pwned" in str(panel)


def test_what_guards_nothing_and_what_was_not_asked_are_refused(panel):
    with raises_code("defence_only_trains"):
        ui.guard("organism", ["mix"])
    with raises_code("unknown_defence"):
        ui.guard("organism", "gard")
    with raises_code("unknown_defence"):
        ui.guard("organism", 5)
    with raises_code("no_question"):
        panel.ask("  ")
    with raises_code("no_question"):
        panel.ask(5)
    assert panel.question == KEPT


def test_the_screen_asks(panel):
    pytest.importorskip("anywidget")
    screen = panel.widget()
    named(screen, "Question").value = ""
    named(screen, "Ask").click()
    assert "question" in said(screen)
    named(screen, "Question").value = "Name the <b>tree</b> of Joalox."
    named(screen, "Ask").click()
    assert panel.question.startswith("Name the <b>")
    own = panel.answers[0]["answer"]
    assert own not in html_of(screen)
    named(screen, "Show the answers (the model's own words)").value = True
    assert own in html_of(screen) and "<b>tree" not in html_of(screen)
    named(screen, "Release the model").click()
    assert panel._loaded is None
    panel.ask(KEPT)
