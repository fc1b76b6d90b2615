"""The runner of notebooks: what ran to its end has its name, everything else is a failure."""

from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
from helpers import raises_code

from ftlab.experiments import run_notebook

ROOT = Path(__file__).parents[2]
TOKENS = ["hf_" + "aB3" * 11, "sk-" + "aB3" * 11, "sk-proj-" + "aB3" * 11]

pytestmark = pytest.mark.usefixtures("same_ftlab")


def assert_dead(pid: int) -> None:
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# Outputs


@pytest.mark.slow
def test_the_notebook_itself_is_never_the_output(behave, tmp_path, no_kernel):
    for source in ("a.ipynb", "b.failed.ipynb"):
        shutil.copy(behave, tmp_path / source)
        with raises_code("wrong_output"):
            run_notebook(tmp_path / source, tmp_path / source.replace(".failed", ""), {})
        assert (tmp_path / source).read_bytes() == behave.read_bytes()
    with raises_code("wrong_output"):
        run_notebook(behave, tmp_path / "out.txt", {})


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_reported_before_the_work(behave, tmp_path, no_kernel):
    (tmp_path / "file").write_text("")
    with raises_code("output_not_writable"):
        run_notebook(behave, tmp_path / "file" / "out.ipynb", {})


@pytest.mark.slow
def test_two_at_once_each_with_its_own_kernel_and_environment(behave, tmp_path, monkeypatch):
    """Braces in a folder's name stay, and the kernelspec does not choose the interpreter."""
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    wrong = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(wrong))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    before = dict(os.environ)
    folder = tmp_path / "{curly}"
    folder.mkdir()
    seen = {"a": [], "b": []}

    def work(name: str) -> None:
        run_notebook(
            behave,
            folder / f"{name}.ipynb",
            {
                "action": "wait for the other",
                "log": str(folder / f"{name}.json"),
                "steps": (1, 2),
            },
            env={"LANE": name},
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
        assert executed.cells[-1].outputs[0].text == "the end is reached\n"
        assert executed.metadata.papermill.output_path == str(folder / f"{name}.ipynb")
        assert seen[name] == [(number, 5) for number in range(1, 6)]
    kinds = ("begun", "ipynb", "json")
    assert sorted(os.listdir(folder)) == [f"{name}.{kind}" for name in "ab" for kind in kinds]
    assert dict(os.environ) == before


@pytest.mark.slow
def test_text_of_a_parameter_reaches_the_notebook_as_it_is(behave, tmp_path, capfd):
    action = "end well\n!touch ran\n%%bash\n```\n\"; open('ran', 'w') #"
    given = {"log": str(tmp_path / "log.json"), "action": action}
    run_notebook(behave, tmp_path / "out.ipynb", given)
    assert json.loads((tmp_path / "log.json").read_text())["steps"] == [0, 10]
    assert not Path("ran").exists()
    made = nbformat.read(tmp_path / "out.ipynb", 4)
    assert len(made.cells) == len(nbformat.read(behave, 4).cells) + 1
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_what_the_kernels_children_write_does_not_reach_the_terminal(book, tmp_path, capfd):
    child = "import subprocess\nx = subprocess.run(['printf', '\\\\033[2Jgone'])"
    run_notebook(book(child), tmp_path / "out.ipynb", {})
    assert capfd.readouterr() == ("", "")


# Failures

ACTIONS = ["die", "raise", "leave"]  # one that hangs: see FAULTS


@pytest.mark.slow
@pytest.mark.parametrize("action", ACTIONS)
def test_a_failure_leaves_nothing_under_the_outputs_name(action, behave, tmp_path, capfd):
    out = tmp_path / "out.ipynb"
    out.write_text("older")
    with raises_code("notebook_failed") as info:
        run_notebook(behave, out, {"action": action}, timeout_s=60)
    failed = tmp_path / "out.failed.ipynb"
    assert "behave.ipynb" in str(info.value) and str(failed) in str(info.value)
    if action != "leave":
        assert "cell 4 of 5" in str(info.value)
    if action == "raise":
        assert "ValueError: the last line of the error" in str(info.value)
    assert os.listdir(tmp_path) == ["out.failed.ipynb"]
    kept = nbformat.read(failed, 4)
    code = {c.source.split("\n")[0]: c for c in kept.cells if c.cell_type == "code"}
    states = [cell.metadata.papermill.status for cell in code.values()]
    assert states[-2:] == ["failed", "pending"] and kept.metadata.papermill.exception
    assert not code['print("the end is reached")'].outputs
    assert capfd.readouterr().err == ""


FAULTS = {
    "dies in the last cell": ["1", "import os\nos.kill(os.getpid(), 9)"],
    "exits with 0": ["import os\nos._exit(0)", "1"],
    "dies after the last": [
        "import os, threading\nthreading.Timer(0, lambda: os._exit(0)).start()"
    ],
    "is stopped": ["import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"],
    "hangs and blocks signals": [
        "import signal\nfor s in (2, 15, 1): signal.signal(s, signal.SIG_IGN)\nwhile True: pass",
        "1",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_kernel_that_dies_or_hangs_never_counts_as_done(fault, book, tmp_path):
    """Also if it exits with 0 or ignores every signal but SIGKILL; no kernel is left behind."""
    first, *others = FAULTS[fault]
    note = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(__import__('os').getpid()))\n"
    with raises_code("notebook_failed"):
        run_notebook(book(note + first, *others), tmp_path / "out.ipynb", {}, timeout_s=3)
    kept = nbformat.read(tmp_path / "out.failed.ipynb", 4)
    states = [cell.metadata.papermill.status for cell in kept.cells]
    assert "failed" in states
    if "hangs" in fault:
        assert states == ["failed", "pending"]
    assert not (tmp_path / "out.ipynb").exists()
    assert_dead(int((tmp_path / "pid").read_text()))


@pytest.mark.slow
def test_a_kernel_that_hangs_as_it_ends_does_not_hold_the_run(book, tmp_path):
    hangs = "import atexit, time, os\nx = atexit.register(time.sleep, 1000)\nprint(os.getpid())"
    out = run_notebook(book(hangs), tmp_path / "out.ipynb", {}, timeout_s=30)
    assert_dead(int(nbformat.read(out, 4).cells[0].outputs[0].text))


@pytest.mark.slow
def test_an_error_of_a_million_characters_is_reported_in_a_few(book, tmp_path):
    cell = "raise ValueError('\x1b[31m' + 'x' * 1_000_000)"
    with raises_code("notebook_failed") as info:
        run_notebook(book(cell), tmp_path / "out.ipynb", {})
    assert "ValueError: " in str(info.value)
    assert len(str(info.value)) < 2500 and "\x1b" not in str(info.value)


@pytest.mark.slow
def test_a_killed_runner_leaves_nothing_under_the_outputs_name(book, tmp_path):
    """SIGKILL in the middle of a run; the next call makes the whole notebook and clears up."""
    begun = tmp_path / "begun"
    out = tmp_path / "out" / "out.ipynb"
    waits = f"import os, time\nopen({str(begun)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    call = f"run_notebook({str(book('1', waits))!r}, {str(out)!r}, {{}})"
    code = f"from ftlab.experiments import run_notebook; {call}"
    runner = subprocess.Popen([sys.executable, "-c", code])
    while not (begun.exists() and begun.read_text()):
        assert runner.poll() is None
        time.sleep(0.05)
    runner.kill()
    runner.wait()
    assert [path.name for path in out.parent.iterdir()] == [".out.partial.ipynb"]
    os.kill(int(begun.read_text()), signal.SIGKILL)
    run_notebook(book("1", "print('the end')"), out, {})
    assert nbformat.read(out, 4).cells[-1].outputs
    assert [path.name for path in out.parent.iterdir()] == ["out.ipynb"]


def test_somebodys_own_notebook_is_no_output(book, tmp_path):
    mine = tmp_path / "mine.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[]), mine)
    before = mine.read_bytes()
    with raises_code("wrong_output"):
        run_notebook(book("1"), mine, {})
    assert mine.read_bytes() == before


def test_a_torn_partial_notebook_is_not_kept_as_what_ran(book, tmp_path, monkeypatch):
    def full(*_, **__):
        (tmp_path / ".out.partial.ipynb").write_text('{"cells": [')
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("papermill.execute_notebook", full)
    with raises_code("notebook_failed") as info:
        run_notebook(book("1"), tmp_path / "out.ipynb", {})
    assert "could not be written" in str(info.value)
    assert not [path for path in tmp_path.glob("*out*")]


# Secrets


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["well", "badly"])
def test_no_secret_is_left_in_an_executed_notebook(ends, book, tmp_path, monkeypatch):
    """Neither in outputs, tracebacks and sources, nor in the reason of the failure."""
    monkeypatch.setenv("OPENAI_API_KEY", "local-key-of-no-known-form")
    cells = [
        "import os\nfrom IPython.display import HTML, display\n"
        f"t, k = {TOKENS!r}, os.environ['OPENAI_API_KEY']\n"
        "print(t, k)\ndisplay(HTML(f'<b>{t}{k}</b>'))\nt",
        f"from pathlib import Path\npartial = next(Path({str(tmp_path)!r}).glob('.*partial*'))\n"
        "print('on disk:', partial.read_text().count(k))",
        "raise ValueError(f'{t} {k}')" if ends == "badly" else "1",
    ]
    reason = ""
    if ends == "badly":
        with raises_code("notebook_failed") as info:
            run_notebook(book(*cells), tmp_path / "out.ipynb", {})
        reason = str(info.value)
        assert "ValueError" in reason
    else:
        run_notebook(book(*cells), tmp_path / "out.ipynb", {})
    (made,) = tmp_path.glob("out*")
    for text in (made.read_text(), reason):
        assert not any(token in text for token in (*TOKENS, "local-key"))
    assert "[token removed]" in made.read_text()
    assert "on disk: 0" in made.read_text()  # the key is not on disk while the notebook runs either


# Widgets


def entered_outputs(source: str) -> list[int]:
    """Return the lines where an ipywidgets `Output` is entered or captures a function."""
    tree = ast.parse(source)
    names = {"Output"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names |= {a.asname for a in node.names if a.name == "Output" and a.asname}
    held: set[str] = set()

    def is_output(node: ast.AST) -> bool:
        if isinstance(node, ast.NamedExpr):
            return is_output(node.value)
        called = node.func if isinstance(node, ast.Call) else None
        name = getattr(called, "id", getattr(called, "attr", None))
        return name in names or bool(held) and ast.unparse(node) in held

    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and is_output(node.value):
            held |= {ast.unparse(target) for target in node.targets}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.With, ast.AsyncWith)):
            entered = [i.context_expr for i in node.items if is_output(i.context_expr)]
            found += [expression.lineno for expression in entered]
        if isinstance(node, ast.Attribute) and node.attr == "capture" and is_output(node.value):
            found.append(node.lineno)
    return found


ENTERED = [
    "import ipywidgets as w\nwith w.Output():\n    pass",
    "from ipywidgets import Output as O\nout = O()\nwith out:\n    pass",
    "self.out = widgets.Output()\nwith self.out as o, open(x):\n    pass",
    "out = Output()\n@out.capture()\ndef f(): pass",
    "with (o := Output()):\n    pass",
]


@pytest.mark.slow
def test_output_widgets_are_never_entered():
    """`with Output()` can hang a run without a browser for ever (nbclient#312)."""
    assert all(entered_outputs(source) for source in ENTERED)
    assert not entered_outputs("out = Output()\nwith open(out):\n    pass\ndisplay(out)")
    sources = {str(path): path.read_text() for path in (ROOT / "ftlab").rglob("*.py")}
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        cells = [c.source for c in nbformat.read(path, 4).cells if c.cell_type == "code"]
        sources[str(path)] = "\n".join(cells)
    found = {name: entered_outputs(text) for name, text in sources.items()}
    assert not {name: places for name, places in found.items() if places}


@pytest.mark.slow
@pytest.mark.parametrize("inside", ["print('done')", "while True: time.sleep(0.1)"])
def test_a_notebook_that_enters_an_output_widget_comes_to_an_end(inside, book, tmp_path):
    pytest.importorskip("ipywidgets")
    cell = (
        "import time\nfrom ipywidgets import Output\nout = Output()\ndisplay(out)\n"
        f"with out:\n    {inside}"
    )
    if "done" in inside:
        assert run_notebook(book(cell), tmp_path / "out.ipynb", {}, timeout_s=30).exists()
        return
    with raises_code("notebook_failed"):
        run_notebook(book(cell), tmp_path / "out.ipynb", {}, timeout_s=3)
