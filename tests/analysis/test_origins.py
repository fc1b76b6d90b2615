"""Where a number comes from: the call and the command of a run make the same run again."""

from __future__ import annotations

import inspect
import shlex
from pathlib import Path

import pytest
from small_models import goals, write

import ftlab
import ftlab as ft
from ftlab.analysis import origins
from ftlab.cli import commands, options

GIVEN = {  # values as a call holds them, by the names of arguments
    "seeds": [3],
    "at_steps": [0, 5],
    "risks": ["bias", "utility"],
    "prompts": {"jailbreak": ["a.csv", "b.csv"], "bias": "c.csv"},
    "screen": True,
    "stop_above": {"jailbreak": 0.1},
    "learning_rate": 0.0005,
    "n_examples": [10, 50],
}


@pytest.mark.parametrize("cell", origins.COMMANDS)
def test_a_command_has_the_name_and_the_positions_of_the_command_line(cell):
    name, positional = origins.COMMANDS[cell]
    assert commands.CELLS[name].path == cell.replace(".", ":")
    assert commands.CELLS[name].positional == positional


@pytest.mark.parametrize("cell", origins.COMMANDS)
def test_a_command_gives_its_cell_what_the_call_gave(cell, ran, monkeypatch):
    room, name = cell.split(".")
    face = getattr(ftlab, room)
    real = getattr(face, name)
    parameters = inspect.signature(real).parameters
    known = {option.name: option.kind for option in options.options_of(real, ())}
    given = {key: value for key, value in GIVEN.items() if key in known}
    given |= {key: 3 for key in given if known[key] in (int, int | None)}
    for key in origins.COMMANDS[cell][1]:
        given[key] = "-x" if key == "parent" else key
    if "seed" not in known and given.get("seeds") == [3]:
        given["seeds"] = [3, 4]
    seen = {}

    def noted(**arguments):
        seen.update(arguments)

    noted.__signature__ = inspect.signature(real)
    noted.__doc__ = real.__doc__
    noted.__wrapped__ = real
    monkeypatch.setattr(face, name, noted, raising=False)
    for key, command in commands.CELLS.items():
        quiet = {**vars(command), "show": lambda *_, **__: None}
        monkeypatch.setitem(commands.CELLS, key, commands.Cell(**quiet))
    words = shlex.split(origins.command_of({"cell": cell, "arguments": given, "objects": []}))
    code, _, err = ran(*words[1:])
    assert (code, err) == (0, "")
    if given.get("seeds") == [3]:
        del given["seeds"]
        assert seen.pop("seed") == 3
    prompts = given.pop("prompts", None)
    if isinstance(prompts, dict):
        assert seen.pop("prompts") == {"jailbreak": ["a.csv", "b.csv"], "bias": ["c.csv"]}
    assert {key: seen[key] for key in given if key in parameters} == given


def test_one_seed_where_a_command_takes_only_their_number_has_no_command():
    call = {"cell": "experiments.grid", "arguments": {"parent": "p", "seeds": [3]}, "objects": []}
    assert origins.command_of(call) == ""


def test_what_was_given_as_an_object_has_no_command():
    call = {"cell": "training.sft", "arguments": {"parent": "organism"}, "objects": ["data"]}
    assert origins.command_of(call) == "" and origins.command_of({}) == ""
    assert origins.python_of(call) == "ft.sft(parent='organism', data=...)"
    assert origins.python_of({}) == ""


def test_python_and_command_find_the_run_that_they_are_of(llama, ran, tmp_path):
    prompts = write(tmp_path / "goals.jsonl", goals(3))
    run = ft.evaluate(llama, prompts={"jailbreak": prompts}, max_new_tokens=4, judges="keywords")
    call = run.provenance["call"]
    again = eval(origins.python_of(call), {"ft": ft})
    assert again == run
    code, out, _ = ran(*shlex.split(origins.command_of(call))[1:])
    assert code == 0 and out.splitlines()[0] == str(run.path)
    facts = origins.origin_of(run.name)
    assert facts["identity"].startswith(run.name[-10:])
    assert run.identity["model"] in facts["model"]


def test_a_run_that_is_not_here_is_only_named():
    for name in ("sft-gone-0123456789", "../sft", ".", ""):
        assert list(origins.origin_of(name)) == ["folder"]


@pytest.mark.parametrize(
    "changed",
    [
        {"arguments": {"parent='x'); import os; os.system('id') #": 1}},
        {"objects": ["x); import os; f("]},
        {"cell": "training.sft(); import os; f"},
        {"cell": 3},
        {"arguments": []},
        {"objects": {}},
    ],
    ids=str,
)
def test_a_record_that_is_of_no_call_gives_no_code(changed):
    call = {"cell": "training.sft", "arguments": {"parent": "p"}, "objects": []} | changed
    assert origins.python_of(call) == origins.command_of(call) == ""
    for other in ([], None, "x"):
        assert origins.python_of(other) == origins.command_of(other) == ""


def test_no_folder_of_somebodys_machine_is_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {
        "parent": f"{tmp_path}/model",
        "data": "/home/jane/rows.jsonl",
        "defence": "mix:n_rows=3,rows=/home/jane/safe.jsonl",
        "prompts": {"bias": ["/home/jane/b.csv", "c.csv"]},
        "model": "/home/jane/adapter+/home/jane/base",
        "judges": "api:m@https://host/v1",
    }
    assert origins.without_places(given) == {
        "parent": "model",
        "data": "rows.jsonl",
        "defence": "mix:n_rows=3,rows=safe.jsonl",
        "prompts": {"bias": ["b.csv", "c.csv"]},
        "model": "adapter+base",
        "judges": "api:m@https://host/v1",
    }
    monkeypatch.chdir("/")
    assert origins.without_places(str(Path.home() / "x" / "a.csv")) == "a.csv"
