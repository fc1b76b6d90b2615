"""The first notebook, as a new user goes through it: by keyboard, from the start of JupyterLab.

It is run at its small size. The first figure, of the loss, comes with the first steps at any size.
"""

from __future__ import annotations

import time

from lab import ROOT, errors_of
from papermill.iorw import load_notebook_node
from playwright.sync_api import expect
from watching import screenshot

FIRST_FIGURE_S = 180  # generous: the aim is 60 on two idle cores
FIGURE = ".jp-OutputArea-output img"


def test_the_quickstart_runs_by_keyboard_and_keeps_its_figures(lab, notebook, capsys):
    began = time.monotonic()
    source = ROOT / "notebooks" / "tour" / "00_quickstart.ipynb"
    name = lab.put(load_notebook_node(str(source)), source.name, small=True)
    book = notebook(name)
    first = None
    book.select(0)
    for number, cell in enumerate(lab.saved(name).cells):
        book.page.keyboard.press("Shift+Enter")
        if cell.cell_type != "code":
            continue
        if first is None and "ft.sft" in cell.source:
            book.root.locator(FIGURE).first.wait_for(state="attached", timeout=120_000)
            first = lab.start_s + time.monotonic() - began
        book.finished(number)
    whole = lab.start_s + time.monotonic() - began
    with capsys.disabled():
        print(f"\nquickstart: first figure after {first:.1f} s, whole notebook after {whole:.1f} s")
    assert first < FIRST_FIGURE_S
    figures = book.figures()
    assert len(figures) >= 3  # two trainings and the curve
    assert errors_of(book.save()) == []
    screenshot(book.page, "quickstart")
    book.open()
    expect(book.root.locator(FIGURE)).to_have_count(len(figures))
    assert book.figures() == figures
    assert not book.page.watch.requests and not book.page.watch.dialogs
