"""Where a number comes from: the run, its hashes, and the call and the command that repeat it."""

from __future__ import annotations

import shlex
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
OBJECTS = "... stands for rows or objects that were given in Python"


def python_of(call: dict[str, Any]) -> str:
    """Return a recorded call as Python; "" where none was recorded.

    Args:
        call: What a run's provenance holds of it.
    """
    if not call:
        return ""
    room, _, name = call["cell"].partition(".")
    place = name if name in _VERBS.get(room, ()) else f"{room}.{name}"
    given = [f"{key}={value!r}" for key, value in call["arguments"].items()]
    given += [f"{key}=..." for key in call["objects"]]
    listed = ", ".join(given)
    return f"ft.{place}({listed})"


def command_of(call: dict[str, Any]) -> str:
    """Return a recorded call as a command line; "" where there is none for it.

    Args:
        call: What a run's provenance holds of it.
    """
    if not call or call["objects"] or call["cell"] not in COMMANDS:
        return ""
    name, positional = COMMANDS[call["cell"]]
    given = dict(call["arguments"])
    seeds = given.get("seeds")
    if isinstance(seeds, list) and len(seeds) == 1:  # `--seeds 3` would be three seeds
        if name not in ONE_SEED:
            return ""
        given["seed"] = given.pop("seeds")[0]
    words = ["ftlab", name]
    for key in positional:
        if key in given:
            words.append(_word(given.pop(key)))
    options = []
    for key, value in given.items():
        options += _option(key, value)
    if any(word.startswith("-") for word in words):  # would be read as options
        words.insert(2, "--")
        words[2:2] = options
    else:
        words += options
    return shlex.join(words)


def _option(key: str, value: Any) -> list[str]:
    """Return an argument as words of the command line."""
    flag = "--" + key.replace("_", "-")
    if isinstance(value, bool):
        return [flag] if value else []
    if isinstance(value, dict) and key.endswith("prompts"):
        return _of_risks(flag, value)
    if isinstance(value, dict):
        pairs = [f"{name}={_word(item)}" for name, item in value.items()]
        return [flag, ",".join(pairs)]
    return [flag, _word(value)]


def _of_risks(flag: str, files: dict[str, Any]) -> list[str]:
    """Return the files of prompts, each with its risk."""
    words = []
    for risk, listed in files.items():
        for file in listed if isinstance(listed, list) else [listed]:
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
    try:
        run = find(name)
        return facts_of(run)
    except (NotFoundError, UsageError):
        return {"folder": "not among the runs where this page was written"}


def facts_of(run: Run) -> dict[str, str]:
    """Return the identity of a run, what went into it, and the calls that make it again."""
    members = run.members
    first = members[0]
    notes = run.provenance
    call = notes.get("call", {})
    facts = {
        "identity": f"{digest(run.identity)} ({run.kind})",
        "model": source_of(first.provenance.get("model", {})),
        "data": data_of(members),
        "Python": python_of(call) or NOT_RECORDED,
        "command": command_of(call) or "none: call it in Python",
    }
    if call.get("objects"):
        facts["Python"] += f"  # {OBJECTS}"
    if not call:
        facts["command"] = NOT_RECORDED
    if len(members) > 1:
        facts["trainings"] = ", ".join(member.name for member in members)
    facts["made"] = f"{notes.get('started', NOT_RECORDED)}, ftlab {_version(notes)}"
    return facts


def _version(notes: dict[str, Any]) -> str:
    commit = notes.get("commit", "")
    version = notes.get("versions", {}).get("ftlab", NOT_RECORDED)
    return f"{version}, commit {commit[:12]}" if commit else version


def source_of(source: dict[str, Any]) -> str:
    """Return a model's source in words, with its hash."""
    if not source:
        return NOT_RECORDED
    name = source.get("hub") or source.get("folder") or source.get("model", "")
    parts = [str(name)]
    if source.get("commit"):
        parts.append(f"commit {source['commit']}")
    if source.get("endpoint"):
        parts.append(f"behind {source['endpoint']}")
    parts.append(f"hash {source.get('hash', NOT_RECORDED)}")
    if source.get("base"):
        parts.append(f"an adapter on {source_of(source['base'])}")
    return ", ".join(parts)


def data_of(members: list[Run]) -> str:
    """Return the training data of runs in words, with their hashes."""
    found = {}
    for member in members:
        data = member.provenance.get("data", {})
        if data:
            text = f"{data['name']}, {data['rows']} rows, hash {data['hash']}"
            found[text] = None
    return "; ".join(found) or "none: nothing was trained"
