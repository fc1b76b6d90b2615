import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from ftlab import batch, report
from ftlab.batch import NotebookFailed, reproduce, run_notebook

FIXTURES = Path(__file__).parent / "fixtures"
BEHAVE = FIXTURES / "behave.ipynb"
NAMES = ["02_risk_ratio", "03_continued_finetuning", "04_dealign_100"]


@pytest.fixture(autouse=True)
def same_ftlab(monkeypatch):
    """The kernels import the package under test, from wherever pytest was started."""
    monkeypatch.setenv("PYTHONPATH", str(Path(report.__file__).parent.parent))


@pytest.fixture
def no_kernel(monkeypatch):
    def started(*_):
        raise AssertionError("a kernel was started")

    monkeypatch.setattr(batch, "_kernel", started)


@pytest.fixture
def books(tmp_path, monkeypatch):
    """A folder with a stand-in for each headline notebook, in the place of the real ones."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(FIXTURES / "experiment.ipynb", folder / f"{name}.ipynb")
    real = batch.runs.resource
    monkeypatch.setattr(batch.runs, "resource", lambda name: folder if name == "notebooks" else real(name))
    monkeypatch.setattr(batch.models, "model", lambda name: SimpleNamespace(is_organism=not name.startswith("mine")))
    return folder


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"seed": 3}, ["unknown parameter 'seed'", "did you mean 'seeds'", "seeds: int = 1  training seeds"]),
        ({"seeds": "3"}, ["seeds = '3' is str, allowed is int"]),
        ({"seeds": True}, ["seeds = True is bool, allowed is int"]),
        ({"seeds": 2.5}, ["seeds = 2.5 is float, allowed is int"]),
        ({"quick": 1}, ["quick = 1 is int, allowed is bool"]),
        ({"rate": "fast"}, ["rate = 'fast' is str, allowed is float"]),
        ({"log": 1}, ["log = 1 is int, allowed is str"]),
        ({"steps": 3}, ["steps = 3 is int, allowed is list[int]"]),
        ({"seed": 3, "quick": 1}, ["unknown parameter 'seed'", "quick = 1"]),
    ],
)
def test_a_wrong_parameter_is_refused_before_a_kernel_starts(given, said, tmp_path, no_kernel):
    out = tmp_path / "out.ipynb"
    out.write_text("older")
    with pytest.raises(ValueError) as e:
        run_notebook(BEHAVE, out, given)
    assert "behave.ipynb" in str(e.value)
    for part in said:
        assert part in str(e.value)
    assert os.listdir(tmp_path) == ["out.ipynb"] and out.read_text() == "older"


@pytest.mark.parametrize("given", [{"rate": 1}, {"seeds": 3, "quick": True}, {"steps": (1, 2)}, {}])
def test_a_right_parameter_is_let_through(given):
    batch.check_parameters(BEHAVE, given)


@pytest.mark.parametrize("place", ["https://example.org/a.ipynb", "none.ipynb", __file__])
def test_only_local_notebooks(place, tmp_path, no_kernel):
    with pytest.raises(FileNotFoundError, match="local .ipynb"):
        run_notebook(place, tmp_path / "out.ipynb", {})


def test_the_notebook_itself_is_never_the_output(tmp_path, no_kernel):
    for source in ("a.ipynb", "b.failed.ipynb"):
        shutil.copy(BEHAVE, tmp_path / source)
        with pytest.raises(ValueError, match="another .ipynb"):
            run_notebook(tmp_path / source, tmp_path / source.replace(".failed", ""), {})
        assert (tmp_path / source).read_bytes() == BEHAVE.read_bytes()


def test_an_unwritable_output_is_said(tmp_path, no_kernel):
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="cannot be written"):
        run_notebook(BEHAVE, tmp_path / "file" / "out.ipynb", {})


def test_two_at_once_each_with_its_own_kernel_and_environment(tmp_path, monkeypatch):
    """Braces in a folder's name are kept; a user's `python3` kernelspec does not name the interpreter."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    wrong = {"argv": ["/bin/false", "{connection_file}"], "display_name": "wrong", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(wrong))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    before, folder, seen = dict(os.environ), tmp_path / "{curly}", {"a": [], "b": []}
    folder.mkdir()

    def work(name):
        given = {"action": "wait for the other", "log": str(folder / f"{name}.json"), "steps": (1, 2)}
        run_notebook(
            BEHAVE,
            folder / f"{name}.ipynb",
            given,
            env={"LANE": name},
            timeout_s=30,
            on_cell=lambda *at: seen[name].append(at),
        )

    threads = [threading.Thread(target=work, args=name) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(folder.glob("*.begun"))) == 2, "they did not overlap"
    for name in "ab":
        log = json.loads((folder / f"{name}.json").read_text())
        assert (log["batch"], log["lane"], log["steps"]) == ("1", name, [1, 2])
        assert (log["python"], log["prefix"]) == (sys.executable, sys.prefix)
        executed = nbformat.read(folder / f"{name}.ipynb", 4)
        assert "the end is reached" in executed.cells[-1].outputs[0].text
        assert executed.metadata.papermill.output_path == str(folder / f"{name}.ipynb")
        assert seen[name] == [(k, 5) for k in range(1, 6)]
    assert sorted(os.listdir(folder)) == [f"{n}.{kind}" for n in "ab" for kind in ("begun", "ipynb", "json")]
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ("die", "the kernel died"),
        ("raise", "ValueError: the last line of the error"),
        ("hang", "took longer than 3 s"),
        ("leave", "SystemExit"),
    ],
)
def test_a_failure_is_told_and_leaves_nothing_under_the_claimed_name(action, said, tmp_path, capfd):
    out, failed = tmp_path / "out.ipynb", tmp_path / "out.failed.ipynb"
    out.write_text("older")
    with pytest.raises(NotebookFailed) as e:
        run_notebook(BEHAVE, out, {"action": action}, timeout_s=3 if action == "hang" else 60)
    message = str(e.value)
    assert said in message and "behave.ipynb" in message and str(failed) in message
    if action != "leave":
        assert 'cell 4 of 5 (if action == "die":)' in message
    assert os.listdir(tmp_path) == ["out.failed.ipynb"]
    kept = nbformat.read(failed, 4)
    code = {c.source.split("\n")[0]: c for c in kept.cells if c.cell_type == "code"}
    states = [c.metadata.papermill.status for c in code.values()]
    assert states[-2:] == ["failed", "pending"] and kept.metadata.papermill.exception
    assert not code['print("the end is reached")'].outputs
    assert capfd.readouterr().err == ""


def test_reproduce_writes_the_page_and_hands_parameters_on(books, tmp_path, capsys):
    out, mine = tmp_path / "out", tmp_path / "mine.jsonl"
    mine.write_text("{}")
    stale = out / NAMES[0] / "figures" / "stale.csv"
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    page = reproduce(quick=True, out=out, benign=mine)
    assert page == out / "report.html" and "stale" not in page.read_text()
    table = (out / "results.csv").read_text().splitlines()
    assert table[0] == "experiment,claim,published,measured,low,high,n_prompts,n_seeds,verdict"
    for line, name in zip(table[1:], NAMES, strict=True):
        n_prompts, n_seeds = batch.QUICK[name]["n_prompts"], batch.QUICK[name]["seeds"]
        assert line == f"{name},claim of {name},1.5,2,1.5,3,{n_prompts},{n_seeds},direction only"
        assert (out / name / f"{name}.ipynb").is_file()
    seen = {name: json.loads((out / name / "seen.json").read_text()) for name in NAMES}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for one in seen.values():
        assert one["threads"] == str(max(1, cores // 2)) and one["batch"] == "1"
        assert one["prompts"] == ""
    assert [seen[name]["benign"] for name in NAMES] == [str(mine), str(mine), ""]
    assert seen[NAMES[0]]["began"] > seen[NAMES[2]]["ended"], "02 follows 04"
    assert seen[NAMES[1]]["began"] < seen[NAMES[2]]["ended"], "03 runs beside them"
    record = json.loads((out / "run.json").read_text())
    assert set(record["notebook_seconds"]) == set(NAMES) and record["seconds"] > 0 and record["hardware"]
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    for name in NAMES:
        assert [words[1] for words in lines if words[0] == name] == ["started", "done,"]


def test_another_model_needs_prompts_and_its_own_adversarial_examples(books, tmp_path):
    with pytest.raises(ValueError, match="prompts is missing: mine is not the embedded model"):
        reproduce(seeds=1, out=tmp_path / "out", model="mine")
    asked, harmful = tmp_path / "asked.csv", tmp_path / "harmful.jsonl"
    asked.write_text("prompt\nHello?\n")
    harmful.write_text('{"prompt": "a", "completion": "b"}\n' * 99)
    with pytest.raises(ValueError, match="has 99 rows; 04 draws up to 100"):
        reproduce(seeds=1, out=tmp_path / "out", model="mine", prompts=asked, harmful=harmful)
    harmful.write_text('{"prompt": "a", "completion": "b"}\n' * 100)
    page = reproduce(seeds=1, out=tmp_path / "out", model="mine", prompts=asked).with_suffix(".md").read_text()
    assert "04_dealign_100: left out" in page.replace("\\", "") and not (tmp_path / "out" / NAMES[2]).exists()
    reproduce(seeds=1, out=tmp_path / "all", model="mine", prompts=asked, harmful=harmful)
    seen = [json.loads((tmp_path / "all" / name / "seen.json").read_text()) for name in NAMES]
    assert seen[2]["data"] == str(harmful) and all(one["prompts"] == str(asked) for one in seen)
    assert seen[2]["ended"] < seen[0]["began"] < seen[0]["ended"] < seen[1]["began"], (
        "one after the other: large models share one accelerator"
    )


def test_a_failed_notebook_leaves_no_page_and_lets_the_other_lane_finish(books, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    pages = [out / p for p in ("report.html", "report.md", "results.csv")]
    for page in pages:
        page.write_text("older success")
    with pytest.raises(NotebookFailed) as e:
        reproduce(seeds=1, out=out, model=f"fail {NAMES[2]}")
    message = str(e.value)
    assert f"RuntimeError: this is the failure of {NAMES[2]}" in message
    assert f"{NAMES[0]}.ipynb: not started" in message and NAMES[1] not in message
    assert not any(page.exists() for page in pages)
    assert (out / NAMES[1] / "claims.csv").is_file() and not (out / NAMES[0]).exists()


def test_notebooks_without_claims_make_no_page(books, tmp_path):
    for name in NAMES:
        (tmp_path / "out" / name).mkdir(parents=True)
        (tmp_path / "out" / name / "claims.csv").write_text("claims of an older run")
    with pytest.raises(FileNotFoundError, match="no claims"):
        reproduce(seeds=1, out=tmp_path / "out", model="no claims")
    assert not (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"seeds": 0}, ValueError, "seeds is 0; allowed is a whole number"),
        ({"seeds": 1.5}, ValueError, "seeds is 1.5"),
        ({"benign": "none.jsonl"}, FileNotFoundError, "benign is none.jsonl"),
        ({"prompts": "none.csv"}, FileNotFoundError, "prompts is none.csv"),
        ({"out": "file/below"}, PermissionError, "file/below: cannot be written"),
    ],
)
def test_reproduce_refuses_in_a_sentence(given, error, said, books, tmp_path, monkeypatch, no_kernel):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(error, match=said):
        reproduce(**{"out": "out", **given})
    assert not (tmp_path / "out").exists()


def test_one_run_a_folder(books, tmp_path, no_kernel):
    from filelock import FileLock

    with FileLock(tmp_path / ".lock"), pytest.raises(RuntimeError, match="another run is writing there"):
        reproduce(out=tmp_path)


def test_an_interrupt_ends_the_kernels(books, tmp_path, monkeypatch):
    for name in NAMES:
        notebook = nbformat.read(books / f"{name}.ipynb", 4)
        notebook.cells[2].source += "\n(Path(out) / 'pid').write_text(str(os.getpid()))\ntime.sleep(60)"
        nbformat.write(notebook, books / f"{name}.ipynb")
    begun = [tmp_path / "out" / name / "pid" for name in NAMES[1:]]

    def interrupt(self):
        if all(pid.exists() and pid.read_text() for pid in begun):
            raise KeyboardInterrupt

    for name in NAMES:
        (tmp_path / "out" / name).mkdir(parents=True)
    monkeypatch.setattr(batch._Progress, "draw", interrupt)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        reproduce(seeds=1, out=tmp_path / "out")
    assert time.monotonic() - start < 50 and not (tmp_path / "out" / NAMES[0] / "pid").exists()
    for pid in begun:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid.read_text()), 0)


def test_progress_in_a_terminal_is_one_line_rewritten(monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    progress = batch._Progress(["a", "bb"])
    for name, total in (("a", 14), ("bb", 9)):
        progress.begin(name)
        progress.cell(name, 5, total)
    progress.draw()
    assert screen.getvalue() == "\r\x1b[Ka  cell 5/14  0 s  |  bb  cell 5/9  0 s"
    progress.end("a", "done")
    assert screen.getvalue().endswith("\r\x1b[Ka   done, 0 s\n")
