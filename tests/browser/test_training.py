"""A training in a notebook: its live figure, the stop button's keys, and what is left after a reload."""

from __future__ import annotations

import re

from lab import errors_of
from playwright.sync_api import expect
from watching import screenshot

STEPS = 150
SETTINGS = f"steps={STEPS}, batch_size=4, seed=3"
TRAIN = f"""import ftlab as ft
run = ft.sft("organism:base", "organism:alignment", n_rows=500, {SETTINGS})
print(ft.model(run).hash, len(run.log()))"""
ELSEWHERE = "%env FTLAB_RUNS={folder}\n" + TRAIN
STOPPED = re.compile(r"stopped at step (\d+)")


def test_an_interrupted_training_resumes_to_the_same_numbers(lab, notebook):
    book = notebook(lab.write("interrupted.ipynb", TRAIN, ELSEWHERE.format(folder=lab.runs / "b")))
    book.start(0)
    live = book.output(0).locator("img")
    expect(live).to_be_visible(timeout=60_000)  # the loss so far, while it trains
    screenshot(book.page, "training")
    book.interrupt()
    book.finished(0)
    stopped = book.text(0)
    screenshot(book.page, "interrupted")
    assert 0 < int(STOPPED.search(stopped)[1]) < STEPS
    book.run(0, 1)
    assert errors_of(book.save()) == []
    resumed, straight = (book.text(number) for number in (0, 1))
    numbers = re.compile(r"^[0-9a-f]{8,} \d+$", re.MULTILINE)
    assert numbers.search(resumed)[0] == numbers.search(straight)[0]


def test_the_live_figure_is_folded_at_the_end_and_survives_a_reload(lab, notebook):
    book = notebook(lab.write("live.ipynb", TRAIN.replace(str(STEPS), "30")))
    book.run(0)
    saved = book.save()
    assert sum("display_id" in str(output) for output in saved.cells[0].outputs) <= 1
    for _ in range(2):  # as it was made, and as it was saved
        summary = book.output(0).locator("summary")
        expect(summary).to_contain_text("done in")
        figure = book.output(0).locator("details img")
        expect(figure).not_to_be_visible()
        summary.focus()
        book.page.keyboard.press("Enter")
        expect(figure).to_be_visible()
        assert len(book.figures()) == 1
        screenshot(book.page, "live")
        book.open()
