"""What every engine must do. A new engine is found by its place and joins by itself."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace

import pytest
from helpers import raises_code
from loopback import echo_server

import ftlab
from ftlab._core import plugins
from ftlab._core.types import Answer
from ftlab.models.engines import Decoding, Engine, Request, open_engine

QUESTIONS = ["Ann has 3 pears.", "Add 2 and 5 and 7. How many in all?", "And?"]
NEEDS_A_GPU = ("vllm",)
RUNNABLE = [name for name in plugins.names("engines") if name not in NEEDS_A_GPU]


@pytest.fixture
def asked(request, llama, monkeypatch):
    """Return an engine and an opened model that it can ask."""
    engine = open_engine(request.param)
    if engine.name != "openai":
        return engine, engine.open(ftlab.model(llama))
    pytest.importorskip("openai", reason="the extra api is not installed")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = request.getfixturevalue("echo")
    return engine, engine.open(server)


@pytest.fixture(scope="module")
def echo():
    with echo_server() as endpoint:
        yield endpoint


def requests_for(engine, model, **settings) -> list[Request]:
    made = []
    for question in QUESTIONS:
        chat = [{"role": "user", "content": question}]
        text, _ = engine.render(model, chat)
        made.append(Request(chat, text, **settings))
    return made


def test_engines_are_found_by_their_place():
    assert {"huggingface", "openai", "scripted", "vllm"} <= set(plugins.names("engines"))
    for name, engine in plugins.find("engines").items():
        assert engine.name == name and issubclass(engine, Engine)


def test_an_engine_is_opened_by_name_or_given():
    engine = open_engine("scripted")
    assert open_engine(engine) is engine
    assert open_engine("transformers").name == "huggingface"
    with raises_code("unknown_engine"):
        open_engine("abacus")


@pytest.mark.parametrize("name", plugins.names("engines"))
def test_an_engine_has_the_signatures_of_the_interface(name):
    kind = plugins.get("engines", name)
    for method in ("open", "render", "answer", "remember", "release", "precision"):
        expected = list(inspect.signature(getattr(Engine, method)).parameters)
        assert list(inspect.signature(getattr(kind, method)).parameters) == expected
    assert kind().precision() == kind().precision() != ""


@pytest.mark.parametrize("asked", RUNNABLE, indirect=True)
def test_answers_come_in_order_and_are_reported_once(asked):
    engine, model = asked
    found = {}

    def on_answer(numbers, answers):
        found.update(zip(numbers, answers, strict=True))

    requests = requests_for(engine, model, max_new_tokens=5)
    answers = engine.answer(model, requests, on_answer)
    assert [found[number] for number in range(len(requests))] == answers
    assert all(isinstance(answer, Answer) and not answer.error for answer in answers)
    assert {answer.finish for answer in answers} <= {"stop", "length"}
    tally = engine.tally.as_dict()
    assert tally["answers"] == 3 and json.loads(json.dumps(tally)) == tally
    assert tally["tokens"] == sum(answer.tokens for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize("asked", RUNNABLE, indirect=True)
def test_the_same_requests_get_the_same_answers(asked):
    engine, model = asked
    requests = requests_for(engine, model, max_new_tokens=5)
    first = engine.answer(model, requests)
    engine.remember(requests, first)
    assert engine.answer(model, requests) == first
    engine.release()
    alone = [engine.answer(model, [request])[0].text for request in requests]
    assert alone == [answer.text for answer in first]


@pytest.mark.parametrize("asked", RUNNABLE, indirect=True)
def test_no_requests_no_answers(asked):
    engine, model = asked
    assert engine.answer(model, []) == [] and engine.tally.answers == 0


@pytest.mark.parametrize("asked", RUNNABLE, indirect=True)
def test_sampling_needs_seeds(asked):
    engine, model = asked
    requests = requests_for(engine, model, decoding=Decoding(temperature=1.0))
    with raises_code("seed_missing"):
        engine.answer(model, requests)
    requests = [replace(request, seed=number) for number, request in enumerate(requests)]
    assert len(engine.answer(model, requests)) == 3


@pytest.mark.parametrize("asked", RUNNABLE, indirect=True)
def test_what_an_engine_supports_it_does(asked):
    """Choices, openings and screening either work or have a reason why not."""
    engine, model = asked
    reference = getattr(model, "reference", model)
    assert engine.supports(reference) is None
    chat = [{"role": "user", "content": QUESTIONS[0]}]
    if not engine.supports(reference, openings=True):
        text, opening = engine.render(model, chat, "Sure, here it is", 2)
        assert text.endswith(opening) and "Sure, here it is".startswith(opening) != ""
        [answer] = engine.answer(model, [Request(chat, text, opening, max_new_tokens=5)])
        assert answer.text == f"{opening} {answer.own_text.strip()}"
    text, _ = engine.render(model, chat)
    if not engine.supports(reference, choices=True):
        choices = ("12", "a pear")
        [answer] = engine.answer(model, [Request(chat, text, choices=choices)])
        assert answer.text in choices and len(answer.likelihoods) == 2
    if not engine.supports(reference, screened=True):
        stop = Request(chat, text, max_new_tokens=20, stop_when=lambda text: True)
        [answer] = engine.answer(model, [stop])
        assert answer.finish == "screened" and answer.tokens == 1


def test_an_endpoint_refuses_what_it_cannot_do(echo):
    engine = open_engine("openai")
    for what in ("choices", "openings", "screened"):
        assert engine.supports(echo, **{what: True})
    assert open_engine("huggingface").supports(echo) and open_engine("vllm").supports(echo)
    with raises_code("opening_unsupported"):
        engine.render(echo, [], "Sure")
    with raises_code("choices_unsupported"):
        engine.answer(echo, [Request([{"role": "user", "content": "a"}], "", choices=("a",))])


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1},
        {"temperature": float("nan")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
    ],
)
def test_decoding_is_checked(wrong):
    with raises_code("wrong_setting"):
        Decoding.make(**wrong)
