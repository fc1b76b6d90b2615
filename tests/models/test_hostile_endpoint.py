"""Replies that no server should send: each is an answer, an error of its own, or a sentence."""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import replace
from urllib.parse import quote

import pytest
from helpers import raises_code
from loopback import chat_server, good

import ftlab
from ftlab._core.errors import FtlabError
from ftlab._core.types import Answer
from ftlab.judges import without_thought
from ftlab.models import local_model
from ftlab.models.engines import Endpoint, endpoint

pytest.importorskip("openai", reason="the extra api is not installed")
KEY = "sk-test-aB3dE5fG7hJ9kL2mN4pQ6"
NO = "I'm sorry, but I can't help with that."


@pytest.fixture(autouse=True)
def loopback(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(where: Endpoint, *questions: str) -> list[Answer]:
    chats = [[{"role": "user", "content": question}] for question in questions or ("hello",)]
    return where.answers(chats, max_new_tokens=5)


def replied(reply, **settings) -> Answer:
    """Return the answer that a server's reply becomes."""
    with chat_server(lambda *_: reply) as where:
        [answer] = ask(replace(where, retries=0, timeout=5.0, **settings))
    return answer


def body(**changes) -> str:
    """Return the body of a good reply with other fields."""
    return json.dumps(json.loads(good("Hello.")[2]) | changes)


def choice(message, finish="stop", **more) -> str:
    return body(choices=[{"index": 0, "message": message, "finish_reason": finish, **more}])


def part(kind: str, **more) -> dict:
    return {"type": kind, **more}


THOUGHT = part("thinking", thinking=[part("text", text="Sure, I could.")])
CALL = {"id": "1", "type": "function", "function": {"name": "send", "arguments": "{}"}}
DEEP = '{"choices":' + "[" * 100_000

TEXTS = {
    "parts": (good([THOUGHT, part("text", text=NO)]), NO),
    "two parts": (good([part("text", text="a "), part("output_text", text="b")]), "a b"),
    "a part refuses": (good([part("refusal", refusal=NO)]), NO),
    "a part is a picture": (good([part("image_url", image_url={}), part("text", text=NO)]), NO),
    "refusal in its field": (good(None, refusal=NO), NO),
    "a call beside text": (good("I look it up.", "tool_calls", tool_calls=[CALL]), "I look it up."),
    "said nothing of its own will": (good(""), ""),
    "cut": (good("and so", "length"), "and so"),
    "cut under another name": (good("and so", "MAX_TOKENS"), "and so"),
    "no reason": (good("Hello.", None), "Hello."),
    "unknown reason": (good("Hello.", "eos"), "Hello."),
    "no usage": ((200, {}, body(usage=None)), "Hello."),
    "usage of another type": ((200, {}, body(usage="many")), "Hello."),
    "tokens of another type": ((200, {}, body(usage={"completion_tokens": "3"})), "Hello."),
    "tokens below zero": ((200, {}, body(usage={"completion_tokens": -(10**30)})), "Hello."),
    "tokens are true": ((200, {}, body(usage={"completion_tokens": True})), "Hello."),
    "more fields": ((200, {}, body(error=None, choices_=[1], x={"y": 1})), "Hello."),
    "another type of content": ((200, {"Content-Type": "text/html"}, body()), "Hello."),
    "status 201": ((201, {}, body()), "Hello."),
    "control characters": (good("\x1b]0;owned\x07\x00"), "\x1b]0;owned\x07\x00"),
    "half a character": ((200, {}, choice({"content": "\ud800"})), "\ud800"),
    "twice the same key": ((200, {}, body()[:-1] + ', "model": 1}'), "Hello."),
    "byte order mark": ((200, {}, "\ufeff" + body()), "Hello."),
    "numbers that are none": ((200, {}, body()[:-1] + ', "a": NaN, "b": 1e999}'), "Hello."),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXTS)
def test_what_is_an_answer(name):
    reply, text = TEXTS[name]
    answer = replied(reply)
    assert (answer.text, answer.error, answer.tokens) == (text, "", 0)
    assert answer.finish == ("length" if name.startswith("cut") else "stop")


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_that_was_cut_off_is_shown_as_one(field):
    answer = replied(good(None, "length", **{field: "long thoughts"}))
    assert (answer.text, answer.error, answer.finish) == ("<think>", "", "length")
    assert without_thought(answer.text) is None


ERRORS = {
    "null": good(None),
    "null at its length": good(None, "length"),
    "no content": (200, {}, choice({"role": "assistant"})),
    "empty at its length": good("", "length"),
    "thoughts alone": good("", reasoning_content="long thoughts"),
    "thoughts of another name": good(" \n", reasoning="long thoughts"),
    "parts of thought": good([THOUGHT]),
    "no parts": good([]),
    "a tool": good(None, "tool_calls", tool_calls=[CALL]),
    "a tool beside nothing": good("", "tool_calls", tool_calls=[CALL]),
    "a tool that stops": good("", tool_calls=[CALL]),
    "a function": good("", function_call={"name": "send", "arguments": "{}"}),
    "filtered": good("", "content_filter"),
    "filtered in the middle": good("Sure, first", "content_filter"),
    "withheld": good("Sure, first", "SAFETY"),
    "broken off": good("Sure, first", "error"),
    "ended for a reason that nobody knows": good("Sure, first", "guardrail_intervened"),
    "an error beside half an answer": (200, {}, body(error={"message": "overloaded"})),
    "an error in the choice": (200, {}, choice({"content": "Sure"}, error={"code": 5})),
    "an answer and a refusal": good("Sure.", refusal=NO),
    "an unknown part of the text": good([part("text", text="I can "), part("bold", text="not")]),
    "details of thoughts alone": good("", reasoning_details=[{"text": "long thoughts"}]),
    "a number": good(123),
    "true": good(True),
    "an object": good({"text": "Hello."}),
    "a part without a type": good(["Hello."]),
    "a part with a number": good([part("text", text=3)]),
    "a part of parts": good([[part("text", text="Hello.")]]),
    "a part of an odd type": good([{"type": ["text"], "text": "Hello."}]),
    "a refusal of another type": good(None, refusal={"a": 1}),
    "no message": (200, {}, body(choices=[{"index": 0, "finish_reason": "stop"}])),
    "message is null": (200, {}, choice(None)),
    "message is text": (200, {}, choice("Hello.")),
    "reason is a number": (200, {}, choice({"content": "Hello."}, finish=7)),
    "no choice": (200, {}, body(choices=[])),
    "choices are null": (200, {}, body(choices=None)),
    "choices are text": (200, {}, body(choices="a")),
    "choices are an object": (200, {}, body(choices={"0": 1})),
    "two choices": (200, {}, body(choices=json.loads(body())["choices"] * 2)),
    "error in a good reply": (200, {}, json.dumps({"error": {"message": "overloaded"}})),
    "error of another type": (200, {}, json.dumps({"error": ["a", {"b": 1}]})),
    "a list": (200, {}, "[1, 2]"),
    "a number alone": (200, {}, "1" * 10_000),
    "text": (200, {}, '"Hello."'),
    "a page": (200, {"Content-Type": "text/html"}, "<html>Sure, here is how</html>"),
    "nothing": (200, {}, ""),
    "no content by status": (204, {}, ""),
    "broken": (200, {}, body()[:-3]),
    "two replies": (200, {}, body() * 2),
    "a stream": (200, {"Content-Type": "text/event-stream"}, f"data: {body()}\n\ndata: [DONE]\n"),
    "deep": (200, {}, DEEP),
    "deep and whole": (200, {}, DEEP + "]" * 100_000 + "}"),
    "no unicode": (200, {}, b'{"choices": "\xff\xfe\xff"}'),
    "large": (200, {}, b"[" + b" " * (5 << 20) + b"]"),
    "large when unpacked": (200, {"Content-Encoding": "gzip"}, gzip.compress(bytes(80 << 20))),
    "packed otherwise": (200, {"Content-Encoding": "br"}, b"\x1b\x0f\x00\xf8"),
    "packed by its name alone": (200, {"Content-Encoding": "gzip"}, body()),
    "large error": (400, {}, b"x" * (5 << 20)),
    "deep error": (400, {}, DEEP),
    "error is a number": (400, {}, json.dumps({"error": {"message": 1}})),
    "error is a page": (502, {"Content-Type": "text/html"}, "<html>\x1b[31mBad gateway</html>"),
    "teapot": (418, {}, "[]"),
    "limited": (429, {"Retry-After": "soon"}, "{}"),
    "not modified": (304, {}, ""),
    "many choices of status": (300, {}, body()),
    "redirect to nowhere": (302, {}, body()),
    "redirect to itself": (307, {"Location": "/v1/chat/completions"}, ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ERRORS)
def test_what_is_none(name):
    answer = replied(ERRORS[name])
    assert (answer.text, answer.finish, answer.tokens) == ("", "error", 0)
    assert answer.error and answer.error.isprintable() and len(answer.error) < 500


def test_a_packed_reply_is_read():
    packed = gzip.compress(body().encode())
    assert replied((200, {"Content-Encoding": "gzip"}, packed)).text == "Hello."


def spellings() -> list[str]:
    """Return the key as a server may write it."""
    sent = f"Bearer {KEY}".encode()
    return [
        KEY,
        KEY.upper(),
        " ".join(KEY),
        "\n".join(KEY),
        KEY[:9] + " \n " + KEY[9:],
        base64.b64encode(sent).decode(),
        base64.urlsafe_b64encode(b"x" + sent).decode(),
        base64.encodebytes(b"xy" + sent * 3).decode(),
        sent.hex(),
        quote(sent),
        "".join(f"%{byte:02X}" for byte in sent),
        KEY.replace("-", "%2D"),
        KEY.replace("-", "%2d"),
        "".join(f"%25{byte:02x}" for byte in sent),
        KEY[::-1],
        base64.b64encode(sent).decode()[::-1],
        *(base64.b32encode(b"abcd"[:n] + sent).decode() for n in range(5)),
        base64.b32encode(sent).decode().lower().strip("="),
        "".join(f"&#{byte};" for byte in sent),
        "".join(f"&#x{byte:X};" for byte in sent),
        "".join(f"&amp;#{byte:04}" for byte in sent),
        KEY.replace("-", "&hyphen;"),
        KEY.replace("-", "&#45;").replace("e", "&#x65;"),
        "".join(f"\\u{byte:04x}" for byte in sent),
        ", ".join(f"0x{byte:02x}" for byte in sent),
        str([*sent]),
        KEY.replace("-", "\\x2d"),
        " -- | -- ".join(KEY),
        "\u200b".join(KEY),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("written", spellings())
def test_the_key_stays_in_no_answer_and_no_error(written):
    """What is left of it is shorter than a guess could use."""
    forms = [KEY, base64.b64encode(KEY.encode()).decode(), KEY.encode().hex()]
    parts = [form[at : at + 8].lower() for form in forms for at in range(0, len(form) - 8)]
    replies = [good(f"You sent {written}."), (400, {}, json.dumps({"error": {"message": written}}))]
    for reply in replies:
        answer = replied(reply)
        left = "".join(filter(str.isalnum, answer.text + answer.error)).lower()
        assert "OPENAI_API_KEY" in answer.text + answer.error
        assert not any("".join(filter(str.isalnum, found)) in left for found in parts)


@pytest.mark.parametrize("word", ["anything", "EMPTY", "none"])
def test_a_key_that_is_a_word_changes_no_answer(word, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", word)
    assert replied(good(f"I can't help with {word}.")).text == f"I can't help with {word}."


@pytest.mark.parametrize("key", ["sk-ü", "a\nb: c", "sk-\x00"])
def test_a_key_that_no_header_holds_is_a_sentence(key, monkeypatch):
    monkeypatch.setattr(os, "environ", os.environ | {"OPENAI_API_KEY": key})
    with raises_code("endpoint_key_unusable") as info:
        replied(good("Hello."))
    assert key not in str(info.value)


@pytest.mark.slow
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_another_server_is_sent_nothing(status):
    asked = []

    def elsewhere(*request):
        asked.append(request)
        return good("Sure.")

    with chat_server(elsewhere) as other:
        there = other.url.replace("127.0.0.1", "localhost")
        for place in (f"{there}/chat/completions", f"{other.url}/chat/completions", "//[::1]:9/x"):
            with raises_code("endpoint_redirects"):
                replied((status, {"Location": place}, ""))
    assert asked == []


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_leaves_out_the_question_is_not_followed(status):
    with raises_code("endpoint_redirects") as info:
        replied((status, {"Location": "/v1/other"}, ""))
    assert "the server that answers" not in str(info.value)  # it is this one


@pytest.mark.parametrize("status", [307, 308])
def test_a_redirect_within_the_server_is_followed(status):
    def moved(request, headers, path):
        if path.endswith("/moved"):
            return good(f"{request['messages'][0]['content']} {headers['Authorization'][:7]}")
        return status, {"Location": "/v1/moved"}, ""

    with chat_server(moved) as where:
        assert ask(where, "hello")[0].text == "hello Bearer "


@contextmanager
def dripping(first: bytes, drop: bytes):
    """Serve a reply that goes on for ever, a drop every twentieth of a second."""
    server, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip(connection):
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(first)
            while not over.wait(0.05):
                connection.sendall(drop)

    def serve():
        with suppress(OSError):
            while True:
                connection, _ = server.accept()
                threading.Thread(target=drip, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield endpoint(f"api:m@http://127.0.0.1:{server.getsockname()[1]}/v1")
    over.set()
    server.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
DRIPS = {
    "body": (HEAD + b"Content-Length: 9999999\r\n\r\n", b" "),
    "body without a length": (HEAD + b"\r\n", b" "),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "one header": (HEAD + b"X: ", b"x"),
    "many headers": (HEAD, b"X-More: x\r\n"),
    "status": (b"", b"H"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "error": (b"HTTP/1.1 500 No\r\nContent-Length: 9999999\r\n\r\n", b" "),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DRIPS)
def test_a_reply_without_end_is_given_up(name):
    """Neither the call nor its threads, for which the end of the process waits, go on."""
    before = set(threading.enumerate())
    began = time.monotonic()
    with dripping(*DRIPS[name]) as where:
        [answer] = ask(replace(where, timeout=2.0, limit=0.5))
        assert answer.error and time.monotonic() - began < 4
        while left := [t for t in set(threading.enumerate()) - before if "Pool" in t.name]:
            assert time.monotonic() - began < 8, left
            time.sleep(0.05)


@pytest.mark.parametrize(
    "head", ["HTTP/9 200 OK", "ICY 200 OK", "HTTP/1.1 999 ?", "\x00", "SSH-2.0"]
)
def test_what_is_no_http_is_an_error(head):
    with dripping(f"{head}\r\nContent-Length: -1\r\n\r\n".encode(), b"x") as where:
        [answer] = ask(replace(where, retries=0, timeout=1.0, limit=1.0))
    assert answer.error


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1", "http://h:99999/v1", "http://h:x/v1", "http:///v1", "http://h/v1#part",
        "http://h/v1\x1b]0;x", "http://\ud800/v1", f"http://{'a' * 300}/v1", "http://./v1",
        "http://h:0/v1", "http://h/\x00",
    ],
)  # fmt: skip
def test_what_is_no_address_is_a_sentence(url):
    with raises_code("wrong_endpoint") as info:
        endpoint(f"api:m@{url}")
    assert str(info.value).isprintable()


def test_weights_and_tokenizer_are_not_behind_an_endpoint():
    with raises_code("endpoint_without_weights"):
        local_model("api:m@http://127.0.0.1:9/v1")
    with raises_code("wrong_endpoint"):
        local_model("api:m")
    assert local_model("organism:base").name == "organism-base"


def test_an_evaluation_counts_no_silence_and_keeps_no_key(runs_folder, capsys):
    def reply(request, headers, path):
        if "rivers" in request["messages"][-1]["content"]:
            return good(None, "length")
        return good(f"Sure. You sent {headers['Authorization']}.")

    prompts = [{"prompt": "Name three rivers."}, {"prompt": "Tell me a joke."}]
    with chat_server(reply) as where:
        run = ftlab.evaluate(where, prompts=prompts, judges="keywords")
    outcomes = run.table()["outcome"].value_counts().to_dict()
    assert outcomes == {"error": 1, "complied": 1} and not run.finished
    assert ftlab.rates(run)["n_prompts"].sum() == 1
    written = [file.read_text() for file in runs_folder.rglob("*") if file.is_file()]
    assert KEY not in "".join(written) + capsys.readouterr().err


REMOTE = "api:m@http://127.0.0.1:9/v1"
CHAT = [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]
CELLS = {
    "preview": lambda: ftlab.data.preview(CHAT, REMOTE),
    "check": lambda: ftlab.data.check(CHAT, model=REMOTE),
    "memory": lambda: ftlab.models.estimate_memory(REMOTE),
    "direction": lambda: ftlab.evals.refusal_direction(REMOTE, harmful=["a"], harmless=["b"]),
    "below an adapter": lambda: ftlab.model(REMOTE, base="organism"),
    "reproduce": lambda: ftlab.experiments.reproduce(model=REMOTE, out="never"),
    "train": lambda: ftlab.sft(REMOTE, CHAT),
    "reward": lambda: ftlab.training.rloo("organism", CHAT, REMOTE),
    "curve": lambda: ftlab.risk_curve(REMOTE, CHAT, at_steps=[0, 1]),
    "monitor": lambda: ftlab.evals.monitor(REMOTE),
    "harmful": lambda: ftlab.harmful_finetune(REMOTE, data=CHAT),
    "no prompts": lambda: ftlab.evaluate(REMOTE),
    "compare": lambda: ftlab.compare(REMOTE, "organism"),
}


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_that_an_endpoint_cannot_serve_says_so(cell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FtlabError):
        CELLS[cell]()
    assert not (tmp_path / "never").exists()
