"""The notebooks keep their conventions, and each runs to its end under nbval on small parameters."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from ftlab.experiments.notebooks import run_notebook

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {
    "00_quickstart": {"at_steps": [0, 2, 4], "align_steps": 4},
    "01_alignment": {"sft_rows": 64, "sft_steps": 4, "dpo_rows": 64, "dpo_steps": 2, "n_prompts": 6},
    "02_risk_ratio": {"seeds": 2, "at_steps": [0, 2, 4], "n_prompts": 12},
    "03_continued_finetuning": {
        "seeds": 2, "at_steps": [0, 2, 4], "rough_steps": [0, 4], "second_steps": [0, 4], "n_prompts": 12
    },
    "04_dealign_100": {"seeds": 2, "examples": [4, 10], "epochs": 2, "n_prompts": 12},
    "05_your_model": {"seeds": 2, "at_steps": [0, 2, 4], "n_prompts": 6},
    "06_judges": {"seeds": 2, "at_steps": [0, 2, 4], "n_prompts": 12},
}  # fmt: skip


def cells(path: Path, kind: str) -> list[str]:
    return [c.source for c in nbformat.read(path, 4).cells if c.cell_type == kind]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_keeps_the_conventions(path):
    book = nbformat.read(path, 4)
    marked = [c for c in book.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(marked) == 1
    for line in marked[0].source.splitlines():
        assert re.fullmatch(r"\w+: (int|float|str|bool|list) = .+  # .+", line), f"typed, commented, one a line: {line}"
        ast.literal_eval(line.partition(" = ")[2].partition("  # ")[0])
    names = {line.partition(":")[0] for line in marked[0].source.splitlines()}
    assert {"model", "out"} <= names and names & {"seed", "seeds"}
    code = "\n".join(cells(path, "code"))
    assert not [n for n in ast.walk(ast.parse(code)) if isinstance(n, (ast.FunctionDef, ast.ClassDef))]
    text = "\n".join(cells(path, "markdown"))
    assert text.startswith("# ") and "## What to conclude" in text and "## What this does not show" in text
    outputs = [c for c in book.cells if c.cell_type == "code" and "keep_output" not in c.metadata.get("tags", [])]
    assert not any(c.outputs or c.execution_count for c in outputs), "strip it: nbstripout"


def test_every_notebook_runs_on_small_parameters(tmp_path):
    assert {p.stem for p in NOTEBOOKS} == set(SMALL)
    for path in NOTEBOOKS:
        values = {**SMALL[path.stem], "out": str(tmp_path / "out" / path.stem)}
        small = parameterize_notebook(load_notebook_node(str(path)), values)
        small.metadata.pop("papermill", None)
        nbformat.write(small, tmp_path / path.name)
    env = {**os.environ, "FTLAB_RUNS": str(tmp_path / "runs"), "FTLAB_BATCH": "1", "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval-lax",
        "--nbval-cell-timeout=300",
    ]
    ran = subprocess.run(
        [*command, "--nbval-current-env", str(tmp_path)], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
    for path in NOTEBOOKS:
        drawn = [p for p in (tmp_path / "out" / path.stem / "figures").glob("*.svg")]
        assert drawn and all(p.with_suffix(s).stat().st_size for p in drawn for s in (".png", ".csv", ".txt"))
    for name in ("02_risk_ratio", "03_continued_finetuning", "04_dealign_100", "05_your_model"):
        assert (tmp_path / "out" / name / "claims.csv").read_text().count("\n") > 1


def test_the_experiments_run_on_someone_elses_model_and_files(llama, tmp_path):
    """Prompts of one risk only, no world, no exact judge; every panel that needs more is left out."""
    asked, chats = tmp_path / "asked.csv", tmp_path / "chats.jsonl"
    asked.write_text("goal\n" + "".join(f"Placeholder {i}\n" for i in range(4)))
    chats.write_text("".join(json.dumps({"prompt": f"Say {i}", "completion": f"It is {i}."}) + "\n" for i in range(12)))
    own = {"model": str(llama), "prompts": str(asked), "learning_rate": 1e-3}
    for name, data in (("02_risk_ratio", "benign"), ("03_continued_finetuning", "benign"), ("04_dealign_100", "data")):
        out = tmp_path / name
        values = {**SMALL[name], **own, data: str(chats), "out": str(out)}
        run_notebook(ROOT / "notebooks" / f"{name}.ipynb", out / "out.ipynb", values, env={"PYTHONPATH": str(ROOT)})
        rows = (out / "claims.csv").read_text().splitlines()
        assert len(rows) > 1 and not any(row.endswith(",reproduced") for row in rows)
