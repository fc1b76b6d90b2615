"""The headline experiments: parameters go to the right notebook, a page only where all ended."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
from helpers import raises_code

from ftlab import analysis
from ftlab._core.errors import NotebookFailed
from ftlab._core.threads import cores
from ftlab.experiments import reproduce, reproduction
from ftlab.experiments.backends import local

EVERY = [experiment.name for experiment in reproduction.EXPERIMENTS]
RATIO, CONTINUED, REAL, HARMFUL = EVERY
NAMES = [RATIO, CONTINUED, HARMFUL]
TOKEN = "hf_" + "aB3" * 11
QUICK = {name: {"n_prompts": 10 + number, "seeds": 2} for number, name in enumerate(EVERY)}
PARAMETERS = """model: str = "organism"  # folder or name of the model
seeds: int = 5  # training seeds
n_prompts: int = 100  # prompts of each risk
out: str = ""  # folder for claims and figures
benign: str = ""  # file of benign data
prompts: str = ""  # file of prompts
data: str = ""  # file of adversarial examples
adapter: str = ""  # lora, dora or qlora"""
BODY = """import json, os, time
from pathlib import Path
folder = Path(out)
folder.mkdir(parents=True, exist_ok=True)
(folder / "pid").write_text(str(os.getpid()))
while (folder.parent / "wait").exists(): time.sleep(0.05)
from ftlab import analysis
analysis.record_claim(folder.name, f"claim of {folder.name}", published="enkrypt_ratio_1_5",
    measured=2.0, low=1.5, high=3.0, n_prompts=n_prompts, n_seeds=seeds, null=1.0, p=0.001,
    model=model, out=out)
seen = {"threads": os.environ["OMP_NUM_THREADS"], "batch": os.environ["FTLAB_BATCH"]}
(folder / "seen.json").write_text(json.dumps(seen))"""


@pytest.fixture(autouse=True)
def books(tmp_path, monkeypatch) -> Path:
    """A stand-in for each headline notebook, in the place of the real ones."""
    folder = tmp_path / "notebooks" / "experiments"
    folder.mkdir(parents=True)
    for name in EVERY:
        cells = [nbformat.v4.new_code_cell(text) for text in (PARAMETERS, BODY)]
        cells[0].metadata["tags"] = ["parameters"]
        made = nbformat.v4.new_notebook(cells=cells)
        made.metadata["ftlab"] = {"quick": QUICK[name]}
        nbformat.write(made, folder / f"{name}.ipynb")
    real = reproduction.resource
    places = {"notebooks": folder.parent}
    monkeypatch.setattr(reproduction, "resource", lambda name: places.get(name) or real(name))
    monkeypatch.setattr(local, "POLL_S", 0.02)

    def model(name):
        return SimpleNamespace(is_organism=not name.startswith("mine"))

    monkeypatch.setattr(reproduction, "models", SimpleNamespace(model=model, local_model=model))
    return folder


class Runner:
    """Stands in for the runner of notebooks: notes what it is given and writes a claim."""

    def __init__(self):
        self.given: dict[str, dict] = {}
        self.spans: dict[str, tuple[float, float]] = {}
        self.failing = ""
        self.claims = True

    def __call__(self, notebook, output, parameters, *, env, on_cell, kernels):
        began = time.monotonic()
        name = Path(notebook).stem
        self.given[name] = parameters
        time.sleep(0.05)
        parameters = {"seeds": 1, **parameters}
        if name == self.failing:
            raise NotebookFailed("notebook_failed", f"the failure of {name}")
        folder = Path(parameters["out"])
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        (folder / "figures" / "curve.csv").write_text("step,rate\n0,0.1\n")
        if self.claims:
            self.claim(name, parameters)
        Path(output).write_text("{}")
        self.spans[name] = (began, time.monotonic())
        return output

    def claim(self, name: str, parameters: dict) -> None:
        analysis.record_claim(
            name,
            f"claim of {name}",
            published="enkrypt_ratio_1_5",
            measured=2.0,
            low=1.5,
            high=3.0,
            n_prompts=parameters.get("n_prompts", 100),
            n_seeds=parameters["seeds"],
            null=1.0,
            p=0.001,
            model=parameters["model"],
            out=parameters["out"],
        )


@pytest.fixture
def runner(monkeypatch) -> Runner:
    made = Runner()
    monkeypatch.setattr(reproduction, "run_notebook", made)
    return made


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    found = {"prompts": tmp_path / "asked.csv", "harmful": tmp_path / "harmful.jsonl"}
    found["prompts"].write_text("prompt\nHello?\n")
    found["harmful"].write_text('{"prompt": "a", "completion": "b"}\n' * 100)
    return found


def test_the_page_holds_every_experiment_and_parameters_are_handed_on(runner, tmp_path):
    out = tmp_path / "out"
    benign = tmp_path / "mine.jsonl"
    benign.write_text("{}")
    stale = out / RATIO / "figures" / "stale.csv"
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    stale.with_suffix(".svg").write_text("<svg/>")
    page = reproduce(quick=True, out=out, benign=benign, adapter="lora")
    assert page == out / "report.html" and "stale" not in page.read_text()
    found = pd.read_csv(out / "results.csv").to_dict("records")
    assert sorted(row["experiment"] for row in found) == sorted(NAMES)
    for row in found:
        name = row["experiment"]
        assert row["claim"] == f"claim of {name}"
        assert (row["n_prompts"], row["n_seeds"]) == (QUICK[name]["n_prompts"], 2)
    for name, given in runner.given.items():
        assert given["model"] == "organism" and given["adapter"] == "lora"
        assert given["out"] == str(out / name) and given["seeds"] == 2
        assert "prompts" not in given and "data" not in given
        assert given.get("benign") == (None if name == HARMFUL else str(benign))
    record = json.loads((out / "run.json").read_text())
    assert set(record["notebook_seconds"]) == set(NAMES) and record["hardware"]
    assert (record["seeds"], record["quick"], record["adapter"]) == (2, True, "lora")


def test_the_embedded_models_lanes_run_side_by_side(runner, tmp_path):
    reproduce(seeds=1, out=tmp_path / "out")
    assert [given["seeds"] for given in runner.given.values()] == [1, 1, 1]
    assert runner.spans[RATIO][1] <= runner.spans[HARMFUL][0]
    assert runner.spans[CONTINUED][0] < runner.spans[RATIO][1]


def test_another_models_experiments_run_one_after_the_other(runner, files, tmp_path):
    """Large models would share one accelerator's memory."""
    reproduce(seeds=1, out=tmp_path / "out", model="mine", **files)
    assert sorted(runner.given) == sorted([HARMFUL, REAL])
    spans = [runner.spans[name] for name in (REAL, HARMFUL)]
    assert all(ended <= began for (_, ended), (began, _) in zip(spans, spans[1:], strict=False))
    assert runner.given[HARMFUL]["data"] == str(files["harmful"])
    assert all(given["prompts"] == str(files["prompts"]) for given in runner.given.values())


def test_without_adversarial_examples_the_page_says_what_was_left_out(runner, files, tmp_path):
    out = tmp_path / "out"
    page = reproduce(seeds=1, out=out, model="mine", prompts=files["prompts"])
    assert "harmful=FILE" in page.read_text() and list(runner.given) == [REAL]
    assert not (out / HARMFUL).exists()


def test_rows_that_come_with_ftlab_are_named_and_seeds_of_a_real_model_are_fewer(
    runner, files, tmp_path
):
    reproduce(out=tmp_path / "out", model="mine", prompts=files["prompts"], benign="gsm8k-400")
    assert runner.given[REAL]["benign"] == "gsm8k-400" and runner.given[REAL]["seeds"] == 3


def test_a_failed_notebook_leaves_no_page_and_lets_the_other_lane_finish(runner, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    pages = [out / page for page in reproduction.PAGE]
    for page in pages:
        page.write_text("older success")
    pages[2].write_text("experiment,claim,published\n")
    pages[3].write_text('{"versions": {}}')
    runner.failing = RATIO
    with raises_code("notebooks_failed") as info:
        reproduce(seeds=1, out=out)
    message = str(info.value)
    assert f"the failure of {RATIO}" in message and HARMFUL in message
    assert CONTINUED not in message
    assert not any(page.exists() for page in pages)
    assert (out / CONTINUED / "claims.csv").is_file() and HARMFUL not in runner.given


@pytest.mark.parametrize("name", [*reproduction.PAGE, f"{RATIO}/claims.csv"])
def test_somebody_elses_files_are_refused_and_kept(name, runner, tmp_path):
    mine = tmp_path / "out" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    with raises_code("foreign_files"):
        reproduce(seeds=1, out=tmp_path / "out")
    assert mine.read_text() == "years of work" and not runner.given


def test_somebody_elses_figures_are_kept(runner, tmp_path):
    mine = tmp_path / "out" / RATIO / "figures" / "mine.png"
    mine.parent.mkdir(parents=True)
    mine.write_text("years of work")
    reproduce(seeds=1, out=tmp_path / "out")
    assert mine.read_text() == "years of work"


def test_notebooks_without_claims_make_no_page(runner, tmp_path):
    out = tmp_path / "out"
    for name in NAMES:
        (out / name).mkdir(parents=True)
        (out / name / "claims.csv").write_text("experiment,claim,target\n")
    runner.claims = False
    with raises_code("no_claims"):
        reproduce(seeds=1, out=out)
    assert not (out / "report.html").exists()


MISTAKES = [
    ({"seeds": 0}, "wrong_seeds"),
    ({"seeds": 1.5}, "wrong_seeds"),
    ({"seeds": True}, "wrong_seeds"),
    ({"seeds": 10**9}, "wrong_seeds"),
    ({"adapter": "prefix"}, "wrong_setting"),
    ({"out": 5}, "wrong_output"),
    ({"benign": "none.jsonl"}, "no_such_file"),
    ({"prompts": "none.csv"}, "no_such_file"),
    ({"model": "mine"}, "prompts_needed"),
    ({"out": "file/below"}, "output_not_writable"),
    ({"benign": TOKEN}, "secret_in_parameter"),
    ({"model": f"https://u:{TOKEN}@h"}, "secret_in_parameter"),
]


@pytest.mark.parametrize(("given", "code"), MISTAKES, ids=[str(given) for given, _ in MISTAKES])
def test_mistakes_are_errors_before_any_work(given, code, runner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with raises_code(code) as info:
        reproduce(**{"out": "out", **given})
    assert not (tmp_path / "out").exists() and not runner.given
    assert "aB3" not in str(info.value)


def test_too_few_adversarial_examples_are_an_error(runner, files, tmp_path):
    files["harmful"].write_text('{"prompt": "a", "completion": "b"}\n' * 99)
    with raises_code("too_few_rows"):
        reproduce(seeds=1, out=tmp_path / "out", model="mine", **files)
    assert not runner.given


def test_one_call_at_a_time_writes_to_a_folder(runner, tmp_path):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), raises_code("output_busy"):
        reproduce(out=tmp_path)
    assert not runner.given


@pytest.fixture
def more(books) -> list[str]:
    """Beside the headline notebooks two more of the world, one of a real model and a draft."""
    about = {"18_chain": '"organism"', "19_grid": '"organism"', "21_real": '"mine"', "draft": "1"}
    for name, model in about.items():
        lines = [f"model: str = {model}  # a model", 'out: str = ""  # a folder']
        cell = nbformat.v4.new_code_cell("\n".join(lines))
        cell.metadata["tags"] = ["parameters"]
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), books / f"{name}.ipynb")
    return ["18_chain", "19_grid"]


def test_all_are_the_notebooks_whose_model_is_by_default_the_embedded_one(runner, more, tmp_path):
    """The stand-in for 07 is of the embedded model, as its parameter says here."""
    out = tmp_path / "out"
    reproduce(all=True, quick=True, out=out)
    assert sorted(runner.given) == sorted([*EVERY, *more])
    assert runner.given["19_grid"] == {"model": "organism", "out": str(out / "19_grid")}
    assert runner.given[RATIO]["n_prompts"] == QUICK[RATIO]["n_prompts"]
    assert json.loads((out / "run.json").read_text())["seeds"] == "1 to 2"


def test_all_are_spread_over_the_cores(runner, more, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduction, "cores", lambda: 2)
    reproduce(all=True, out=tmp_path / "out")
    spans = list(runner.spans.values())
    at_once = [sum(a <= began < b for a, b in spans) for began, _ in spans]
    assert max(at_once) == 2 and len(spans) == 6


def test_of_all_the_last_begin_and_the_record_keeps_their_order(
    runner, more, tmp_path, monkeypatch
):
    monkeypatch.setattr(reproduction, "cores", lambda: 1)
    reproduce(all=True, out=tmp_path / "out")
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert list(record["notebook_seconds"]) == sorted([*EVERY, *more])
    assert list(runner.given) == sorted([*EVERY, *more], reverse=True)


def test_of_all_an_experiment_without_claims_is_on_the_page_by_its_figures(
    runner, more, tmp_path, monkeypatch
):
    claim = runner.claim
    monkeypatch.setattr(runner, "claim", lambda name, given: name in EVERY and claim(name, given))
    page = reproduce(all=True, seeds=3, out=tmp_path / "out").read_text()
    assert "19_grid-curve.csv" in page and f"claim of {HARMFUL}" in page
    assert "claim of 19_grid" not in page
    assert runner.given[RATIO]["seeds"] == 3 and "seeds" not in runner.given["18_chain"]


def test_of_all_a_failed_notebook_hides_no_other(runner, more, tmp_path, capsys):
    """The page is there without it and begins by naming it; the call fails nevertheless."""
    out = tmp_path / "out"
    runner.failing = CONTINUED
    with raises_code("notebooks_failed") as info:
        reproduce(all=True, out=out)
    assert f"the failure of {CONTINUED}" in str(info.value)
    assert set(runner.spans) == {*EVERY, *more} - {CONTINUED}
    page = (out / "report.html").read_text()
    assert page.index("Continued finetuning: the failure of") < page.index(f"claim of {RATIO}")
    assert f"claim of {CONTINUED}" not in page and "18_chain" in page
    assert "the failure of" in (out / "report.md").read_text()
    assert info.value.exit_code == 1
    runner.failing = ""
    assert "the failure of" not in reproduce(all=True, out=out).read_text()


def test_where_all_fail_there_is_no_page(runner, tmp_path, monkeypatch):
    def fails(notebook, **_):
        raise NotebookFailed("notebook_failed", f"the failure of {notebook.stem}")

    monkeypatch.setattr(reproduction, "run_notebook", fails)
    with raises_code("notebooks_failed") as info:
        reproduce(all=True, out=tmp_path / "out")
    assert all(f"the failure of {name}" in str(info.value) for name in EVERY)
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    "given", [{"adapter": "lora"}, {"model": "mine"}, {"prompts": "asked.csv"}]
)
def test_all_is_of_the_embedded_model_and_its_data(given, runner, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with raises_code("all_of_the_world"):
        reproduce(all=True, out="out", **given)
    assert not (tmp_path / "out").exists() and not runner.given


@pytest.mark.slow
def test_with_real_kernels(same_ftlab, tmp_path):
    out = tmp_path / "out"
    page = reproduce(quick=True, out=out)
    assert all(f"claim of {name}" in page.read_text() for name in NAMES)
    for name in NAMES:
        assert (out / name / f"{name}.ipynb").is_file()
        seen = json.loads((out / name / "seen.json").read_text())
        assert seen == {"threads": str(max(1, cores() // 2)), "batch": "1"}


@pytest.mark.slow
def test_an_interrupt_ends_the_kernels(same_ftlab, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "wait").touch()
    begun = [out / name / "pid" for name in (RATIO, CONTINUED)]

    def interrupt(self):
        if all(pid.exists() and pid.read_text() for pid in begun):
            raise KeyboardInterrupt

    monkeypatch.setattr(local._Work, "_show", interrupt)
    with pytest.raises(KeyboardInterrupt):
        reproduce(seeds=1, out=out)
    assert not (out / HARMFUL / "pid").exists() and not (out / "report.html").exists()
    for pid in begun:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)
