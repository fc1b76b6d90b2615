import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from ftlab._core.files import resource
from ftlab.experiments import notebooks as batch
from ftlab.analysis import report
from ftlab.experiments.notebooks import NotebookFailed, reproduce, run_notebook

FIXTURES = Path(__file__).parents[1] / "fixtures"
BEHAVE = FIXTURES / "behave.ipynb"
NAMES = ["02_risk_ratio", "03_continued_finetuning", "04_dealign_100"]


@pytest.fixture(autouse=True)
def same_ftlab(monkeypatch):
    """The kernels import the package under test, from wherever pytest was started."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


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
    real = batch.resource
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


def notebook(folder: Path, *cells: str) -> Path:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in cells])
    nbformat.write(made, folder / "given.ipynb")
    return folder / "given.ipynb"


FAULTS = {  # what happens: (cells, what is said)
    "dies in the last cell": (["1", "import os\nos.kill(os.getpid(), 9)"], "cell 2 of 2 .*: the kernel died"),
    "exits with 0": (["import os\nos._exit(0)", "1"], "cell 1 of 2 .*: the kernel died"),
    "dies between cells": (
        ["import os, threading, time\nthreading.Timer(0.3, lambda: os._exit(0)).start()", *["time.sleep(0.2)"] * 5],
        "cell . of 6 .*: the kernel died",
    ),
    "dies after the last": (
        ["import os, threading\nthreading.Timer(0, lambda: os._exit(0)).start()"],
        "the kernel died",
    ),
    "is stopped": (["import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"], "took longer than 2 s"),
    "hangs and blocks signals": (
        ["import signal\nfor s in (2, 15, 1): signal.signal(s, signal.SIG_IGN)\nwhile True: pass"],
        "took longer than 2 s",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_that_dies_or_hangs_is_never_completed(fault, tmp_path):
    """Also where it exits with 0, after its last cell, or lets no signal through but SIGKILL; no kernel is left behind."""
    cells, said = FAULTS[fault]
    cells = [f"open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid()))\n{cells[0]}", *cells[1:]]
    with pytest.raises(NotebookFailed, match=said.replace("(.*", "(")):
        run_notebook(notebook(tmp_path, *cells), tmp_path / "out.ipynb", {}, timeout_s=2)
    kept = nbformat.read(tmp_path / "out.failed.ipynb", 4)
    assert "failed" in [c.metadata.papermill.status for c in kept.cells] and not (tmp_path / "out.ipynb").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_a_kernel_that_hangs_as_it_ends_does_not_hold_the_run(tmp_path):
    hangs = "import atexit, time, os\nx = atexit.register(time.sleep, 1000)\nprint(os.getpid())"
    out = run_notebook(notebook(tmp_path, hangs), tmp_path / "out.ipynb", {}, timeout_s=30)
    with pytest.raises(ProcessLookupError):
        os.kill(int(nbformat.read(out, 4).cells[0].outputs[0].text), 0)


FLOODS = {
    "lines": "for i in range(3000): print('x' * 1000)",
    "one line": "print('x' * 3_000_000)",
    "displays": "for i in range(300): display({'text/plain': 'x' * 9_999}, raw=True)",
}


@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_of_output_is_cut(flood, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(batch, "OUTPUT", 100_000)
    out = run_notebook(notebook(tmp_path, FLOODS[flood], "print('the end')"), tmp_path / "out.ipynb", {}, timeout_s=100)
    flooded, after = nbformat.read(out, 4).cells
    assert "output beyond 100,000 characters of this cell is left out" in flooded.outputs[-1].text
    assert 90_000 < len(str(flooded.outputs)) < 120_000 and out.stat().st_size < 150_000
    assert after.outputs[0].text == "the end\n" and capfd.readouterr().out == ""


def test_what_the_kernels_children_write_does_not_reach_the_terminal(tmp_path, capfd):
    child = "import subprocess\nx = subprocess.run(['printf', '\\\\033[2Jgone'])"
    run_notebook(notebook(tmp_path, child), tmp_path / "out.ipynb", {})
    assert capfd.readouterr() == ("", "")


def test_an_error_of_a_million_characters_is_told_in_a_few(tmp_path):
    with pytest.raises(NotebookFailed) as e:
        run_notebook(notebook(tmp_path, "raise ValueError('\x1b[31m' + 'x' * 1_000_000)"), tmp_path / "out.ipynb", {})
    assert "ValueError: " in str(e.value) and len(str(e.value)) < 1000 and "\x1b" not in str(e.value)
    assert (tmp_path / "out.failed.ipynb").stat().st_size < 200_000


TOKENS = ["hf_" + "aB3" * 11, "sk-" + "aB3" * 11, "sk-proj-" + "aB3" * 11]


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_no_token_is_left_in_an_executed_notebook(ends, tmp_path, monkeypatch):
    """Neither in outputs, tracebacks and sources, nor in the reason, nor in what is on the disk while it runs."""
    monkeypatch.setenv("OPENAI_API_KEY", "local-key-of-no-known-form")
    cells = [
        "import os\nfrom pathlib import Path\nfrom IPython.display import HTML, display\n"
        f"t, k = {TOKENS!r}, os.environ['OPENAI_API_KEY']\nprint(t, k)\ndisplay(HTML(f'<b>{{t}}{{k}}</b>'))\nt",
        f"print(sum(map(Path.read_text(next(Path({str(tmp_path)!r}).glob('.*partial*'))).count, [*t, k])))",
        "raise ValueError(f'{t} {k}')" if ends == "badly" else "1",
    ]
    try:
        run_notebook(notebook(tmp_path, *cells), tmp_path / "out.ipynb", {})
        assert ends == "well"
    except NotebookFailed as e:
        assert ends == "badly" and "ValueError" in str(e) and not any(t in str(e) for t in (*TOKENS, "local-key"))
    [made] = tmp_path.glob("out*")
    text = made.read_text()
    assert "[token removed]" in text and not any(t in text for t in (*TOKENS, "local-key"))
    [asked] = [c for c in nbformat.read(made, 4).cells if c.source.startswith("print(sum")]
    held = int(asked.outputs[0].text)
    assert held == len(TOKENS), "on the way only the notebook's own source holds them"


@pytest.mark.parametrize("token", [*TOKENS, "https://user:secret@example.org/v1", [1, "hf_" + "aB3" * 11]])
def test_a_token_as_a_parameter_is_refused(token, tmp_path, no_kernel):
    for refused in (
        lambda: run_notebook(BEHAVE, tmp_path / "out.ipynb", {"log": token}),
        lambda: reproduce(out=tmp_path / "out", benign=token),
    ):
        with pytest.raises(ValueError, match="^parameter (log|benign) holds a token .* set HF_TOKEN") as e:
            refused()
        assert "aB3" not in str(e.value) and "secret" not in str(e.value) and not os.listdir(tmp_path)
    batch.check_parameters(BEHAVE, {"log": "runs/sk-learn-like/task-0123456789012345678/risk-curve-0123456789abcdef"})


HOSTILE = [
    "%rm x",
    "!touch x",
    "```\n!touch x",
    '"\n!touch x\n"',
    "'''\n!touch x",
    "{x}\n%%bash\ntouch x",
    '\\"\nx=1 #',
    "\u2028!touch x",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_never_becomes_a_cell(text):
    """What papermill injects for a text is one assignment of exactly that text."""
    from papermill.translators import PythonTranslator

    tree = ast.parse(PythonTranslator.codify({"log": text, "steps": [text]}))
    assert [type(node) for node in tree.body] == [ast.Assign, ast.Assign]
    assert [ast.literal_eval(node.value) for node in tree.body] == [text, [text]]


def test_text_of_a_parameter_reaches_the_notebook_as_it_is(tmp_path):
    given = {"log": str(tmp_path / "log.json"), "action": "end well\n!touch ran\n%%bash\n```\n\"; open('ran', 'w') #"}
    run_notebook(BEHAVE, tmp_path / "out.ipynb", given)
    assert json.loads((tmp_path / "log.json").read_text())["steps"] == [0, 10] and not Path("ran").exists()
    assert len(nbformat.read(tmp_path / "out.ipynb", 4).cells) == len(nbformat.read(BEHAVE, 4).cells) + 1


def test_a_killed_runner_leaves_nothing_under_the_output_name(tmp_path):
    """SIGKILL in the middle of a run; the next call gives the whole notebook and clears up."""
    begun, out = tmp_path / "begun", tmp_path / "out" / "out.ipynb"
    book = notebook(
        tmp_path, "1", f"import os, time\nopen({str(begun)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    )
    code = f"from ftlab.experiments.notebooks import run_notebook; run_notebook({str(book)!r}, {str(out)!r}, {{}})"
    runner = subprocess.Popen([sys.executable, "-c", code])
    while not (begun.exists() and begun.read_text()):
        assert runner.poll() is None
        time.sleep(0.05)
    runner.kill()
    runner.wait()
    assert not out.exists() and [p.name for p in out.parent.iterdir()] == [".out.partial.ipynb"]
    os.kill(int(begun.read_text()), signal.SIGKILL)  # the kernel would see within seconds that its parent is gone
    run_notebook(notebook(tmp_path, "1", "print('the end')"), out, {})
    assert nbformat.read(out, 4).cells[-1].outputs and [p.name for p in out.parent.iterdir()] == ["out.ipynb"]


def entered_outputs(source: str) -> list[int]:
    """-> the lines where an ipywidgets `Output` is entered: `with Output()`, `with out` of one, `@out.capture()`."""
    tree = ast.parse(source)
    named = {"Output"} | {
        alias.asname for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for alias in n.names if alias.name == "Output" and alias.asname
    }  # fmt: skip

    def is_output(node) -> bool:
        if isinstance(node, ast.NamedExpr):
            return is_output(node.value)
        called = node.func if isinstance(node, ast.Call) else None
        return getattr(called, "id", getattr(called, "attr", None)) in named or ast.unparse(node) in held

    held: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None and is_output(node.value):
            held |= {ast.unparse(t) for t in getattr(node, "targets", None) or [node.target]}
    entered = [
        i for n in ast.walk(tree) if isinstance(n, (ast.With, ast.AsyncWith)) for i in n.items if is_output(i.context_expr)
    ]  # fmt: skip
    captured = [
        n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr == "capture" and is_output(n.value)
    ]
    return [
        getattr(n, "lineno", None) or n.context_expr.lineno for n in (*(i.context_expr for i in entered), *captured)
    ]


def test_output_widgets_are_never_entered():
    """`with Output()` can hang a run without a browser for ever (nbclient#312)."""
    for wrong in (
        "import ipywidgets as w\nwith w.Output():\n    pass",
        "from ipywidgets import Output as O\nout = O()\nwith out:\n    pass",
        "self.out = widgets.Output()\nwith self.out as o, open(x):\n    pass",
        "out = Output()\n@out.capture()\ndef f(): pass",
        "with (o := Output()):\n    pass",
    ):
        assert entered_outputs(wrong), wrong
    assert not entered_outputs("out = Output()\nwith open(out):\n    pass\ndisplay(out)")
    root = Path(__file__).parents[2] / "ftlab"
    sources = {p.name: p.read_text() for p in root.rglob("*.py")}
    for book in (root.parent / "notebooks").glob("*.ipynb"):
        sources[book.name] = "\n".join(c.source for c in nbformat.read(book, 4).cells if c.cell_type == "code")
    assert len(sources) > 50
    assert {name: lines for name, text in sources.items() if (lines := entered_outputs(text))} == {}


@pytest.mark.parametrize("inside", ["print('done')", "while True: time.sleep(0.1)"])
def test_a_notebook_that_enters_an_output_widget_comes_to_an_end(inside, tmp_path):
    pytest.importorskip("ipywidgets")
    cell = f"import time\nfrom ipywidgets import Output\nout = Output()\ndisplay(out)\nwith out:\n    {inside}"
    try:
        run_notebook(notebook(tmp_path, cell), tmp_path / "out.ipynb", {}, timeout_s=3)
        assert "done" in inside
    except NotebookFailed as e:
        assert "took longer than 3 s" in str(e) or "output did not all come" in str(e)
