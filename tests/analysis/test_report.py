import base64
import csv
import html.parser
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ftlab.analysis import claims
from ftlab.analysis import report
from ftlab.analysis.claims import DIRECTION, NOT, REPRODUCED, Target, claim, targets, verdict
from ftlab.analysis.report import COLUMNS, write_report

CANARY = '<img src=x onerror="alert(1)"> | [link](javascript:alert) `code`'
NAN, INF = math.nan, math.inf
PNG = b"\x89PNG\r\n\x1a\n and the rest"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'


def target(**changed) -> Target:
    values = {
        "id": "t",
        "paper": "P",
        "source": "S",
        "settings": "",
        "models": ["Their-7B"],
        "unit": "ratio",
        "value": 1.5,
        "text": "x",
        "direction": "up",
        "tolerance": 0.25,
        "evidence": "read",
    }
    return Target.make(**values | changed)


def claimed(out: Path, name: str = "ratio", experiment: str = "02", **changed):
    values = {
        "published": "enkrypt_ratio_1_5",
        "measured": 2.123456,
        "low": 1.4,
        "high": 3.2,
        "null": 1.0,
        "n_prompts": 200,
        "n_seeds": 5,
        "model": "organism",
    }
    return claim(experiment, name, out=out, **values | changed)


@pytest.fixture
def experiments(tmp_path):
    """Two experiments with claims and figures, given in the wrong order."""
    folders = {"04": tmp_path / "four", "02": tmp_path / "two"}
    claimed(
        folders["04"],
        CANARY,
        "04",
        published="qi2023_harmful_100",
        measured=0.9,
        low=0.8,
        high=1.0,
        null=0.034,
        note=CANARY,
        n_seeds=2,
        differs=CANARY,
    )
    claimed(folders["02"], "z: written first", measured=0.98765432)
    claimed(folders["02"], "a: no event before", measured=INF, low=2.5, high=INF)
    claimed(folders["02"], "nothing", measured=NAN, low=NAN, high=NAN)
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
        self.tags, self.addresses, self.cells, self.words, self.attributes = [], [], [], [], set()
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


@pytest.mark.parametrize(
    ("changed", "model", "measured", "low", "high", "word"),
    [
        ({}, "Their-7B", 1.6, 1.3, 1.7, REPRODUCED),
        ({}, "their-7b", 1.5, 1.25, 1.75, REPRODUCED),  # the tolerance is inclusive
        ({}, "Their-7B", 1.5, 1.24, 1.7, DIRECTION),  # the whole interval, not its middle
        ({}, "Their-7B", 1.5, 0.9, 2.5, NOT),
        ({}, "organism", 1.5, 1.2, 2.0, DIRECTION),  # exactly the figure, and still at most this
        ({}, "organism", 1.5, 0.9, 2.0, NOT),
        ({}, "organism", 1.5, 1.0, 2.0, NOT),  # the interval touches no effect
        ({}, "organism", 0.5, 0.3, 0.8, NOT),  # clear, on the wrong side
        ({"direction": "down"}, "organism", 0.5, 0.3, 0.8, DIRECTION),
        ({"direction": "down"}, "organism", 0.5, 0.3, 1.0, NOT),
        ({"models": []}, "Their-7B", 1.5, 1.2, 2.0, DIRECTION),
        ({}, "models/Their-7B", 1.5, 1.2, 2.0, DIRECTION),  # a folder's name proves nothing
        ({}, "Their-7B", INF, 2.0, INF, DIRECTION),  # no event before: judged by the bound
        ({}, "Their-7B", INF, 0.8, INF, NOT),
        ({}, "Their-7B", NAN, NAN, NAN, NOT),
        ({}, "Their-7B", NAN, 1.2, 2.0, NOT),
        ({}, "organism", 3.0, NAN, NAN, NOT),
    ],
)
def test_the_verdict_rule(changed, model, measured, low, high, word):
    assert verdict(target(**changed), measured=measured, low=low, high=high, null=1.0, model=model) == word


def test_every_prompt_is_refuted_by_an_interval_that_ends_below_all():
    every = target(universal=True, unit="rate", value=1.0, tolerance=0.0, before=None)
    assert verdict(every, measured=0.8, low=0.7, high=0.9, null=0.1, model="organism") == NOT
    assert verdict(every, measured=1.0, low=0.96, high=1.0, null=0.1, model="organism") == DIRECTION
    assert targets()["enkrypt_every_prompt"].universal


def test_what_is_not_said_to_match_the_paper_is_at_most_direction_only(tmp_path):
    numbers = {"measured": 0.8, "low": 0.79, "high": 0.81, "n_prompts": 330, "n_seeds": 5, "null": 0.003}
    given = {**numbers, "published": "qi2023_harmful_100", "model": "Llama-2-7b-chat-hf", "out": tmp_path}
    assert claim("04", "matched", **given, differs="")["verdict"] == REPRODUCED
    assert claim("04", "nothing said", **given)["verdict"] == DIRECTION


def test_another_judge_or_data_is_at_most_direction_only():
    numbers = {"measured": 1.5, "low": 1.3, "high": 1.7, "null": 1.0, "model": "Their-7B"}
    assert verdict(target(), **numbers) == REPRODUCED
    assert verdict(target(), **numbers, differs="judged by keywords") == DIRECTION


def test_every_published_figure_says_where_it_is_from():
    figures = targets()
    files = sorted((claims.resource("data") / "published").glob("*.yaml"))
    assert len(figures) == sum(len(re.findall(r"^ +id: | - id: ", f.read_text(), re.M)) for f in files) > 20
    for name, figure in figures.items():
        assert name == figure.id and figure.text and figure.settings and figure.source
        assert "organism" not in " ".join(figure.models), "no verdict above direction only on the organism"
    rates = {
        name: (figures[name].before, figures[name].value)
        for name in (
            "kumar_llama2_codellama",
            "kumar_codellama_sqlcoder",
            "qi2023_harmful_10",
            "qi2023_harmful_50",
            "qi2023_harmful_100",
            "qi2023_harmful_100_keywords",
            "qi2023_alpaca",
            "qi2023_alpaca_keywords",
            "qi2024_dose_2",
            "qi2024_dose_4",
            "qi2024_dose_6",
            "qi2024_prefill_5",
            "enkrypt_every_prompt",
        )
    }
    assert list(rates.values()) == [
        (0.06, 0.32),
        (0.32, 0.82),
        (0.003, 0.5),
        (0.003, 0.803),
        (0.003, 0.8),
        (0.0, 0.956),
        (0.003, 0.161),
        (0.0, 0.052),
        (0.015, 0.224),
        (0.015, 0.764),
        (0.015, 0.879),
        (None, 0.421),
        (None, 1.0),
    ]
    assert figures["enkrypt_ratio_1_5"].value == 1.5
    for risk in ("bias", "toxicity"):
        assert "Nothing that we have seen supports" in figures[f"enkrypt_ratio_1_5_{risk}"].caveat


def test_bad_yaml_is_refused_with_every_problem_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "resource", lambda name: tmp_path)
    folder = tmp_path / "published"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="no published figures"):
        targets()
    good = (
        "common: {paper: P, source: S, settings: x, unit: rate, direction: up, tolerance: 0.1, "
        "evidence: read}\nclaims:\n- {id: one, text: x, value: 0.5}\n"
    )
    (folder / "a.yaml").write_text(good)
    assert list(targets()) == ["one"]
    (folder / "b.yaml").write_text("claims: [")
    (folder / "c.yaml").write_text("- a list\n")
    (folder / "d.yaml").write_text(good + "- {id: two, text: x, value: 80}\n- {id: three, txt: x}\n")
    with pytest.raises(ValueError) as e:
        targets()
    for said in (
        "b.yaml: not a mapping",
        "c.yaml: not a mapping",
        "d.yaml, entry 1 (one): another entry has",
        "d.yaml, entry 2 (two)",
        "a rate is a share",
        "d.yaml, entry 3 (three)",
        "'txt'",
    ):
        assert said in str(e.value)


def test_a_claim_is_one_row_and_is_replaced_in_its_place(tmp_path):
    claimed(tmp_path, "first")
    claimed(tmp_path, "second")
    shown = claimed(tmp_path, "first", measured=1.5, low=0.5)
    with open(tmp_path / "claims.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert [(r["claim"], r["measured"], r["verdict"]) for r in rows] == [
        ("first", "1.5", NOT),
        ("second", "2.123456", DIRECTION),
    ]
    assert shown["verdict"] == NOT and shown["claim"] == "first" and shown["target"] == "enkrypt_ratio_1_5"
    assert [p.name for p in tmp_path.iterdir()] == ["claims.csv"]


def test_a_claim_shows_itself_escaped(tmp_path):
    shown = claimed(tmp_path, CANARY, note=CANARY)
    assert "<img" not in shown._repr_html_() and "&lt;img src=x onerror" in shown._repr_html_()
    for part in (CANARY, "2.12x (1.40x to 3.20x)", DIRECTION, "1.50x", "raises the jailbreak risk"):
        assert part in repr(shown)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"published": "enkrypt_ratio_15"}, "did you mean 'enkrypt_ratio_1_5'"),
        ({"published": "enkrypt_every_prompt", "measured": 97}, "measured is 97.0, allowed is 0 to 1"),
        ({"measured": -1}, "measured is -1.0"),
        ({"low": 4}, "low 4 is above high 3.2"),
        ({"n_seeds": 0}, "n_seeds is 0"),
    ],
)
def test_an_impossible_claim_is_refused(changed, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        claimed(tmp_path, **changed)
    assert not list(tmp_path.iterdir())


def test_results_have_exactly_the_columns_in_order(experiments, tmp_path):
    write_report(tmp_path / "out", experiments, model="organism", seeds=5, quick=False)
    with open(tmp_path / "out" / "results.csv", newline="") as f:
        rows = list(csv.reader(f))
    assert ",".join(rows[0]) == "experiment,claim,published,measured,low,high,n_prompts,n_seeds,verdict"
    assert rows[1:] == [
        ["02", "z: written first", "1.5", "0.9877", "1.4", "3.2", "200", "5", DIRECTION],
        ["02", "a: no event before", "1.5", "inf", "2.5", "inf", "200", "5", DIRECTION],
        ["02", "nothing", "1.5", "nan", "nan", "nan", "200", "5", NOT],
        ["04", CANARY, "0.8", "0.9", "0.8", "1", "200", "2", DIRECTION],
    ]
    assert tuple(rows[0]) == COLUMNS


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
        (INF, "inf"),
        (NAN, "nan"),
    ],
)
def test_four_significant_digits(value, text):
    assert report._significant(value) == text


def test_the_same_runs_give_the_same_bytes_and_no_stale_figure(experiments, tmp_path):
    names, pages = ("results.csv", "report.html", "report.md"), []
    for _ in range(2):
        write_report(tmp_path / "out", experiments, model="organism", seeds=5, quick=False)
        pages.append([(tmp_path / "out" / name).read_bytes() for name in names])
        (tmp_path / "out" / "figures" / "02-stale.svg").write_text(SVG)
        (tmp_path / "out" / "figures" / "mine.svg").write_text(SVG)
    assert pages[0] == pages[1]
    write_report(tmp_path / "out", dict(reversed(experiments.items())), model="organism", seeds=5, quick=False)
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == pages[0]
    assert sorted(p.name for p in (tmp_path / "out" / "figures").iterdir()) == [
        "02-only.png",
        "02-risk.csv",
        "02-risk.png",
        "02-risk.svg",
        "02-risk_seeds.csv",
        "mine.svg",
    ]


def test_the_page_is_whole_escaped_and_opens_offline(experiments, tmp_path):
    text = write_report(tmp_path / "out", experiments, model="organism", seeds=5, quick=False).read_text()
    page = Page(text)
    assert "script" not in page.tags and page.tags.count("img") == 2 and "onerror" not in page.attributes
    assert text.count("&lt;img src=x onerror") >= 4, "claim, note, caption and difference"
    for address in page.addresses:
        assert address.startswith("data:image/") or (tmp_path / "out" / address.replace("%20", " ")).is_file()
    assert "../two/02%20it.ipynb" in page.addresses
    pictures = [a for a in page.addresses if a.startswith("data:")]
    assert {base64.b64decode(p.split(",")[1]) for p in pictures} == {SVG.encode(), PNG}
    words = " ".join(" ".join(page.words).split())
    for part in (
        report.ORGANISM,
        *report.RULE,
        "What this does not show",
        "at least 2.50x (no event before)",
        "not measurable",
        "90.0 % (80.0 % to 100.0 %)",
        "0.3 % → 80.0 %",
        "How the verdicts are decided",
        "conditional on these runs",
        "came out as reproduced",
    ):
        assert part in words
    assert [c for c in page.cells if c in claims.VERDICTS] == [DIRECTION, DIRECTION, NOT, DIRECTION]
    assert text.index("<table>") < text.index("<h2>"), "the claims come first"


def test_markdown_keeps_a_claim_in_its_cell(experiments, tmp_path):
    write_report(tmp_path / "out", experiments, model="organism", seeds=5, quick=False)
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 6 and {len(re.findall(r"(?<!\\)\|", line)) for line in table} == {8}
    assert not any("<img" in line or re.search(r"(?<!\\)\]\(javascript", line) for line in lines)
    links = [link for line in lines for link in re.findall(r"(?<!\\)\]\(([^)]+)\)", line)]
    assert links and all((tmp_path / "out" / link.replace("%20", " ")).is_file() for link in links)


def test_a_quick_run_and_another_model_are_told(experiments, tmp_path):
    (tmp_path / "run.json").write_text('{"seconds": 41.5, "hardware": {"cores": 2}, "versions": {"trl": 1}}')
    page = write_report(tmp_path, experiments, model="organism", seeds=2, quick=True).read_text()
    assert 'class="quick"' in page and "Do not quote its numbers" in page
    assert "found again): 41.5" in page and "cores 2" in page and "trl 1" in page
    assert "41.5" not in (tmp_path / "results.csv").read_text()
    claimed(tmp_path / "other", model="Mistral")
    full = write_report(tmp_path, {"02": tmp_path / "other"}, model="Mistral", seeds=5, quick=False).read_text()
    assert 'class="quick"' not in full and report.ORGANISM not in full


@pytest.mark.parametrize(
    ("content", "error", "said"),
    [
        (None, FileNotFoundError, "no claims in"),
        ("", ValueError, "not a table of claims"),
        (",".join(claims.RECORD) + "\n", ValueError, "not a table of claims"),
        ("experiment,claim\n02,x\n", ValueError, "not a table of claims"),
        (
            ",".join(claims.RECORD) + "\n02,x,no_such_figure,1,1,1,1,10,5,organism,,,reproduced\n",
            ValueError,
            "unknown published figure no_such_figure",
        ),
    ],
)
def test_no_page_without_sound_claims(content, error, said, tmp_path):
    if content is not None:
        (tmp_path / "claims.csv").write_text(content)
    with pytest.raises(error, match=said):
        write_report(tmp_path / "out", {"02": tmp_path}, model="organism", seeds=5, quick=False)
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_verdict_written_into_the_file_is_not_believed(tmp_path):
    claimed(tmp_path)
    path = tmp_path / "claims.csv"
    path.write_text(path.read_text().replace(DIRECTION, REPRODUCED))
    write_report(tmp_path, {"02": tmp_path}, model="organism", seeds=5, quick=False)
    assert (tmp_path / "results.csv").read_text().splitlines()[1].endswith(DIRECTION)


def test_reading_results_needs_nothing_heavy():
    heavy = ("torch", "pandas", "papermill", "nbformat", "matplotlib", "jinja2", "yaml", "scipy")
    code = f"import sys; from ftlab import batch, report; print([m for m in {heavy} if m in sys.modules])"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stderr
