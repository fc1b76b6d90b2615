"""The places where extensions are found: names without loading anything heavy, one file each."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module, util
from pathlib import Path

import pytest
from helpers import raises_code

from ftlab._core import plugins

HEAVY = ("torch", "transformers", "trl", "peft", "pandas", "matplotlib", "papermill")
OWN_CLASS = (
    "attacks",
    "judges",
    "engines",
    "defences",
    "transforms",
    "backends",
)  # places that hold classes
EXPECTED = {  # some that every place must at least have
    "risks": {"jailbreak", "bias", "toxicity", "over_refusal", "utility", "hallucination"},
    "attacks": {"direct", "templates", "prefill", "decoding", "best_of_n"},
    "judges": {"keywords", "organism", "refusal", "rubric", "zoo"},
    "engines": {"huggingface", "vllm", "openai", "scripted"},
    "methods": {"sft", "dpo", "kto", "reward_model", "rloo"},
    "defences": {
        "mix",
        "constrained",
        "kl",
        "l2",
        "ewc",
        "interpolate",
        "safelora",
        "resta",
        "ptst",
        "lisa",
        "early_stop",
        "filter",
        "backdoor_enhanced",
        "one_shot",
        "repair_dpo",
    },
    "transforms": {"quantise", "merge", "task_arithmetic", "prune"},
    "backends": {"local", "ray", "slurm"},
    "panels": {"live"},
    "logs": {"inspect_ai", "lm_eval", "harmbench", "strongreject", "plain"},
    "trackers": {"mlflow", "trackio"},
    "lessons": {
        *("alignment", "risk_ratio", "one_hundred_examples", "judges"),
        *("statistics", "backdoors", "defences", "reproduction"),
    },
}


def test_no_place_is_forgotten_here():
    assert set(EXPECTED) == set(plugins.PLACES)


@pytest.mark.parametrize("place", plugins.PLACES)
def test_a_place_finds_its_extensions_by_their_file_names(place):
    package, attribute = plugins.PLACES[place]
    names = plugins.names(place)
    assert EXPECTED[place] <= set(names) and len(names) == len(set(names))
    folder = Path(next(iter(util.find_spec(package).submodule_search_locations)))
    for name in names:
        found = plugins.get(place, name)
        assert found is getattr(import_module(f"{package}.{name}"), attribute)
        assert (folder / f"{name}.py").is_file() and found.name == name
        assert isinstance(found, type) == (place in OWN_CLASS)
    assert set(plugins.find(place)) == set(names)


@pytest.mark.parametrize("place", plugins.PLACES)
def test_an_unknown_name_is_an_error_that_lists_the_known_ones(place):
    with raises_code(f"unknown_{place.removesuffix('s')}") as info:
        plugins.get(place, "nobody")
    assert all(name in str(info.value) for name in plugins.names(place))


def test_a_leading_underscore_and_a_file_without_the_attribute_are_left_out(tmp_path, monkeypatch):
    folder = tmp_path / "places_here"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "_helper.py").write_text("TOY = 1\n")
    (folder / "other.py").write_text("NOT_TOY = 1\nif True:\n    TOY = 1\n")
    (folder / "one.py").write_text("raise RuntimeError('never loaded for its name')\nTOY = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(plugins.PLACES, "toys", ("places_here", "TOY"))
    assert plugins.names("toys") == ["one"]
    for name in ("_helper", "other"):
        with raises_code("unknown_toy"):
            plugins.get("toys", name)


@pytest.mark.slow
def test_names_come_without_heavy_modules():
    code = (
        "import sys\n"
        "from ftlab._core import plugins\n"
        "for place in plugins.PLACES: plugins.names(place)\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.slow
def test_risks_and_attacks_load_without_torch():
    """Tables and figures ask for their titles and order on machines without models."""
    code = (
        "import sys\n"
        "from ftlab._core import plugins\n"
        "plugins.find('risks'), plugins.find('attacks')\n"
        "print([name for name in ('torch', 'transformers', 'trl') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
