"""What every panel keeps: its calls, its plain output, escaped text, names for all controls."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys

import nbformat
import pytest
import yaml
from helpers import jsonl
from hostile import assert_page
from ui.screens import html_of, parts_of
from ui_runs import MARKUP, TEXTS

from ftlab import ui
from ftlab._core.text import safe
from ftlab.experiments import check_parameters, default_parameters, find_notebook
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


def changed(panel) -> dict:
    """Make choices that the notebook has no parameter for; return the words that name them."""
    if panel.name == "explore":
        panel.per_seed = False
        return {"point", "per_seed"}
    if panel.name == "compare":
        panel.choose(split="risk and attack", risk="bias")
        return {"split", "risk"}
    if panel.name == "label":
        return {"steps", "seed", "out"}
    if panel.name == "train":
        return {"batch_size"}
    if panel.name == "data":
        panel.show_rows(5)
        return {"kind", "n_rows", "model"}
    if panel.name == "guard":
        return {"max_new_tokens"}
    panel.verify()
    return {"verified"}


def plainest(name: str, curve):
    """Open a panel whose choices the notebook has parameters for, each other than by default."""
    rows = write_rows(curve)
    if name == "label":
        return ui.label(curve, 4, labeller="AB", judge="organism")
    if name == "train":
        settings = {"seeds": [0, 1], "at_steps": 4, "learning_rate": 5e-5, "judges": "refusal"}
        return ui.train("organism:base", rows, adapter="lora", n_rows=9, prompts=rows, **settings)
    if name == "data":
        return ui.data(rows, "organism:base", prompts="organism")
    if name == "guard":
        return ui.guard("organism:base", "ptst")
    if name == "runs":
        return ui.runs()
    if name == "compare":
        return ui.compare(curve, curve, judge="organism")
    options = {"attacks": ["direct"], "steps": [0, 10], "judge": "organism"}
    return ui.explore(curve, risks=["bias"], seeds=[1], **options)


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_opens_the_same_panel_with_the_parameters(name, curve):
    panel = plainest(name, curve)
    assert panel.left_out() == []
    same = by_the_notebook(panel)
    assert same.choices().keys() == panel.choices().keys()
    for choice, value in panel.choices().items():
        assert base._comparable(same.choices()[choice]) == base._comparable(value), choice
    if name != "train":  # which tells what was given, and the notebook gives defaults too
        assert [str(part) for part in same.plain()] == [str(part) for part in panel.plain()]
    if name != "label":  # whose file is named from another folder
        assert same.parameters() == panel.parameters()


def test_what_the_notebook_would_do_otherwise_is_named(curve):
    opening = {
        "label": lambda: ui.label(curve, 4, steps=[10], seed=3, out="other.csv"),
        "data": lambda: ui.data(write_rows(curve), kind="chats"),
        "guard": lambda: ui.guard("organism", ["guard"], max_new_tokens=5),
    }
    for name in NAMES:
        panel = opening.get(name, lambda name=name: opened(name, curve))()
        missing = changed(panel)
        assert set(panel.left_out()) == missing, name
        page = html_of(panel.widget()) if base.find_spec("anywidget") else ""
        assert not page or all(word in page for word in missing)


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
