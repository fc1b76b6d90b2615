"""Every page that ftlab writes, with hostile text wherever text from outside comes in."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import nbformat
import pandas as pd
from analysis.test_cards import trained
from analysis.verdict_tables import made, rows
from hostile import CANARIES
from markup import MARKUP
from nbformat.v4 import (
    new_code_cell,
    new_markdown_cell,
    new_notebook,
    new_output,
    new_raw_cell,
)

from docs.build import page_of
from ftlab import analysis, runs, stats
from ftlab._core.shown import Shown
from ftlab.analysis import executed, verdicts
from ftlab.course.exercises import Grade
from recipes.course import build

LINE = " ".join(MARKUP.values())
SHORT = [text for name, text in CANARIES.items() if name not in ("long", "surrogates")]
PROSE = " ".join([LINE, *SHORT])
NAME = MARKUP["image"]  # holds no slash, so a file can be called so
LABEL = f"{NAME} {MARKUP['formula']}"  # fits into a figure
PICTURE = (
    '<svg xmlns="http://www.w3.org/2000/svg" width="20" height="20">'
    "<script>parent.owned = top.owned = true; alert(1)</script></svg>"
)
ANSWERS = {
    (seed, step): "rrrrrrrrcc" if step == 0 else "ccccccccic" for seed in (0, 1) for step in (0, 9)
}


class Texts:
    """Hostile texts, each of which begins with the place that it is put into."""

    def __init__(self):
        self.places: list[str] = []

    def __call__(self, place: str, text: str = PROSE) -> str:
        self.places.append(place)
        return f"[{place}] {text}"


def report(texts: Texts, folder: Path, book: Path) -> Path:
    """Write the report as `reproduce --all` does: some experiments failed, one has no claims."""
    own = folder / texts("experiment", NAME)
    figures = own / "figures"
    figures.mkdir(parents=True)
    figure = texts("figure", NAME)
    (figures / f"{figure}.txt").write_text(texts("caption"))
    (figures / f"{figure}.svg").write_text(PICTURE)
    run = _training(texts)
    analysis.record_claim(
        "02",
        texts("claim"),
        published="enkrypt_ratio_1_5",
        measured=2.0,
        low=1.5,
        high=3.0,
        n_prompts=100,
        n_seeds=5,
        null=1.0,
        p=math.nan,
        model=PROSE,
        differs=texts("differs"),
        note=texts("note"),
        judge=texts("judge"),
        runs=[run.name, *LINE.split()],
        out=own,
    )
    other = folder / "03_no_claims"
    other.mkdir()
    made = nbformat.read(book, 4)
    made.metadata["papermill"] = {"parameters": {"model": texts("parameter", LINE)}}
    nbformat.write(made, other / f"{NAME}.ipynb")
    record = {name: texts(f"recorded {name}") for name in ("benign", "prompts", "commit")}
    record["versions"] = {texts("recorded package"): texts("recorded version")}
    record["hardware"] = {texts("hardware"): texts("processor")}
    (folder / "run.json").write_text(json.dumps(record))
    return analysis.report(
        folder,
        {own.name: own, other.name: other},
        model=texts("model"),
        seeds="3 to 5",
        quick=True,
        missing={texts("missing"): texts("why missing")},
        failed={texts("failed"): texts("why failed")},
        by_figures=True,
    )


def _training(texts: Texts) -> runs.Run:
    """Return a run whose record is hostile."""
    call = {
        "cell": "training.sft",
        "arguments": {"parent": texts("argument", LINE), "data": LINE},
        "objects": [],
    }
    notes = {
        "model": {"folder": texts("parent"), "hash": texts("hash")},
        "data": {"name": texts("data"), "rows": texts("rows"), "hash": PROSE},
        "commit": texts("commit"),
        "versions": {"ftlab": texts("version")},
        "call": call,
    }
    return runs.start("sft", LINE, {"of": LINE}, **notes).complete(**{PROSE: PROSE})


def notebook(texts: Texts, folder: Path, book: Path) -> Path:
    path = folder / f"{NAME}.ipynb"
    path.write_bytes(book.read_bytes())
    return executed.page_of(path)


def card(texts: Texts, folder: Path, book: Path) -> Path:
    study = trained(
        ANSWERS,
        data=texts("data"),
        judge=texts("judge"),
        attack=texts("attack"),
        risk=texts("risk"),
    )
    call = {
        "cell": "experiments.risk_curve",
        "arguments": {"parent": texts("argument", LINE)},
        "objects": [],
    }
    for run in (study, *study.members):
        notes = {
            "model": {"folder": texts("parent"), "hash": texts("hash")},
            "versions": {texts("package"): texts("version")},
            "hardware": {texts("hardware"): texts("processor")},
            "call": call,
        }
        path = run.path / "provenance.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | notes))
    return analysis.card(study, out=folder / "card.html").path


def gate(texts: Texts, folder: Path, book: Path) -> Path:
    sides = []
    for letters in ("rrrc", "ccrc"):
        side = made({(0, 0): letters * 20}, risk=texts("risk"), judge=PROSE)
        sides.append(side)
    found = analysis.tolerated(*sides, tolerance=stats.Tolerance(0.02, 1.2))
    found.attrs["labels"].append(texts("labels"))
    found.attrs["parent"] = {"name": texts("parent", LINE)}
    analysis.write_gate(found, as_page=folder / "gate.html")
    return folder / "gate.html"


def acceptance(texts: Texts, folder: Path, book: Path) -> Path:
    sides = []
    for letters in ("rrrc", "ccrc"):
        side = made({(0, 0): letters * 5}, risk=texts("risk"), attack=texts("attack"), judge=PROSE)
        sides.append(verdicts.prepare(side))
    claims = analysis.claimed([analysis.Claim(texts("claim"), *sides, 0.1)])
    trial = dict.fromkeys(("examples", "epochs", "learning_rate", "rise", "best", "bound"), 1.0)
    trial |= dict.fromkeys(("parent", "harm", "utility", "incoherent"), 0.5)
    trial |= dict.fromkeys(("again", "again_low", "again_high"), math.nan)
    trial |= {"trial": 1, "useful": True, "adapter": "none"}
    trial |= {"attack": texts("way of asking"), "failed": texts("why it failed")}
    measured = {"arm": texts("arm"), "step": 1, "tokens": 9.0, "harm": 0.5, "parent": 0.1}
    about = {"name": texts("defence"), "sentence": texts("sentence")}
    run = runs.start("accept", "a", {"of": "this"}).complete()
    trials, survival = Shown([trial]), Shown([measured])
    found = analysis.Acceptance(run, claims, trials, survival, about)
    analysis.write_acceptance(found, as_page=folder / "acceptance.html")
    return folder / "acceptance.html"


def grid(texts: Texts, folder: Path, book: Path) -> Path:
    analysis.write_grid(_grid(texts), folder / "grid.html")
    return folder / "grid.html"


def _grid(texts: Texts) -> analysis.Grid:
    """Return the grid of one defence, all of whose names are hostile."""
    attack = texts("attack", LABEL)
    adapter = texts("adapter", LABEL)
    cells = []
    for defence in ("none", texts("defence", LABEL)):
        member = runs.start("curve", "cell", {"defence": defence})
        for risk in ("jailbreak", "over_refusal", "utility"):
            answered = rows(ANSWERS, risk=risk, judge=PROSE)
            member.append("verdicts.jsonl", [row | {"key": "k"} for row in answered])
        member.complete(parent="organism")
        cell = {"defence": defence, "adapter": adapter, "attack": attack, "curve": member.name}
        cells.append(cell)
    run = runs.start("grid", "grid", {"members": []})
    run.append("cells.jsonl", cells)
    run.complete(parent=texts("model"), left_out={texts("left out"): texts("why left out")})
    return analysis.grid_table(run)


def sweep(texts: Texts, folder: Path, book: Path) -> Path:
    job = {name: texts(name) for name in ("job", "state", "reason", "run", "argument")}
    table = pd.DataFrame([job | {texts("name of an argument"): 1.0}])
    table.attrs = {"sentence": texts("sentence"), "folder": f"/home/{texts('plan', NAME)}"}
    measured = runs.start("evaluate", "e", {"of": "this"}, model={"folder": PROSE})
    answered = rows({(0, 0): "rrcc"}, risk=texts("risk"), judge=PROSE)
    measured.append("verdicts.jsonl", [row | {"key": "k"} for row in answered])
    measured.complete(model=PROSE)
    other = runs.start("sft", "s", {}).complete()
    of_jobs = {texts("job of a run"): measured, texts("job of no table"): other}
    analysis.write_sweep(table, of_jobs, folder / "sweep.html")
    return folder / "sweep.html"


def slides(texts: Texts, folder: Path, book: Path) -> Path:
    """Write the slides of a lesson that shows the answers."""
    path = folder / "slides.html"
    path.write_text(build.slides(nbformat.read(book, 4), texts("title")))
    return path


def docs(texts: Texts, folder: Path, book: Path) -> Path:
    """Write a notebook as the documentation has it."""
    path = folder / "docs.html"
    path.write_text(page_of(book, NAME, "", {}))
    return path


def displays(texts: Texts, folder: Path, book: Path) -> Path:
    """Write what Jupyter shows of a grade, a grid and a run."""
    shown = [
        Grade(texts("exercise"), "wrong", texts("message"), (texts("hint"),), PROSE),
        _grid(Texts()),  # which show some of their texts only
        _training(Texts()),
    ]
    path = folder / "displays.html"
    path.write_text("<!doctype html>" + "".join(one._repr_html_() for one in shown))
    return path


PAGES: dict[str, Callable[[Texts, Path, Path], Path]] = {
    "report.html.j2": report,
    "notebook.html.j2": notebook,
    "card.html.j2": card,
    "tables.html.j2": gate,
    "acceptance": acceptance,
    "sweep": sweep,
    "grid.html.j2": grid,
    "slides.html.j2": slides,
    "docs": docs,
    "displays": displays,
}
OF_ONE_TEMPLATE = ("acceptance", "sweep")
OF_NOTEBOOKS = ("report.html.j2", "notebook.html.j2", "slides.html.j2")


def acting_book(path: Path) -> Path:
    """Write a notebook that is hostile itself: its outputs and its text are markup."""
    markup = "\n\n".join(MARKUP.values())
    outputs = []
    for kind in ("text/html", "text/markdown", "application/javascript", "text/latex"):
        outputs.append(new_output("display_data", {kind: markup, "text/plain": markup}))
    outputs.append(new_output("display_data", {"image/svg+xml": PICTURE}))
    cells = [
        new_markdown_cell(f"# {LINE}\n\n{markup}"),
        new_code_cell("show()", outputs=outputs),
        new_raw_cell(markup),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    return path
