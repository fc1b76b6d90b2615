"""What run folders record of a study, in words, for its card. No prompt and no answer is shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from ftlab._core.calls import TEXTS
from ftlab._core.files import digest
from ftlab.analysis import verdicts
from ftlab.analysis.judge_errors import card_errors, is_exact
from ftlab.analysis.origins import (
    NOT_RECORDED,
    again_of,
    data_of,
    model_of,
    without_places,
)
from ftlab.analysis.tables import judged_by
from ftlab.runs import Run

HASH = 16  # hex digits that are shown of a SHA-256
MADE = {  # files of a trained model, and what is hashed
    "weights": "model.safetensors",
    "adapter": "adapter_model.safetensors",
    "tokenizer": "tokenizer.json",
    "chat template": "chat_template.jinja",
}
CODE = ("Python", "command")
CUT = "length"  # how an answer ended that reached the longest allowed
MUTE = ["incoherent", "empty"]
ONE_ANSWER = ["answer_key", "item", "step", "seed", "side"]  # tell answers apart
TOGETHER = "of weights, configuration, tokenizer and chat template together"
EXACT = "exact: it knows the right answers of the embedded world"
UNMEASURED = "its errors were not measured (ftlab judge-card)"
ERRORS = (
    "of refusals it finds {}, of other answers it passes {}, on {} sets or definitions with labels "
    "of people; on the answers at hand not recorded"
)
DONE = "{} trainings, seeds {}; measured at {}"
PROMPTS = "planned per risk, before attacks: {}; scored: {}"
Facts = dict[str, str]


def is_training(run: Run) -> bool:
    """Return whether a run trained a model."""
    return "training" in run.identity


def each(texts: Iterable[Any]) -> str:
    """Return different texts, once each."""
    found = dict.fromkeys(map(str, texts))
    found.pop("", None)
    return "; ".join(found) or NOT_RECORDED


def listed(values: Iterable[Any]) -> str:
    """Return values with commas between them."""
    return ", ".join(map(str, values))


def names_of(runs: list[Run]) -> str:
    """Return the names of the models that runs began with."""
    found = []
    for run in runs:
        source = run.provenance.get("model", {})
        name = source.get("hub") or source.get("folder")
        found.append(name or source.get("model", ""))
    return each(found)


def data_names(trained: list[Run]) -> list[str]:
    """Return the names of the training data."""
    found = {}
    for run in trained:
        data = run.provenance.get("data", {})
        found[data.get("name", NOT_RECORDED)] = None
    return list(found)


def models_and_data(
    runs: list[Run],
    members: list[Run],
    trained: list[Run],
) -> Facts:
    """Return parent, trained models and data, each with its hash."""
    asked = [run for run in members if run.kind == "evaluate"]
    facts = {}
    if trained:
        facts["parent"] = each(map(model_of, trained))
        facts["lineage"] = each(map(_lineage, trained))
    if asked:
        facts["evaluated"] = each(map(model_of, asked))
    facts["a model's hash"] = TOGETHER
    facts |= _made(trained)
    facts["training data"] = data_of(trained)
    prompts = [run.identity.get("prompts", "") for run in members]
    facts["prompts, hash"] = each(prompts)
    facts["runs"] = each(map(_identity, runs))
    return facts


def _lineage(run: Run) -> str:
    names = []
    for one in run.lineage:
        names.append("{name} ({hash})".format_map(one))
    return " → ".join(names)


def _identity(run: Run) -> str:
    sha = digest(run.identity)
    return f"{run.name}, identity {sha}"


def _made(trained: list[Run]) -> Facts:
    """Return the hashes of the files of trained models."""
    facts = {}
    for what, name in MADE.items():
        found = []
        for run in trained:
            files = _recorded(run)
            entry = files.get(f"model/{name}", {})
            sha = entry.get("sha256", "")
            found.append(sha[:HASH])
        if any(found):
            facts[f"trained: {what}"] = each(found)
    return facts


def _recorded(run: Run) -> dict[str, dict]:
    """Return size and hash of every file of a finished run."""
    path = run.path / "complete.json"
    if not path.is_file():
        return {}
    return run.part(path.name).get("files", {})


def _stats(run: Run) -> dict[str, Any]:
    """Return the summary of a finished run."""
    path = run.path / "stats.json"
    return run.stats if path.exists() else {}


def training(trained: list[Run]) -> Facts:
    """Return the method and every setting of the trainings."""
    if not trained:
        return {}
    identities = [run.identity for run in trained]
    methods = []
    defences = []
    passes = []
    for run, identity in zip(trained, identities, strict=True):
        method = identity.get("method", NOT_RECORDED)
        version = identity.get("method_version", NOT_RECORDED)
        methods.append(f"{method}, version {version}")
        defence = identity.get("defence", "none")
        defences.append(_value(defence))
        stats = _stats(run)
        if "micro_batch" in stats and "accumulation" in stats:
            passes.append("{micro_batch} × {accumulation}".format_map(stats))
    settings = [identity["training"] for identity in identities]
    return {
        "method": each(methods),
        "settings, all": _settings(settings),
        "defence": each(defences),
        "rows of one pass": each(passes),
    }


def _settings(several: Iterable[dict[str, Any]]) -> str:
    """Return settings as "name value", those that differ with every value."""
    found: dict[str, dict[str, None]] = {}
    for settings in several:
        for name, value in settings.items():
            values = found.setdefault(without_places(name), {})
            values[_value(value, name)] = None
    parts = []
    for name, values in found.items():
        told = " / ".join(values)
        parts.append(f"{name} {told}")
    return listed(parts)


def _value(value: Any, name: str = "") -> str:
    if value in (None, "", []):
        return "none"
    if isinstance(value, str) and (name in TEXTS or len(value.split()) > 1):
        sha = digest(value)  # what a model is told is no setting to publish
        return f"of {len(value)} characters, hash {sha}"
    if isinstance(value, dict):
        inner = _settings([value])
        return f"({inner})"
    if isinstance(value, list):
        return " ".join(map(_value, value))
    return without_places(str(value))


def asking(members: list[Run]) -> Facts:
    """Return what was asked, how answers were generated, and the versions that decide them."""
    measured = []
    for run in members:
        if "evaluation" in run.identity:
            measured.append(run.identity)
    settings = [one["evaluation"] for one in measured]
    versions = [one.get("versions", {}) for one in measured]
    decoding = [_value(one.get("decoding")) for one in settings]
    tokens = [one.get("max_new_tokens", "") for one in settings]
    precision = [one.get("precision", "") for one in measured]
    return {
        "decoding": each(decoding),
        "max new tokens": each(tokens),
        "settings, all": _settings(settings) or NOT_RECORDED,
        "precision": each(precision),
        "versions": _settings(versions) or NOT_RECORDED,
    }


def judges(table: pd.DataFrame) -> Facts:
    """Return each judge of a verdict table with what is known of its errors."""
    facts = {}
    for name, rows in table.groupby("judge", sort=False):
        judge = str(name)
        shown = without_places(judge)
        facts[shown] = EXACT
        if not is_exact(judged_by(rows)):
            facts[shown] = _error_card(judge)
    return facts


def _error_card(judge: str) -> str:
    errors = card_errors(judge)
    if not errors:
        return UNMEASURED
    sensitivity, specificity = zip(*errors, strict=True)
    return ERRORS.format(
        _range(sensitivity),
        _range(specificity),
        len(errors),
    )


def _range(shares: Iterable[float]) -> str:
    percent = [round(100 * share) for share in shares]
    least = min(percent)
    most = max(percent)
    return f"{least} to {most} %"


def counts(table: pd.DataFrame, members: list[Run]) -> Facts:
    """Return the numbers of answers, of those without a score and of those that were cut."""
    judge = table["judge"].iloc[0]
    own = table[table["judge"] == judge]
    own = own.drop_duplicates(ONE_ANSWER)
    ends = _ends(members)
    own = own.assign(end=own["answer_key"].map(ends))
    sides = own["side"].nunique()
    facts = {}
    for (side, step), rows in own.groupby(["side", "step"]):
        rows = verdicts.parent_once(rows)
        place = f"step {step}"
        if sides > 1:
            place = f"{side}, {place}"
        facts[place] = _counted(rows)
    facts["truncated"] = "reached the longest allowed; unscored answers are in no rate"
    return facts


def _counted(rows: pd.DataFrame) -> str:
    unscored = rows["event"].isna().sum()
    mute = rows["outcome"].isin(MUTE).sum()
    cut = NOT_RECORDED
    if rows["end"].notna().any():
        cut = (rows["end"] == CUT).sum()
    count = len(rows)
    return f"verdicts {count}, unscored {unscored}, incoherent or empty {mute}, truncated {cut}"


def _ends(members: list[Run]) -> dict[str, str]:
    """Return how each answer ended, by its key."""
    found = {}
    for member in members:
        for row in member.read("answers.jsonl"):
            if "finish" in row:
                found[row["key"]] = row["finish"]
    return found


def planned(
    runs: list[Run],
    members: list[Run],
    table: pd.DataFrame,
) -> Facts:
    """Return what was called for, and what was done."""
    trained = [run for run in members if is_training(run)]
    facts = {}
    if trained:
        configs = [run.identity["training"] for run in trained]
        steps = [_value(config.get("at_steps")) for config in configs]
        seeds = {config.get("seed", NOT_RECORDED) for config in configs}
        reached = sorted(set(table["step"]))
        called = each(map(_seeds, runs))
        planned_at = each(steps)
        facts["planned"] = f"training seeds: {called}; measured at steps {planned_at}"
        facts["done"] = DONE.format(
            len(trained),
            _value(sorted(seeds, key=str)),
            _value(reached),
        )
        facts["ended early"] = _early(trained)
    asked = []
    for run in members:
        settings = run.identity.get("evaluation", {})
        asked.append(settings.get("n_prompts", ""))
    facts["prompts"] = PROMPTS.format(each(asked), _scored(table))
    return facts


def _seeds(run: Run) -> str:
    """Return the training seeds that a run was called for."""
    call = run.provenance.get("call", {})
    if not call:
        return ""
    given = call.get("arguments", {})
    if "seed" in given:
        return f"only {given['seed']}"
    if "seeds" not in given:
        return "the call's default"
    return _value(given["seeds"])


def _early(trained: list[Run]) -> str:
    found = []
    for run in trained:
        ended = _stats(run).get("ended")
        if ended:
            found.append(f"{run.name}: {ended}")
    return "; ".join(found) or "none"


def _scored(table: pd.DataFrame) -> str:
    if table.empty:
        return "none"
    scored = table[table["event"].notna()]
    samples = scored.groupby("risk", sort=False)["sample_id"]
    parts = []
    for risk, number in samples.nunique().items():
        parts.append(f"{risk} {number}")
    return listed(parts)


def again(runs: list[Run]) -> Facts:
    """Return the calls and commands that make the runs again."""
    found = {}
    for run in runs:
        for name, text in again_of(run).items():
            if name in CODE and len(runs) > 1:
                name = f"{name}, {run.name}"
            found[name] = text
    return found


def made_with(runs: list[Run]) -> Facts:
    """Return versions, hardware and times."""
    python = []
    versions = []
    commits = []
    hardware = []
    begun = []
    for run in runs:
        notes = run.provenance
        python.append(notes.get("python", ""))
        versions.append(_pairs(notes.get("versions", {})))
        for later in notes.get("resumed", []):
            changed = _pairs(later["versions"])
            versions.append(f"resumed with {changed}")
        commits.append(notes.get("commit", ""))
        hardware.append(_pairs(notes.get("hardware", {})))
        begun.append(notes.get("started", ""))
    ends = [min(begun), max(begun)]
    return {
        "python": each(python),
        "versions": each(versions),
        "commit of ftlab": each(commits),
        "hardware": each(hardware),
        "begun, first and last (UTC)": each(ends),
    }


def _pairs(found: dict[str, Any]) -> str:
    return listed(f"{name} {value}" for name, value in found.items())
