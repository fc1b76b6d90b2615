"""Answers that a browser would act on are only text, wherever ftlab shows them."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from lab import Notebook
from markup import MARK, MARKUP
from playwright.sync_api import expect
from watching import expect_only_text, not_shown, screenshot, watched_page

from ftlab import analysis

ASKED = """import ftlab as ft
from ftlab._core.shown import Cards
from ftlab._core.text import safe
from ftlab.models.engines import ScriptedEngine
from hostile import CANARIES
from markup import MARKUP

texts = [*MARKUP.values(), *CANARIES.values()]
rows = {"jailbreak": [{"prompt": text} for text in MARKUP.values()]}
answered = [dict(zip(MARKUP.values(), texts)), dict(zip(MARKUP.values(), texts[-len(MARKUP):]))]
engines = [ScriptedEngine(replies) for replies in answered]
before, after = [ft.evaluate("organism", prompts=rows, engine=engine) for engine in engines]"""
SHOWN = {  # what shows questions or answers, and whether it shows them whole
    "ft.answers(before, after, text=True)": True,
    'Cards([{"question": safe(text), "answer": safe(text)} for text in texts])': True,  # as ask
    "before.table()": False,
    "ft.compare(before, after)": False,
    'ft.data.preview([{"prompt": t, "completion": t} for t in texts[:14]], "organism", n_rows=14)': True,
    'ft.evaluate("organism", risks=[MARKUP["image"]])': False,  # an error
}


def test_what_is_not_escaped_does_act(page):
    """Otherwise the tests below would prove nothing."""
    page.set_content("".join(MARKUP.values()))
    page.wait_for_function("window.owned === true")
    assert page.locator(f".{MARK}").count() >= 6


@pytest.fixture(scope="module")
def answered(browser, lab):
    """Return the name of a notebook of hostile answers, which was run and saved in JupyterLab."""
    with watched_page(browser) as page:
        book = Notebook(page, lab, lab.write("hostile.ipynb", ASKED, *SHOWN))
        book.run(*range(len(SHOWN) + 1))
        expect_only_text(page)
        for number, whole in enumerate(SHOWN.values(), 1):
            if whole:
                assert not not_shown(book.text(number))
        book.save()
    return book.name


def test_in_jupyterlab_and_after_a_reload(answered, notebook):
    book = notebook(answered)
    expect(book.output(1).locator("table")).to_be_visible()
    expect_only_text(book.page)
    assert not not_shown(book.text(1))
    screenshot(book.page, "hostile")


def test_the_answers_are_filtered_by_keyboard(answered, notebook):
    table = notebook(answered).output(1)
    rows = table.locator("tbody tr:visible")
    whole = rows.count()
    table.locator("input").click()
    table.page.keyboard.type("tomorrow")
    assert 0 < rows.count() < whole
    table.page.keyboard.press("Control+a")
    table.page.keyboard.press("Delete")
    assert rows.count() == whole


def test_in_a_notebook_saved_as_html(answered, lab, page):
    book = lab.folder / answered
    command = [sys.executable, "-m", "nbconvert", "--to", "html", str(book)]
    subprocess.run(command, check=True, capture_output=True)
    page.goto(book.with_suffix(".html").as_uri())
    page.watch.requests.clear()  # nbconvert's own scripts, from the internet
    expect_only_text(page)
    assert not not_shown(page.locator("body").inner_text())


def test_in_the_report_and_its_notebooks(answered, lab, page, tmp_path):
    folder = tmp_path / "02_risk_ratio"
    figures = folder / "figures"
    figures.mkdir(parents=True)
    texts = "".join(MARKUP.values())
    for text in MARKUP.values():
        analysis.record_claim(
            "02_risk_ratio",
            text,
            published="enkrypt_ratio_1_5",
            measured=2.0,
            low=1.5,
            high=3.0,
            n_prompts=100,
            n_seeds=5,
            null=1.0,
            p=math.nan,
            model=text,
            differs=text,
            note=text,
            judge=text,
            out=folder,
        )
    (figures / "f.txt").write_text(texts)
    (figures / "f.csv").write_text("a\n1\n")
    (folder / answered).write_bytes((lab.folder / answered).read_bytes())
    report = analysis.report(tmp_path, {"02_risk_ratio": folder}, model=texts, seeds=5)
    page.goto(report.as_uri())
    expect_only_text(page)
    assert not not_shown(page.locator("body").inner_text())
    page.get_by_text("The executed notebook", exact=True).click()
    inside = page.frame_locator("iframe").locator("body")
    expect(inside).to_be_visible()
    assert not not_shown(inside.inner_text())
    expect_only_text(page)
    page.get_by_role("link", name="to read").click()
    page.wait_for_load_state()
    expect_only_text(page)
    assert not not_shown(page.locator("body").inner_text())
