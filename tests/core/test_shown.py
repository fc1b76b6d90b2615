"""Text from outside is pushed through every display function: it is shown escaped and cut, and no token with it."""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import math
import sys
from pathlib import Path

import pandas as pd
import pytest

import ftlab
from ftlab import cli
from ftlab.runs import store as runs
from ftlab._core.text import FORMULA, encodable, for_csv, redacted, safe, throughout

CANARIES = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "ansi": "\x1b[2J\x1b]0;owned\x07gone\x9b31m",
    "return": "honest\rforged",
    "bidi": "\u202egnp.exe\u2066",
    "magic": "%rm x",
    "shell": "!touch x",
    "fence": "```\n!touch x\n```",
    "long": "x" * 1_000_000,
    "surrogates": "\ud800 alone \udfff",
    "hyperlink": '=HYPERLINK("http://example.org?"&A1,"here")',
    "plus": "+1+cmd|' /C calc'!A0",
    "at": "@SUM(1)",
    "tab": "\t=1",
    "row": "a\r=1+1",
}
TOKENS = ["hf_" + "aB3" * 11, "sk-" + "aB3" * 11, "sk-proj-aB3_" + "x-aB3_" * 9 + "b" * 20, "Bearer " + "aB3." * 8]
TOKENS_IN_TEXT = [
    "https://user:pass@example.org/v1", "http://:pass@h", "https://x.org/a?api_key=pass&b=1", "\x1b[31m" + TOKENS[0],
    "'line\\n" + TOKENS[1] + "'", *(f"({t})" for t in TOKENS),
]  # fmt: skip
NONE = ["risk-curve-0123456789abcdef0123", "task-0123456789abcdef0123", "sk-learn", "models/sk-learn-like-3b-instruct-v2",
        "hf_model_name_of_a_run", "api:m@http://127.0.0.1:8000/v1", "https://example.org/@user/a?key", "Bearer of bad news",
        "the bearer certificates", "a@b.org"]  # fmt: skip


def assert_seen(text: str, most: int = 150_000) -> None:
    """Nothing that moves a cursor, hides, or cannot be encoded; and not too much of it."""
    assert all(c.isprintable() or c == "\n" for c in text), sorted({c for c in text if not c.isprintable()})
    assert len(text) <= most
    text.encode()


def assert_page(text: str) -> None:
    assert_seen(text)
    assert "<script" not in text and "<img src=x" not in text


def assert_csv(text: str) -> None:
    """Read as a spreadsheet does, whatever it takes for the end of a row, no field is a formula."""
    csv.field_size_limit(10**7)
    for reader in (csv.reader(io.StringIO(text, newline="")), csv.reader(text.splitlines())):
        for field in (f for row in reader for f in row):
            try:
                float(field)
            except ValueError:
                assert not field.startswith(FORMULA), field[:50]
    assert not any(ord(c) < 32 and c not in "\n\t" or 127 <= ord(c) < 160 or 0xD800 <= ord(c) < 0xE000 for c in text)


@pytest.mark.parametrize("name", CANARIES)
def test_text_is_made_visible_and_cut(name):
    text = CANARIES[name]
    assert_seen(safe(text), 2100)
    assert_seen(safe(text, 10), 60)
    assert_csv(f"a,{pd.DataFrame({'x': [for_csv(text)]}).to_csv(index=False)}")
    if len(text) > 2000:
        assert safe(text) == "x" * 2000 + "... (998000 characters more)"


def test_what_is_harmless_stays():
    for text in ("", "Zoë said: 5 < 6 & 字 🦊", "two\nlines", "a\\n", "x" * 2000):
        assert safe(text) == text == for_csv(text) == redacted(text)
    assert [for_csv(v) for v in (1, -2.5, "-2.5", "+1", "1e-3", None, True)] == [
        1,
        -2.5,
        "-2.5",
        "+1",
        "1e-3",
        None,
        True,
    ]
    assert for_csv("-a") == "'-a" and for_csv("\u00a0x") == "\u00a0x" and for_csv("a\tb\nc") == "a\tb\nc"


@pytest.mark.parametrize("text", TOKENS_IN_TEXT)
def test_tokens_are_taken_out(text):
    assert "token removed" in redacted(text) and "aB3" not in redacted(text) and "pass" not in redacted(text)
    held = {"a": [text, {"b": text}], "n": 1}
    assert "aB3" not in str(throughout(held, redacted)) and held["n"] == 1


@pytest.mark.parametrize("text", NONE)
def test_names_that_look_alike_are_no_tokens(text):
    assert redacted(text) == text


def test_a_key_of_no_known_form_is_known_by_its_variable(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "abc-123-of-a-local-server")
    monkeypatch.setenv("HF_TOKEN", "x")  # too short to be looked for: every x would go
    assert redacted("said abc-123-of-a-local-server x") == "said [OPENAI_API_KEY] x"


@pytest.mark.parametrize(
    "hostile", ["sk-" * 300_000, "sk-a-" * 200_000, "Bearer " * 100_000, "://" * 300_000, "bearer" + " " * 10**6]
)
def test_a_search_for_tokens_takes_no_longer_than_reading(hostile):
    """A pattern that takes the square of the length would not come to an end here."""
    assert redacted(hostile) is not None


@pytest.fixture
def answers(tmp_path) -> Path:
    """A file of prompts and answers, all canaries; JSON holds them exactly."""
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"q": c, "a": c, "human": c[:40]}) + "\n" for c in CANARIES.values()))
    return file


def test_verdicts_of_hostile_answers(answers, tmp_path, monkeypatch, capsys):
    from ftlab.judges.answer_files import describe

    for name in ("o.csv", "o.jsonl"):
        table = ftlab.judge(answers, prompt="q", response="a", judges=["keywords", "refusal"], out=tmp_path / name)
    assert_csv((tmp_path / "o.csv").read_text())
    kept = [json.loads(line)["a"] for line in (tmp_path / "o.jsonl").read_bytes().splitlines()]
    assert kept == [encodable(c) for c in CANARIES.values()], "JSONL is exact, but for what UTF-8 does not have"
    assert_seen(describe(table, prompt="q", label="human", refused=[CANARIES["script"]]))
    words = ["judge", answers, "--prompt", "q", "--response", "a", "--label", "human", "--refused", "%rm x"]
    monkeypatch.setattr(sys, "argv", ["ftlab", *map(str, words)])
    with pytest.raises(SystemExit) as e:
        cli.main()
    assert not e.value.code and (out := capsys.readouterr().out)
    assert_seen(out)


def test_checks_and_errors_of_hostile_files(tmp_path, monkeypatch, capsys):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": c, "completion": 3, c: c}) + "\n" for c in CANARIES.values()))
    file.write_bytes(file.read_bytes() + b'{"prompt": "\x1b[2J", "messages": [{"role": "\xed\xa0\x80"}]}\n')
    lines = [{"messages": [{"role": c, "content": c}]} for c in CANARIES.values()]
    (tmp_path / "roles.json").write_text(json.dumps(lines))
    for source in (file, tmp_path / "roles.json"):
        found = ftlab.check(source)
        assert not found.usable
        assert_seen(str(found))
        assert_page(found._repr_html_())
        with pytest.raises(ValueError) as e:
            ftlab.read(source)
        assert_seen(str(e.value))
        monkeypatch.setattr(sys, "argv", ["ftlab", "check", str(source)])
        with pytest.raises(SystemExit):
            cli.main()
        out = capsys.readouterr()
        assert_seen(out.out + out.err)


def test_a_preview_of_hostile_rows(tokenizer, monkeypatch):
    from ftlab.data import Preview

    seen = Preview([[(c, on) for on in (True, False)] for c in CANARIES.values()])
    assert_seen(repr(seen))
    assert_page(seen._repr_html_())


def test_figures_write_harmless_tables(tmp_path):
    table = pd.DataFrame([{"step": k, "risk": f"{c[:300]}{i}", "rate": 0.5, "low": 0.1, "high": 0.9} for i, c in enumerate(CANARIES.values()) for k in (0, 1)][:12])  # fmt: skip
    ftlab.plot(table, "f", tmp_path, caption=CANARIES["ansi"])
    assert_csv((tmp_path / "f.csv").read_text())
    assert_seen((tmp_path / "f.txt").read_text())
    assert "\x1b" not in (tmp_path / "f.svg").read_text()


def test_claims_and_the_report_of_hostile_texts(tmp_path):
    from ftlab.analysis.claims import claim
    from ftlab.analysis.report import write_report

    for name, text in CANARIES.items():
        text = f"{text[:20_000]} {TOKENS[0]} https://u:pass@h/"
        for _ in range(2):  # the second replaces the first
            made = claim("02", text if name != "row" else CANARIES["row"], published="enkrypt_ratio_1_5", measured=math.nan, low=1.0, high=2.0,
                         n_prompts=2, n_seeds=1, null=1.0, model=text, differs=text, note=text, out=tmp_path / "02")  # fmt: skip
        assert_seen(repr(made))
        assert_page(made._repr_html_())
    assert_csv((tmp_path / "02" / "claims.csv").read_text())
    folder = tmp_path / "02" / "figures"
    folder.mkdir()
    (folder / "f.txt").write_bytes("".join(c[:500] for c in CANARIES.values()).encode("utf-8", "replace"))
    (folder / "f.png").write_bytes(b"\x89PNG" * 100_000)
    (tmp_path / "run.json").write_text(json.dumps({"benign": CANARIES["ansi"], "commit": TOKENS[1]}))
    page = write_report(tmp_path, {"02": tmp_path / "02"}, model="m", seeds=1)
    assert len((tmp_path / "results.csv").read_text().split("02,")) == len(CANARIES) + 1
    assert_csv((tmp_path / "results.csv").read_text())
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        assert all(c.isprintable() or c == "\n" for c in text) and "<script" not in text and "<img src=x" not in text
        assert "aB3" not in text and "pass@" not in text
    assert base64.b64encode(b"\x89PNG" * 100_000).decode() in page.read_text(), "the picture is whole"


def test_a_run_and_a_model_show_themselves(llama, runs_folder):
    run = runs.start("sft", "x", {"a": 1})
    run.complete(**CANARIES)
    assert_page(run._repr_html_())
    model = ftlab.model(llama)
    for canary in CANARIES.values():
        model.__dict__["config"] = {**model.config, "architectures": [canary], "hidden_size": canary}
        assert_page(model._repr_html_())


def test_a_table_of_verdicts_opens_whatever_a_judge_said(runs_folder):
    run = runs.start("evaluate", "x", {"a": 1})
    row = {"key": "a", "risk": "jailbreak", "prompt_id": "1", "step": 0, "verdict": "refused"}
    run.append("verdicts.jsonl", [row | {"why": c} for c in CANARIES.values()])
    assert run.table()["why"].tolist() == [encodable(c) for c in CANARIES.values()]
    assert [r["why"] for r in run.read("verdicts.jsonl")] == list(CANARIES.values()), "the file is exact"


@pytest.mark.parametrize("where", ["terminal", "batch", "jupyter"])
def test_progress_shows_names_safely(where, monkeypatch, capsys):
    from ftlab._core import progress

    shown = []
    monkeypatch.setattr(progress, "surface", lambda: where)
    monkeypatch.setattr(progress, "LINE_S", dict.fromkeys(progress.LINE_S, -1))
    monkeypatch.setattr("IPython.display.display", lambda bundle, **_: shown.append(bundle["text/plain"]))
    for canary in CANARIES.values():
        bar = progress.Progress(canary, 2)
        bar.update(1, canary)
        assert_seen((capsys.readouterr().err.removeprefix("\r\x1b[K") if where != "jupyter" else shown.pop()), 600)


def test_tables_and_failures_on_the_command_line(monkeypatch, capsys):
    cli._print(pd.DataFrame({encodable(c[:1000]): [encodable(c), 1.5] for c in CANARIES.values()}))
    assert_seen(capsys.readouterr().out)

    def fail(error):
        def app(**_):
            raise error

        monkeypatch.setattr(cli, "app", app)
        with pytest.raises((SystemExit, KeyError)) as e:
            cli.main()
        if not isinstance(e.value, SystemExit):
            sys.excepthook(e.type, e.value, None)
        return capsys.readouterr().err

    for kind in (ValueError, FileNotFoundError, KeyError):
        for text in (*CANARIES.values(), *TOKENS_IN_TEXT):
            said = fail(kind(text))
            assert_seen(said, 25_000)
            assert said.startswith("ftlab: ") and "aB3" not in said and "pass@" not in said


@pytest.mark.parametrize(
    "where", ["https://user:pass@h/v1", "https://:pass@h/v1", "https://h/v1?key=pass", "ftp://u:pass@h"]
)
def test_an_address_with_a_password_is_no_model(where, runs_folder):
    """So none can come into a run's provenance; what is said does not repeat it."""
    for refused in (lambda: ftlab.model(f"api:m@{where}"), lambda: ftlab.judge([{"q": "a", "a": "b"}], prompt="q", response="a", judges=f"api:m@{where}")):  # fmt: skip
        with pytest.raises(ValueError, match="OPENAI_API_KEY|no endpoint") as e:
            refused()
        assert "pass" not in str(e.value).replace("password", "")
    assert not runs_folder.exists()


def test_html_is_escaped_after_it_is_made_visible():
    assert html.escape(safe("<b>\x1b")) == "&lt;b&gt;\\x1b"
