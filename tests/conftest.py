"""Every test has its own folder of runs, and no network; the embedded world and its tokenizer are made once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_models import dropping, folder, folders, killed, killed_curves, llama  # noqa: F401  fixtures: other people's models

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch) -> Path:
    """`FTLAB_RUNS`: never the checkout's own `runs/`."""
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def shared():
    """-> function from a name below ../shared/data to its path; skips where the folder is absent."""

    def path(name: str) -> Path:
        file = ROOT.parent / "shared" / "data" / name
        if not file.exists():
            pytest.skip(f"{file} is not here: real files of the field are not part of the project")
        return file

    return path


@pytest.fixture(scope="session")
def world():
    from ftlab.organism.world import World

    return World()


@pytest.fixture(scope="session")
def tokenizer(world):
    """The embedded model's tokenizer, as its build makes it."""
    from recipes.organism.build import make_tokenizer

    return make_tokenizer(world)
