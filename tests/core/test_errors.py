"""How errors look in a notebook: one sentence, the traceback folded, secrets and markup harmless."""

from __future__ import annotations

import pytest

from ftlab._core import progress
from ftlab._core.errors import Interrupted, UsageError


def rendered(error: BaseException) -> str:
    with pytest.raises(type(error)) as info:
        raise error
    (sentence,) = info.value._render_traceback_()
    return sentence


@pytest.mark.parametrize("kind", [UsageError, Interrupted])
@pytest.mark.parametrize("jupyter", [True, False])
def test_an_error_is_one_sentence_with_its_traceback_folded(kind, jupyter, monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "in_jupyter", lambda: jupyter)
    monkeypatch.setattr("IPython.display.display", lambda content, **_: shown.append(content))
    text = "<b> \x1b[2J is wrong"
    error = kind(text) if kind is Interrupted else kind("a_code", text)
    sentence = rendered(error)
    assert sentence == f"{kind.__name__}: <b> \\x1b[2J is wrong"
    error._render_traceback_()  # IPython asks twice
    assert len(shown) == jupyter
    for content in shown:
        html = content["text/html"]
        assert html.startswith("<details><summary>") and "&lt;b&gt;" in html and "<b>" not in html
        assert "test_errors.py" in html and "\x1b" not in html
