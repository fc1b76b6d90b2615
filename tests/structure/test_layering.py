"""A module imports only what is above it, the light ones open without torch, and every one imports."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "ftlab"
ORDER = """config shown files runs shelf stats curves charts figures progress organism.world organism.corpus formats
turns rows data sources hardware folders adapters endpoint models chat checks kvcache decode generate vllm_generator
replay preflight attacks judges risks judging asking direction harness methods checkpoints keeper train evaluation
redteam tables agreement measure_refusal verdicts organism.build claims report batch bench_models bench_arms bench
bench_gpu cli""".split()
LIGHT = """config shown files runs shelf formats turns rows data sources checks stats curves charts figures claims report tables
judges risks judging attacks agreement verdicts""".split()
HEAVY = {"torch", "transformers", "trl", "peft", "datasets", "accelerate", "tokenizers"}
EXCEPTIONS = {  # (module, what it imports): reason
    ("cli", "ftlab"): "every command calls one public cell, which the package resolves when it is called"
}


def name_of(file: Path) -> str:
    """-> `judges` for judges/__init__.py and for judges/keywords.py (a folder is one stage), `organism.world`, ..."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:2]) if parts[0] == "organism" and parts[-1] != "__init__" else parts[0]


FILES = {
    f: name_of(f)
    for f in sorted(PACKAGE.rglob("*.py"))
    if f not in (PACKAGE / "__init__.py", PACKAGE / "organism" / "__init__.py")
}


def imports(file: Path) -> set[str]:
    """-> modules of this package that a file imports, also inside functions: `runs`, `organism.world`, ..."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            names = [f"{node.module}.{a.name}" for a in node.names]
        else:
            continue
        for name in names:
            head, *rest = name.split(".")
            assert head not in ("notebooks", "tests"), (
                f"{file.name} imports {name}: the library never knows an experiment"
            )
            if head == "ftlab":
                full = [r for r in (".".join(rest[:2]), ".".join(rest[:1])) if r in ORDER]
                found.add(full[0] if full else "ftlab")
    return found


def test_every_module_has_its_place():
    assert set(FILES.values()) == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=FILES.get)
def test_a_module_imports_only_what_is_above_it(file):
    name = FILES[file]
    below = {i for i in imports(file) - {name} if i not in ORDER[: ORDER.index(name)]}
    assert {(name, i) for i in below} <= set(EXCEPTIONS)


def test_the_package_itself_imports_nothing_of_its_own():
    assert imports(PACKAGE / "__init__.py") == imports(PACKAGE / "organism" / "__init__.py") == set()


def test_every_module_imports():
    for file in FILES:
        importlib.import_module(
            ".".join(("ftlab", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        )


def test_every_public_cell_is_there():
    ftlab = importlib.import_module("ftlab")
    assert all(callable(getattr(ftlab, name)) for name in ftlab._CELLS)
    with pytest.raises(AttributeError, match="ftlab has no 'sfd'; it has read, read_prompts"):
        ftlab.sfd  # noqa: B018


def loaded(code: str) -> set[str]:
    code += "\nimport sys; print(*{m.split('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_results_open_without_torch():
    light = [
        ".".join(("ftlab", *f.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
        for f, n in FILES.items()
        if n in LIGHT
    ]
    assert len(light) >= len(LIGHT)
    assert not loaded("\n".join(f"import {name}" for name in light)) & HEAVY
    assert not loaded("import ftlab.cli") & HEAVY


def test_the_package_alone_loads_nothing_that_takes_time():
    assert not loaded("import ftlab") & {*HEAVY, "numpy", "pandas", "matplotlib", "pydantic", "typer"}
