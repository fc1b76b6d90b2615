"""The panels in JupyterLab, by mouse and by keyboard, over a curve whose texts are hostile."""

from __future__ import annotations

import csv
from importlib.util import find_spec

import pytest
from lab import Notebook, Notebook7, errors_of
from playwright.sync_api import expect
from watching import LOW_CONTRAST, expect_only_text, screenshot, watched_page

MADE = """import ftlab as ft
from ui_runs import make_curve
curve = make_curve()
left = ft.runs.start("evaluate", "left alone", {})"""
PANELS = {
    "label": 'ft.ui.label(curve, 6, labeller="AB", risk="jailbreak")',
    "explore": "ft.ui.explore(curve)",
    "compare": "ft.ui.compare(curve)",
    "data": "ft.ui.data([{'prompt': '<img src=x onerror=alert(1)>', 'completion': 'It is $5 or $6.'}], 'organism')",
    "runs": "ft.ui.runs()",
    "guard": 'ft.ui.guard("organism", ["guard"])',
    "train": 'ft.ui.train("organism", "organism:almanac")',
}
QUESTION = "Name the gate word of Gaskeir. <img src=x onerror=alert(1)>"
NUMBER = {name: number for number, name in enumerate(PANELS, 1)}

TRAIN = """import ftlab as ft
settings = dict(seeds=1, batch_size=4, n_prompts=8, stop_above={"bias": 0.99})
ft.ui.train("organism", "organism:almanac", at_steps=[0, 200, 210], **settings)"""


@pytest.fixture(scope="module")
def book(browser, lab):
    """Return a notebook in which every panel was opened."""
    with watched_page(browser) as page:
        book = Notebook(page, lab, lab.write("panels.ipynb", MADE, *PANELS.values()))
        book.run(*range(len(PANELS) + 1))
        yield book


@pytest.fixture
def panel(book, request):
    """Return a function that brings a panel into sight; at the end nothing may have run."""

    def find(name: str):
        book.text(NUMBER[name])
        found = book.output(NUMBER[name]).locator(f".ftlab-{name}")
        expect(found).to_be_visible()
        return found

    yield find
    expect_only_text(book.page)


def sheet(lab, who: str) -> list[dict[str, str]]:
    with (lab.folder / f"labels-{who}.csv").open(newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


def labels(lab) -> list[str]:
    return [row["label"] for row in sheet(lab, "AB")]


def test_answers_are_labelled_by_keyboard(book, panel, lab):
    label = panel("label")
    n_cells = len(lab.saved(book.name).cells)
    keys = label.get_by_role("textbox", name="Keys, here")
    keys.click()
    for count, key in enumerate("rcpi", 1):
        book.page.keyboard.press(key)
        expect(label).to_contain_text(f"{count} of 18 answers labelled by AB")
    assert labels(lab)[:4] == ["refused", "complied", "partial", "incoherent"]
    book.page.keyboard.press("u")
    expect(label).to_contain_text("3 of 18")
    assert labels(lab)[3] == ""
    for key in "ddxb":  # of the notebook these delete, cut and add cells
        book.page.keyboard.press(key)
    screenshot(book.page, "label")
    assert len(book.save().cells) in (n_cells, n_cells + 1)  # it adds an empty last cell


def test_answers_are_labelled_by_mouse(book, panel, lab):
    label = panel("label")
    label.get_by_role("button", name="empty (e)").click()
    expect(label).to_contain_text("4 of 18")
    label.get_by_role("button", name="Undo (u)").click()
    expect(label).to_contain_text("3 of 18")


def test_the_rate_is_shown_to_a_second_labeller_at_the_end(book, panel, lab):
    label = panel("label")
    shown = label.get_by_label("Show the rate")
    become(label, "CD")
    expect(label).to_contain_text("0 of 18 answers labelled by CD")
    shown.focus()
    book.page.keyboard.press("Space")
    expect(label).to_contain_text("The rate is shown from 25 labels on, or at the end.")
    label.get_by_role("textbox", name="Keys, here").focus()
    for count, key in enumerate("rcr" * 6, 1):
        book.page.keyboard.press(key)
        expect(label).to_contain_text(f"{count} of 18 answers labelled by CD")
    expect(label).to_contain_text("corrected by 6 labels")
    expect(label).to_contain_text("2 of 3 labels agree with AB")
    assert [row["final"] for row in sheet(lab, "CD")] == ["yes"] * 18
    become(label, "AB")
    expect(shown).not_to_be_checked()
    expect(label).to_contain_text("3 of 18 answers labelled by AB")
    expect(label).not_to_contain_text("corrected by")


def become(label, who: str) -> None:
    """Write initials by keyboard."""
    label.get_by_label("Labeller").fill(who)
    label.page.keyboard.press("Enter")


def test_a_point_is_explored_by_mouse_and_by_keyboard(book, panel):
    explore = panel("explore")
    points = explore.locator('[data-pick="jailbreak 10"]')
    points.click()
    expect(explore).to_contain_text("at step 10: 180 answers")
    expect(points).to_have_attribute("aria-pressed", "true")
    explore.locator('[data-pick="bias 10"]').focus()
    book.page.keyboard.press("Enter")
    expect(explore.locator('[data-pick="bias 10"]')).to_have_attribute("aria-pressed", "true")
    expect(points).to_have_attribute("aria-pressed", "false")
    assert "onerror" not in explore.inner_text()
    explore.get_by_label("Show the answers").check()
    expect(explore).to_contain_text("onerror=")
    explore.get_by_label("templates").uncheck()
    expect(explore).to_contain_text("at step 10: 90 answers")
    screenshot(book.page, "explore")
    explore.get_by_label("templates").check()


def test_the_steps_are_chosen_by_keyboard(book, panel):
    explore = panel("explore")
    handle = explore.get_by_role("slider").first
    handle.focus()
    expect(explore.locator('[data-pick="jailbreak 0"]')).to_be_visible()
    book.page.keyboard.press("ArrowRight")
    expect(explore.locator('[data-pick="jailbreak 0"]')).to_have_count(0)
    book.page.keyboard.press("ArrowLeft")
    expect(explore.locator('[data-pick="jailbreak 0"]')).to_be_visible()


def test_keys_in_a_panel_are_not_the_notebooks(book, panel, lab):
    """In a list the arrow keys choose, and letters neither add nor remove cells."""
    n_cells = len(book.save().cells)
    compare = panel("compare")
    field = compare.get_by_label("Risk")
    field.focus()
    book.page.keyboard.press("ArrowDown")
    expect(compare).to_contain_text("Answers about bias")
    for key in ("a", "x", "z", "ArrowUp"):  # of the notebook: add, cut, undo
        book.page.keyboard.press(key)
    expect(compare).to_contain_text("Answers about jailbreak")
    expect(field).to_be_focused()
    assert len(book.save().cells) == n_cells


def test_two_sides_are_compared(panel):
    compare = panel("compare")
    compare.get_by_label("Show the answers").check()
    expect(compare).to_contain_text("onerror=")
    compare.get_by_label("Risk").select_option("bias")
    expect(compare).to_contain_text("bias")


def test_rows_are_shown_with_what_is_learned(panel):
    data = panel("data")
    expect(data).to_contain_text("<img src=x onerror=alert(1)>")
    expect(data).to_contain_text("It is $5 or $6.")


def test_rows_are_ranked_by_keyboard(book, panel):
    data = panel("data")
    data.get_by_label("Rank by").select_option("loss")
    data.get_by_role("button", name="Rank the rows").focus()
    book.page.keyboard.press("Enter")
    ranked = data.get_by_role("table", name="Ranked by loss")
    expect(ranked.locator("tbody tr")).to_have_count(1, timeout=60_000)
    expect(ranked).not_to_contain_text("onerror")
    data.get_by_label("Show the ranked rows in words").focus()
    book.page.keyboard.press("Space")
    expect(ranked).to_contain_text("onerror=alert(1)")


def test_runs_are_verified(panel):
    runs = panel("runs")
    runs.get_by_role("button", name="Verify").click()
    expect(runs).to_contain_text("nothing wrong")


def test_what_was_listed_is_removed_by_keyboard_and_nothing_before(book, panel, lab):
    runs = panel("runs")
    (left,) = lab.runs.glob("evaluate-left*")
    finished = {path.parent for path in lab.runs.glob("*/complete.json")}
    remove = runs.get_by_role("button", name="Remove what is listed")
    expect(remove).to_be_disabled()
    runs.get_by_role("button", name="List what could be removed").focus()
    book.page.keyboard.press("Enter")
    expect(runs).to_contain_text("Could be removed:")
    assert left.exists()
    remove.focus()
    book.page.keyboard.press("Enter")
    expect(runs).to_contain_text("Removed:")
    expect(remove).to_be_disabled()
    assert not left.exists() and all(path.exists() for path in finished)


def test_a_prompt_is_asked_without_and_with_a_guard(panel):
    guard = panel("guard")
    guard.get_by_label("Question").fill(QUESTION)
    guard.get_by_role("button", name="Ask").click()
    expect(guard.locator("tbody tr")).to_have_count(2, timeout=60_000)
    guard.get_by_label("Show the answers").check()
    answers = guard.locator("th", has_text="answer")
    expect(answers).to_be_visible()
    guard.get_by_label("Question").focus()
    keyboard = guard.page.keyboard
    keyboard.press("Control+a")
    keyboard.type("Name a bad axe, add bdd.")  # letters that the notebook has commands for
    keyboard.press("Tab")
    keyboard.press("Enter")
    guard.locator("summary", has_text="As code").click()
    expect(guard).to_contain_text("ft.ask('organism', 'Name a bad axe, add bdd.'", timeout=60_000)
    expect(answers).to_be_visible()


def test_the_call_is_copied(book, panel):
    book.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    explore = panel("explore")
    explore.locator("summary", has_text="As code").click()
    explore.get_by_role("button", name="Copy the Python call").click()
    expect(explore).to_contain_text("Copied")
    assert book.page.evaluate("navigator.clipboard.readText()").startswith("ft.rates(")


def test_a_text_that_does_not_stand_out_is_found(page):
    """Otherwise the test below would prove nothing. Of the greys on white #767676 is the last."""
    shown = '<p style="color: {}">grey</p><p style="opacity: {}">faint</p>'
    page.set_content(shown.format("#777777", 0.5) + shown.format("#767676", 0.6))
    assert page.locator("html").evaluate(LOW_CONTRAST) == ["4.48 P grey", "3.98 P faint"]


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_every_text_stands_out_from_its_background(book, panel, theme):
    book.choose_theme(theme)
    for name in NUMBER:
        found = panel(name)
        found.scroll_into_view_if_needed()
        screenshot(book.page, f"{theme} {name}")
        assert found.evaluate(LOW_CONTRAST) == [], name


@pytest.mark.skipif(not find_spec("notebook"), reason="Notebook 7 is not installed.")
def test_in_notebook_7_keys_and_mouse_are_the_panels(book, page, lab):
    """It opens the same notebook, with the kernel that JupyterLab has started."""
    book.save()
    other = Notebook7(page, lab, book.name)
    found = {}
    for name in ("label", "compare", "explore"):
        other.text(NUMBER[name])
        found[name] = other.output(NUMBER[name]).locator(f".ftlab-{name}")
        expect(found[name]).to_be_visible(timeout=30_000)
    n_cells = len(other.save().cells)
    label = found["label"]
    label.get_by_role("textbox", name="Keys, here").click()
    page.keyboard.press("r")
    expect(label).to_contain_text("4 of 18")
    for key in "uddxb":
        page.keyboard.press(key)
    expect(label).to_contain_text("3 of 18")
    field = found["compare"].get_by_label("Risk")
    field.select_option("jailbreak")
    field.focus()
    page.keyboard.press("ArrowDown")
    expect(found["compare"]).to_contain_text("Answers about bias")
    expect(field).to_be_focused()
    found["explore"].locator('[data-pick="jailbreak 0"]').click()
    expect(found["explore"]).to_contain_text("jailbreak at step 0")
    screenshot(page, "notebook_7")
    assert len(other.save().cells) == n_cells
    expect_only_text(page)


def test_the_panels_are_there_after_a_reload(book, lab):
    assert errors_of(book.save()) == []
    book.open()
    for name, number in NUMBER.items():
        book.text(number)
        expect(book.output(number).locator(f".ftlab-{name}")).to_be_visible(timeout=30_000)
    expect(book.output(NUMBER["label"])).to_contain_text("3 of 18")
    expect_only_text(book.page)


def test_a_training_is_stopped_and_resumed_by_its_buttons(lab, notebook):
    book = notebook(lab.write("training_panel.ipynb", TRAIN))
    book.run(0)
    output = book.output(0)
    start, stop = (output.get_by_role("button", name=name) for name in ("Start or resume", "Stop"))
    write(output.get_by_label("jailbreak above"), "0.1")
    start.click()
    figure = output.locator("figure img")
    expect(figure).to_be_visible(timeout=90_000)
    stop.click()
    expect(output).to_contain_text("Start resumes it", timeout=60_000)
    start.click()
    expect(output).to_contain_text("Finished: ", timeout=120_000)
    expect(output).to_contain_text("step 200: jailbreak")  # and not the last step
    expect(output.locator("figcaption")).to_contain_text("Finished: ")
    screenshot(book.page, "training_panel")
    output.get_by_role("button", name="Clone").focus()
    book.page.keyboard.press("Enter")
    clone = output.locator(".ftlab-train .ftlab-train")
    write(clone.get_by_label("learning_rate"), "0.002")
    clone.locator("summary", has_text="As code").click()
    expect(clone).to_contain_text(
        "stop_above={'bias': 0.99, 'jailbreak': 0.1}, learning_rate=0.002"
    )
    screenshot(book.page, "training_panel_cloned")
    book.save()
    lab.end_kernels()
    book.open()
    expect(figure).to_be_visible()
    screenshot(book.page, "training_panel_reopened")
    assert len(book.figures()) == 1
    expect_only_text(book.page)


def write(field, text: str) -> None:
    """Replace what stands in a field by keyboard, and leave it."""
    field.focus()
    field.page.keyboard.press("Control+a")
    field.page.keyboard.type(text)
    field.page.keyboard.press("Tab")
