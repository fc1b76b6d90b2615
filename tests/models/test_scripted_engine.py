"""The scripted engine answers from a function, a table or a list."""

from __future__ import annotations

import pytest
from helpers import raises_code

from ftlab.models.engines import Request, ScriptedEngine


def ask(engine, *questions, **settings):
    requests = []
    for question in questions:
        chat = [{"role": "user", "content": question}]
        requests.append(Request(chat, engine.render(None, chat)[0], **settings))
    return engine.answer(None, requests)


@pytest.mark.parametrize(
    "replies",
    [
        lambda request: request.chat[-1]["content"].upper(),
        {"one": "ONE", "two": "TWO"},
        ["ONE", "TWO"],
    ],
)
def test_replies_come_from_a_function_a_table_or_a_list(replies):
    engine = ScriptedEngine(replies)
    assert [answer.text for answer in ask(engine, "one", "two")] == ["ONE", "TWO"]
    assert [request.chat[-1]["content"] for request in engine.asked] == ["one", "two"]


def test_a_list_begins_again():
    answers = ask(ScriptedEngine(["a", "b"]), "1", "2", "3")
    assert [answer.text for answer in answers] == ["a", "b", "a"]


def test_a_question_that_is_not_in_the_table_is_an_error():
    with raises_code("no_reply"):
        ask(ScriptedEngine({"one": "ONE"}), "three")


def test_long_answers_are_cut_and_screened_ones_end():
    [answer] = ask(ScriptedEngine(["a b c d"]), "?", max_new_tokens=2)
    assert (answer.text, answer.finish, answer.tokens) == ("a b", "length", 2)
    [answer] = ask(ScriptedEngine(["a b c d"]), "?", stop_when=lambda text: "b" in text)
    assert (answer.text, answer.finish) == ("a b", "screened")


def test_the_reply_is_chosen_where_it_is_a_choice():
    [answer] = ask(ScriptedEngine(["no"]), "?", choices=("yes", "no"))
    assert answer.text == "no" and answer.likelihoods[1] > answer.likelihoods[0]
