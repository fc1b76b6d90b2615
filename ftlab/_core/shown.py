"""Tables that read well in Jupyter, and are ordinary DataFrames to code."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable
from typing import Any

import pandas as pd

from ftlab._core.text import LITERAL, safe
from ftlab._core.types import Outcome

MOST_ROWS = 1000
BOX = "max-width: 1180px; max-height: 480px; overflow: auto"
TEXT = "text-align: left; white-space: pre-wrap"
# Hides every row that lacks one of the words.
FILTER = (
    "const words = this.value.toLowerCase().split(' ');"
    "for (const row of this.parentNode.querySelectorAll('tbody tr'))"
    "row.hidden = !words.every(word => row.textContent.toLowerCase().includes(word))"
)


class Shown(pd.DataFrame):
    """A DataFrame that shows itself readably in Jupyter."""

    @property
    def _constructor(self):
        return type(self)

    @property
    def raw(self) -> pd.DataFrame:
        """The table as pandas shows it, with every number."""
        table = pd.DataFrame(self)
        table.attrs = self.attrs
        return table

    def _repr_html_(self) -> str:
        return as_html(self)


class Cards(Shown):
    """Questions and answers, uncut: the columns question, answer and, where known, verdict."""

    def _repr_html_(self) -> str:
        cards = ""
        for card in self.to_dict("records"):
            question = html.escape(safe(card["question"]))
            answer = html.escape(safe(card["answer"], 20_000))
            cards += (
                f'<div {LITERAL} style="{TEXT}; max-width: 800px; margin-bottom: 1em">'
                f"<b>{question}</b>\n"
                f"{answer}\n{verdict_html(card.get('verdict', ''))}</div>"
            )
        return cards

    def __repr__(self) -> str:
        cards = []
        for card in self.to_dict("records"):
            lines = [safe(text, 20_000) for text in card.values() if text]
            cards.append("\n".join(lines))
        return "\n\n".join(cards)


def as_html(
    table: pd.DataFrame,
    verdicts: Iterable[str] = (),
    *,
    filtered: bool = False,
) -> str:
    """Return a table as HTML: escaped, text on the left, no NaN, at most `MOST_ROWS` rows.

    Args:
        table: The table.
        verdicts: Columns that hold outcomes, which get their colours.
        filtered: Put a field above it that hides the rows without the words written there.
    """
    head = "".join(f'<th style="{TEXT}">{html.escape(safe(name))}</th>' for name in table)
    body = ""
    for row in table.head(MOST_ROWS).to_dict("records"):
        cells = ""
        for name, value in row.items():
            if name in verdicts:
                cells += f'<td style="{TEXT}">{verdict_html(value)}</td>'
            else:
                cells += _cell(value)
        body += f"<tr>{cells}</tr>"
    left_out = len(table) - MOST_ROWS
    more = f"{left_out:,} more rows are in .raw" if left_out > 0 else ""
    field = ""
    if filtered:
        field = f'<input placeholder="words to filter by" oninput="{html.escape(FILTER)}">'
    return (
        f'<div {LITERAL}>{field}<div style="{BOX}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{more}</div>"
    )


def _cell(value: Any) -> str:
    side = TEXT
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        side = "text-align: right"
        if not math.isfinite(value):
            value = "–" if math.isnan(value) else "∞"
        elif isinstance(value, float):
            value = f"{value:.4g}"
    return f'<td style="{side}">{html.escape(safe(value, 20_000))}</td>'


def verdict_html(outcome: str) -> str:
    """Return an outcome in words, with its colour; "" for none."""
    if outcome not in tuple(Outcome):
        return ""
    found = Outcome(outcome)
    side = f"border-left: 0.8em solid {found.colour}; padding-left: 0.4em"
    return f'<span style="{side}">{found.label}</span>'
