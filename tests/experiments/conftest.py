"""What tests of notebooks share."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from ftlab.experiments import notebooks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def behave() -> Path:
    """Return a notebook that ends as its parameter says."""
    return ROOT / "tests" / "fixtures" / "behave.ipynb"


@pytest.fixture
def same_ftlab(monkeypatch):
    """Let kernels import the package under test, from wherever pytest was started."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def no_kernel(monkeypatch):
    def started(*_):
        raise AssertionError("a kernel was started")

    monkeypatch.setattr(notebooks, "_kernel", started)


@pytest.fixture
def book(tmp_path):
    """Return a function from the sources of code cells to a notebook."""

    def make(*cells: str) -> Path:
        path = tmp_path / "given.ipynb"
        made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        nbformat.write(made, path)
        return path

    return make
