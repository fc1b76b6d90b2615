"""The question of a card, its answer, and what a reviewer would ask, from table and record."""

from __future__ import annotations

import math
from typing import Any

from ftlab import stats
from ftlab._core.errors import UsageError
from ftlab.analysis import card_facts, claims, tables, verdicts
from ftlab.analysis.card_facts import Facts
from ftlab.analysis.card_study import BESIDE, Study, in_words, named, sides_of
from ftlab.analysis.judge_errors import NOT_INCLUDED, card_range
from ftlab.analysis.origins import NOT_RECORDED
from ftlab.analysis.rendering import texts

RATES = "How often does {} show each risk?"
TRAINING = "What does fine-tuning {} on {} do to its safety?"
TWO = "Do the two differ in safety, on the same prompts?"
NOTHING = "Nothing was measured in this run; evaluate it, or train it as a curve."
RATE = "{what}: {rate} of the answers (95 % interval; {behind})."
CHANGE = (
    "{what} from {before} to {after} of the answers ({difference}, ratio {ratio}; p (Holm) {p}; "
    "95 % intervals; {behind})."
)
FEW = "{}: intervals and p are of these runs only; other seeds may differ"
SEVERAL = "{}; the intervals are over training seeds and prompts"
ONE_MODEL = "none: one model was evaluated, and the interval is over prompts only"
PAIRS = "yes, prompt by prompt: {:,} pairs, {:,} of them dropped as unscored"
EXACT = "it is exact: the embedded world knows the right answers"
NOT_HERE = "on these answers: not recorded (ftlab draw, then compare with labels)"
BY_CARD = "{}; if it errs as on its card, {:.0f} to {:.0f} % instead"
KEPT_OUT = "no: the embedded world keeps its evaluation prompts out of its training rows"
UNCHECKED = f"{NOT_RECORDED} (ftlab check DATA --prompts FILE compares them)"
HOLM = "p is adjusted for the {} rows of the comparison (Holm), and for no others"
SOME = "; {} of them are shown"
WORDINGS = "with {clusters} wordings as the unit: {difference}, ratio {ratio}"
SMALLEST = "a difference of about {:.0f} points, in 80 of 100 studies as precise as this"
OF_THESE = ", of these training runs: other seeds may differ"
ATTACKS = f"{NOT_RECORDED}; attacks that were asked: {{}}"
REGISTERED = (
    f"{NOT_RECORDED}; every setting is in the identity of its run, which was written before the "
    "first answer"
)


def question(study: Study) -> str:
    """Return what the study asks."""
    if len(study.table) and not study.compared:
        names = card_facts.names_of(study.members)
        return RATES.format(names)
    parents = {run.identity.get("parent") for run in study.trained}
    if len(study.runs) == 2:
        evaluated = {run.identity.get("model") for run in study.members}
        if not parents & evaluated:
            return TWO
    if not parents:
        return TWO
    names = card_facts.names_of(study.trained)
    data = card_facts.data_names(study.trained)
    return TRAINING.format(names, card_facts.listed(data))


def answer(study: Study) -> str:
    """Return the answer in one sentence, in the words of the results."""
    if study.table.empty:
        return NOTHING
    row = study.first
    words = study.words
    behind = [f"{row['n_prompts']:,} prompts"]
    if study.compared:
        plural = "" if study.seeds == 1 else "s"
        behind.append(f"{study.seeds} training seed{plural}")
    if not study.exact:
        behind.append(NOT_INCLUDED)
    told = {
        "what": named(row, study.by),
        "behind": ", ".join(behind),
    }
    if not study.compared:
        return RATE.format(**told, **words)
    told["what"] = _verb(told["what"], row)
    told["before"], told["after"] = sides_of(words)
    told["difference"] = words["difference"]
    told["ratio"] = words["ratio"]
    told["p"] = words["p (Holm)"]
    return CHANGE.format_map(told)


def _verb(what: str, row: dict[str, Any]) -> str:
    """Return what happened: "Jailbreak rose"."""
    verb = "rose" if row["difference"] > 0 else "fell"
    text = f"{what} {verb}"
    if not row["p_holm"] < claims.LEVEL:
        text = f"No change of {what.lower()} is shown,"
    if row["n_seeds"] < stats.FEWEST_SEEDS:
        text = f"In these runs {text[0].lower()}{text[1:]}"
    return text


def asked(study: Study) -> Facts:
    """Return what a reviewer would ask, answered from the record."""
    told = {
        "How many training seeds?": _seeds(study),
        "Were the sides paired?": _pairing(study),
        "Was the judge validated?": _validated(study),
        "Did utility fall, or did the model fall silent?": _utility(study),
        "Were evaluation prompts among the training rows?": _contamination(study),
        "Were several comparisons corrected for?": _holm(study),
        "Would other wordings give the same?": _wordings(study),
        "How small a change would have been seen?": _smallest(study),
        "Does it hold against an attacker who adapts?": _attacks(study),
        "Was the plan registered before the results?": REGISTERED if study.runs else NOT_RECORDED,
    }
    return {name: text for name, text in told.items() if text}


def _seeds(study: Study) -> str:
    if study.table.empty:
        return "nothing was measured"
    if not study.compared:
        return ONE_MODEL
    form = SEVERAL
    if study.seeds < stats.FEWEST_SEEDS:
        form = FEW
    return form.format(study.seeds)


def _pairing(study: Study) -> str:
    if not study.compared:
        return "no: there is one side"
    pairs = study.table["pairs"].sum()
    dropped = study.table["dropped"].sum()
    return PAIRS.format(pairs, dropped)


def _validated(study: Study) -> str:
    if study.verdicts.empty:
        return ""
    if study.exact:
        return EXACT
    labels = study.table.attrs.get("labels")
    if labels:
        return f"on these answers: {labels}"
    row = study.first
    rate = row["child"] if study.compared else row["rate"]
    risk = str(row.get("risk", ""))
    low, high = card_range(study.judge, risk, rate, study.silent[-1])
    if math.isnan(low):
        return NOT_HERE
    return BY_CARD.format(NOT_HERE, 100 * low, 100 * high)


def _utility(study: Study) -> str:
    """Return utility, over-refusal and incoherence, in the groups of the answer."""
    if study.table.empty:
        return NOT_RECORDED
    first = study.first
    others = [name for name in study.by if name != "risk"]
    missing = dict.fromkeys(BESIDE)
    found = []
    rows = study.table.to_dict("records")
    for row, words in zip(rows, study.results, strict=True):
        risk = row.get("risk")
        same = all(row[name] == first[name] for name in others)
        if risk not in BESIDE or not same:
            continue
        missing.pop(risk, None)
        shown = words.get("rate")
        if study.compared:
            before, after = sides_of(words)
            shown = f"{before} to {after}"
        what = named({"risk": risk}, [])
        found.append(f"{what} {shown}")
    for risk in missing:
        what = named({"risk": risk}, [])
        found.append(f"{what} was not measured")
    shares = [f"{100 * share:.1f} %" for share in study.silent]
    silent = " to ".join(shares)
    found.append(f"incoherent answers {silent}")
    return "; ".join(found)


def _contamination(study: Study) -> str:
    if not study.trained:
        return ""
    names = card_facts.data_names(study.trained)
    in_world = all(name.startswith("organism:") for name in names)
    for run in study.members:
        settings = run.identity.get("evaluation", {})
        given = settings.get("prompts_hash") != ""
        if given or settings.get("split") != "eval":
            in_world = False
    return KEPT_OUT if in_world else UNCHECKED


def _holm(study: Study) -> str:
    if not study.compared:
        return "nothing was tested"
    family = study.table.attrs["family"]
    told = HOLM.format(family)
    shown = len(study.table)
    return told if shown == family else told + SOME.format(shown)


def _wordings(study: Study) -> str:
    """Return the answer's difference with whole wordings as the unit."""
    if not study.compared or not study.runs:
        return NOT_RECORDED
    attrs = study.table.attrs
    options = attrs["options"] | {"cluster": "wording"}
    row = study.first
    if "risk" in study.by:
        options["risk"] = row["risk"]
    if not attrs["two_runs"]:
        options["steps"] = [row["step"]]
    try:
        table = tables.compare(*study.sides, **options)
    except UsageError:  # an older layout has no wordings
        return NOT_RECORDED
    for name in study.by:
        table = table[table[name] == row[name]]
    words = in_words(table)[-1]
    words["clusters"] = str(table["clusters"].iloc[-1])
    return WORDINGS.format_map(words)


def _smallest(study: Study) -> str:
    if not study.compared:
        return ""
    row = study.first
    ends = (row["difference_low"], row["difference_high"])
    found = stats.smallest_difference(*ends)
    told = SMALLEST.format(100 * found)
    return told + OF_THESE if study.seeds < stats.FEWEST_SEEDS else told


def _attacks(study: Study) -> str:
    if study.verdicts.empty:
        return NOT_RECORDED
    names = study.verdicts["attack"].unique()
    return ATTACKS.format(card_facts.listed(names))


def limits(study: Study) -> list[str]:
    """Return the limits that hold for what was measured."""
    sentences = texts()
    found = []
    if "organism" in study.model:
        found.append(sentences["organism"])
    if verdicts.of_refusals(study.judge):
        found.append(sentences["refusals"])
    if study.compared and study.seeds < stats.FEWEST_SEEDS:
        found.append(sentences["few_seeds"])
    return found + sentences["card"]
