"""Code for copying: a reader of Markdown or HTML gets it to the letter, whatever is in it."""

from __future__ import annotations

import html
import re
import shlex

import pytest

from ftlab.analysis import rendering

CODE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)  # of CommonMark
NAMES = [
    "plain.jsonl",
    "two  blanks.jsonl",
    "rows`;echo PWNED>/tmp/x;`.jsonl",
    "`",
    "``a```b`",
    " edges ",
    "it's | $(here) <b> \\ [x](y)",
]


def code_in(markdown: str) -> str:
    """Return what a reader of CommonMark makes of the only code in a text."""
    (found,) = CODE.findall(markdown)
    text = found[1].replace("\n", " ")
    if text.strip() and text[0] == text[-1] == " ":
        text = text[1:-1]
    return text


@pytest.mark.parametrize("name", NAMES)
def test_a_command_is_shown_to_the_letter(name):
    words = ["ftlab", "sft", "organism", name]
    told = shlex.join(words)
    assert code_in(f"- command: {rendering._code_in_markdown(told)}") == told
    (inside,) = re.findall(r"<code>(.*)</code>", str(rendering._code_in_html(told)))
    assert html.unescape(inside) == told and shlex.split(html.unescape(inside)) == words


def test_code_that_begins_or_ends_with_blanks_or_fences_is_whole():
    for text in (" a ", "`a`", " a", "`", "a ``"):
        assert code_in(str(rendering._code_in_markdown(text))) == text


@pytest.mark.parametrize(
    "text", ["a\nrm -rf x", "a\x1b[2Jb", "a\u202eb", "x" * 30_000, "https://u:pass@h/"]
)
def test_code_that_cannot_be_shown_to_the_letter_is_not_shown(text):
    for shown in (rendering._code_in_markdown(text), rendering._code_in_html(text)):
        assert rendering.NOT_SHOWN in shown and "pass" not in shown and "rm" not in shown
