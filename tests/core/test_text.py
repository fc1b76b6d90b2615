"""Untrusted text: escaped, cut, without secrets, and harmless in a spreadsheet."""

from __future__ import annotations

import html

import pandas as pd
import pytest
from hostile import CANARIES, TOKENS_IN_TEXT, assert_csv, assert_seen

from ftlab._core.text import csv, encodable, for_csv, redacted, safe, throughout

NO_TOKENS = [
    "risk-curve-0123456789abcdef0123",
    "task-0123456789abcdef0123",
    "sk-learn",
    "models/sk-learn-like-3b-instruct-v2",
    "hf_model_name_of_a_run",
    "api:m@http://127.0.0.1:8000/v1",
    "https://example.org/@user/a?key",
    "Bearer of bad news",
    "the bearer certificates",
    "a@b.org",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", CANARIES)
def test_text_is_made_visible_and_cut(name):
    text = CANARIES[name]
    assert_seen(safe(text), 2100)
    assert_seen(safe(text, 10), 60)
    assert_csv(csv(pd.DataFrame({"a": ["a"], encodable(text[:50]): [encodable(text)]})))
    if len(text) > 2000:
        shown = safe(text)
        assert shown.startswith("x" * 2000 + "... ") and str(len(text) - 2000) in shown


def test_what_is_harmless_stays():
    for text in ("", "Zoë said: 5 < 6 & 字 🦊", "two\nlines", "a\\n", "x" * 2000):
        assert safe(text) == text == for_csv(text) == redacted(text) == encodable(text)
    numbers = [1, -2.5, "-2.5", "+1", "1e-3", None, True]
    assert [for_csv(value) for value in numbers] == numbers
    assert for_csv("-a") == "'-a"
    assert for_csv("\u00a0x") == "\u00a0x" and for_csv("a\tb\nc") == "a\tb\nc"


def test_html_is_escaped_after_it_is_made_visible():
    assert html.escape(safe("<b>\x1b")) == "&lt;b&gt;\\x1b"


def test_unpaired_surrogates_become_encodable():
    assert encodable(CANARIES["surrogates"]) == "\\ud800 alone \\udfff"


@pytest.mark.parametrize("text", TOKENS_IN_TEXT)
def test_secrets_are_taken_out(text):
    shown = redacted(text)
    assert "token removed" in shown and "aB3" not in shown and "pass" not in shown
    held = {"a": [text, {"b": text}], "n": 1}
    assert throughout(held, redacted) is held
    assert "aB3" not in str(held) and held["n"] == 1


@pytest.mark.parametrize("text", NO_TOKENS)
def test_names_that_look_like_secrets_stay(text):
    assert redacted(text) == text


def test_a_key_of_no_known_form_is_known_by_its_variable(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "abc-123-of-a-local-server")
    monkeypatch.setenv("HF_TOKEN", "x")  # too short to look for: every x would go
    assert redacted("said abc-123-of-a-local-server x") == "said [OPENAI_API_KEY] x"
    for written in ("revres-lacol-a-fo-321-cba", "a-b-c 123 of a local: server"):
        assert redacted(f"100%, é <{written}> 0x!") == "100%, é <[OPENAI_API_KEY]> 0x!"
    coded = "100%, é <a&#98;c&#45;1%323 of a \\x6cocal: server> 0x!"
    assert redacted(coded) == "[OPENAI_API_KEY]"  # decoded text might be markup
    for near in ("abc-123-of-a-local-serve", "&#97;bc-123", "a server of abc-123", "0x61 %61 &lt;"):
        assert redacted(near) == near


@pytest.mark.slow
@pytest.mark.parametrize(
    "hostile",
    [
        "sk-" * 300_000,
        "sk-a-" * 200_000,
        "Bearer " * 10**5,
        "://" * 300_000,
        "bearer" + " " * 10**6,
    ],
)
def test_a_search_for_secrets_takes_no_longer_than_reading(hostile):
    """A pattern that takes the square of the length would not come to an end here."""
    assert redacted(hostile) is not None


def test_no_formula_begins_where_a_spreadsheet_splits_a_cell():
    for text in ("a;=1+1", "a; @x", 'a;"=1"', "a\t+1", "a|=1", "x;-1+2"):
        cell = for_csv(text)
        assert cell.replace("'", "") == text and cell != text
    for text in ("a; b", "a - b; c", "so; - and so", "1;2"):
        assert for_csv(text) == text
