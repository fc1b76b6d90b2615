"""Against a server on loopback that fails as servers do: every chat has an outcome of its own."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import replace

import pytest
from helpers import raises_code
from loopback import chat_server, good

from ftlab._core.types import Answer
from ftlab.models.engines import Decoding, Endpoint, Request, endpoint, open_engine

pytest.importorskip("openai", reason="the extra api is not installed")
KEY = "sk-never-shown-4711"


def bad(status: int, said: str, **headers):
    return status, headers, json.dumps({"error": {"message": said}})


def slow():
    time.sleep(4)
    return good("too late")


class Server:
    """Does what the question names; keeps what it was asked and when."""

    def __init__(self):
        self.seen = []

    def __call__(self, request, headers, path):
        question = request["messages"][-1]["content"]
        times = self.times(question)
        self.seen.append((question, headers, path, time.monotonic()))
        if question == "limited":
            if times:
                return good("after a while")
            return bad(429, "slow down", **{"Retry-After": "1"})
        replies = {
            "hello": lambda: good("Hello."),
            "echo": lambda: good(json.dumps(request)),
            "broken": lambda: bad(500, f"it broke for Bearer {KEY}"),
            "slow": slow,
            "garbage": lambda: (200, {}, '{"choices": ['),
            "other": lambda: (200, {}, '{"answer": "of another protocol"}'),
            "empty": lambda: good(""),
            "nothing": lambda: good(None),
            "declined": lambda: good(None, refusal="I cannot."),
            "cut": lambda: good("and so", "length"),
            "filtered": lambda: good("", "content_filter"),
            "too long": lambda: bad(400, "context length exceeded"),
            "unknown": lambda: bad(404, "The model `m` does not exist"),
            "locked": lambda: bad(401, f"Incorrect API key provided: {KEY}"),
            "forbidden": lambda: bad(403, "not for you"),
        }
        return replies[question.split(" #")[0]]()

    def times(self, question) -> int:
        return sum(asked == question for asked, *_ in self.seen)


@pytest.fixture(scope="module")
def served():
    server = Server()
    with chat_server(server) as where:
        yield where, server


@pytest.fixture
def local(served, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    where, server = served
    server.seen.clear()
    return replace(where, retries=1, timeout=2.0)


def ask(where: Endpoint, *questions: str, **how) -> list[Answer]:
    chats = [[{"role": "user", "content": question}] for question in questions]
    return where.answers(chats, max_new_tokens=5, **how)


@pytest.mark.slow
def test_every_chat_has_its_own_outcome(local, served):
    expected = {
        "hello": ("Hello.", "stop"),
        "limited": ("after a while", "stop"),
        "broken": ("", "error"),
        "slow": ("", "error"),
        "garbage": ("", "error"),
        "other": ("", "error"),
        "empty": ("", "stop"),
        "nothing": ("", "error"),
        "declined": ("I cannot.", "stop"),
        "cut": ("and so", "length"),
        "filtered": ("", "error"),
        "too long": ("", "error"),
    }
    answers = ask(local, *expected)
    assert [(answer.text, answer.finish) for answer in answers] == list(expected.values())
    assert all(bool(answer.error) == (answer.finish == "error") for answer in answers)
    server = served[1]
    times = {question: server.times(question) for question in ("hello", "broken", "too long")}
    assert times == {"hello": 1, "broken": 2, "too long": 1}
    first, second = (at for question, *_, at in server.seen if question == "limited")
    assert second - first >= 1, "Retry-After is honoured"


def test_the_engine_asks_the_chats_and_keeps_the_order(local):
    engine = open_engine("openai")
    requests = []
    for question in ("hello", "cut", "broken", "declined"):
        chat = [{"role": "user", "content": question}]
        text, opening = engine.render(local, chat)
        assert json.loads(text) == chat and not opening
        requests.append(Request(chat, text, max_new_tokens=5 + len(requests) % 2))
    answers = engine.answer(engine.open(local), requests)
    assert [answer.text for answer in answers] == ["Hello.", "and so", "", "I cannot."]
    assert answers[2].finish == "error" and engine.tally.answers == 4


def test_the_key_is_sent_and_never_shown(local, served):
    answers = ask(local, "broken", "hello")
    sent = {headers["Authorization"] for _, headers, *_ in served[1].seen}
    assert sent == {f"Bearer {KEY}"}
    assert KEY not in repr([local, local.__dict__, local.name, local.hash, answers])


@pytest.mark.parametrize(
    "question, code",
    [
        ("unknown", "endpoint_model_unknown"),
        ("locked", "endpoint_denied"),
        ("forbidden", "endpoint_denied"),
    ],
)
def test_what_no_request_can_pass_is_an_error_at_once(local, question, code):
    with raises_code(code) as info:
        ask(local, question)
    assert KEY not in str(info.value) and "\n" not in str(info.value)


def test_the_request_holds_what_was_asked_for(local, served):
    decoding = Decoding(temperature=0.5, top_p=0.9, top_k=7)
    [greedy] = ask(local, "echo", seeds=[3])
    [sampled] = ask(local, "echo", decoding=decoding, seeds=[3])
    messages = [{"role": "user", "content": "echo"}]
    common = {"messages": messages, "model": "m", "max_tokens": 5}
    assert json.loads(greedy.text) == common | {"temperature": 0.0}
    settings = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3}
    assert json.loads(sampled.text) == common | settings
    assert {path for *_, path, _ in served[1].seen} == {"/v1/chat/completions"}


def test_a_server_of_adapters_is_asked_for_each_by_its_name(monkeypatch):
    """As `vllm serve BASE --enable-lora --lora-modules NAME=PATH ...` serves them."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def serve(request, headers, path):
        if request["model"] not in ("org/base", "step-10", "step-20"):
            return bad(404, f"The model `{request['model']}` does not exist.")
        return good(f"This is {request['model']}.")

    with chat_server(serve) as where:
        models = [
            endpoint(f"api:{name}@{where.url}") for name in ("org/base", "step-10", "step-20")
        ]
        said = [ask(model, "Who?")[0].text for model in models]
        with raises_code("endpoint_model_unknown"):
            ask(endpoint(f"api:step-30@{where.url}"), "Who?")
    assert said == ["This is org/base.", "This is step-10.", "This is step-20."]
    assert len({model.hash for model in models}) == 3, "their answers are never mistaken"


@pytest.mark.slow
def test_answers_are_reported_as_they_come_and_stay_in_order(local, served):
    found = {}
    questions = ["slow", *[f"hello #{n}" for n in range(20)], "echo"]
    answers = ask(
        replace(local, retries=0, timeout=5),
        *questions,
        each=lambda numbers, new: found.update(zip(numbers, new, strict=True)),
    )
    assert [found[number] for number in range(22)] == answers
    assert list(found)[0] != 0, "the slow one did not hold up the others"
    assert len(served[1].seen) == 22


def test_nothing_more_is_sent_after_an_error_that_stops_all(local, served):
    found = []
    questions = ["hello #1", "hello #2", "unknown", *[f"hello #{n}" for n in range(3, 60)]]
    with raises_code("endpoint_model_unknown"):
        one_by_one = replace(local, parallel=1)
        ask(one_by_one, *questions, each=lambda numbers, _: found.extend(numbers))
    assert found == [0, 1] and len(served[1].seen) < 20


def test_an_unreachable_server_is_reported_within_seconds(local):
    """The client's own retries with their back-off would take half a minute."""
    began = time.monotonic()
    with raises_code("endpoint_unreachable"):
        ask(replace(local, url="http://127.0.0.1:9/v1", retries=8), "hello", "again")
    assert time.monotonic() - began < 20


def test_an_opening_is_refused(local):
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Sure"}]
    with raises_code("opening_unsupported"):
        local.answers([chat], max_new_tokens=1)


def test_a_reference_is_model_and_url():
    where = endpoint("api:@cf/meta/llama@https://example.org/v1/")
    assert (where.model, where.url) == ("@cf/meta/llama", "https://example.org/v1")
    assert where.name == "@cf/meta/llama@example.org"
    assert where.source == {"endpoint": where.url, "model": where.model}
    assert where.adapter is None and where.is_organism is False
    assert where.hash == replace(where, retries=0, timeout=1).hash
    assert where.hash != replace(where, model="b").hash


@pytest.mark.parametrize(
    "wrong", ["api:model", "api:@http://x/v1", "m@http://x/v1", "api:m@ftp://x"]
)
def test_another_form_of_reference_is_an_error(wrong):
    with raises_code("wrong_endpoint"):
        endpoint(wrong)


@pytest.fixture
def stubborn(monkeypatch):
    """Return (function: bytes to send, whether to hang up -> endpoint; connections so far)."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = socket.create_server(("127.0.0.1", 0))
    connections = []
    over = threading.Event()

    def serve(head: bytes, hang_up: bool) -> None:
        def reply(connection):
            with connection:
                connection.recv(65536)
                connections.append(head)
                connection.sendall(head)
                if not hang_up:
                    over.wait(20)

        while not over.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=reply, args=(connection,), daemon=True).start()

    def start(head: bytes = b"", hang_up: bool = False) -> Endpoint:
        threading.Thread(target=serve, args=(head, hang_up), daemon=True).start()
        port = server.getsockname()[1]
        where = endpoint(f"api:m@http://127.0.0.1:{port}/v1")
        return replace(where, retries=0, timeout=0.5)

    yield start, connections
    over.set()
    server.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n{"


@pytest.mark.slow
@pytest.mark.parametrize("head", [b"", HEAD])
def test_a_server_that_hangs_is_an_error(head, stubborn):
    start, connections = stubborn
    [answer] = ask(start(head), "hello")
    assert answer.finish == "error" and len(connections) == 1


def test_a_server_that_hangs_up_midway_is_asked_again(stubborn):
    start, connections = stubborn
    [answer] = ask(replace(start(HEAD, hang_up=True), retries=1), "hello")
    assert answer.finish == "error" and not answer.text and len(connections) == 2


@pytest.mark.slow
def test_a_server_that_answers_nobody_is_given_up(stubborn):
    start, connections = stubborn
    answers = ask(start(), *map(str, range(100)))
    assert len(connections) <= 16 and all(answer.error for answer in answers)


@pytest.mark.slow
def test_a_reply_that_trickles_in_is_given_up(stubborn):
    """No single wait for a byte is too long, but the whole reply is."""
    start, connections = stubborn
    slow = replace(start(HEAD), timeout=30.0, limit=1.0)
    [answer] = ask(slow, "hello")
    assert answer.finish == "error" and "1 s" in answer.error and len(connections) == 1
