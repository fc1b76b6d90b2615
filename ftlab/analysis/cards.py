"""The card of a study: one page that an author attaches to a paper. Cell: card.

Every number is one of the tables of `compare` or `rates`; everything else is what the run folders
record. What they do not record is said to be so. It holds no prompt and no answer.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ftlab import stats
from ftlab._core.config import takes
from ftlab._core.errors import NotFoundError, UsageError
from ftlab._core.files import write_atomic
from ftlab.analysis import card_facts, claims, tables, verdicts
from ftlab.analysis.answer_tables import Comparison
from ftlab.analysis.card_facts import Facts
from ftlab.analysis.judge_errors import NOT_INCLUDED, card_range, is_exact
from ftlab.analysis.origins import NOT_RECORDED
from ftlab.analysis.rendering import html_of, markdown_of, texts
from ftlab.analysis.short_tables import summary
from ftlab.runs import Run, find, load

FORMATS = {".html": "card.html.j2", ".md": "card.md.j2"}
BESIDE = ("over_refusal", "utility")  # are not what a study of safety asks first
EMPTY = pd.DataFrame({"step": [], "judge": []})


@dataclass(frozen=True)
class Card:
    """The card of a study. It prints as Markdown; Jupyter shows it as a page.

    Args:
        question: What was asked, in one sentence.
        answer: The answer in one sentence, with its interval.
        results: A row per risk, in the words of `summary`.
        facts: What the runs record, by section.
        asked: What a reviewer would ask, and the answer from the record.
        limits: What the card does not show.
        table: The table behind the results; empty where nothing was measured.
        path: The file that was written.
    """

    question: str
    answer: str
    results: list[dict[str, str]]
    facts: dict[str, Facts]
    asked: Facts
    limits: list[str]
    table: pd.DataFrame = field(repr=False)
    path: Path | None = None

    @property
    def html(self) -> str:
        """The card as a page that opens offline."""
        return html_of(FORMATS[".html"], vars(self))

    @property
    def markdown(self) -> str:
        """The card as Markdown."""
        return markdown_of(FORMATS[".md"], vars(self))

    def __str__(self) -> str:
        return self.markdown

    def _repr_html_(self) -> str:
        return html_of("card_body.html.j2", vars(self))


@dataclass(frozen=True)
class Study:
    """What a card is of.

    Args:
        table: The comparison, or the rates of a single evaluation.
        verdicts: Every verdict behind it.
        runs: What was given.
        members: The runs that hold the answers.
        trained: The trainings among them, and those of models that were evaluated.
    """

    table: pd.DataFrame
    verdicts: pd.DataFrame
    runs: list[Run]
    members: list[Run]
    trained: list[Run]

    @property
    def compared(self) -> bool:
        return "child" in self.table

    @property
    def seeds(self) -> int:
        """Training seeds behind the table; 0 where nothing was measured."""
        return int(self.table["n_seeds"].min()) if len(self.table) else 0

    @property
    def first(self) -> dict[str, Any]:
        """The row that the answer is about: the first risk, after the largest dose."""
        rows = self.table
        own = rows[~rows["risk"].isin(BESIDE)] if "risk" in rows else rows
        rows = own if len(own) else rows
        if "risk" in rows:
            rows = rows[rows["risk"] == rows["risk"].iloc[0]]
        return rows.iloc[-1].to_dict()


@takes()
def card(
    source: Any,
    after: Any = None,
    *,
    published: str | None = None,
    out: str | Path | None = None,
) -> Card:
    """Write the card of a study: its answer, every setting, hash and interval, on one page.

    Args:
        source: A run of an evaluation, a training or a curve, its name, or a table of `compare`;
            with `after` the parent's evaluation.
        after: The child's evaluation, or another curve.
        published: Id of a published figure to set beside it (docs/published.md).
        out: File to write, NAME.html or NAME.md; by default none.

    Returns:
        The card, which prints as Markdown.

    Raises:
        UsageError: `no_card` of a run that answered nothing and trained nothing, such as a grid;
            `unknown_card_format`; `unknown_published_figure`; as `ftlab.analysis.compare`.
        NotFoundError: `no_such_run`.
    """
    path = None if out is None else Path(out)
    if path is not None and path.suffix not in FORMATS:
        allowed = " or ".join(FORMATS)
        raise UsageError("unknown_card_format", f"{path} ends in neither {allowed}. Name it so.")
    target = None if published is None else claims.target_of(published)
    study = _study(_opened(source), _opened(after))
    made = Card(
        question=_question(study),
        answer=_answer(study),
        results=_results(study.table),
        facts=_facts(study, target),
        asked=_asked(study),
        limits=_limits(study),
        table=study.table,
        path=path,
    )
    if path is not None:
        write_atomic(path, made.html if path.suffix == ".html" else made.markdown)
    return made


def _opened(source: Any) -> Any:
    if not isinstance(source, str):
        return source
    try:
        return load(source)
    except NotFoundError as error:
        hint = "The card of a judge: ftlab judge-card JUDGE."
        raise NotFoundError("no_such_run", f"{error} {hint}") from None


def _study(source: Any, after: Any) -> Study:
    """Return tables and runs of what was given."""
    if isinstance(source, Comparison):
        sides = [side for side in source._sides if side is not None]
        table = source
    else:
        sides = [side for side in (source, after) if side is not None]
        table = _table(*sides)
    parts = []
    for side in sides:
        if len(table):
            name = getattr(side, "name", "")
            parts.append(verdicts.prepare(side).assign(side=name))
    runs = [side for side in sides if isinstance(side, Run)]
    members = {}
    for run in runs:
        members |= {member.name: member for member in run.members}
    whole = pd.concat(parts, ignore_index=True) if parts else EMPTY
    return Study(table, whole, runs, list(members.values()), _trained(members))


def _trained(members: dict[str, Run]) -> list[Run]:
    """Return the trainings among runs, and those whose models were evaluated."""
    found = dict(members)
    for member in members.values():
        with contextlib.suppress(NotFoundError, UsageError):
            below = find(str(member.provenance["model"]["folder"]))
            found.setdefault(below.name, below)
    return [run for run in found.values() if "training" in run.identity]


def _table(source: Any, after: Any = None) -> pd.DataFrame:
    """Return the comparison at the last step, the rates, or an empty table."""
    if not isinstance(source, Run) or (after is not None and not isinstance(after, Run)):
        raise UsageError("no_card", "Give a run, its name, or a table of compare(...).")
    if after is not None:
        return tables.compare(source, after)
    if not any((member.path / "verdicts.jsonl").exists() for member in source.members):
        if "training" not in source.identity:
            kind = f"{source.name} holds no answers of its own"
            raise UsageError("no_card", f"{kind}. Give a run of an evaluation or a training.")
        return EMPTY.iloc[:0]
    table = verdicts.of_judge(verdicts.prepare(source))
    by = ["risk", "examples"] if "examples" in table else "risk"
    if (table["step"] > 0).any() and (table["step"] == 0).any():
        return tables.compare(source, by=by, steps=[-1])
    judge = table["judge"].iloc[0]
    return tables.rates(source, by=by, judge=judge, steps=[-1])


def _results(table: pd.DataFrame) -> list[dict[str, str]]:
    if table.empty:
        return []
    short = summary(table)
    rows = []
    for row in short.to_dict("records"):
        rows.append({name: str(value) for name, value in row.items()})
    return rows


def _question(study: Study) -> str:
    trained = study.trained
    if not study.compared and len(study.table):
        names = card_facts.names_of(study.members)
        return f"How often does {names} show each risk?"
    models = {run.identity.get("model", run.identity.get("parent")) for run in study.members}
    if not trained or (len(study.runs) == 2 and trained[0].identity["parent"] not in models):
        return "Do the two differ in safety, on the same prompts?"
    if len(study.runs) == 2 and len(study.members) > 2:
        return "Do the two fine-tunings differ in what they do to safety?"
    parent = card_facts.names_of(trained)
    data = {run.provenance.get("data", {}).get("name", NOT_RECORDED): None for run in trained}
    listed = ", ".join(data)
    return f"What does fine-tuning {parent} on {listed} do to its safety?"


def _answer(study: Study) -> str:
    """Return the answer in one sentence, in the words of the results."""
    if study.table.empty:
        return "Nothing was measured in this run; evaluate it, or train it as a curve."
    row = study.first
    place = study.table.attrs["by"]
    of = {name: row[name] for name in place if name in row}
    words = _words_of(study.table, of)
    what = _named(of)
    behind = f"{row['n_prompts']:,} prompts"
    if study.compared:
        plural = "" if row["n_seeds"] == 1 else "s"
        behind += f", {row['n_seeds']} training seed{plural}"
    if not is_exact(tables.judged_by(verdicts.of_judge(study.verdicts))):
        behind += f"; {NOT_INCLUDED}"
    if not study.compared:
        return f"{what}: {words['rate']} of the answers (95 % interval; {behind})."
    change = f"{words['difference']}, ratio {words['ratio']}"
    before, after = (words[name] for name in _side_names(words))
    p = f"p (Holm) {words['p (Holm)']}"
    verb = "rose" if row["difference"] > 0 else "fell"
    sentence = f"{what} {verb} from {before} to {after} of the answers"
    if not row["p_holm"] < claims.LEVEL:
        sentence = f"No change of {what.lower()} is shown, from {before} to {after} of the answers"
    if row["n_seeds"] < stats.FEWEST_SEEDS:
        sentence = f"In these runs {sentence[0].lower()}{sentence[1:]}"
    return f"{sentence} ({change}; {p}; 95 % intervals; {behind})."


def _words_of(table: pd.DataFrame, of: dict[str, Any]) -> dict[str, str]:
    """Return the row of the results that is of these groups."""
    chosen = pd.Series(True, index=table.index)
    for name, value in of.items():
        chosen &= table[name] == value
    number = int(chosen.to_numpy().nonzero()[0][-1])
    return _results(table)[number]


def _named(of: dict[str, Any]) -> str:
    """Return groups in words: "Jailbreak", "Jailbreak (100 examples)"."""
    text = str(of.get("risk", "")).replace("_", "-") or "the event"
    parts = [f"{value} {name}" for name, value in of.items() if name != "risk"]
    if parts:
        listed = ", ".join(parts)
        text += f" ({listed})"
    return text[0].upper() + text[1:]


def _side_names(words: dict[str, str]) -> tuple[str, str]:
    if "before" in words:
        return "before", "after"
    return "first", "second"


def _facts(study: Study, target: claims.Target | None) -> dict[str, Facts]:
    """Return the sections of the card."""
    runs, members, table = study.runs, study.members, study.verdicts
    found: dict[str, Facts] = {}
    if runs:
        found["Models and data"] = card_facts.models_and_data(runs, members, study.trained)
        found["Training"] = card_facts.training(study.trained)
        found["Asking"] = card_facts.asking(members)
    else:
        found["Record"] = {"runs": f"{NOT_RECORDED}: tables or logs of another tool were given"}
    if len(table):
        found["Judges and their errors"] = card_facts.judges(table)
        found["Answers"] = card_facts.counts(table, members)
    if runs:
        found["Planned and done"] = card_facts.planned(runs, members, table)
        made = {run.name: run for run in (*runs, *members, *study.trained)}
        found["Made with"] = card_facts.made_with(list(made.values()))
        parts = [run for run in study.trained if run not in members]
        found["Make it again"] = card_facts.again([*parts, *runs])
    found["Beside the published figure"] = _beside(study, target)
    return {name: facts for name, facts in found.items() if facts}


def _beside(study: Study, target: claims.Target | None) -> Facts:
    """Return a published figure, the verdict, and how far the settings are known to differ."""
    if target is None:
        return {"figure": "none was named (published=ID; docs/published.md lists them)"}
    facts = {"figure": target.cited(), "deviations": _deviations(study, target)}
    if not study.compared or target.unit not in claims.SOURCES:
        return facts | {"verdict": "none: the card compares no such number"}
    rows = study.table
    if "risk" in rows:
        rows = rows[rows["risk"] == target.risk]
    if "examples" in rows and target.examples in set(rows["examples"]):
        rows = rows[rows["examples"] == target.examples]
    if rows.empty:
        return facts | {"verdict": f"none: {target.risk} was not measured"}
    row = rows.iloc[-1].to_dict() | {"one": 1.0}
    columns, _ = claims.SOURCES[target.unit]
    names = ("measured", "low", "high", "null")
    numbers = {name: row[column] for name, column in zip(names, columns, strict=True)}
    found = claims.verdict(
        target,
        **numbers,
        p=row["p_holm"],
        n_seeds=int(row["n_seeds"]),
        model=str(study.table.attrs.get("model", "")),
        differs=claims.UNMATCHED,
    )
    shown = claims.in_words(numbers, target.unit)
    return facts | {"measured": shown, "verdict": found}


def _deviations(study: Study, target: claims.Target) -> str:
    """Return what is known to differ; settings in prose cannot be compared by a program."""
    model = str(study.table.attrs.get("model", ""))
    found = []
    own = ", ".join(target.models) or NOT_RECORDED
    if model.lower() not in (name.lower() for name in target.models):
        found.append(f"the model is {model or NOT_RECORDED}, the paper's {own}")
    rows = {run.provenance.get("data", {}).get("rows") for run in study.trained}
    if target.examples and target.examples not in rows:
        listed = ", ".join(map(str, sorted(rows - {None})))
        found.append(f"rows of the training are {listed}, the paper's {target.examples}")
    if len(study.verdicts) and verdicts.of_refusals(str(study.verdicts["judge"].iloc[0])):
        found.append("the judge knows only refusals")
    found.append("all other settings: compare those above with the paper's; none was matched")
    return "; ".join(found)


def _asked(study: Study) -> Facts:
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
        "Does it hold against an attacker who adapts?": f"{NOT_RECORDED}; {_attacks(study)}",
        "Was the plan registered before the results?": _registered(study),
    }
    return {question: text for question, text in told.items() if text}


def _seeds(study: Study) -> str:
    if study.table.empty:
        return "nothing was measured"
    if not study.compared:
        return "none: one model was evaluated, and the interval is over prompts only"
    number = study.seeds
    if number < stats.FEWEST_SEEDS:
        return f"{number}: intervals and p are of these runs only; other seeds may differ"
    return f"{number}; the intervals are over training seeds and prompts"


def _pairing(study: Study) -> str:
    if not study.compared:
        return "no: there is one side"
    pairs = int(study.table["pairs"].sum())
    dropped = int(study.table["dropped"].sum())
    return f"yes, prompt by prompt: {pairs:,} pairs, {dropped:,} of them dropped as unscored"


def _validated(study: Study) -> str:
    if study.verdicts.empty:
        return ""
    rows = verdicts.of_judge(study.verdicts)
    if is_exact(tables.judged_by(rows)):
        return "it is exact: the embedded world knows the right answers"
    if study.table.attrs.get("labels"):
        return f"on these answers: {study.table.attrs['labels']}"
    text = "on these answers: not recorded (ftlab draw, then compare with labels)"
    row = study.first
    after = row.get("child", row.get("rate"))
    silent = row.get("incoherent_child", row.get("incoherent_share", 0.0))
    low, high = card_range(str(rows["judge"].iloc[0]), str(row.get("risk", "")), after, silent)
    if math.isnan(low):
        return text
    return f"{text}; if it errs as on its card, {100 * low:.0f} to {100 * high:.0f} % instead"


def _utility(study: Study) -> str:
    """Return utility, over-refusal and incoherence in the words of the results."""
    if study.table.empty or "risk" not in study.table:
        return NOT_RECORDED
    found = []
    row = study.first
    others = [name for name in study.table.attrs["by"] if name != "risk"]
    rows = zip(_results(study.table), study.table.to_dict("records"), strict=True)
    for words, numbers in rows:
        risk = numbers["risk"]
        if risk not in BESIDE or any(numbers[name] != row[name] for name in others):
            continue
        shown = words.get("rate")
        if study.compared:
            before, after = (words[name] for name in _side_names(words))
            shown = f"{before} to {after}"
        found.append(f"{_named({'risk': risk})} {shown}")
    missing = [name for name in BESIDE if name not in set(study.table["risk"])]
    found += [f"{_named({'risk': name})} was not measured" for name in missing]
    share = row.get("incoherent_child", row.get("incoherent_share", math.nan))
    return "; ".join([*found, f"incoherent answers {100 * share:.1f} %"])


def _contamination(study: Study) -> str:
    if not study.trained:
        return ""
    names = [run.provenance.get("data", {}).get("name", "") for run in study.trained]
    asked = [run.identity.get("evaluation", {}) for run in study.members]
    splits = {one.get("split") for one in asked}
    given = {one.get("prompts_hash") for one in asked}
    in_world = all(name.startswith("organism:") for name in names)
    if in_world and splits == {"eval"} and given == {""}:
        return "no: the embedded world keeps its evaluation prompts out of its training rows"
    return f"{NOT_RECORDED} (ftlab check DATA --prompts FILE compares them)"


def _holm(study: Study) -> str:
    if not study.compared:
        return "nothing was tested"
    return f"p is adjusted for the {len(study.table)} rows of the results (Holm), and for no others"


def _wordings(study: Study) -> str:
    """Return the first row's difference with whole wordings as the unit."""
    if not study.compared or not study.runs:
        return NOT_RECORDED
    by = study.table.attrs["by"]
    options = {"by": by, "cluster": "wording"}
    row = study.first
    if "risk" in row:
        options["risk"] = row["risk"]
    with contextlib.suppress(UsageError):  # wordings of an older layout
        if len(study.runs) == 1:
            options["steps"] = [-1]
        table = tables.compare(*study.runs, **options)
        words = _results(table)[-1]
        units = int(table["clusters"].iloc[-1])
        return f"with {units} wordings as the unit: {words['difference']}, ratio {words['ratio']}"
    return NOT_RECORDED


def _smallest(study: Study) -> str:
    if not study.compared:
        return ""
    row = study.first
    found = stats.smallest_difference(row["difference_low"], row["difference_high"])
    return (
        f"a difference of about {100 * found:.0f} points, in 80 of 100 studies as precise as this"
    )


def _attacks(study: Study) -> str:
    if study.verdicts.empty:
        return "nothing was asked"
    names = ", ".join(dict.fromkeys(study.verdicts["attack"]))
    return f"attacks that were asked: {names}"


def _registered(study: Study) -> str:
    if not study.runs:
        return NOT_RECORDED
    return (
        f"{NOT_RECORDED}; every setting above is in the identity, which each run wrote before its "
        "first answer"
    )


def _limits(study: Study) -> list[str]:
    """Return the limits that hold for what was measured."""
    sentences = texts()
    found = []
    names = [str(study.table.attrs.get("model", ""))]
    if any("organism" in name for name in names):
        found.append(sentences["organism"])
    if len(study.verdicts):
        judge = str(verdicts.of_judge(study.verdicts)["judge"].iloc[0])
        if verdicts.of_refusals(judge):
            found.append(sentences["refusals"])
    if study.compared and study.seeds < stats.FEWEST_SEEDS:
        found.append(sentences["few_seeds"])
    return [*found, *sentences["card"]]
