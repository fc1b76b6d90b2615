"""What every panel keeps: its calls, its plain output, escaped text, names for all controls."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path

import nbformat
import pytest
import yaml
from helpers import jsonl
from hostile import assert_page
from ui.screens import html_of, named, parts_of, said
from ui_runs import MARKUP, TEXTS, make_curve

from ftlab import ui
from ftlab._core.text import safe
from ftlab.experiments import check_parameters, default_parameters, find_notebook
from ftlab.ui.panels import base

TRAINING = {"at_steps": [0, 2], "seeds": 2, "stop_above": {"bias": 0.5}, "batch_size": 8}
NAMES = ("compare", "data", "explore", "guard", "label", "runs", "train")
STOPS = {"bias": 0.5, "jailbreak": 0.7}
TYPED = {  # into the fields of text
    "Labeller": "CD",
    "Question": "Name a tree.",
    "at_steps": "0, 4",
    "learning_rate": "0.003",
    **{f"{risk} above": "0.25" for risk in ("bias", "jailbreak", "over_refusal", "toxicity")},
}
ACTING = {  # controls that do something at a press of a button, and that button
    "Question": "Ask",
    "Rank by": "Rank the rows",
    "Run": "Verify",
    "also interrupted runs, which could be resumed": "List what could be removed",
}


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
    command, notebook, _, option, text = shlex.split(panel.papermill())
    assert (command, option) == ("papermill", "-y")
    parameters = yaml.safe_load(text)
    assert parameters == panel.parameters()
    check_parameters(find_notebook(base.NOTEBOOK), parameters)
    assert base.NOTEBOOK in notebook


def by_the_notebook(panel):
    """Return the panel that the notebook opens with the parameters of a papermill command."""
    import ftlab

    book = nbformat.read(find_notebook(base.NOTEBOOK), 4)
    (cell,) = [one for one in book.cells if f"ft.ui.{panel.name}(" in one.source]
    names = default_parameters(find_notebook(base.NOTEBOOK)) | panel.parameters()
    names |= {"ft": ftlab, "curve": names["run"] and ftlab.load(names["run"])}
    return eval(cell.source, names)


def texts_shown(panel) -> None:
    """Tick what shows words of a model or of rows."""
    if panel.name == "data" or panel.name == "guard":
        panel.texts = True
    else:
        panel.pages.show(True)


def chosen_otherwise(name: str, curve):
    """Open a panel each of whose choices is another than by default."""
    rows = write_rows(curve)
    fine = jsonl(curve.path.parent / "fine.jsonl", *[{"prompt": t, "completion": t} for t in "abc"])
    if name == "label":
        drawing = {"risk": ["bias"], "steps": [10], "judge": "organism", "seed": 3}
        return ui.label(curve, 4, labeller="AB", out="other.csv", **drawing)
    if name == "train":
        settings = {"seeds": [1, 3], "at_steps": 4, "learning_rate": 5e-5, "judges": "refusal"}
        settings |= {"batch_size": 4, "attacks": ("direct",), "stop_above": STOPS}
        return ui.train("organism:base", rows, adapter="lora", n_rows=9, prompts=rows, **settings)
    if name == "data":
        asked = {"kind": "chats", "n_rows": 2, "audit_by": "loss"}
        return ui.data(fine, "organism:base", prompts="organism", **asked)
    if name == "guard":
        return ui.guard("organism:base", "ptst", question="Name a tree.", max_new_tokens=5)
    if name == "runs":
        return ui.runs(verify=curve.name, removable=True, abandoned=True)
    if name == "compare":
        options = {"split": "risk and attack", "risk": "bias", "step": 10}
        return ui.compare(curve, curve, judge="organism", **options)
    options = {"attacks": ["direct"], "steps": [0, 10], "judge": "organism"}
    options |= {"per_seed": False, "point": "bias 10"}
    return ui.explore(curve, risks=["bias"], seeds=[1], **options)


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_opens_the_same_panel_with_the_parameters(name, curve):
    panel = chosen_otherwise(name, curve)
    assert panel.left_out() == []
    same = by_the_notebook(panel)
    assert same.choices().keys() == panel.choices().keys()
    for choice, value in panel.choices().items():
        assert base._comparable(same.choices()[choice]) == base._comparable(value), choice
    if name != "train":  # which tells what was given, and the notebook gives defaults too
        assert [str(part) for part in same.plain()] == [str(part) for part in panel.plain()]
    if name != "label":  # whose file is named from another folder
        assert same.parameters() == panel.parameters()


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_of_a_panel_is_a_choice_that_the_notebook_gives(name, curve):
    """Each choice is another than by default, so none of the same test above is idle."""
    panel = chosen_otherwise(name, curve)
    signature = inspect.signature(getattr(ui, name)).parameters
    assert set(panel.choices()) - {"texts"} == set(signature)
    if name == "train":  # what it was not given stays as it is
        signature = {**panel.settings, "parent": None, "data": None}
    by_default = base.notebook_arguments(name, {})
    for choice in signature:
        told = base._comparable(panel.choices()[choice])
        assert told != base._comparable(by_default.get(choice)), choice


def another(control):
    """Return another value that a control takes."""
    kind = type(control).__name__
    if kind == "Checkbox":
        return not control.value
    if kind == "IntSlider":
        return control.value + 1
    if kind == "SelectionRangeSlider":
        return (control.value[0],) * 2
    if kind == "Dropdown":
        return [value for value in control._options_values if value != control.value][-1]
    return TYPED.get(control.description, "7")


@pytest.mark.parametrize("name", NAMES)
def test_every_control_of_a_panel_changes_its_command(name, curve):
    """But for those that show words, and the rate."""
    pytest.importorskip("anywidget")
    if name == "data":
        file = jsonl(curve.path.parent / "fine.jsonl", {"prompt": "a", "completion": "b"})
        panel = ui.data(file, "organism:base")
    elif name == "compare":
        panel = ui.compare(make_curve(seeds=2, steps=(0, 10, 20, 30)))  # has two steps to compare
    else:
        panel = opened(name, curve)
    screen = panel.widget()
    tried = set()
    for control in list(parts_of(screen)):
        kind = type(control).__name__
        shows = control.description if hasattr(control, "description") else ""
        if kind in ("HTML", "Button") or not hasattr(control, "value") or shows.startswith("Show "):
            continue
        before, value = panel.papermill(), control.value
        control.value = another(control)
        if shows in ACTING:
            named(screen, ACTING[shows]).click()
        assert panel.papermill() != before, (shows, said(screen))
        control.value = value
        tried.add(shows)
    assert tried and (name != "explore" or "Draw single seeds" in tried)


def test_what_no_command_holds_is_named(curve):
    rows = [{"prompt": "Name a tree.", "completion": "An oak."}]
    opening = {
        "data": (lambda: ui.data(rows, prompts={"jailbreak": rows}), {"file", "prompts", "texts"}),
        "guard": (lambda: ui.guard("organism", ["guard"]), {"texts"}),
        "explore": (lambda: ui.explore(curve), {"texts"}),
        "compare": (lambda: ui.compare(curve), {"texts"}),
    }
    for name, (make, missing) in opening.items():
        panel = make()
        texts_shown(panel)
        assert set(panel.left_out()) == missing, name
        page = html_of(panel.widget()) if base.find_spec("anywidget") else base.HOLDS
        assert base.HOLDS in page


def test_a_small_number_stays_one():
    panel = ui.train("organism", "organism:almanac", learning_rate=5e-5)
    text = shlex.split(panel.papermill())[-1]
    assert yaml.safe_load(text)["learning_rate"] == 5e-5


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
    views = [value for value in shown if "application/vnd.jupyter.widget-view+json" in value]
    assert views and views[0]["text/plain"] == panel.title  # where widgets are not shown
    assert set(views[0]) == {"application/vnd.jupyter.widget-view+json", "text/plain"}


def test_colab_is_asked_for_the_widgets_of_others_before_a_panel_is_shown(panel, monkeypatch):
    """Without that call Colab shows ipywidgets alone, and a panel has pads of anywidget."""
    pytest.importorskip("anywidget")
    from anywidget import _util

    happened = []
    colab = types.ModuleType("google.colab.output")
    colab.enable_custom_widget_manager = lambda: happened.append("asked")
    monkeypatch.setitem(sys.modules, "google.colab.output", colab)
    _util.enable_custom_widget_manager_once.cache_clear()
    monkeypatch.setattr(base, "surface", lambda: "jupyter")
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: happened.append("shown"))
    panel._ipython_display_()
    assert happened[:2] == ["asked", "shown"] and happened.count("asked") == 1


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


def test_the_pad_needs_no_other_file_and_no_loader():
    """VS Code and Colab get it as text, and have no server that it could ask for more."""
    source = Path(base.__file__).with_name("pad.js").read_text(encoding="utf-8")
    code = re.sub(r"//.*", "", source)
    for word in ("import", "require", "define(", "fetch", "XMLHttp", "url(", "src=", "href", "/"):
        assert word not in code, word
    assert code.rstrip().endswith("export default { render };")
    pytest.importorskip("anywidget")
    assert base.pad("x").get_state()["_esm"] == source
