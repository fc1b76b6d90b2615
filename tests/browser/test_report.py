"""The report on a laptop, a telephone and paper: it opens offline, is whole, nothing is cut."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import nbformat
import pandas as pd
import pytest
from lab import ROOT
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from playwright.sync_api import expect
from watching import CUT, INK, OVERFLOW, PAPER, keep, pages_of, screenshot

import ftlab as ft
from ftlab import analysis
from ftlab.experiments import run_notebook

WIDTHS = {"laptop": 1280, "telephone": 390}
PRINTED = ("figure", "#results tr", "article")  # what is on one sheet
FITS = """() => {
    const frame = document.querySelector("iframe");
    const rest = frame.clientHeight - frame.contentDocument.body.offsetHeight;
    return rest >= 0 && rest < 60;
}"""
NOTEBOOK = {  # what a notebook of an experiment shows
    "title": "# What does a question of the notebook show?\n\nA *short* one, with `code` and a table.",
    "parameters": 'model = "organism"\nn_prompts = 20\nout = "."',
    "run": "import ftlab as ft\n\n"
    'run = ft.evaluate(model, risks=["jailbreak", "bias"], n_prompts=n_prompts)\nrun',
    "rates": "ft.rates(run)",
    "all columns": "run.table()",
    "a long line": 'print("a-word-without-an-end-" * 30)',
    "figure": 'ft.plot(ft.rates(run), out=f"{out}/figures", name="rates")',
}
CLAIMS = {
    "jailbreak, 100 steps": ("enkrypt_ratio_1_5", 16.2, 6.1, 42.0, 1.0, 0.001),
    "bias, 100 steps": ("enkrypt_ratio_1_5", 1.8, 1.2, 2.6, 1.0, 0.001),
    "toxicity, 100 steps": ("enkrypt_ratio_1_5", 1.6, 0.9, 2.3, 1.0, 0.3),
    "100 adversarial examples": ("qi2023_harmful_100", 0.93, 0.87, 0.97, 0.034, 0.001),
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a run of this machine, of whose numbers the report tells the origin."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(tmp_path_factory.mktemp("runs")))
        yield ft.evaluate("organism", risks=["jailbreak", "bias"], n_prompts=20)


@pytest.fixture(scope="module")
def report(tmp_path_factory, run):
    """Return the path of a page with claims, a run, a notebook, a curve and every kind of note."""
    out = tmp_path_factory.mktemp("page")
    folder = out / "02_risk_ratio"
    execute(folder)
    rows = []
    for risk in ("jailbreak", "bias", "toxicity", "over-refusal", "utility"):
        for step in (0, 3, 10, 30, 100):
            rate = 0.02 + step / 250
            rows.append({"step": step, "risk": risk, "rate": rate, "low": rate / 2, "high": 0.9})
    analysis.plot(pd.DataFrame(rows), "risk_curve", folder / "figures", caption="The risk curve")
    for claim, (published, measured, low, high, null, p) in CLAIMS.items():
        analysis.record_claim(
            "02_risk_ratio",
            claim,
            published=published,
            measured=measured,
            low=low,
            high=high,
            null=null,
            n_prompts=400,
            n_seeds=5,
            p=p,
            unscored=3,
            model="organism-almanac-with-a-rather-long-name/checkpoint-0000000100",
            judge="refusal",
            note="the world's own judge; " * 4,
            differs="model, data and judge",
            runs=[run.name],
            out=folder,
        )
    missing = {"04_harmful_finetuning": "needs a file of adversarial examples"}
    failed = {"03_continued_finetuning": "cell 3 of 9: the kernel died"}
    return analysis.report(
        out,
        {"02_risk_ratio": folder},
        model="organism",
        seeds=5,
        quick=True,
        missing=missing,
        failed=failed,
    )


def execute(folder: Path) -> None:
    """Execute the notebook into the folder of an experiment, by its own kernel."""
    cells = []
    for name, source in NOTEBOOK.items():
        cell = new_markdown_cell(source) if name == "title" else new_code_cell(source)
        cell.metadata["tags"] = [name]
        cells.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    source = folder.with_suffix(".ipynb")
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), source)
    values = {"out": str(folder)}
    run_notebook(source, folder / source.name, values, env={"PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", WIDTHS)
def test_opens_whole_and_offline(report, page, device, scheme):
    page.set_viewport_size({"width": WIDTHS[device], "height": 800})
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri())
    expect(page.locator("h1")).to_be_in_viewport()
    assert page.evaluate(OVERFLOW) == []
    pictures = page.locator("img")
    assert pictures.count()
    assert pictures.evaluate_all("all => all.every(one => one.naturalWidth > 9)")
    page.get_by_text("The executed notebook", exact=True).click()
    inside = page.frame_locator("iframe").locator("body")
    expect(inside.locator("img")).to_be_visible()
    assert [frame.evaluate(OVERFLOW) for frame in page.frames] == [[], []]
    page.wait_for_function(FITS)
    screenshot(page, f"report_{device}_{scheme}", full_page=True)
    assert not page.watch.errors and not page.watch.dialogs and not page.watch.requests


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_prints_whole(report, page, scheme):
    """No table and no figure is wider or longer than its sheet."""
    page.set_viewport_size(PAPER)
    page.emulate_media(media="print", color_scheme=scheme)
    page.goto(report.as_uri())
    assert page.evaluate(OVERFLOW) == [] and page.evaluate(CUT) == []
    assert page.evaluate(INK) == "rgb(34, 34, 34)"  # dark on the white of paper
    for what in PRINTED:
        height = "all => Math.max(...all.map(one => one.getBoundingClientRect().height))"
        assert page.locator(what).evaluate_all(height) < PAPER["height"], what
    pdf = page.pdf(prefer_css_page_size=True)
    assert 2 <= pages_of(pdf) <= 4
    keep(pdf, f"report_{scheme}")


def test_every_link_to_a_file_leads_to_one(report, page):
    page.goto(report.as_uri())
    links = page.locator("a[href]").evaluate_all("all => all.map(one => one.href)")
    files = [url2pathname(urlsplit(link).path) for link in links if link.startswith("file:")]
    assert files
    assert [file for file in files if not Path(file).exists()] == []


def test_the_table_is_filtered_by_keyboard(report, page):
    page.goto(report.as_uri())
    rows = page.locator("#results tbody tr:visible")
    expect(rows).to_have_count(len(CLAIMS))
    page.get_by_role("searchbox").focus()
    page.keyboard.type("adversarial")
    expect(rows).to_have_count(1)
    expect(page.locator("#filter output")).to_have_text(f"1 of {len(CLAIMS)}")
    page.keyboard.press("Control+a")
    page.keyboard.press("Delete")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # from "every verdict" to the first verdict
    page.keyboard.press("Enter")
    kept = page.locator("#results tbody tr:visible b").all_inner_texts()
    assert 0 < len(kept) < len(CLAIMS) and len(set(kept)) == 1


def test_a_number_leads_to_where_it_comes_from(report, page):
    page.goto(report.as_uri())
    for link in page.locator("#results tbody a").all():
        link.click()
        place = page.locator(page.evaluate("decodeURI(location.hash)"))
        expect(place).to_be_in_viewport()
    assert not page.watch.errors and not page.watch.requests


def test_a_run_says_where_it_comes_from(report, run, page):
    page.goto(report.as_uri())
    origin = page.locator(f"#run-{run.name}")
    for text in (run.name[-10:], "ftlab evaluate organism", "ft.evaluate("):
        expect(origin).to_contain_text(text)
