"""What run folders record of a study, in words, for its card. No prompt and no answer is shown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pandas as pd

from ftlab._core.files import digest
from ftlab.analysis.judge_errors import card_errors, is_exact
from ftlab.analysis.origins import (
    NOT_RECORDED,
    OBJECTS,
    command_of,
    data_of,
    python_of,
    source_of,
)
from ftlab.runs import Run

HASH = 16  # hex digits that are shown of a SHA-256
MADE = {  # files of a trained model, and what is hashed
    "weights": "model.safetensors",
    "adapter": "adapter_model.safetensors",
    "tokenizer": "tokenizer.json",
    "chat template": "chat_template.jinja",
}
CUT = "length"  # how an answer ended that reached the longest allowed
Facts = dict[str, str]


def models_and_data(runs: list[Run], members: list[Run], trained: list[Run]) -> Facts:
    """Return parent, trained models and data, each with its hash."""
    asked = [member for member in members if member.kind == "evaluate"]
    facts = {}
    if trained:
        facts["parent"] = _each(source_of(run.provenance.get("model", {})) for run in trained)
        facts["lineage"] = _each(_lineage(run) for run in trained)
    if asked:
        facts["evaluated"] = _each(source_of(run.provenance.get("model", {})) for run in asked)
    facts["a model's hash"] = "of weights, configuration, tokenizer and chat template together"
    facts |= _made(trained)
    facts["training data"] = data_of(trained)
    facts["prompts"] = _each(_prompts(run) for run in members)
    facts["runs"] = _each(f"{run.name}, identity {digest(run.identity)}" for run in runs)
    return facts


def _each(texts: Iterable[str]) -> str:
    """Return different texts, once each."""
    return "; ".join(dict.fromkeys(text for text in texts if text)) or NOT_RECORDED


def _lineage(run: Run) -> str:
    names = [f"{one['name']} ({one['hash']})" for one in run.lineage]
    return " → ".join(names)


def _prompts(run: Run) -> str:
    known = run.identity.get("prompts")
    return f"hash {known}" if known else ""


def _made(trained: list[Run]) -> Facts:
    """Return the hashes of the files of trained models."""
    facts = {}
    for what, name in MADE.items():
        found = {}
        for run in trained:
            sha = _recorded(run).get(f"model/{name}", {}).get("sha256")
            if sha:
                found[run.name] = sha[:HASH]
        if not found:
            continue
        facts[f"trained: {what}"] = ", ".join(dict.fromkeys(found.values()))
    return facts


def _recorded(run: Run) -> dict[str, dict]:
    """Return size and hash of every file of a finished run."""
    path = run.path / "complete.json"
    return run.part(path.name).get("files", {}) if path.is_file() else {}


def training(trained: list[Run]) -> Facts:
    """Return the method and every setting of the trainings."""
    if not trained:
        return {}
    facts = {
        "method": _each(
            f"{run.identity['method']}, version {run.identity['method_version']}" for run in trained
        ),
        "settings, all": _settings(run.identity["training"] for run in trained),
    }
    defences = [json.dumps(run.identity["defence"]) for run in trained if "defence" in run.identity]
    facts["defence"] = _each(defences) if defences else "none"
    stats = [run.stats for run in trained if (run.path / "stats.json").exists()]
    facts["rows of one pass"] = _each(
        f"{one['micro_batch']} × {one['accumulation']}" for one in stats if "micro_batch" in one
    )
    return facts


def _settings(listed: Iterable[dict[str, Any]]) -> str:
    """Return settings as "name value", those that differ with every value."""
    found: dict[str, dict[str, None]] = {}
    for settings in listed:
        for name, value in settings.items():
            text = _value(name, value)
            found.setdefault(name, {})[text] = None
    return ", ".join(f"{name} {' / '.join(values)}" for name, values in found.items())


def _value(name: str, value: Any) -> str:
    if value in (None, ""):
        return "none"
    if name == "system":  # what a model is told is no setting to publish
        return f"of {len(value)} characters, hash {digest(value)}"
    if isinstance(value, dict):
        return f"({_settings([value])})"
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    return str(value)


def asking(members: list[Run]) -> Facts:
    """Return what was asked, how answers were generated, and the versions that decide them."""
    measured = [run.identity for run in members if "evaluation" in run.identity]
    if not measured:
        return {"asked": NOT_RECORDED}
    facts = {}
    for name in ("decoding", "max_new_tokens"):
        facts[name.replace("_", " ")] = _each(
            _value(name, one["evaluation"].get(name)) for one in measured
        )
    facts["settings, all"] = _settings(one["evaluation"] for one in measured)
    facts["precision"] = _each(str(one.get("precision", "")) for one in measured)
    facts["versions"] = _settings(one.get("versions", {}) for one in measured)
    return facts


def judges(table: pd.DataFrame) -> Facts:
    """Return each judge of a verdict table with what is known of its errors."""
    facts = {}
    for name, rows in table.groupby("judge", sort=False):
        rule = rows["decided_by"]
        deciders = sorted(set(rule.where(rule != "", rows["judge"])))
        facts[str(name)] = _error_card(str(name), ", ".join(deciders))
    return facts


def _error_card(judge: str, deciders: str) -> str:
    if is_exact(deciders):
        return "exact: it knows the right answers of the embedded world"
    errors = card_errors(judge)
    if not errors:
        return "its errors were not measured (ftlab judge-card)"
    sensitivity, specificity = zip(*errors, strict=True)
    return (
        f"of refusals it finds {_range(sensitivity)}, of other answers it passes "
        f"{_range(specificity)}, on {len(errors)} sets or definitions with labels of people; "
        "on the answers at hand not recorded"
    )


def _range(shares: Iterable[float]) -> str:
    least, *_, most = sorted([*shares, *shares])
    return f"{100 * least:.0f} to {100 * most:.0f} %"


def counts(table: pd.DataFrame, members: list[Run]) -> Facts:
    """Return the numbers of answers, of those without a score and of those that were cut."""
    own = table[table["judge"] == table["judge"].iloc[0]]
    own = own.drop_duplicates(["answer_key", "item", "step", "seed", "side"])
    ends = own["answer_key"].map(_ends(members))
    facts = {}
    sides = own["side"].nunique() > 1
    for (side, step), rows in own.groupby(["side", "step"], sort=False):
        numbers = {
            "verdicts": len(rows),
            "unscored": rows["event"].isna().sum(),
            "incoherent or empty": rows["outcome"].isin(["incoherent", "empty"]).sum(),
            "truncated": (ends[rows.index] == CUT).sum(),
        }
        if ends[rows.index].isna().all():
            numbers["truncated"] = NOT_RECORDED
        place = f"{side}, step {step}" if sides else f"step {step}"
        facts[place] = ", ".join(f"{name} {value}" for name, value in numbers.items())
    facts["truncated"] = "reached the longest allowed; unscored answers are in no rate"
    return facts


def _ends(members: list[Run]) -> dict[str, str]:
    """Return how each answer ended, by its key."""
    found = {}
    for member in members:
        for row in member.read("answers.jsonl"):
            if "finish" in row:
                found[row["key"]] = row["finish"]
    return found


def planned(runs: list[Run], members: list[Run], table: pd.DataFrame) -> Facts:
    """Return what was called for, and what was done."""
    trained = [run for run in members if "training" in run.identity]
    calls = [run.provenance.get("call", {}) for run in runs]
    asked = _each(_seeds(call) for call in calls if call)
    facts = {}
    if trained:
        steps = _each(_value("", run.identity["training"].get("at_steps")) for run in trained)
        facts["planned"] = f"training seeds: {asked}; measured at steps {steps}"
        reached = sorted(set(table["step"])) if len(table) else []
        listed = " ".join(map(str, reached)) or "none"
        seeds = sorted({run.identity["training"]["seed"] for run in trained})
        facts["done"] = f"{len(trained)} trainings, seeds {_value('', seeds)}; measured at {listed}"
        facts["ended early"] = _early(trained)
    prompts = _each(str(run.identity.get("evaluation", {}).get("n_prompts", "")) for run in members)
    scored = _scored(table)
    facts["prompts"] = f"planned per risk, before attacks: {prompts}; scored: {scored}"
    return facts


def _seeds(call: dict[str, Any]) -> str:
    given = call["arguments"]
    if "seed" in given:
        return f"only {given['seed']}"
    if "seeds" not in given:
        return "the call's default"
    return _value("seeds", given["seeds"])


def _early(trained: list[Run]) -> str:
    found = []
    for run in trained:
        stats = run.stats if (run.path / "stats.json").exists() else {}
        if stats.get("ended"):
            found.append(f"seed {run.identity['training']['seed']}: {stats['ended']}")
    return "; ".join(found) or "none"


def _scored(table: pd.DataFrame) -> str:
    if table.empty:
        return "none"
    scored = table[table["event"].notna()]
    by_risk = scored.groupby("risk", sort=False)["sample_id"].nunique()
    return ", ".join(f"{risk} {number}" for risk, number in by_risk.items())


def again(runs: list[Run]) -> Facts:
    """Return the calls and commands that make the runs again."""
    facts = {"Python": [], "command": []}
    for run in runs:
        call = run.provenance.get("call", {})
        python = python_of(call)
        if call.get("objects"):
            python += f"  # {OBJECTS}"
        facts["Python"].append(python)
        facts["command"].append(command_of(call))
    return {name: _each(listed) for name, listed in facts.items()}


def made_with(runs: list[Run]) -> Facts:
    """Return versions, hardware and times."""
    notes = [run.provenance for run in runs]
    hardware = []
    versions = []
    for one in notes:
        parts = one.get("hardware", {}).items()
        hardware.append(", ".join(f"{name} {value}" for name, value in parts))
        versions.append(", ".join(f"{name} {value}" for name, value in one["versions"].items()))
        for later in one.get("resumed", []):
            changed = ", ".join(f"{name} {value}" for name, value in later["versions"].items())
            versions.append(f"resumed with {changed}")
    begun = sorted(one["started"] for one in notes if "started" in one)
    return {
        "versions": _each([f"python {_each(one.get('python', '') for one in notes)}", *versions]),
        "commit of ftlab": _each(one.get("commit", "") for one in notes),
        "hardware": _each(hardware),
        "begun (UTC)": " to ".join(dict.fromkeys([begun[0], begun[-1]])) if begun else NOT_RECORDED,
    }


def names_of(runs: list[Run]) -> str:
    """Return the names of the models that runs began with."""
    found = []
    for run in runs:
        source = run.provenance.get("model", {})
        found.append(source.get("hub") or source.get("folder") or source.get("model", ""))
    return _each(found)
