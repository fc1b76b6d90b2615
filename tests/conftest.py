"""Every test has its own folder of runs and no network; expensive fixtures are made once."""

from __future__ import annotations

import os
import re
import sys
import tomllib
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import ClassVar

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
TOOLS = ("browser", "lab", "test")  # extras for people and tests, not for a notebook's numbers
NAME = re.compile(r"[\w.-]+")  # of a package, in what pyproject.toml asks for
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


class WithoutExtras(PathFinder):
    """Finds no module that only an extra of ftlab installs."""

    hidden: ClassVar[set[str]] = set()

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in cls.hidden:
            return None
        return super().find_spec(name, path, target)


def named(wanted: list[str]) -> set[str]:
    return {NAME.match(one)[0].lower() for one in wanted}


@pytest.fixture
def core_only(monkeypatch):
    """Leave only what `make reproduce` installs to be imported, though the tests have more."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    of_extras = set()
    for extra, wanted in declared["optional-dependencies"].items():
        if extra not in TOOLS:
            of_extras |= named(wanted)
    of_extras -= named(declared["dependencies"]) | {"ftlab"}
    hidden = set()
    for module, packages in metadata.packages_distributions().items():
        if all(package.lower() in of_extras for package in packages):
            hidden.add(module)
    monkeypatch.setattr(WithoutExtras, "hidden", hidden)
    finders = [WithoutExtras if one is PathFinder else one for one in sys.meta_path]
    monkeypatch.setattr(sys, "meta_path", finders)
    for name in [*sys.modules]:
        if name.partition(".")[0] in hidden:
            monkeypatch.delitem(sys.modules, name)


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
