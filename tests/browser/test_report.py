"""The report on a laptop and on a telephone: it opens offline, is whole and is not scrolled sideways."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pandas as pd
import pytest
from playwright.sync_api import expect
from watching import screenshot

from ftlab import analysis

WIDTHS = {"laptop": 1280, "telephone": 390}
# What is wider than the window, so that the page is scrolled sideways.
OVERFLOW = """() => document.documentElement.scrollWidth > window.innerWidth
    ? [...document.querySelectorAll("body *")]
        .filter(one => one.getBoundingClientRect().right > window.innerWidth + 1)
        .map(one => one.outerHTML.slice(0, 120))
    : []"""
CLAIMS = {
    "jailbreak, 100 steps": ("enkrypt_ratio_1_5", 16.2, 6.1, 42.0, 1.0, 0.001),
    "bias, 100 steps": ("enkrypt_ratio_1_5", 1.8, 1.2, 2.6, 1.0, 0.001),
    "toxicity, 100 steps": ("enkrypt_ratio_1_5", 1.6, 0.9, 2.3, 1.0, 0.3),
    "100 adversarial examples": ("qi2023_harmful_100", 0.93, 0.87, 0.97, 0.034, 0.001),
}


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the path of a page with claims, a curve and every kind of note."""
    out = tmp_path_factory.mktemp("page")
    folder = out / "02_risk_ratio"
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
    screenshot(page, f"report_{device}_{scheme}", full_page=True)
    assert not page.watch.errors and not page.watch.dialogs and not page.watch.requests


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
