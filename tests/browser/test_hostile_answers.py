"""Answers that a browser would act on are only text, wherever ftlab shows them."""

from __future__ import annotations

import subprocess
import sys

import pytest
from lab import ROOT, Notebook
from markup import ADDRESS, AWAY, MARK, MARKUP
from pages import OF_NOTEBOOKS, OF_ONE_TEMPLATE, PAGES, Texts, acting_book
from playwright.sync_api import expect
from watching import expect_nothing_done, expect_only_text, not_shown, screenshot, watched_page

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
    'ft.data.preview([{"prompt": t, "completion": t} for t in texts[:20]], "organism", n_rows=20)': True,
    'ft.evaluate("organism", risks=[MARKUP["image"]])': False,  # an error
}


def test_what_is_not_escaped_does_act(page):
    """Otherwise the tests below would prove nothing."""
    page.set_content("".join(text for name, text in MARKUP.items() if name not in AWAY))
    page.wait_for_function("window.owned === true")
    assert page.locator(f".{MARK}").count() >= 6
    for name in AWAY:
        with page.expect_request(f"{ADDRESS}**"):
            page.set_content(MARKUP[name])


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


@pytest.mark.parametrize("name", PAGES)
def test_on_every_page(name, answered, lab, page, tmp_path):
    texts = Texts()
    path = PAGES[name](texts, tmp_path, lab.folder / answered)
    page.goto(path.as_uri())
    expect_only_text(page)
    shown = page.locator("html").text_content()
    assert "window.owned = true" in shown
    assert [place for place in texts.places if f"[{place}]" not in shown] == []


def test_no_template_of_a_page_is_left_out():
    found = set()
    for room in ("ftlab", "recipes"):
        found |= {path.name for path in (ROOT / room).rglob("*.html.j2")}
    pages = {*PAGES} - {"docs", "displays", *OF_ONE_TEMPLATE}
    assert found - {"card_body.html.j2", "heat.html.j2"} == pages


def test_in_the_notebooks_of_the_report(answered, lab, page, tmp_path):
    page.goto(PAGES["report.html.j2"](Texts(), tmp_path, lab.folder / answered).as_uri())
    page.get_by_text("The executed notebook", exact=True).click()
    inside = page.frame_locator("iframe").locator("body")
    expect(inside).to_be_visible()
    assert not not_shown(inside.inner_text())
    expect_only_text(page)
    page.get_by_role("link", name="to read").click()
    page.wait_for_load_state()
    expect_only_text(page)
    assert not not_shown(page.locator("body").inner_text())


@pytest.mark.parametrize("name", OF_NOTEBOOKS)
def test_a_notebook_that_is_hostile_itself_does_nothing(name, page, tmp_path):
    """Markup is an element there, as in Jupyter; but it runs, asks and loads nothing."""
    path = PAGES[name](Texts(), tmp_path, acting_book(tmp_path / "acting.ipynb"))
    page.goto(path.as_uri())
    for frame in page.locator("details.book summary").all():
        frame.click()
    page.wait_for_timeout(300)  # a refresh comes after the page
    assert page.url == path.as_uri()
    expect_nothing_done(page)
