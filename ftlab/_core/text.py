"""Text from outside (models, data files, servers) made fit to be seen: nothing in it moves a cursor, runs in a spreadsheet or
gives a token away. HTML is escaped where HTML is made, by `html.escape(safe(text))`; JSONL files stay exact.
"""

from __future__ import annotations

import os
import re

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")  # what spreadsheets run (OWASP, CSV injection)
# But tab and line feed; marks of direction, which turn what is read around; lone surrogates.
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NUMBER = re.compile(r"[+-]?([\d.]+(e[+-]?\d+)?|inf)", re.ASCII | re.IGNORECASE)
KEYS = ("OPENAI_API_KEY", "HF_TOKEN")  # variables of which also the value itself is never shown
TOKENS = re.compile(  # prefix and length: `risk-curve`, `task-...` and `sk-` before short words are none
    r"(?:(?<![\w-])|(?<=\\[nrt])|(?<=[\d\[]m))(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]*?\w{16,}[\w-]*)"  # also after \n, ANSI colours
    r"|(?<=://)[^\s/@\"'<>]{1,512}@"  # user:password@ of an address
    r"|(?<=[?&])((?:api[_-]?key|access_token|token|key)=)[^\s&\"'<>]+"
    r"|(?<![\w-])(bearer\s+)(?=\S{0,512}\d)[\w.~+/=-]{16,}",
    re.ASCII | re.IGNORECASE,
)


def safe(text: object, most: int = 2000) -> str:
    """-> `most` characters, and how many more there are; what does not print (ANSI, \\r, bidi, lone surrogates) as its escape."""
    text = str(text)
    more = f"... ({len(text) - most} characters more)" if len(text) > most else ""
    seen = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text[:most])
    return "".join(seen) + more


def redacted(text: str) -> str:
    """-> the text with tokens (`hf_...`, `sk-...`, `Bearer ...`), credentials in addresses and the values of KEYS taken out."""
    for name in KEYS:
        if len(key := os.environ.get(name, "")) >= 8:
            text = text.replace(key, f"[{name}]")
    return TOKENS.sub(lambda found: f"{found[1] or found[2] or ''}[token removed]" + "@" * found[0].endswith("@"), text)


def encodable(text: str) -> str:
    """-> the text with lone surrogates, which no table of pandas can hold, as their escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def throughout(value, change):
    """-> lists and dicts (JSON, a notebook) with `change` made to every text in them; the containers are changed in place."""
    if isinstance(value, str):
        return change(value)
    for k, v in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        value[k] = throughout(v, change)
    return value


def for_csv(value):
    """-> what a spreadsheet does not run: ' before a text like a formula, controls escaped; numbers, also as texts, as they are."""
    if not isinstance(value, str) or NUMBER.fullmatch(value):
        return value
    return "'" * value.lstrip(" ").startswith(FORMULA) + CONTROLS.sub(lambda c: safe(c[0]), value)


def csv(table) -> str:
    """-> CSV of a pandas table, its texts and column names by `for_csv`."""
    return table.map(for_csv).rename(columns=for_csv).to_csv(index=False, lineterminator="\n")
