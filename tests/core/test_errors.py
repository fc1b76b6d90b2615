"""How errors look in a notebook: one sentence, the traceback folded, secrets and markup harmless."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ftlab
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


def test_a_name_that_the_package_lacks_is_one_sentence():
    with pytest.raises(AttributeError) as info:
        ftlab.modle  # noqa: B018
    assert info.value.code == "no_such_name" and "'model'" in str(info.value)
    assert len(info.value._render_traceback_()) == 1
    assert not hasattr(ftlab, "xyzzy")


def test_the_package_silences_tqdm_before_anything_imports_it():
    code = "import ftlab, warnings; warnings.warn('IProgress not found. Please update jupyter.')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
