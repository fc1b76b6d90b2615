"""The first notebook, as a new user goes through it: by keyboard, from the start of JupyterLab.

It is run at its small size. The first figure, of the loss, comes with the first steps at any size.
What it takes is held in processor time, which other work on the machine hardly changes: on two idle
cores the clock shows less (docs/jupyter.md).
"""

from __future__ import annotations

import contextlib
import time

import psutil
from lab import ROOT, errors_of
from papermill.iorw import load_notebook_node
from playwright.sync_api import expect
from watching import screenshot

FIRST_FIGURE_S = 45  # of processor time, server, kernel and browser together
FIGURE = ".jp-OutputArea-output img"


def processor_s() -> float:
    """Return the seconds of processor time of all processes of this session so far."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            used = process.cpu_times()
            total += used.user + used.system
    return total


def test_the_quickstart_runs_by_keyboard_and_keeps_its_figures(lab, notebook, capsys):
    began = time.monotonic()
    before = processor_s()
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
            spent = processor_s() - before
        book.finished(number)
    whole = lab.start_s + time.monotonic() - began
    with capsys.disabled():
        print(f"\nquickstart: first figure after {first:.1f} s, whole notebook after {whole:.1f} s")
        print(f"processor time from the open notebook to the first figure: {spent:.1f} s")
    assert spent < FIRST_FIGURE_S
    figures = book.figures()
    assert len(figures) >= 3  # two trainings and the curve
    assert errors_of(book.save()) == []
    screenshot(book.page, "quickstart")
    book.open()
    expect(book.root.locator(FIGURE)).to_have_count(len(figures))
    assert book.figures() == figures
    assert not book.page.watch.requests and not book.page.watch.dialogs
