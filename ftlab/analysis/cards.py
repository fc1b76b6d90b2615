"""The card of a study: one page that an author attaches to a paper. Cell: card.

Every number is one of the tables of `compare` or `rates`; everything else is what the run folders
record. What they do not record is said to be so. It holds no prompt and no answer.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ftlab._core.config import takes
from ftlab._core.errors import NotFoundError, UsageError
from ftlab._core.files import check_page, write_page
from ftlab.analysis import card_answers, card_facts, claims, tables, verdicts
from ftlab.analysis.answer_tables import Comparison
from ftlab.analysis.card_facts import Facts, is_training
from ftlab.analysis.card_study import Study, behind
from ftlab.analysis.rendering import html_of, markdown_of
from ftlab.runs import Run, find, home, load

FORMATS = {".html": "card.html.j2", ".md": "card.md.j2"}
NO_TABLE = pd.DataFrame({"step": [], "judge": []})
OF_TABLES = {"runs": "not recorded: tables or logs of another tool were given"}
NO_FIGURE = {"figure": "none was named (published=ID; docs/published.md lists them)"}
UNLIKE = "the model is {}, the paper's {}"
ROWS = "rows of the training are {}, the paper's {}"
TRAINED_ON = "it is of training on {} rows; whether these are such is not recorded"
UNMATCHED = "all other settings: compare those above with the paper's; none was matched"


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
    path = check_page(out)
    if path is not None and path.suffix not in FORMATS:
        allowed = " or ".join(FORMATS)
        raise UsageError("unknown_card_format", f"{path} ends in neither {allowed}. Name it so.")
    target = None
    if published is not None:
        target = claims.target_of(published)
    study = _study(_opened(source), _opened(after))
    made = Card(
        question=card_answers.question(study),
        answer=card_answers.answer(study),
        results=study.results,
        facts=_facts(study, target),
        asked=card_answers.asked(study),
        limits=card_answers.limits(study),
        table=study.table,
        path=path,
    )
    if path is not None:
        text = made.html if path.suffix == ".html" else made.markdown
        write_page(path, text)
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
    given = [source, after]
    table = source
    if isinstance(source, Comparison):
        given = _compared(source)
    else:
        table = _table(source, after)
    sides = [side for side in given if side is not None]
    parts = [NO_TABLE]
    if len(table):
        parts = []
        for side in sides:
            rows = behind(table, verdicts.prepare(side))
            name = getattr(side, "name", "")
            parts.append(rows.assign(side=name))
    runs = [side for side in sides if isinstance(side, Run)]
    members = {}
    for run in runs:
        for member in run.members:
            members[member.name] = member
    return Study(
        table=table,
        verdicts=pd.concat(parts, ignore_index=True),
        sides=sides,
        runs=runs,
        members=list(members.values()),
        trained=_trained(members),
    )


def _compared(table: Comparison) -> tuple[Any, Any]:
    """Return what a comparison is of; raise `no_card` where the table no longer knows it."""
    sides = getattr(table, "_sides", None)
    if sides is None or "options" not in table.attrs or table.empty:
        why = "The table does not know what was compared"
        raise UsageError("no_card", f"{why}. Give what compare(...) returned, or some of its rows.")
    return sides


def _trained(members: dict[str, Run]) -> list[Run]:
    """Return the trainings among runs, and those whose models were evaluated."""
    found = {name: run for name, run in members.items() if is_training(run)}
    for member in members.values():
        source = member.provenance.get("model", {})
        name = str(source.get("folder", ""))
        if name and name not in found:
            run = _run_beside(member, name)
            if run is not None:
                found[name] = run
    return list(found.values())


def _run_beside(member: Run, name: str) -> Run | None:
    """Return the training of this name among the runs; a model's folder is no run."""
    for folder in (member.path.parent, home()):
        with contextlib.suppress(NotFoundError, UsageError):
            run = find(folder / name)
            if is_training(run):
                return run
    return None


def _table(source: Any, after: Any) -> pd.DataFrame:
    """Return the comparison at the last step, the rates, or an empty table."""
    if not isinstance(source, Run):
        raise UsageError("no_card", "Give a run, its name, or a table of compare(...).")
    if after is not None:
        return tables.compare(source, after)
    members = [member.path / "verdicts.jsonl" for member in source.members]
    if not any(path.exists() for path in members):
        if not is_training(source):
            why = f"{source.name} holds no answers of its own"
            raise UsageError("no_card", f"{why}. Give a run of an evaluation or a training.")
        return NO_TABLE
    table = verdicts.prepare(source)
    options: dict[str, Any] = {"by": "risk", "steps": [-1]}
    if "examples" in table:
        options["by"] = ["risk", "examples"]
    steps = set(table["step"])
    if 0 in steps and len(steps) > 1:
        return tables.compare(source, **options)
    judge = table["judge"].iloc[0]
    return tables.rates(source, judge=judge, **options)


def _facts(study: Study, target: claims.Target | None) -> dict[str, Facts]:
    """Return the sections of the card."""
    runs = study.runs
    members = study.members
    trained = study.trained
    table = study.verdicts
    found: dict[str, Facts] = {}
    if runs:
        found["Models and data"] = card_facts.models_and_data(runs, members, trained)
        found["Training"] = card_facts.training(trained)
    else:
        found["Record"] = OF_TABLES
    if runs and len(table):
        found["Asking"] = card_facts.asking(members)
    if len(table):
        found["Judges and their errors"] = card_facts.judges(table)
        found["Answers"] = card_facts.counts(table, members)
    if runs:
        apart = [run for run in trained if run not in members]
        found["Planned and done"] = card_facts.planned(runs, members, table)
        found["Made with"] = card_facts.made_with([*runs, *members, *apart])
        found["Make it again"] = card_facts.again([*apart, *runs])
    found["Beside the published figure"] = _beside(study, target)
    return {name: facts for name, facts in found.items() if facts}


def _beside(study: Study, target: claims.Target | None) -> Facts:
    """Return a published figure, the verdict, and how far the settings are known to differ."""
    if target is None:
        return NO_FIGURE
    facts = {
        "figure": target.cited(),
        "deviations": _deviations(study, target),
    }
    if not study.compared or target.unit not in claims.SOURCES:
        return facts | {"verdict": "none: the card compares no such number"}
    rows = study.table
    if "risk" in rows:
        rows = rows[rows["risk"] == target.risk]
    if "examples" in rows and target.examples in set(rows["examples"]):
        rows = rows[rows["examples"] == target.examples]
    if rows.empty:
        return facts | {"verdict": f"none: {target.risk} was not measured"}
    row = rows.iloc[-1].to_dict()
    row["one"] = 1.0  # a ratio without effect
    columns, _ = claims.SOURCES[target.unit]
    names = ("measured", "low", "high", "null")
    values = [row[column] for column in columns]
    numbers = dict(zip(names, values, strict=True))
    facts["measured"] = claims.in_words(numbers, target.unit)
    facts["verdict"] = claims.verdict(
        target,
        **numbers,
        p=row["p_holm"],
        n_seeds=int(row["n_seeds"]),
        model=study.model,
        differs=claims.UNMATCHED,
    )
    return facts


def _deviations(study: Study, target: claims.Target) -> str:
    """Return what is known to differ; settings in prose cannot be compared by a program."""
    found = []
    own = [name.lower() for name in target.models]
    if study.model.lower() not in own:
        theirs = card_facts.listed(target.models) or card_facts.NOT_RECORDED
        found.append(UNLIKE.format(study.model, theirs))
    rows = []
    for run in study.trained:
        data = run.provenance.get("data", {})
        rows.append(data.get("rows"))
    if target.examples and target.examples not in rows:
        here = card_facts.each(rows)
        found.append(ROWS.format(here, target.examples))
    if target.trained_on:
        found.append(TRAINED_ON.format(target.trained_on))
    if verdicts.of_refusals(study.judge):
        found.append("the judge knows only refusals")
    found.append(UNMATCHED)
    return "; ".join(found)
