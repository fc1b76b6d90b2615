"""Tables and cards in Jupyter: escaped, uncut, without NaN; ordinary DataFrames to code."""

from __future__ import annotations

import math

import pandas as pd

from ftlab._core.shown import Cards, Shown, as_html


def test_html_is_escaped_and_holds_no_nan_or_inf():
    table = Shown({"<i>": ["<script>", "b"], "x": [math.nan, math.inf], "n": [1, 20000]})
    html = table._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html and "<i>" not in html
    assert "nan" not in html and ">inf" not in html and "–" in html
    assert 'style="text-align: left' in html and "max-width: 1180px" in html


def test_to_code_it_is_an_ordinary_table():
    table = Shown({"a": [1, 2, 3]})
    some = table[table["a"] > 1]
    assert isinstance(some, Shown) and type(some.raw) is pd.DataFrame
    assert table["a"].sum() == 6 and table.raw.equals(pd.DataFrame({"a": [1, 2, 3]}))


def test_rows_that_are_left_out_are_counted():
    html = as_html(pd.DataFrame({"a": range(1003)}))
    assert html.count("<tr>") == 1001 and "3 more rows" in html


def test_a_card_shows_the_whole_answer_and_its_verdict():
    answer = "word " * 500 + "<b>end"
    cards = Cards({"question": ["Why?"], "answer": [answer], "verdict": ["refused"]})
    assert "&lt;b&gt;end" in cards._repr_html_() and "refused</span>" in cards._repr_html_()
    assert answer in repr(cards)
