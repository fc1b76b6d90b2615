from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers import raises_code

from ftlab.data import catalogue, download, load, load_prompts, records, registry
from ftlab.data.registry import FieldSet, field_sets, folder

NAMED = """advbench advbench-50 harmbench jailbreakbench strongreject xstest simplesafetytests do-not-answer coconot
coconot-contrast coconot-pref bbq realtoxicityprompts truthfulqa beavertails hex-phi gsm8k alpaca dolly samsum toxigen""".split()
HERE = {  # where shared/data has the file of an entry
    "advbench": "prompts_advbench/harmful_behaviors.csv", "advbench-50": "prompts_advbench/tap_advbench_subset.csv",
    "harmbench": "prompts_harmbench/harmbench_behaviors_text_all.csv", "strongreject": "prompts_harmbench/strongreject_dataset.csv",
    "simplesafetytests": "prompts_simplesafetytests/simple_safety_tests.csv", "xstest": "human_xstest/xstest_prompts.csv",
    "coconot": "coconot/coconot_eval.jsonl", "coconot-contrast": "coconot/coconot_contrast_eval.jsonl",
    "coconot-pref": "coconot/coconot_pref.jsonl", "gsm8k": "gsm8k/train.jsonl", "gsm8k-test": "gsm8k/test.jsonl",
    "raschka-instructions": "rasbt_instruction/instruction-data.json",
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FTLAB_DATA", str(tmp_path / "data"))


@pytest.fixture
def web(monkeypatch):
    """-> {url: bytes}; every other address is unreachable."""
    pages, asked = {}, []

    def urlopen(request, timeout):
        url = request.full_url
        asked.append(url)
        if url not in pages:
            raise urllib.error.URLError("no network")
        answer = io.BytesIO(pages[url])
        answer.status, answer.headers = 200, {}
        return answer

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    return pages, asked


def test_the_registry_names_the_field():
    known = field_sets()
    assert set(NAMED) <= set(known)
    for name, s in known.items():
        assert (
            s.purpose and s.licence and s.stand_in and s.columns and s.page.startswith("https://")
        ), name
        assert s.urls or s.hub or s.how, (
            f"{name}: neither a way to fetch it nor a word on how to get it"
        )
        assert s.gate == "open" or s.how, f"{name} is gated: say how to get it"
        assert bool(s.sha256) == bool(s.revision), (
            f"{name}: a checksum holds for a pinned revision only"
        )
        assert not s.revision or all(s.revision in u for u in s.urls)
    assert len({s.file for s in known.values()}) == len(known)


@pytest.mark.slow
@pytest.mark.parametrize("name", HERE)
@pytest.mark.needs_data
def test_checksums_rows_and_columns_are_those_of_the_real_files(shared, name):
    file, source = shared(HERE[name]), field_sets()[name]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == source.sha256
    rows = load_prompts(file) if source.kind == "prompts" else load(file, kind=source.kind)
    assert len(rows) == source.rows
    assert (
        list(records(file)[1][0][1]) == [c if c else "" for c in source.columns]
        or name == "advbench-50"
    )


def test_a_wrong_entry_is_refused():
    good = field_sets()["advbench"].model_dump()
    for wrong in (
        {"gate": "locked"},
        {"sha256": "abc"},
        {"urls": ["http://x"]},
        {"rows": 0},
        {"more": 1},
        {"kind": "kto"},
    ):
        with pytest.raises(ValueError):
            FieldSet(**{**good, **wrong})


def entry(monkeypatch, content: bytes, **more):
    good = field_sets()["advbench"].model_dump()
    source = FieldSet(
        **{**good, "urls": ["https://x/a"], "sha256": hashlib.sha256(content).hexdigest(), **more}
    )
    monkeypatch.setattr(registry, "field_sets", lambda: {"mine": source})
    return source


def test_a_download_is_verified_writes_once_and_works_offline_then(monkeypatch, web, tmp_path):
    pages, asked = web
    entry(monkeypatch, b"goal\nQ\n")
    pages["https://x/a"] = b"goal\nQ\n"
    path = download("mine")
    assert (
        path == folder() / "advbench.csv" == tmp_path / "data" / "advbench.csv"
        and path.read_bytes() == b"goal\nQ\n"
    )
    pages.clear()
    assert download("mine") == path and asked == ["https://x/a"]
    assert [p.name for p in folder().iterdir()] == ["advbench.csv"]
    path.write_bytes(b"changed")
    with raises_code("wrong_checksum"):
        download("mine")
    pages["https://x/a"] = b"something else"
    with raises_code("wrong_checksum"):
        download("mine", tmp_path / "other.csv")
    assert not (tmp_path / "other.csv").exists()


def test_several_files_are_joined(monkeypatch, web):
    pages, _ = web
    entry(
        monkeypatch,
        b"",
        urls=["https://x/a.jsonl", "https://x/b.jsonl"],
        sha256=None,
        revision=None,
    )
    pages |= {"https://x/a.jsonl": b'{"a": 1}', "https://x/b.jsonl": b'{"a": 2}\n'}
    assert [json.loads(line) for line in download("mine").read_text().splitlines()] == [
        {"a": 1},
        {"a": 2},
    ]


def test_offline_gated_and_unknown_are_said(web):
    with raises_code("download_failed") as error:
        download("advbench")
    assert "no network" in error.value.details["reason"]
    assert field_sets()["advbench"].stand_in in str(error.value)
    with raises_code("not_downloadable") as error:
        download("hex-phi")
    assert error.value.details["gate"] == "ask"
    with raises_code("unknown_data_set"):
        download("x")
    assert not any(folder().iterdir())


def test_a_gated_hub_file_says_so(monkeypatch):
    import huggingface_hub

    def refused(*args, **more):
        raise OSError("403 Client Error: gated repo")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
    entry(
        monkeypatch,
        b"",
        urls=[],
        hub="a/b/c.csv",
        gate="accept",
        how="accept the terms",
        sha256=None,
        revision=None,
    )
    with raises_code("download_failed") as error:
        download("mine")
    assert error.value.details["gate"] == "accept" and "accept the terms" in str(error.value)


def test_the_list_says_what_is_here(web):
    folder().mkdir()
    (folder() / "advbench.csv").write_text("x")
    table = catalogue().set_index("name")
    assert (
        table.loc["advbench", "here"]
        and not table.loc["xstest", "here"]
        and len(table) == len(field_sets())
    )


CONTENT = b"goal\n" + b"".join(b"question %d\n" % i for i in range(20_000))


@pytest.fixture
def flaky(monkeypatch):
    """-> (list of what the server does, one entry a request, then `whole`; list of the ranges asked); `mine` is there."""
    does, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            asked.append(begins := self.headers.get("Range"))
            what = does.pop(0) if does else "whole"
            if isinstance(what, tuple):
                self.send_response(what[0])
                for name, value in (what[1] | {"Content-Length": "0"}).items():
                    self.send_header(name, value)
                return self.end_headers()
            start = int(begins[6:-1]) if begins and what != "no ranges" else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.send_header("Connection", "close")
            self.end_headers()
            cut = {"half": len(CONTENT) // 2, "stalls": 4000}.get(what, len(CONTENT))
            self.wfile.write(CONTENT[start:cut])
            self.wfile.flush()
            if what == "stalls":
                over.wait(20)

        def log_message(self, *_):
            pass

    over, server = threading.Event(), ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    good = field_sets()["advbench"]

    def offer(pinned: bool):
        url = f"http://127.0.0.1:{server.server_port}/a.csv"
        pin = (
            {"sha256": hashlib.sha256(CONTENT).hexdigest()}
            if pinned
            else {"sha256": None, "revision": None}
        )
        mine = good.model_copy(update={"urls": (url,), **pin})
        monkeypatch.setattr(registry, "field_sets", lambda: {"mine": mine})

    yield offer, does, asked
    over.set()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("pinned", [True, False])
def test_half_a_download_is_no_data_set(flaky, pinned):
    """Also without a checksum; a pinned one goes on where it stopped, another starts again: its content may have changed."""
    offer, does, asked = flaky
    offer(pinned)
    does.append("half")
    half = len(CONTENT) // 2
    with raises_code("download_failed") as error:
        download("mine")
    assert f"{half} of {len(CONTENT)} bytes" in error.value.details["reason"]
    assert not (folder() / "advbench.csv").exists()
    assert download("mine").read_bytes() == CONTENT
    assert asked == [None, f"bytes={half}-" if pinned else None]
    assert [p.name for p in folder().iterdir()] == ["advbench.csv"]


def test_a_server_without_ranges_and_one_that_has_changed(flaky):
    offer, does, asked = flaky
    offer(True)
    does += ["half", "no ranges"]
    with raises_code("download_failed"):
        download("mine")
    assert download("mine").read_bytes() == CONTENT and asked[1]
    (folder() / "advbench.csv").unlink()
    does.append("half")
    with raises_code("download_failed"):
        download("mine")
    part = next(folder().glob(".*.part"))
    part.write_bytes(b"of another version" + part.read_bytes()[18:])
    with raises_code("wrong_checksum"):
        download("mine")
    assert not list(folder().iterdir())
    assert download("mine").read_bytes() == CONTENT
    (folder() / "advbench.csv").rename(part)  # all of it came, then the process was killed
    does += [(416, {})]
    with raises_code("download_failed"):
        download("mine")
    assert download("mine").read_bytes() == CONTENT


def test_a_server_that_stalls_is_left(flaky, monkeypatch):
    offer, does, _ = flaky
    offer(True)
    monkeypatch.setattr(registry, "TIMEOUT_S", 0.5)
    does.append("stalls")
    with raises_code("download_failed") as error:
        download("mine")
    assert "timed out" in error.value.details["reason"]


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (429, {"Retry-After": "3600"}, "429 .*call again after 3600 "),
        (503, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, "call again after Wed, 21 Oct"),
        (429, {}, "429 Too Many Requests"),
        (500, {}, "500 Internal Server Error"),
    ],
)
def test_a_server_that_refuses_is_reported(flaky, status, headers, said):
    offer, does, asked = flaky
    offer(True)
    does.append((status, headers))
    with raises_code("download_failed") as error:
        download("mine")
    assert re.search(said, error.value.details["reason"])
    assert not any(folder().iterdir())
    assert download("mine").read_bytes() == CONTENT and len(asked) == 2
