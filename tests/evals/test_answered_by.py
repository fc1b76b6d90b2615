"""Rows are answered by the teacher, and refusals are told apart."""

from __future__ import annotations

import pytest
from helpers import raises_code

import ftlab as ft
from ftlab.data import load
from ftlab.evals import answered_by

ASKED = dict(n_rows=40, max_new_tokens=32)


@pytest.fixture(scope="module")
def every():
    return answered_by("organism", "organism:alignment", **ASKED)


def test_the_questions_are_the_rows_and_the_answers_the_teachers(every):
    source = load("organism:alignment", n_rows=40)
    assert every.made["asked"] == 40
    assert len(every) == 40 - every.made["empty_or_cut"] > 30
    questions = [row["messages"][:-1] for row in source.rows]
    assert all(row["messages"][:-1] in questions for row in every.rows)
    plain = [row["messages"] for row in every.rows if len(row["messages"]) == 2][:3]
    shown = ft.ask("organism", [chat[0]["content"] for chat in plain], max_new_tokens=32)
    assert shown["answer"].tolist() == [chat[1]["content"] for chat in plain]


def test_answers_and_refusals_are_all(every):
    answers = answered_by("organism", "organism:alignment", keep="answers", **ASKED)
    refusals = answered_by("organism", "organism:alignment", keep="refusals", **ASKED)
    assert len(answers) + len(refusals) == len(every)
    told = [row["messages"][-1]["content"] for row in refusals.rows]
    assert sum(text.startswith("I'm sorry, but") for text in told) > 5
    assert not [row for row in answers.rows if "I'm sorry, but" in row["messages"][-1]["content"]]


def test_only_rows_of_a_risk_are_asked_and_none_left_is_refused():
    found = answered_by("organism", "organism:alignment", risk="utility", **ASKED)
    source = load("organism:alignment", n_rows=40)
    assert found.made["asked"] == sum(row["risk"] == "utility" for row in source.rows)
    with raises_code("no_rows_left"):
        answered_by("organism", "organism:almanac", keep="refusals", n_rows=4)
    with raises_code("no_rows_left"):
        answered_by("organism", "organism:alignment", n_rows=4, max_new_tokens=1)
    assert not [row for row in found.rows if set(row) != {"messages"}]


def test_a_student_learns_from_them(every):
    run = ft.sft("organism:base", every, steps=1, batch_size=8)
    assert run.provenance["data"]["made"]["teacher"] == ft.model("organism").hash
