"""What a user gives to make is a value: no shell reads it as words or as commands."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOSTILE = "a b'\"`touch PWNED`;touch PWNED"


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize(
    ("target", "names", "ready"),
    [
        ("course", ("OUT",), "test"),
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
