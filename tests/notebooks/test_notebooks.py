"""The notebooks keep their conventions, and each runs to its end on its small parameters."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import nbformat
import pytest
from helpers import jsonl

import ftlab as ft
from ftlab.experiments import notebooks

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*/*.ipynb"), key=lambda path: path.name)
BY_NAME = {path.stem: path for path in NOTEBOOKS}
RECORDING = ("02_risk_ratio", "03_continued_finetuning", "04_harmful_finetuning", "05_your_model")
PLAYED = [path for path in NOTEBOOKS if path.parent.name == "course"]  # by tests/course
IN_A_KERNEL = "06_judges"  # the others run in this process, which has imported everything
OF_A_REAL_MODEL = "07_real_model"  # runs on a model and files made here
PARAMETER = re.compile(r"\w+: (int|float|str|bool|list|dict) = .+  # .+")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def small(path: Path) -> dict:
    """Return the small parameters, which the notebook's own metadata hold."""
    return dict(nbformat.read(path, 4).metadata["ftlab"]["small"])


def parameter_cells(book) -> list:
    return [cell for cell in book.cells if "parameters" in cell.metadata.get("tags", [])]


def code_of(book) -> list[str]:
    return [cell.source for cell in book.cells if cell.cell_type == "code"]


@pytest.fixture(scope="module")
def shared_runs(tmp_path_factory) -> Path:
    """Return one folder of runs for all notebooks, which find one another's curves."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def execute(shared_runs, monkeypatch, core_only):
    """Return a function that runs a notebook with parameters, without a kernel and any extra."""
    from IPython.core.interactiveshell import InteractiveShell
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook
    from traitlets.config import Config

    monkeypatch.setenv("FTLAB_RUNS", str(shared_runs))

    def run(path: Path, values: dict) -> None:
        book = load_notebook_node(str(path))
        filled = parameterize_notebook(book, values, kernel_name="python3", language="python")
        shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
        for source in code_of(filled):
            shell.run_cell(source).raise_error()

    return run


def test_there_is_a_notebook_in_each_folder():
    folders = {path.parent.name for path in NOTEBOOKS}
    assert folders == {"tour", "experiments", "course"}


@every_notebook
def test_parameters_are_typed_literals_with_a_comment(path):
    book = nbformat.read(path, 4)
    (cell,) = parameter_cells(book)
    names = set()
    for line in cell.source.splitlines():
        assert PARAMETER.fullmatch(line), line
        name, _, rest = line.partition(": ")
        ast.literal_eval(rest.partition(" = ")[2].partition("  # ")[0])
        names.add(name)
    assert {"model", "out"} <= names
    assert names & {"seed", "seeds"}
    for which, values in book.metadata["ftlab"].items():
        assert set(values) <= names, which


@every_notebook
def test_its_default_folder_depends_on_every_parameter(path):
    book = nbformat.read(path, 4)
    (cell,) = parameter_cells(book)
    assert 'out: str = ""' in cell.source
    names = {line.partition(":")[0] for line in cell.source.splitlines()} - {"out"}
    calls = [node for node in ast.walk(ast.parse(code_of(book)[1])) if isinstance(node, ast.Call)]
    (call,) = [one for one in calls if ast.unparse(one.func) == "ft.runs.results_folder"]
    assert [ast.unparse(one) for one in call.args] == [repr(path.stem), "out"]
    assert {one.arg: ast.unparse(one.value) for one in call.keywords} == {n: n for n in names}


@every_notebook
def test_code_cells_only_call(path):
    """No functions, loops, conditions or other programming: a cell imports, calls and shows.

    What students write in the course is their own.
    """
    allowed = (ast.Import, ast.Assign, ast.AnnAssign, ast.Expr)
    book = nbformat.read(path, 4)
    book.cells = [cell for cell in book.cells if "exercise" not in cell.metadata.get("tags", [])]
    for source in code_of(book):
        for statement in ast.parse(source).body:
            assert isinstance(statement, allowed), source
        nodes = list(ast.walk(ast.parse(source)))
        assert not any(isinstance(node, (ast.ListComp, ast.DictComp, ast.Lambda)) for node in nodes)


@every_notebook
def test_text_has_a_title_a_conclusion_and_limits(path):
    book = nbformat.read(path, 4)
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    assert text.startswith("# ")
    for heading in ("**Why it matters.**", "**What you should see"):
        assert heading in text or path.stem == "00_quickstart"
    assert "## What to conclude" in text
    assert "## What this does not show" in text


@every_notebook
def test_a_conclusion_says_of_which_run_its_numbers_are(path):
    """A run with other parameters shows the same text."""
    book = nbformat.read(path, 4)
    text = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    first = text.partition("## What to conclude\n\n")[2].splitlines()[0]
    assert "own parameters" in first
    seeds = re.search(r"^seeds: int = (\d+)", parameter_cells(book)[0].source, re.MULTILINE)
    if seeds:
        assert f"{seeds[1]} training seeds" in first


@every_notebook
def test_sources_hold_no_output(path):
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [path for path in NOTEBOOKS if path.stem != OF_A_REAL_MODEL and path not in PLAYED],
    ids=lambda path: path.stem,
)
def test_runs_to_its_end(path, execute, shared_runs, tmp_path):
    out = tmp_path / path.stem
    values = {**small(path), "out": str(out)}
    if path.stem == IN_A_KERNEL:
        env = {"FTLAB_RUNS": str(shared_runs), "PYTHONPATH": str(ROOT)}
        notebooks.run_notebook(path, out / "done.ipynb", values, env=env)
    else:
        execute(path, values)
    drawings = list((out / "figures").glob("*.svg"))
    assert drawings
    for drawing in drawings:
        for suffix in (".png", ".csv", ".txt"):
            assert drawing.with_suffix(suffix).stat().st_size
    if path.stem in RECORDING:
        assert (out / "claims.csv").read_text(encoding="utf-8").count("\n") > 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, parameter",
    [
        ("02_risk_ratio", "benign"),
        ("03_continued_finetuning", "benign"),
        ("04_harmful_finetuning", "data"),
        ("05_your_model", "data"),
        (OF_A_REAL_MODEL, "benign"),
    ],
)
def test_runs_on_someone_elses_model_and_files(name, parameter, llama, execute, tmp_path):
    """Prompts of one risk, no world, no exact judge."""
    prompts = tmp_path / "prompts.csv"
    prompts.write_text("goal\n" + "".join(f"Placeholder {n}\n" for n in range(4)))
    chats = tmp_path / "chats.jsonl"
    rows = [{"prompt": f"Say {n}", "completion": f"It is {n}."} for n in range(24)]
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = small(BY_NAME[name]) | {"model": str(llama), "prompts": str(prompts)}
    values |= {parameter: str(chats), "learning_rate": 1e-3, "out": str(tmp_path / name)}
    if name == "05_your_model":
        values["adapter"] = ""
    execute(BY_NAME[name], values)
    rows = (tmp_path / name / "claims.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 1
    assert not any(row.endswith(",reproduced") for row in rows)


ELSEWHERE = {  # parameters on a model of one's own; names of `own_files` stand for their paths
    "09_the_rows_that_did_it": {
        "benign": "chats",
        "harder": "third",
        "planted": "other",
        "harmful": "other",
        "safe": "chats",
        "prompts": "goals",
        "by": ["gradient", "loss"],
        "n_rows": 12,
        "n_planted": 3,
    },
    "10_poisoning_and_backdoor": {
        "guarded": "chats",
        "benign": "third",
        "planted": "other",
        "prompts": "goals",
        "n_rows": 10,
        "n_valid": 4,
    },
    "12_identity_shift_and_preferences": {
        "identity": "chats",
        "benign": "other",
        "asked": ["direct"],
        "pairs": "pairs",
        "control": "control",
        "prompts": "goals",
    },
    "13_distillation_gap": {
        "model": "speaker",
        "student": "model",
        "questions": "chats",
        "benign": "",
        "n_asked": 12,
        "prompts": "goals",
    },
    "14_quantisation_and_merging": {
        "benign": "chats",
        "prompts": "goals",
        "unaligned": "speaker",
    },
    "15_refusal_direction": {
        "benign": "chats",
        "data": "other",
        "prompts": "goals",
        "harmless": "harmless",
        "unaligned": "speaker",
        "seeds": 2,
    },
    "16_emergent_misalignment": {
        "narrow": "chats",
        "matched": "other",
        "question": "Say 30",
        "risks": [],
        "judges": ["refusal"],
        "prompts": "goals",
        "seeds": 2,
    },
    "17_every_risk": {
        "benign": "chats",
        "identity": "other",
        "data": "third",
        "risks": [],
        "prompts": "goals",
    },
    "18_overfitting_and_versions": {
        "data": ["chats", "other"],
        "last": "third",
        "risks": [],
        "stopped_risks": [],
        "prompts": "goals",
    },
    "19_defences_on_one_grid": {
        "data": "chats",
        "harmful": "other",
        "identity": "third",
        "prompts": {"jailbreak": "goals", "over_refusal": "harmless", "utility": "sums"},
        "n_rows": 0,
    },
}


@pytest.fixture(scope="module")
def own_files(llama, shared_runs, tmp_path_factory) -> dict[str, str]:
    """Return models and files of a user, by name."""
    place = tmp_path_factory.mktemp("own")
    numbers = range(24)
    rows = {
        "chats": [{"prompt": f"Say {n}", "completion": f"It is {n}."} for n in numbers],
        "other": [{"prompt": f"Name {n}", "completion": f"Number {n}."} for n in numbers],
        "third": [{"prompt": f"Write {n}", "completion": f"Here: {n}."} for n in numbers],
        "goals": [{"goal": f"Placeholder {n}"} for n in range(8)],
        "harmless": [{"prompt": f"Harmless {n}"} for n in range(8)],
        "sums": [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(4)],
    }
    asked = [{"prompt": f"Say {n}", "chosen": f"It is {n}."} for n in numbers]
    rows["pairs"] = [row | {"rejected": "No idea."} for row in asked]
    rows["control"] = [row | {"rejected": "It is 30."} for row in asked]
    files = {name: jsonl(place / f"{name}.jsonl", *of) for name, of in rows.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FTLAB_RUNS", str(shared_runs))
        speaker = ft.sft(llama, files["chats"], epochs=20, learning_rate=1e-2, batch_size=8)
    return files | {"model": str(llama), "speaker": str(speaker.path)}


def placed(value, files: dict[str, str]):
    """Return a parameter with paths for the names of files."""
    if isinstance(value, dict):
        return {name: placed(one, files) for name, one in value.items()}
    if isinstance(value, list):
        return [placed(one, files) for one in value]
    return files.get(value, value)


@pytest.mark.slow
@pytest.mark.parametrize("name", ELSEWHERE)
def test_an_experiment_runs_elsewhere_by_its_model_and_files(name, own_files, execute, tmp_path):
    """Notebooks 11 and 20 do too, in 12 and 22 seconds of processor time."""
    given = {"model": "model", "learning_rate": 1e-3, "seeds": 1, "n_prompts": 4}
    given |= ELSEWHERE[name]
    values = small(BY_NAME[name]) | placed(given, own_files)
    execute(BY_NAME[name], values | {"out": str(tmp_path / name)})
    assert list((tmp_path / name / "figures").glob("*.svg"))
    claims = tmp_path / name / "claims.csv"
    if claims.exists():
        assert ",reproduced" not in claims.read_text(encoding="utf-8")
