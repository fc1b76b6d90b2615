"""Where a number comes from: the run, its hashes, and the call and the command that repeat it."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

from ftlab import _VERBS
from ftlab._core.errors import NotFoundError, UsageError
from ftlab._core.files import digest
from ftlab.runs import Run, find

NOT_RECORDED = "not recorded"
# Cells that make runs: the command of each, and its arguments that have no option's name.
COMMANDS = {
    "training.sft": ("sft", ("parent", "data")),
    "training.dpo": ("dpo", ("parent", "pairs")),
    "training.kto": ("kto", ("parent", "data")),
    "training.train_reward_model": ("reward", ("parent", "pairs")),
    "training.rloo": ("rloo", ("parent", "prompts", "reward")),
    "training.transform": ("transform", ("model", "name")),
    "evals.evaluate": ("evaluate", ("model",)),
    "experiments.risk_curve": ("curve", ("parent", "data")),
    "experiments.harmful_finetune": ("harmful-finetune", ("parent",)),
    "experiments.compare": ("compare", ("before", "after")),
    "experiments.gate": ("gate", ("parent", "child")),
    "experiments.accept": ("accept", ("defence", "parent")),
    "experiments.grid": ("grid", ("parent", "data")),
    "experiments.explain": ("explain", ("claim",)),
}
ONE_SEED = ("curve", "harmful-finetune")  # commands that take one seed of any number
OBJECTS = "stands for rows or objects that were given in Python"
PLACES = "of files elsewhere only the names are shown; provenance.json of the run holds the paths"
ELSEWHERE = "not among the runs where this page was written"
PLACE = re.compile(r"(?<=[=+,:@])(?=/(?!/)|\.\./)")  # where one begins in name:setting=/path,...
NAME = re.compile(r"\w[\w.+-]*", re.ASCII)  # of a run


def python_of(call: dict[str, Any]) -> str:
    """Return a recorded call as Python; "" where none was recorded.

    Args:
        call: What a run's provenance holds of it.
    """
    if not _is_sound(call):
        return ""
    room, _, name = call["cell"].partition(".")
    place = f"{room}.{name}"
    if name in _VERBS.get(room, ()):
        place = name
    given = []
    for key, value in call["arguments"].items():
        given.append(f"{key}={value!r}")
    for key in call["objects"]:
        given.append(f"{key}=...")
    arguments = ", ".join(given)
    return f"ft.{place}({arguments})"


def _is_sound(call: Any) -> bool:
    """Return whether a record is of a call; somebody else's could hold any text as a name."""
    if not isinstance(call, dict):
        return False
    cell = call.get("cell")
    arguments = call.get("arguments")
    objects = call.get("objects")
    if not isinstance(cell, str):
        return False
    if not isinstance(arguments, dict):
        return False
    if not isinstance(objects, list):
        return False
    names = [*cell.split("."), *arguments, *objects]
    return all(isinstance(name, str) and name.isidentifier() for name in names)


def again_of(run: Run) -> dict[str, str]:
    """Return the call and the command that make a run again, as a page may show them.

    Files in the working folder are named from there, others by their names alone: where a file
    lies may say who wrote the page.
    """
    call = run.provenance.get("call", {})
    if not _is_sound(call):
        return {"Python": NOT_RECORDED, "command": NOT_RECORDED}
    arguments = without_places(call["arguments"])
    shown = {
        **call,
        "arguments": arguments,
    }
    facts = {
        "Python": python_of(shown),
        "command": command_of(shown) or "none: call it in Python",
    }
    if call["objects"]:
        facts["..."] = OBJECTS
    if shown != call:
        facts["files"] = PLACES
    return facts


def without_places(value: Any) -> Any:
    """Return a value without the folders of files outside of the working folder."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return list(map(without_places, value))
    if not isinstance(value, str):
        return value
    return "".join(map(_named, PLACE.split(value)))


def _named(text: str) -> str:
    """Return a file as it is named from the working folder, one elsewhere by its name."""
    path = Path(text)
    here = Path.cwd()
    if text.startswith("../"):
        path = Path(os.path.normpath(here / path))
    elif not text.startswith("/"):
        return text
    private = here in Path.home().parents  # a path from there would hold the user's name
    if path.is_relative_to(here) and not private:
        path = path.relative_to(here)
        return str(path)
    return path.name


def command_of(call: dict[str, Any]) -> str:
    """Return a recorded call as a command line; "" where there is none for it.

    Args:
        call: What a run's provenance holds of it.
    """
    if not _is_sound(call) or call["objects"]:
        return ""
    if call["cell"] not in COMMANDS:
        return ""
    name, positional = COMMANDS[call["cell"]]
    given = dict(call["arguments"])
    seeds = given.get("seeds")
    if isinstance(seeds, list) and len(seeds) == 1:  # `--seeds 3` would be three seeds
        if name not in ONE_SEED:
            return ""
        given["seed"] = given.pop("seeds")[0]
    places = []
    for key in positional:
        if key in given:
            value = given.pop(key)
            places.append(_word(value))
    options = []
    for key, value in given.items():
        options += _option(key, value)
    words = [*places, *options]
    if any(word.startswith("-") for word in places):  # would be read as options
        words = [*options, "--", *places]
    return shlex.join(["ftlab", name, *words])


def _option(key: str, value: Any) -> list[str]:
    """Return an argument as words of the command line."""
    name = key.replace("_", "-")
    flag = f"--{name}"
    if isinstance(value, bool):
        return [flag] if value else []
    if not isinstance(value, dict):
        return [flag, _word(value)]
    if key.endswith("prompts"):
        return _of_risks(flag, value)
    pairs = []
    for part, number in value.items():
        pairs.append(f"{part}={number}")
    return [flag, ",".join(pairs)]


def _of_risks(flag: str, files: dict[str, Any]) -> list[str]:
    """Return the files of prompts, each with its risk."""
    words = []
    for risk, several in files.items():
        if isinstance(several, str):
            several = [several]
        for file in several:
            words += [flag, f"{risk}={file}"]
    return words


def _word(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return str(value)


def origin_of(name: str) -> dict[str, str]:
    """Return what is known of a run: its hashes, and what makes it again.

    Args:
        name: The run's name; one whose folder is elsewhere is only named.
    """
    if not NAME.fullmatch(name):
        return {"folder": ELSEWHERE}
    try:
        run = find(name)
        return facts_of(run)
    except (NotFoundError, UsageError):
        return {"folder": ELSEWHERE}


def facts_of(run: Run) -> dict[str, str]:
    """Return the identity of a run, what went into it, and the calls that make it again."""
    members = run.members or [run]
    notes = run.provenance
    sha = digest(run.identity)
    facts = {
        "identity": f"{sha} ({run.kind})",
        "model": model_of(members[0]),
        "data": data_of(members),
    }
    facts |= again_of(run)
    if len(members) > 1:
        names = [member.name for member in members]
        facts["trainings"] = ", ".join(names)
    started = notes.get("started", NOT_RECORDED)
    version = notes.get("versions", {}).get("ftlab", NOT_RECORDED)
    commit = notes.get("commit") or NOT_RECORDED
    facts["made"] = f"{started}, ftlab {version}, commit {commit}"
    return facts


def model_of(run: Run) -> str:
    """Return the model that a run began with, in words, with its hash."""
    source = run.provenance.get("model", {})
    return _source(source)


def _source(source: dict[str, Any]) -> str:
    if not source:
        return NOT_RECORDED
    name = source.get("hub") or source.get("folder")
    parts = [str(name or source.get("model", ""))]
    if source.get("commit"):
        parts.append(f"commit {source['commit']}")
    if source.get("endpoint"):
        parts.append(f"behind {source['endpoint']}")
    sha = source.get("hash", NOT_RECORDED)
    parts.append(f"hash {sha}")
    if source.get("base"):
        below = _source(source["base"])
        parts.append(f"an adapter on {below}")
    return ", ".join(parts)


def data_of(members: list[Run]) -> str:
    """Return the training data of runs in words, with their hashes."""
    found = {}
    for member in members:
        data = member.provenance.get("data", {})
        if data:
            text = "{name}, {rows} rows, hash {hash}".format_map(data)
            found[text] = None
    return "; ".join(found) or "none: nothing was trained"
