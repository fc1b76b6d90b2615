"""What every panel keeps: its calls, its plain output, escaped text, names for all controls."""

from __future__ import annotations

import ast
import json
import shlex
import subprocess
import sys

import pytest
from helpers import jsonl
from hostile import assert_page
from ui.screens import html_of, parts_of
from ui_runs import MARKUP, TEXTS

from ftlab import ui
from ftlab._core.text import safe
from ftlab.experiments import check_parameters, find_notebook
from ftlab.ui.panels import base

TRAINING = {"at_steps": [0, 2], "seeds": 2, "stop_above": {"bias": 0.5}, "batch_size": 8}
NAMES = ("compare", "data", "explore", "guard", "label", "runs", "train")


@pytest.fixture(params=NAMES)
def panel(request, curve):
    return opened(request.param, curve)


def opened(name: str, curve):
    if name == "label":
        return ui.label(curve, 4, labeller="AB", risk="jailbreak")
    if name == "train":
        return ui.train("organism", "organism:almanac", **TRAINING)
    if name == "data":
        return ui.data(write_rows(curve), prompts="organism")
    if name == "guard":
        return ui.guard("organism", ["guard", "ptst"])
    if name == "runs":
        return ui.runs()
    found = getattr(ui, name)(curve)
    if name == "explore":
        found.pick("jailbreak", 10)
    return found


def write_rows(curve) -> str:
    """Write rows with hostile text and with problems beside the runs; return their file."""
    rows = [{"prompt": text, "completion": MARKUP} for text in TEXTS]
    return jsonl(curve.path.parent / "rows.jsonl", *rows, '{"prompt": 1}', "<b>no json</b>")


def test_the_papermill_command_has_parameters_that_the_notebook_has(panel):
    command, notebook, _, option, text = shlex.split(panel.papermill(), comments=True)
    assert (command, option) == ("papermill", "-y")
    parameters = json.loads(text)
    assert parameters == panel.parameters()
    check_parameters(find_notebook(base.NOTEBOOK), parameters)
    assert base.NOTEBOOK in notebook


def test_the_call_is_python_with_names_that_exist(panel):
    import ftlab

    for node in ast.walk(ast.parse(panel.call())):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("ft."):
            found = ftlab
            for part in ast.unparse(node.func).split(".")[1:]:
                found = getattr(found, part)
            assert callable(found)


@pytest.mark.parametrize("where", ["batch", "terminal"])
def test_without_a_front_end_text_and_tables_are_shown(panel, where, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(base, "surface", lambda: where)
    monkeypatch.setattr("IPython.display.display", lambda value, **_: shown.append(value))
    monkeypatch.setattr(type(panel), "widget", None)  # is not touched
    panel._ipython_display_()
    out = capsys.readouterr().out
    assert panel.call() in out and base.INSTALL not in out
    assert not any(isinstance(value, dict) for value in shown)
    assert len(out) > len(panel.call()) or shown


def test_without_the_extra_a_notebook_shows_the_same_and_says_what_to_install(
    panel, monkeypatch, capsys
):
    monkeypatch.setattr(base, "surface", lambda: "jupyter")
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    monkeypatch.setattr("IPython.display.display", lambda value, **_: None)
    panel._ipython_display_()
    assert base.INSTALL in capsys.readouterr().out


def test_nothing_of_widgets_is_loaded_before_they_are_shown():
    code = (
        "import sys\n"
        "from ftlab import ui\n"
        f"[getattr(ui, name) for name in {NAMES!r}]\n"
        "print([name for name in ('ipywidgets', 'anywidget', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_front_end_gets_the_widgets(panel, monkeypatch):
    pytest.importorskip("anywidget")
    shown = []
    monkeypatch.setattr(base, "surface", lambda: "jupyter")
    monkeypatch.setattr("IPython.display.display", lambda value, **_: shown.append(value))
    panel._ipython_display_()
    assert any("application/vnd.jupyter.widget-view+json" in value for value in shown)


def test_controls_have_names_texts_are_escaped_and_colours_are_the_pages(panel):
    pytest.importorskip("anywidget")
    widget = panel.widget()
    for part in parts_of(widget):
        kind = type(part).__name__
        if kind == "Pad":
            assert part.label
        elif kind not in ("HTML", "VBox", "HBox", "Output"):
            assert part.description, kind
    page = html_of(widget)
    assert_page(page)
    assert MARKUP not in page
    for name in ("#000", "#fff", "black", "white;"):
        assert name not in page.replace("color:#000", "").lower()  # text on the green of a mask
    assert "Copy the Python call" in page and "Copy the papermill command" in page


def test_values_stand_in_calls_as_code_that_opens_them_again(curve, tmp_path):
    line = base.call_of("ft.rates", curve, labels=tmp_path / "a.csv", judge=None, steps=[0, 10])
    call = ast.parse(line).body[0].value
    assert ast.literal_eval(call.args[0]) == curve.name
    values = {one.arg: ast.literal_eval(one.value) for one in call.keywords}
    assert values == {"labels": str(tmp_path / "a.csv"), "steps": [0, 10]}
    rows = [{"prompt": "a" * 400}]
    assert base.call_of("ft.sft", "organism", rows) == "ft.sft('organism', ...)"


def test_tables_show_text_and_not_markup():
    shown = base.html_table([{"a<b>": "<script>alert(1)</script>\x1b[2J"}], "<i>")
    assert_page(shown)
    assert "<i>" not in shown and safe("\x1b") in shown
