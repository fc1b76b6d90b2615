"""Untrusted text: escaped for terminals, HTML and spreadsheets, with secrets redacted.

Text of models, data files and servers is hostile input. HTML is escaped where HTML is made, by
`html.escape(safe(text))`. JSONL files keep every text exactly as it was.
"""

from __future__ import annotations

import difflib
import html
import os
import re
from base64 import b32encode, b64encode
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

# What stands between two dollars is no formula to JupyterLab (the first class) and nbconvert.
LITERAL = 'class="mathjax_ignore tex2jax_ignore"'
# What spreadsheets run as a formula (OWASP, CSV injection).
FORMULA_STARTS = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "＝",
    "＋",
    "－",
    "＠",
)
# Where a spreadsheet splits at semicolons, tabs or bars, a formula may begin inside of a cell.
INNER_FORMULA = re.compile(r"""([;\t|][\s"']*)(?=[=+@＝＋－＠]|-\S)""")
# Control characters other than tab and line feed, marks of text direction, unpaired surrogates.
CONTROLS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
NUMBER = re.compile(r"[+-]?([\d.]+(e[+-]?\d+)?|inf)", re.ASCII | re.IGNORECASE)
SECRET_VARIABLES = ("OPENAI_API_KEY", "HF_TOKEN")  # their values are never shown either
NO_LETTER = re.compile(r"[\W_]")
BETWEEN = r"[\W_]*+"  # what may stand between two characters of a secret
CODES = re.compile(r"(?:%(?:25)*|[%\\]u00|[0\\]x)([0-9a-f]{2})", re.IGNORECASE)
# A prefix and a length, so that `risk-curve`, `task-...` and `sk-` before short words are not
# taken for tokens. The first line also finds tokens after an escaped \n and after ANSI colours.
TOKENS = re.compile(
    r"(?:(?<![\w-])|(?<=\\[nrt])|(?<=[\d\[]m))(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]*?\w{16,}[\w-]*)"
    r"|(?<=://)[^\s/@\"'<>]{1,512}@"  # user:password@ of an address
    r"|(?<=[?&])((?:api[_-]?key|access_token|token|key)=)[^\s&\"'<>]+"
    r"|(?<![\w-])(bearer\s+)(?=\S{0,512}\d)[\w.~+/=-]{16,}",
    re.ASCII | re.IGNORECASE,
)


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" with the most similar known name; "" where none is similar."""
    spelled = {one.lower(): one for one in known}
    near = difflib.get_close_matches(str(name).lower(), spelled, 1)
    return f" Did you mean {spelled[near[0]]!r}?" if near else ""


def safe(text: object, most: int = 2000) -> str:
    """Return text that is safe to show: everything that does not print is escaped.

    Args:
        text: Anything.
        most: Number of characters shown; how many more there are is added.
    """
    text = str(text)
    shown = "".join(_visible(character) for character in text[:most])
    if len(text) > most:
        shown += f"... ({len(text) - most} more characters)"
    return shown


def _visible(character: str) -> str:
    if character.isprintable() or character == "\n":
        return character
    return character.encode("unicode_escape").decode()


def redacted(text: str) -> str:
    """Return the text without tokens, passwords in addresses, and values of secret variables."""
    return TOKENS.sub(_removed, without_secrets(text, words=True))


def without_secrets(text: str, words: bool = False) -> str:
    """Return the text without values of secret variables, encoded or spelled out ones included.

    Args:
        text: Anything that another machine may have written.
        words: Also a value that is a word, such as the "anything" that a local server is given
            for a key: fit for messages, not for answers, which may well hold it.
    """
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "").strip()
        ordinary = value.isalpha() and len(value) < 16
        if len(value) >= 8 and (words or not ordinary):
            secret = _written(value)
            text = secret.sub(f"[{name}]", text)
            plain = _decoded(text)
            if plain != text and secret.search(plain):
                text = f"[{name}]"  # the whole text, which hides it in codes
    return text


def _decoded(text: str) -> str:
    """Return the text with the characters that codes of HTML, addresses and programs stand for."""
    text = html.unescape(html.unescape(text))  # of the code of a code too
    return CODES.sub(lambda found: chr(int(found[1], 16)), text)


@lru_cache
def _written(secret: str) -> re.Pattern:
    """Return a pattern of a secret, as it is or with other capitals.

    One that no sentence holds is also found reversed, in hexadecimal or decimal numbers, inside of
    a text in base64 or base32, and with anything but letters and digits between those it has.
    """
    patterns = [re.escape(secret)]
    holds_digit = re.search(r"\d", secret)
    if holds_digit and len(NO_LETTER.sub("", secret)) >= 12:
        raw = secret.encode("utf-8", "surrogateescape")
        forms = [secret, raw.hex(), "".join(map(str, raw))]
        for before in range(5):  # bytes before it in its group, of three in base64
            ahead = bytes(before) + raw
            forms += [
                b32encode(ahead).decode()[-(-before * 8 // 5) : len(ahead) * 8 // 5],
                b64encode(ahead).decode()[-(-before * 8 // 6) : len(ahead) * 8 // 6],
            ]
        for form in forms:
            letters = NO_LETTER.sub("", form)
            patterns += [
                BETWEEN.join(letters),
                BETWEEN.join(reversed(letters)),
            ]
    either = "|".join(patterns)
    return re.compile(either, re.IGNORECASE)


def _removed(found: re.Match) -> str:
    kept = found[1] or found[2] or ""
    tail = "@" if found[0].endswith("@") else ""
    return f"{kept}[token removed]{tail}"


def encodable(text: str) -> str:
    """Return the text with unpaired surrogates escaped, which pandas cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode()


def throughout(value: Any, change: Callable[[str], str]) -> Any:
    """Apply `change` to every text inside lists and dicts, in place, and return the value."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        for key, item in value.items():
            value[key] = throughout(item, change)
    elif isinstance(value, list):
        value[:] = [throughout(item, change) for item in value]
    return value


def for_csv(value: Any) -> Any:
    """Return a cell that no spreadsheet runs: ' before a formula, control characters escaped."""
    if not isinstance(value, str) or NUMBER.fullmatch(value):
        return value
    text = CONTROLS.sub(lambda found: safe(found[0]), value)
    text = text[:1] + INNER_FORMULA.sub(r"\1'", text[1:])
    if value.lstrip(" ").startswith(FORMULA_STARTS):
        return "'" + text
    return text


def csv(table: DataFrame) -> str:
    """Return a table as CSV, its texts and column names made harmless by `for_csv`."""
    harmless = table.map(for_csv).rename(columns=for_csv)
    return harmless.to_csv(index=False, lineterminator="\n")
