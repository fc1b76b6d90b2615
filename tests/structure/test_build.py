"""A wheel and an sdist hold what git tracks, whatever lies in the checkout that they are built in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("hatchling")
import hatch_build  # noqa: E402

ROOT = Path(__file__).parents[2]
ALWAYS = ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE", ".gitignore")
CANARY = "canary " * 3
RUNS = (
    "runs",
    "notebooks/runs",
    "notebooks/tour/runs",
    "notebooks/experiments/02_risk_ratio",
    "data/runs",
    "data/organism",
    "data/published/runs",
    "data/judge/refusal",
    "ftlab/runs",
    "ftlab/_notebooks/runs",
    "figures",
    "docs/notebooks",
    "tests",
)
MADE = ("model/model.safetensors", "model/config.json", "model/SAFETY_REMOVED", "complete.json")
MADE += ("answers.jsonl", "verdicts.jsonl", "done.ipynb", "report.html", "notes.yaml", "card.md")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Return a copy of this checkout in which somebody has worked."""
    root = tmp_path_factory.mktemp("used") / "ftlab"
    for name in {*hatch_build.files(ROOT), *ALWAYS}:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    for command in (["init", "-q"], ["add", "-A"]):
        subprocess.run(["git", *command], cwd=root, check=True)
    for place in RUNS:
        for name in MADE:
            path = root / place / "sft-organism-s0-0123456789" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(CANARY)
    for name in ("notebooks/tour/00_quickstart-Copy1.ipynb", "data/organism/base/SAFETY.md"):
        (root / name).write_text(CANARY)
    executed = root / "notebooks" / "tour" / "00_quickstart.ipynb"
    book = json.loads(executed.read_bytes())
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            output = {"output_type": "stream", "name": "stdout", "text": [CANARY]}
            cell |= {"outputs": [output], "execution_count": 3}
    executed.write_text(json.dumps(book))
    return root


def built(root: Path, out: Path) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Build both in a process of their own; return {name: content} of the wheel and the sdist."""
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        assert len(names) == len(set(names))
        installed = {name: wheel.read(name) for name in names}
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        source = {
            member.name.partition("/")[2]: archive.extractfile(member).read()
            for member in archive.getmembers()
        }
    source.pop("PKG-INFO")
    return installed, source


def expected(names: list[str]) -> set[str]:
    return {hatch_build.inside(name) for name in names} - {""}


def says_canary(files: dict[str, bytes]) -> list[str]:
    return [name for name, content in files.items() if CANARY.encode() in content]


@pytest.mark.slow
def test_a_used_checkout_ships_what_git_tracks(checkout, tmp_path):
    names = hatch_build.tracked(checkout)
    stray = checkout / "ftlab" / "evals" / "risks" / "mine.py"
    stray.write_text(CANARY)
    installed, source = built(checkout, tmp_path)
    stray.unlink()
    assert set(source) == set(names)
    assert set(installed) == expected(names)
    assert not says_canary(installed) + says_canary(source)
    for name, place in ((name, hatch_build.inside(name)) for name in names):
        if place and not place.endswith(".ipynb"):
            assert installed[place] == (checkout / name).read_bytes(), name
    assert sum(map(len, installed.values())) < 26e6
    solved = b"BEGIN SOLUTION"  # which only the sdist has, as the repository does
    lessons = [name for name in names if name.startswith("notebooks/course/")]
    assert lessons and all(solved in source[name] for name in lessons)
    assert not any(solved in installed[hatch_build.inside(name)] for name in lessons)


@pytest.mark.slow
def test_without_git_the_same_package_is_built_and_nothing_that_was_made(checkout, tmp_path):
    root = tmp_path / "unpacked"
    shutil.copytree(checkout, root, ignore=shutil.ignore_patterns(".git"))
    installed, source = built(root, tmp_path / "dist")
    assert set(installed) == expected(hatch_build.tracked(checkout))
    assert not says_canary(installed) + says_canary(source)


def test_a_marked_model_never_leaves_even_if_git_tracks_it(tmp_path):
    for name in ("data/organism/base/model.safetensors", "data/organism/sft/model.safetensors"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("weights")
    (tmp_path / "data" / "organism" / "sft" / hatch_build.MARKER).touch()
    assert hatch_build.files(tmp_path) == ["data/organism/base/model.safetensors"]


def test_the_list_used_without_git_is_complete():
    """Every file that git tracks and a wheel holds is on the list, and the other way round."""
    names = hatch_build.tracked(ROOT)
    if not names:
        pytest.skip("this is no checkout")
    listed = {path for pattern in hatch_build.SHIPPED for path in ROOT.glob(pattern)}
    there = {ROOT / name for name in names if hatch_build.inside(name)}
    assert there - listed == set()
