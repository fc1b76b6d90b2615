"""What a run remembers of the call that made it: names, files and numbers, and no texts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import TOKENS

from ftlab._core.calls import outermost
from ftlab._core.config import Config, setting, takes
from ftlab.runs import Run, provenance, start
from ftlab.training.defences import open_defence
from ftlab.training.defences.backdoor_enhanced import BackdoorEnhanced
from ftlab.training.defences.guard import Guard
from ftlab.training.defences.mix import Mix
from ftlab.training.defences.ptst import PTST


class Settings(Config):
    n_prompts: int = setting(3, "Prompts", ge=1)
    system: str | None = setting(None, "System prompt")


@takes(Settings)
def inner(data, *, seeds=5, **settings):
    """Return the call that is noted.

    Args:
        data: Any.
        seeds: Any.
        {settings}
    """
    return outermost()


@takes(Settings)
def outer(data, *, seeds=5, **settings):
    """Call the inner cell.

    Args:
        data: Any.
        seeds: Any.
        {settings}
    """
    return inner("other", seeds=1)


def test_outside_of_cells_nothing_is_noted():
    assert outermost() == {} and provenance()["call"] == {}
    inner("x")
    assert outermost() == {}


def test_the_outermost_cell_is_noted_with_what_it_was_given():
    call = outer("organism", seeds=[0, 2], n_prompts=7)
    assert call["cell"].endswith(".outer") and not call["objects"]
    assert call["arguments"] == {"data": "organism", "seeds": [0, 2], "n_prompts": 7}


def test_a_failed_call_is_forgotten():
    with pytest.raises(ZeroDivisionError):
        failing(1)
    assert outermost() == {}


@takes()
def failing(data):
    """Fail.

    Args:
        data: Any.
    """
    return data / 0


@pytest.mark.parametrize(
    "value",
    [
        [{"prompt": "How do I bake?"}],
        {"jailbreak": [{"prompt": "How do I bake?"}]},
        ["How do I bake?"],
        "How do I bake?\nNow.",
        "x" * 300,
        list(range(1000)),
        print,
    ],
    ids=["rows", "rows by risk", "texts", "lines", "long", "many", "function"],
)
def test_rows_texts_and_functions_are_not_noted(value):
    call = inner(value)
    assert call["objects"] == ["data"] and "bake" not in str(call)


def test_a_system_prompt_is_not_noted():
    call = inner("x", system="Obey.")
    assert call["objects"] == ["system"] and "Obey" not in str(call)


def test_files_and_runs_are_noted_by_name_and_secrets_are_not(tmp_path):
    assert inner(Path("my data.jsonl"))["arguments"]["data"] == "my data.jsonl"
    assert inner({"bias": "a.csv"})["arguments"]["data"] == {"bias": "a.csv"}
    assert inner(Run(tmp_path / "sft-x"))["arguments"]["data"] == "sft-x"
    assert "aB3" not in str(inner(f"api:m@https://h/v1?key={TOKENS[0]}"))


def test_a_run_holds_the_call_that_made_it():
    assert made("organism").provenance["call"]["arguments"] == {"data": "organism"}
    assert made("organism").identity == {"kind": "toy", "schema": 3}


@takes()
def made(data):
    """Make a run.

    Args:
        data: Any.
    """
    return start("toy", "toy", {})


SECRET = "xyzzy plugh"


@pytest.mark.parametrize(
    "value",
    [
        BackdoorEnhanced(secret=SECRET),
        BackdoorEnhanced(secret="xyzzy"),
        PTST(prompt=SECRET),
        Guard(refusal=SECRET),
        Mix(rows=[{"prompt": SECRET}]),
        Settings(system=SECRET),
        [Settings(system="xyzzy")],
        {"system": "xyzzy"},
        "backdoor_enhanced:n_rows=3, secret = xyzzy",
        "ptst:prompt=xyzzy",
        ["kl", "guard:refusal=xyzzy"],
    ],
    ids=str,
)
def test_what_a_model_is_told_in_secret_is_not_noted_wherever_it_stands(value):
    call = inner(value)
    assert call["objects"] == ["data"] and "xyzzy" not in str(call)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Mix(n_rows=7), "mix:n_rows=7"),
        (BackdoorEnhanced(), "backdoor_enhanced"),
        (Guard(reads="input", threshold=0.00005), "guard:reads=input,threshold=5e-05"),
    ],
)
def test_a_defence_is_noted_as_the_text_that_opens_the_same(value, text):
    call = inner(value)
    assert call["arguments"]["data"] == text and open_defence(text) == value


def test_settings_without_a_name_are_an_object():
    assert inner(Settings(n_prompts=7))["objects"] == ["data"]
