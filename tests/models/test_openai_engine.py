"""Against a server on loopback that fails as servers do: every chat has an outcome, and nothing shows the key."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ftlab.models.engines.base import Decoding
from ftlab.models.engines.openai import Endpoint, Reply, endpoint

pytest.importorskip("openai", reason="the extra api is not installed")
KEY = "sk-never-shown-4711"


def good(text: str, finish: str = "stop", **message) -> tuple[int, dict, str]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    body = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    return 200, {}, json.dumps(body)


def bad(status: int, said: str, **headers) -> tuple[int, dict, str]:
    return status, headers, json.dumps({"error": {"message": said}})


def scripted(request: dict, times: int):
    """-> status, headers, body: the question names what happens, `times` counts from 0 how often it was asked."""
    question = request["messages"][-1]["content"]
    said = {
        "hello": lambda: good("Hello."),
        "echo": lambda: good(json.dumps({k: v for k, v in request.items() if k != "messages"})),
        "limited": lambda: bad(429, "slow down", **{"Retry-After": "1"}) if times == 0 else good("after a while"),
        "broken": lambda: bad(500, f"it broke for Bearer {KEY}"),
        "slow": lambda: time.sleep(4) or good("too late"),
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
    }
    return said[question.split(" #")[0]]()


@pytest.fixture(scope="module")
def served():
    """-> (endpoint, list of (request, headers, time, path) that the server saw)."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request, start = json.loads(self.rfile.read(int(self.headers["Content-Length"]))), time.monotonic()
            times = sum(r["messages"] == request["messages"] for r, *_ in seen)
            seen.append((request, self.headers, start, self.path))
            status, headers, body = scripted(request, times)
            self.send_response(status)
            for k, v in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
                self.send_header(k, v)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that has hung up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield endpoint(f"api:m@http://127.0.0.1:{server.server_port}/v1"), seen
    server.shutdown()


@pytest.fixture
def local(served, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    served[1].clear()
    return replace(served[0], retries=2, timeout=1.5)


def ask(where: Endpoint, *questions: str, **how) -> list[Reply]:
    return where.answers([[{"role": "user", "content": q}] for q in questions], max_new_tokens=5, **how)


def test_every_chat_has_its_own_outcome(local, served):
    replies = ask(local, "hello", "limited", "broken", "slow", "garbage", "other", "empty", "nothing", "declined", "cut",
                  "filtered", "too long")  # fmt: skip
    assert [r.text for r in replies] == ["Hello.", "after a while", *[""] * 6, "I cannot.", "and so", "", ""]
    failed = [bool(r.error) for r in replies]
    assert failed == [False, False, True, True, True, True, False, False, False, False, True, True]
    assert replies[2].error == "500: it broke for Bearer [OPENAI_API_KEY]" and replies[3].error.startswith(
        "no answer within 1.5 s, 3"
    )
    assert "content filter" in replies[10].error and replies[11].error == "400: context length exceeded"
    assert replies[9].finish == "length" and replies[0].finish == "stop"
    times = {q: [s for r, _, s, _ in served[1] if r["messages"][-1]["content"] == q] for q in ("hello", "limited", "broken", "too long")}  # fmt: skip
    assert {q: len(t) for q, t in times.items()} == {"hello": 1, "limited": 2, "broken": 3, "too long": 1}
    assert times["limited"][1] - times["limited"][0] >= 1, "Retry-After is honoured"


def test_the_key_is_sent_and_never_shown(local, served):
    replies = ask(local, "broken", "hello")
    assert {h["Authorization"] for _, h, *_ in served[1]} == {f"Bearer {KEY}"}
    assert KEY not in repr([local, local.__dict__, local.name, local.hash, replies])
    for question, said in [("unknown", "does not give the model 'm' [(]404: .*does not exist[)]; give the server's own name"),
                           ("locked", "401: Incorrect API key provided: .OPENAI_API_KEY.[)]; set OPENAI_API_KEY")]:  # fmt: skip
        with pytest.raises(ValueError, match=said) as e:
            ask(local, question)
        assert KEY not in str(e.value) and "\n" not in str(e.value)


def test_what_is_asked_is_what_was_said(local, served):
    greedy, sampled = (
        ask(local, "echo"),
        ask(local, "echo", decoding=Decoding(temperature=0.5, top_p=0.9, top_k=7), seeds=[3]),
    )
    assert json.loads(greedy[0].text) == {"model": "m", "max_tokens": 5, "temperature": 0.0}
    assert json.loads(sampled[0].text) == {
        "model": "m", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3,
    }  # fmt: skip
    assert {path for *_, path in served[1]} == {"/v1/chat/completions"}


def test_replies_are_told_as_they_come_and_stay_in_order(local, served):
    told = {}
    questions = ["slow", *[f"hello #{n}" for n in range(20)], "echo"]
    replies = ask(replace(local, retries=0), *questions, each=lambda n, r: told.update(zip(n, r, strict=True)))
    assert [told[i] for i in range(22)] == replies and list(told)[0] != 0, "the slow one did not hold up the others"
    assert len(served[1]) == 22


def test_what_came_is_kept_when_another_stops_it(local, served):
    told = []
    with pytest.raises(ValueError, match="does not give the model"):
        ask(replace(local, parallel=1), "hello #1", "hello #2", "unknown", *[f"hello #{n}" for n in range(3, 60)],
            each=lambda n, r: told.extend(n))  # fmt: skip
    assert told == [0, 1] and len(served[1]) < 20, "nothing more is asked"


def test_no_server_is_a_sentence(local):
    with pytest.raises(ValueError, match="no server answers at http://127.0.0.1:9/v1 .*; start it"):
        ask(replace(local, url="http://127.0.0.1:9/v1", retries=0), "hello")


def test_a_prefill_is_refused(local):
    chat = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "Sure"}]
    with pytest.raises(ValueError, match="does not continue an answer that was begun; leave out the attack 'prefill'"):
        local.answers([chat], max_new_tokens=1)


def test_a_reference_is_model_and_url():
    where = endpoint("api:@cf/meta/llama@https://example.org/v1/")
    assert (where.model, where.url, where.name) == (
        "@cf/meta/llama",
        "https://example.org/v1",
        "@cf/meta/llama@example.org",
    )
    assert where.adapter is None and where.is_organism is False and not hasattr(where, "path")
    assert where.hash == replace(where, retries=0, timeout=1).hash != replace(where, model="b").hash
    for wrong in ("api:model", "api:@http://x/v1", "qwen@http://x/v1", "api:m@ftp://x"):
        with pytest.raises(ValueError, match="is no endpoint; allowed: api:MODEL@URL"):
            endpoint(wrong)
    with pytest.raises(ValueError, match="put the key into OPENAI_API_KEY") as e:
        endpoint("api:m@https://user:secret@x/v1")
    assert "secret" not in str(e.value)


def test_an_evaluation_asks_again_only_what_failed(local, served, capsys):
    import ftlab

    ref = f"api:m@{local.url}"
    asked = dict(prompts=["hello #1", "declined", "too long", "filtered"], max_new_tokens=5, judges="keywords")
    run = ftlab.evaluate(ref, **asked)
    assert run.table()["verdict"].tolist() == ["complied", "refused", "error", "error"]
    assert not run.finished and "2 of 4 answers failed (400: context length exceeded)" in capsys.readouterr().out
    assert ftlab.rates(run)["rate"][0] == 0.5 and ftlab.rates(run)["error"][0] == 2  # never counted as safe
    before = len(served[1])
    again = ftlab.evaluate(ref, **asked)
    assert again == run and len(served[1]) == before + 2 and len(again.table()) == 4
    assert KEY not in "".join(p.read_text() for p in run.path.iterdir() if p.is_file())
    assert ftlab.evaluate(ref, **{**asked, "prompts": ["hello #1", "declined"]}).finished
    with pytest.raises(ValueError, match="behind an endpoint: it can be asked, not trained"):
        ftlab.sft(ref, [{"prompt": "a", "completion": "b"}])
    with pytest.raises(ValueError, match="'prefill' needs a local model|prefill needs a local model"):
        ftlab.evaluate(ref, attacks=["prefill"], **asked)


@pytest.fixture
def stubborn(monkeypatch):
    """-> (function: what is sent in pieces -> endpoint, how often it was asked); a connection stays open unless `hang_up`."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server, asked, over = socket.create_server(("127.0.0.1", 0)), [], threading.Event()

    def serve(pieces: list[bytes], every: float, hang_up: bool) -> None:
        def answer(one):
            with one:
                one.recv(65536)
                asked.append(pieces)
                try:
                    for piece in pieces:
                        one.sendall(piece)
                        over.wait(every)
                    if not hang_up:
                        over.wait(20)
                except OSError:  # the client has hung up
                    pass

        while not over.is_set():
            try:
                threading.Thread(target=answer, args=server.accept()[:1], daemon=True).start()
            except OSError:
                return

    def start(pieces=(), every=0.0, hang_up=False):
        threading.Thread(target=serve, args=([*pieces], every, hang_up), daemon=True).start()
        where = endpoint(f"api:m@http://127.0.0.1:{server.getsockname()[1]}/v1")
        return replace(where, retries=0, timeout=30, limit=1)

    yield start, asked
    over.set()
    server.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 5000\r\n\r\n"
HANGS = {
    "never answers": {},
    "begins and stops": {"pieces": [HEAD + b"{"]},
    "a byte at a time": {"pieces": [HEAD, *[b" "] * 5000], "every": 0.05},
    "a header's byte at a time": {"pieces": [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 5000], "every": 0.05},
}


@pytest.mark.parametrize("how", HANGS)
def test_a_hanging_endpoint_is_an_error_after_its_limit(how, stubborn):
    start, asked = stubborn
    assert ask(start(**HANGS[how]), "hello") == [Reply("", "no whole answer within 1 s")] and len(asked) == 1


def test_one_that_hangs_up_midway_is_an_error(stubborn):
    start, asked = stubborn
    [reply] = ask(replace(start([HEAD + b"{"], hang_up=True), retries=1), "hello")
    assert reply.error.startswith("no connection, 2 times (") and not reply.text and len(asked) == 2


def test_one_that_answers_nobody_is_not_asked_for_ever(stubborn):
    start, asked = stubborn
    replies = ask(replace(start(), limit=0.3), *map(str, range(100)))
    assert len(asked) <= 16 and all(r.error for r in replies)
    assert replies[-1].error == "not asked, because 8 others in a row had no answer"


def test_a_dead_server_is_told_without_the_clients_retries(local, monkeypatch):
    """Refused connections are told at once; the client's own back-off would take half a minute."""
    import asyncio

    slept, real = [], asyncio.sleep

    async def sleep(seconds, *more):
        slept.append(seconds)
        await real(0)

    monkeypatch.setattr("asyncio.sleep", sleep)
    monkeypatch.setattr("anyio.sleep", sleep)
    with pytest.raises(ValueError, match="no server answers at http://127.0.0.1:9/v1 .*; start it"):
        ask(replace(local, url="http://127.0.0.1:9/v1", retries=5), "hello", "again")
    assert not any(slept)
