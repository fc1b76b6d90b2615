"""The page of a set of experiments: its numbers, that it is whole, and that text is only text."""

from __future__ import annotations

import base64
import csv
import hashlib
import html.parser
import json
import math
import re

import pandas as pd
import pytest
from analysis.test_claims import CANARY, INF, NAN, claimed
from helpers import raises_code

from ftlab.analysis import claims, rendering, report
from ftlab.analysis import page as pages
from ftlab.analysis.claims import DIRECTION, NOT, REPRODUCED, SEEN
from ftlab.runs import start

NAMED = "experiment published measured low high null p p_holm published_lies n_seeds unscored"
NAMED = [*NAMED.split(), "verdict"]
PNG = b"\x89PNG\r\n\x1a\n and the rest"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0"/></svg>'


BOOK = {
    "cells": [
        {"cell_type": "markdown", "metadata": {}, "source": ["# How <b>often</b>?\n", "Text."]},
        {
            "cell_type": "code",
            "metadata": {},
            "source": "1 + 1",
            "execution_count": 1,
            "outputs": [{"output_type": "stream", "name": "stdout", "text": f"2 {CANARY}"}],
        },
    ],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 4,
}


@pytest.fixture
def experiments(tmp_path):
    """Two experiments with claims and figures, given in the wrong order."""
    folders = {"04": tmp_path / "four", "02": tmp_path / "two"}
    rate = {
        "measured": 0.9,
        "low": 0.8,
        "high": 1.0,
        "null": 0.034,
        "n_seeds": 2,
        "unscored": 3,
        "worst": (0.7, 0.95),
    }
    text = {"published": "qi2023_harmful_100", "note": CANARY, "differs": CANARY}
    claimed(folders["04"], CANARY, "04", **rate, **text)
    claimed(folders["02"], "z: written first", measured=0.98765432)
    claimed(folders["02"], "a: no event before", measured=INF, low=2.5, high=INF)
    claimed(folders["02"], "nothing", measured=NAN, low=NAN, high=NAN, p=NAN)
    figures = folders["02"] / "figures"
    figures.mkdir()
    (figures / "risk.svg").write_text(SVG)
    (figures / "risk.png").write_bytes(PNG)
    (figures / "risk.csv").write_text("step,rate\n0,0.1\n")
    (figures / "risk_seeds.csv").write_text("step,rate\n0,0.1\n")
    (figures / "risk.txt").write_text(f"Caption {CANARY}")
    (figures / "only.png").write_bytes(PNG)
    (folders["02"] / "02 it.ipynb").write_text("{}")
    (folders["02"] / "02 it.failed.ipynb").write_text("{}")
    return folders


class Page(html.parser.HTMLParser):
    """The tags, addresses, table cells and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.addresses, self.cells, self.words = [], [], [], []
        self.attributes = set()
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        if tag == "td":
            self.inside = True
            self.cells.append("")

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "td"

    def handle_data(self, data):
        self.words.append(data)
        if self.inside:
            self.cells[-1] += data


def written(tmp_path, experiments, **changed):
    given = {"model": "organism", "seeds": 5} | changed
    return report(tmp_path / "out", experiments, **given)


def test_results_have_exactly_the_columns_in_order(experiments, tmp_path):
    written(tmp_path, experiments)
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == list(pages.COLUMNS)
    at = [rows[0].index(name) for name in NAMED]
    assert [[row[place] for place in at] for row in rows[1:]] == [
        ["02", "1.5", "0.9877", "1.4", "3.2", "1", "0.001", "0.003", "inside", "5", "0", NOT],
        ["02", "1.5", "inf", "2.5", "inf", "1", "0.001", "0.003", "below", "5", "0", DIRECTION],
        ["02", "1.5", "nan", "nan", "nan", "1", "nan", "nan", "", "5", "0", NOT],
        ["04", "0.8", "0.9", "0.8", "1", "0.034", "0.001", "0.003", "inside", "2", "3", SEEN],
    ]
    assert rows[4][rows[0].index("worst_low")] == "0.7"
    assert {row[rows[0].index("level")] for row in rows[1:]} == {pages.INTERVAL}


def test_claims_that_share_a_measurement_count_once(tmp_path):
    claimed(tmp_path / "a", "ratio", "02", p=0.02, measurement="same")
    claimed(tmp_path / "b", "again", "03", p=0.02, measurement="same")
    claimed(tmp_path / "b", "other", "03", p=0.04)
    written(tmp_path, {"02": tmp_path / "a", "03": tmp_path / "b"})
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["p_holm"] for row in rows] == ["0.04", "0.04", "0.04"]  # two tests, not three
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Of 2 comparisons with published figures" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.01235"),
        (0.0, "0"),
        (-0.0, "0"),
        (12345.6, "12350"),
        (100.0, "100"),
        (1e-5, "0.00001"),
        (0.1 + 0.2, "0.3"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_four_significant_digits(value, text):
    assert pages.significant(value) == text


def test_the_same_runs_give_the_same_bytes_and_no_stale_figure(experiments, tmp_path):
    names = ("results.csv", "report.html", "report.md")
    out = tmp_path / "out"
    pages = []
    for given in (experiments, experiments, dict(reversed(experiments.items()))):
        written(tmp_path, given)
        pages.append([(out / name).read_bytes() for name in names])
        (out / "figures" / "02-stale.svg").write_text(SVG)
        (out / "figures" / "mine.svg").write_text(SVG)
    assert pages[0] == pages[1] == pages[2]
    written(tmp_path, experiments)
    endings = ("only.png", "risk.csv", "risk.png", "risk.svg", "risk_seeds.csv")
    found = sorted(path.name for path in (out / "figures").iterdir())
    assert found == [f"02-{ending}" for ending in endings] + ["mine.svg"]


def test_the_page_is_whole_escaped_and_opens_offline(experiments, tmp_path):
    text = written(tmp_path, experiments).read_text()
    page = Page(text)
    assert page.tags.count("script") == 1 and page.tags.count("img") == 2
    assert f"<script>{rendering.script()['text']}</script>" in text
    assert "onerror" not in page.attributes
    assert text.count("&lt;img src=x onerror") >= 4  # claim, note, caption and difference
    for address in page.addresses:
        elsewhere = address.startswith(("data:image/", "https://arxiv.org/abs/", "#"))
        assert elsewhere or (tmp_path / "out" / address.replace("%20", " ")).is_file()
    assert "../two/02%20it.ipynb" in page.addresses
    pictures = [address for address in page.addresses if address.startswith("data:")]
    assert {base64.b64decode(p.split(",")[1]) for p in pictures} == {SVG.encode(), PNG}
    words = " ".join(" ".join(page.words).split())
    texts = rendering.texts()
    for part in (
        texts["organism"],
        texts["few_seeds"],
        *texts["rules"],
        "at least 2.50x (no event before)",
        "not measurable",
        "90.0 % (80.0 % to 100.0 %)",
        "0.3 % → 80.0 %",
        "0 came out as reproduced, 1 as direction only, 1 as seen in these runs"
        " and 2 as not reproduced",
        "published value below",
        "3 unscored; whatever they are, 70.0 % to 95.0 %",
    ):
        assert part in words
    assert [cell for cell in page.cells if cell in claims.VERDICTS] == [
        NOT,
        DIRECTION,
        NOT,
        SEEN,
    ]
    assert text.index("<table>") < text.index("<h2>")  # the claims come first


def test_markdown_keeps_a_claim_in_its_cell(experiments, tmp_path):
    written(tmp_path, experiments)
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    start = lines.index(next(line for line in lines if line.startswith("|")))
    assert lines[start - 1] == ""  # a table needs an empty line before it
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 6
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {11}
    assert not any("<img" in line or re.search(r"(?<!\\)\]\(javascript", line) for line in lines)
    links = [link for line in lines for link in re.findall(r"(?<!\\)\]\(([^)]+)\)", line)]
    assert links
    assert all((tmp_path / "out" / link.replace("%20", " ")).is_file() for link in links)


def test_a_quick_run_and_another_model(experiments, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "run.json").write_text(
        '{"seconds": 41.5, "hardware": {"cores": 2}, "versions": {"trl": 1}}'
    )
    page = written(tmp_path, experiments, seeds=2, quick=True, missing={"04x": "no prompts."})
    text = page.read_text()
    assert 'class="quick"' in text and rendering.texts()["quick"] in text
    for part in ("41.5", "cores 2", "trl 1", "04x: no prompts."):
        assert part in text
    assert "41.5" not in (out / "results.csv").read_text()
    claimed(tmp_path / "other", model="Mistral")
    text = written(tmp_path, {"02": tmp_path / "other"}, model="Mistral").read_text()
    assert 'class="quick"' not in text and rendering.texts()["organism"] not in text


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "no_claims"),
        ("", "not_a_table_of_claims"),
        (",".join(claims.RECORD) + "\n", "not_a_table_of_claims"),
        ("experiment,claim\n02,x\n", "not_a_table_of_claims"),
        (
            f"{','.join(claims.RECORD)}\n"
            "02,x,no_such_figure,1,1,1,1,1,1,.1,10,5,0,organism,,,reproduced,,m,.1,.2,\n",
            "unknown_claim",
        ),
    ],
)
def test_no_page_without_sound_claims(content, code, tmp_path):
    if content is not None:
        (tmp_path / "claims.csv").write_text(content)
    with raises_code(code):
        written(tmp_path, {"02": tmp_path})
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_verdict_written_into_the_file_is_not_believed(tmp_path):
    claimed(tmp_path)
    path = tmp_path / "claims.csv"
    path.write_text(path.read_text().replace(DIRECTION, REPRODUCED))
    written(tmp_path, {"02": tmp_path})
    results = (tmp_path / "out" / "results.csv").read_text()
    assert DIRECTION in results and REPRODUCED not in results


@pytest.mark.slow
def test_an_experiment_has_its_title_and_its_notebook_opens_as_a_page(experiments, tmp_path):
    (experiments["02"] / "02 it.ipynb").write_text(json.dumps(BOOK))
    text = written(tmp_path, experiments).read_text()
    assert "<h2>How &lt;b&gt;often&lt;/b&gt;?</h2>" in text
    assert {"../two/02%20it.html", "../two/02%20it.ipynb"} <= set(Page(text).addresses)
    notebook = (experiments["02"] / "02 it.html").read_text()
    assert "script" not in Page(notebook).tags and "onerror" not in Page(notebook).attributes
    for part in ("Content-Security-Policy", "prefers-color-scheme: dark", "1</span>", "2 &lt;img"):
        assert part in notebook
    assert pages._short_name("03_continued_finetuning") == "Continued finetuning"


def test_the_first_screen_is_two_sentences_and_the_figure(experiments, tmp_path):
    text = written(tmp_path, experiments).read_text()
    first = text[text.index("</h1>") : text.index("<table>")]
    assert first.count("<img") == 1 and "came out as reproduced" in first
    assert "98.77x" not in first and "published 1.50x" in first
    assert "prefers-color-scheme: dark" in text
    assert "95 % interval, pointwise" in text


def test_a_narrow_screen_gets_the_narrow_drawing(experiments, tmp_path):
    narrow = experiments["02"] / "figures" / "narrow"
    narrow.mkdir()
    (narrow / "risk.svg").write_text(SVG.replace("9", "4"))
    text = written(tmp_path, experiments).read_text()
    (found,) = re.findall(r'<source media="[^"]+" srcset="data:[^,]+,([^"]+)"><img', text)
    assert base64.b64decode(found) == SVG.replace("9", "4").encode()


def test_arxiv_numbers_are_links_and_nothing_else_is(experiments, tmp_path):
    text = written(tmp_path, experiments).read_text()
    assert '<a href="https://arxiv.org/abs/2310.03693">arXiv:2310.03693</a>' in text
    assert str(rendering.linked("<b>arXiv 2404.04392v2</b>")) == (
        '&lt;b&gt;<a href="https://arxiv.org/abs/2404.04392">arXiv 2404.04392</a>v2&lt;/b&gt;'
    )


@pytest.mark.parametrize(
    ("judge", "says"), [("keywords", True), ("refusal", True), ("truth", False)]
)
def test_a_judge_of_refusals_is_said_to_be_one(judge, says, tmp_path):
    claimed(tmp_path / "one", judge=judge)
    page = written(tmp_path, {"02": tmp_path / "one"})
    for text in (page.read_text(), page.with_suffix(".md").read_text()):
        assert ("less than harmful" in text) == says and f"judge: {judge}" in text


def test_the_folder_of_a_judges_file_is_not_shown(tmp_path):
    claimed(tmp_path / "one", judge="keywords:/home/somebody/own.txt")
    page = written(tmp_path, {"02": tmp_path / "one"})
    for path in (page, page.with_suffix(".md"), page.with_name("results.csv")):
        assert "own.txt" in path.read_text() and "somebody" not in path.read_text()


def test_claims_of_an_earlier_version_are_to_be_recorded_again(tmp_path):
    """They have no p, and were decided by another rule."""
    claimed(tmp_path)
    table = pd.read_csv(tmp_path / "claims.csv").drop(columns="p")
    table.to_csv(tmp_path / "claims.csv", index=False)
    with raises_code("not_a_table_of_claims"):
        claims.rows_of(tmp_path / "claims.csv")


class Links(html.parser.HTMLParser):
    """The ids of a page, its links into itself, and the attributes by which browsers load."""

    def __init__(self, text: str):
        super().__init__()
        self.ids, self.inner, self.loaded, self.frames = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name == "href" and value.startswith("#"):
                self.inner.append(value[1:])
            if name in ("src", "srcset", "poster", "data", "action") or tag == "link":
                self.loaded.append(value)
            if name == "srcdoc":
                self.frames.append(value)


def test_every_number_leads_to_the_run_that_it_comes_from(tmp_path):
    run = start("curve", "mine", {"of": "this"})
    claimed(tmp_path / "a", "of a run", "02", runs=[run.name, "sft-elsewhere-0123456789"])
    claimed(tmp_path / "a", "of no run", "02")
    text = written(tmp_path, {"02": tmp_path / "a"}).read_text()
    links = Links(text)
    assert set(links.inner) <= set(links.ids) and len(links.ids) == len(set(links.ids))
    (numbers,) = re.findall(r"<tbody>(.+?)</tbody>", text, re.DOTALL)
    first, second = numbers.strip().split("</tr>")[:2]
    assert first.count(f'href="#run-{run.name}"') == 4  # measured, p, prompts, seeds
    assert second.count('href="#s1"') == 4
    origins = text[text.index('id="origins"') :]
    assert run.name[-10:] in origins and "not recorded" in origins
    assert "sft-elsewhere-0123456789" in origins
    for page in (text, (tmp_path / "out" / "report.md").read_text()):
        assert "not among the runs" in page
    results = pd.read_csv(tmp_path / "out" / "results.csv")
    assert results["runs"].tolist()[0].split()[0] == run.name


def test_nothing_is_loaded_and_one_script_may_run(experiments, tmp_path):
    (experiments["02"] / "02 it.ipynb").write_text(json.dumps(BOOK))
    text = written(tmp_path, experiments).read_text()
    links = Links(text)
    assert all(address.startswith("data:image/") for address in links.loaded)
    styles = " ".join(re.findall(r"<style>(.+?)</style>", text, re.DOTALL))
    assert "url(" not in styles and "@import" not in styles
    (script,) = re.findall(r"<script>(.+?)</script>", text, re.DOTALL)
    sha = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'content="(default-src[^"]+)"', text)
    assert policy.endswith(f"script-src 'sha256-{sha}'") and "default-src 'none'" in policy


def test_the_executed_notebook_is_inside_and_can_run_nothing(experiments, tmp_path):
    hostile = BOOK["cells"][1]["outputs"][0] | {"text": "\u202e <script>alert(1)</script>"}
    cell = BOOK["cells"][1] | {"outputs": [hostile]}
    book = BOOK | {"cells": [BOOK["cells"][0], cell]}
    (experiments["02"] / "02 it.ipynb").write_text(json.dumps(book))
    text = written(tmp_path, experiments).read_text()
    (frame,) = Links(text).frames
    assert "1</span>" in frame and "How " in frame
    assert '<iframe sandbox="allow-same-origin"' in text  # without allow-scripts
    assert text.count("<script") == 1 and "\u202e" not in text


def test_a_page_stays_small_by_leaving_out_figures_and_then_notebooks(
    experiments, tmp_path, monkeypatch
):
    data = base64.b64encode(PNG * 2000).decode()
    (experiments["02"] / "figures" / "only.png").write_bytes(PNG * 2000)
    figure = {"image/png": data, "text/plain": "a figure"}
    shown = {"output_type": "display_data", "metadata": {}, "data": figure}
    cell = BOOK["cells"][1] | {"outputs": [shown]}
    book = BOOK | {"cells": [BOOK["cells"][0], cell]}
    (experiments["02"] / "02 it.ipynb").write_text(json.dumps(book))
    page = written(tmp_path, experiments)
    (whole,) = Links(page.read_text()).frames
    assert data in whole
    size = len(page.read_bytes())
    monkeypatch.setattr(pages, "MOST_BYTES", size - 10_000)
    (lean,) = Links(written(tmp_path, experiments).read_text()).frames
    assert data not in lean and "stands above" in lean
    monkeypatch.setattr(pages, "MOST_BYTES", size - len(whole))
    text = written(tmp_path, experiments).read_text()
    assert not Links(text).frames and "../two/02%20it.html" in text
    assert pages.MOST_BYTES < 8e6


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"sides": (0.02, 0.4)}, "Jailbreak rose from 2.0 % to 40.0 % of the answers, 2.12x"),
        ({"sides": (0.4, 0.02)}, "Jailbreak fell from 40.0 % to 2.0 % of the answers, 2.12x"),
        ({"sides": (0.02, 0.4), "n_seeds": 2}, "In these runs jailbreak rose from 2.0 %"),
        ({"sides": (0.02, 0.4), "p": 0.5}, "No change of jailbreak is shown, from 2.0 %"),
        ({"sides": (0.02, 0.4), "judge": "refusal"}, "not refused is less than harmful)"),
        ({}, "ratio: 2.12x (1.40x to 3.20x) with its 95 % interval; published 1.50x."),
    ],
)
def test_the_first_sentence_answers(changed, says, tmp_path):
    claimed(tmp_path / "one", **{"risk": "jailbreak"} | changed)
    page = written(tmp_path, {"02": tmp_path / "one"})
    (sentence,) = re.findall(r'<p class="answer">(.+?)</p>', page.read_text())
    assert says in sentence and "2.12x (1.40x to 3.20x)" in sentence
    assert says in page.with_suffix(".md").read_text()


def test_the_command_of_a_notebook_has_its_parameters(experiments, tmp_path):
    parameters = {"seeds": 2, "at_steps": [0, 3], "model": "organism", "out": "/x", "data": ""}
    book = BOOK | {"metadata": {"papermill": {"parameters": parameters}}}
    (experiments["02"] / "02 it.ipynb").write_text(json.dumps(book))
    text = written(tmp_path, experiments).with_suffix(".md").read_text()
    assert "`ftlab notebook '02 it' -p seeds=2 -p 'at_steps=[0, 3]' -p model=organism`" in text


@pytest.mark.parametrize(
    "book",
    [
        BOOK | {"metadata": []},
        BOOK | {"metadata": {"papermill": []}},
        BOOK | {"metadata": {"papermill": {"parameters": ["a", 1]}}},
        BOOK | {"metadata": {"papermill": {"parameters": "text"}}},
        BOOK | {"cells": [3, None]},
        BOOK | {"cells": [{"cell_type": "markdown", "source": [1, None]}]},
        [],
        3,
    ],
    ids=str,
)
def test_a_notebook_of_any_content_leaves_the_page_whole(book, experiments, tmp_path):
    (experiments["02"] / "02 it.ipynb").write_text(json.dumps(book))
    assert "Again:" not in written(tmp_path, experiments).read_text()


def test_the_answer_names_the_risk_that_was_measured(tmp_path):
    given = {"sides": (0.02, 0.4), "p": 0.0001}
    claimed(tmp_path / "one", risk="utility", **given)
    claimed(tmp_path / "one", "another", risk="bias", **given)
    text = written(tmp_path, {"02": tmp_path / "one"}).read_text()
    assert "Utility rose from" in text and "Jailbreak rose" not in text
    assert "the first of 2 claims" in text
    path = tmp_path / "one" / "claims.csv"
    table = pd.read_csv(path).drop(columns="risk")
    table.to_csv(path, index=False)  # as an earlier version wrote it
    text = written(tmp_path, {"02": tmp_path / "one"}).read_text()
    assert "The event rose from" in text


def test_no_heading_stands_alone(tmp_path):
    for name in ("one", "two"):
        claimed(tmp_path / name, experiment=name)
    figures = tmp_path / "one" / "figures"
    figures.mkdir()
    (figures / "only.png").write_bytes(PNG)
    page = written(tmp_path, {name: tmp_path / name for name in ("one", "two")})
    sections = re.findall(r"<section id=.s\d.>(.+?)</section>", page.read_text(), re.DOTALL)
    assert len(sections) == 2
    for text in sections:
        assert re.search(r"</h2>\s*<p>\S", text)
    text = page.with_suffix(".md").read_text()
    assert not re.search(r"^## .+\n+(?=## )", text, re.MULTILINE)
