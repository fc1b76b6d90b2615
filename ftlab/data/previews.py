"""Training rows as the model will read them, with the tokens that carry loss marked."""

from __future__ import annotations

import html
from dataclasses import replace
from itertools import groupby
from typing import Any

from ftlab._core.text import LITERAL, safe
from ftlab.data.dataset import load, strip_answers
from ftlab.data.encoding import IGNORED, encode
from ftlab.models import local_model

TRAINED = "background:#cfe8cf;color:#000"
UNTRAINED = "opacity:.75"  # of the page's own colour, light or dark
PARTS = {  # of a row of each kind: what a chat ends with
    "chats": ["messages"],
    "pairs": ["chosen", "rejected"],
    "kto": ["completion"],
}
LEGEND = "<small>green: trained (loss)</small>"


class Preview:
    """Rows with their loss mask: trained text is green in Jupyter, «marked» in a terminal.

    Args:
        rows: Each row as stretches of text, and whether the stretch is trained.
    """

    def __init__(self, rows: list[list[tuple[str, bool]]]):
        self.rows = [[(safe(text, 10_000), trained) for text, trained in row] for row in rows]

    def __repr__(self) -> str:
        lines = []
        for row in self.rows:
            parts = [f"«{text}»" if trained else text for text, trained in row]
            lines.append("".join(parts))
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        body = ""
        for row in self.rows:
            body += "<p>"
            for text, trained in row:
                style = TRAINED if trained else UNTRAINED
                body += f'<span style="{style}">{html.escape(text)}</span>'
            body += "</p>"
        style = "font-family:monospace;white-space:pre-wrap"
        return f'<div {LITERAL} style="{style}">{body}{LEGEND}</div>'


def preview(data: Any, model: Any, *, n_rows: int = 3, kind: str = "chats") -> Preview:
    """Show the first rows as the model will read them.

    Args:
        data: Anything that `load` takes.
        model: Anything that `ftlab.model` takes.
        n_rows: Number of rows.
        kind: chats, pairs or kto, as the method that is trained needs it; each answer of a pair
            is shown as a chat of its own.

    Raises:
        DataError: The data cannot be read, or a row cannot be trained.
        UsageError: The chat template cannot be trained.
    """
    chats = []
    data = load(data, kind=kind)  # all of it first, so that a bad file fails at once
    for row in strip_answers(replace(data, rows=data.rows[:n_rows])).rows:
        start = [] if kind == "chats" else row["prompt"]
        chats += [start + row[part] for part in PARTS[kind]]
    tokenizer = local_model(model).tokenizer()
    found = []
    for messages in chats:
        ids, labels = encode(messages, tokenizer)
        stretches = []
        for trained, part in groupby(
            zip(ids, labels, strict=True), key=lambda token: token[1] != IGNORED
        ):
            stretches.append((tokenizer.decode([token for token, _ in part]), trained))
        found.append(stretches)
    return Preview(found)
