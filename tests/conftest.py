"""Every test has its own folder of runs and no network; expensive fixtures are made once."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from small_models import (  # noqa: F401  fixtures: other people's models
    dropping,
    folder,
    folders,
    killed,
    killed_curves,
    llama,
    zygote,
)

# Workers share the cores: one thread each, and no busy waiting between them.
os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
}
ROOT = Path(__file__).parents[1]
COSTLY = {
    "classifier",
    "doses",
    "execute",
    "family",
    "killed",
    "killed_curves",
    "measured",
    "searched",
    "standing",
    "straight",
    "training_texts",
    "written",
    "zygote",
}


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch) -> Path:
    """Set `FTLAB_RUNS` to a folder of the test's own: never the checkout's `runs/`."""
    monkeypatch.setenv("FTLAB_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def shared():
    """Return a function from a name below ../shared/data to its path; it skips where it is absent."""

    def path(name: str) -> Path:
        file = ROOT.parent / "shared" / "data" / name
        if not file.exists():
            pytest.skip(f"needs_data: {name}: real files of the field are not part of the project")
        return file

    return path


@pytest.fixture(scope="session")
def world():
    """Return the embedded world."""
    from ftlab.organism import World

    return World()


@pytest.fixture(scope="session")
def tokenizer(world):
    """Return the embedded model's tokenizer, as its recipe makes it."""
    from recipes.organism.build import make_tokenizer

    return make_tokenizer(world)


@pytest.fixture
def ran(monkeypatch, capsys):
    """Return a function from words of the command line to (exit code, output, errors)."""

    def run(*words) -> tuple[int, str, str]:
        from ftlab import cli

        monkeypatch.setattr(sys, "argv", ["ftlab", *map(str, words)])
        with pytest.raises(SystemExit) as info:
            cli.main()
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return info.value.code or 0, shown.out, shown.err

    return run


def pytest_collection_modifyitems(items) -> None:
    """Mark tests whose fixtures train or kill for many seconds as slow; their files come first."""
    first = set()
    for item in items:
        if COSTLY & set(item.fixturenames):
            item.add_marker(pytest.mark.slow)
            first.add(item.path)
    items.sort(key=lambda item: item.path not in first)


def pytest_terminal_summary(terminalreporter) -> None:
    """Count the tests that were skipped because real data of the field are absent."""
    skipped = terminalreporter.stats.get("skipped", [])
    missing = sum("needs_data" in str(report.longrepr) for report in skipped)
    terminalreporter.write_line(f"{missing} tests were skipped for want of ../shared/data")
