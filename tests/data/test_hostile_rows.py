"""Checks, errors and previews of hostile files show nothing that acts."""

from __future__ import annotations

import json

import pytest
from hostile import CANARIES, assert_page, assert_seen

from ftlab import data
from ftlab.data import Preview


def completions(folder):
    file = folder / "rows.jsonl"
    rows = [{"prompt": text, "completion": 3, text: text} for text in CANARIES.values()]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    torn = b'{"prompt": "\x1b[2J", "messages": [{"role": "\xed\xa0\x80"}]}\n'
    file.write_bytes(text + torn)
    return file


def roles(folder):
    file = folder / "roles.json"
    rows = [{"messages": [{"role": text, "content": text}]} for text in CANARIES.values()]
    file.write_text(json.dumps(rows))
    return file


@pytest.mark.parametrize("make", [completions, roles], ids=lambda made: made.__name__)
def test_checks_and_errors(make, tmp_path, ran):
    source = make(tmp_path)
    report = data.check(source)
    assert not report.usable
    assert_seen(str(report))
    assert_page(report._repr_html_())
    with pytest.raises(ValueError) as info:
        data.load(source)
    assert info.value.code
    assert_seen(str(info.value))
    code, out, err = ran("check", source)
    assert code == 1
    assert_seen(out + err)


def test_a_preview():
    rows = [[(text, trained) for trained in (True, False)] for text in CANARIES.values()]
    seen = Preview(rows)
    assert_seen(repr(seen))
    assert_page(seen._repr_html_())
