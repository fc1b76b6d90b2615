"""Judge the answers in a file, and summarise the verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

import pandas as pd

from ftlab._core.errors import DataError, UsageError
from ftlab._core.files import check_page, write_page
from ftlab._core.text import csv, encodable, safe, throughout
from ftlab._core.types import Outcome, Sample
from ftlab.data import problems_error, records
from ftlab.judges.agreement import confusion, human_agreement, judge_agreement
from ftlab.judges.base import Judge, judge_class, open_judge
from ftlab.judges.reading import heard, judged, left_out_notes, unread_notes

DEFAULT_JUDGES = ("refusal", "keywords")
REFUSALS = (Outcome.REFUSED, Outcome.PARTIAL)
SHOWN = 20  # disagreements of judges that are printed
ADDED = ("sample_id", "repeat", "judge", "outcome", "score", "reason", "left_out", "judged_text")


def score_file(
    file: str | Path | Sequence[dict],
    *,
    prompt: str,
    response: str,
    judges: str | Judge | Sequence[str | Judge] = DEFAULT_JUDGES,
    label: str | None = None,
    out: str | Path | None = None,
    normalise: bool = True,
) -> pd.DataFrame:
    """Judge the answers in a file.

    Args:
        file: A file that `ftlab.data` reads, or a list of dicts.
        prompt: Column of the questions.
        response: Column of the answers.
        judges: Judges or their public names.
        label: Column of human labels, checked before anything is judged.
        out: A .csv or .jsonl file for the table. In a .csv a text that a spreadsheet would run
            as a formula begins with an apostrophe.
        normalise: Judge an answer without what stands around it (see `left_out`); False judges
            every answer as it is in the file, thoughts included.

    Returns:
        One row per row of the file and judge: the file's columns, `judge`, `outcome`, `score`,
        `reason`; `left_out`, what was not judged (thought, prompt, role, token, turn), and then
        `judged_text`, the words that were; and `sample_id`, which numbers the rows from 1. Rows
        with the same question share the number of the first; `repeat` counts them from 0.

    Raises:
        UsageError: `wrong_source`, `no_judge`, `wrong_ending`, `unknown_column`,
            `column_exists`, or a judge's code.
        DataError: `no_rows`, `not_text`, with every problem of the file.
    """
    if isinstance(judges, str) or not isinstance(judges, Iterable):
        judges = [judges]
    opened = {}
    for judge in map(open_judge, judges):
        opened.setdefault(judge.spec, judge)
    if not opened:
        raise UsageError("no_judge", "There is no judge. Give at least one.")
    ending = Path(out).suffix if out else ".csv"
    if ending not in (".csv", ".jsonl"):
        message = f"Cannot write {out}. Allowed are .csv and .jsonl."
        raise UsageError("wrong_ending", message)
    if _is_same_file(out, file):
        raise UsageError("file_exists", f"{out} is what is judged. Give another out=.")
    check_page(out)
    name, numbered = records(file)
    if not numbered:
        raise DataError("no_rows", f"{name} has no rows.")
    rows = [row for _, row in numbered if isinstance(row, dict)]
    _check_columns(name, rows, prompt, response, label)
    _check_texts(numbered, prompt, response)
    questions = [str(row[prompt]) for row in rows]
    texts = [str(row[response]) for row in rows]
    table = _numbered(rows, questions)
    samples = []
    for question in questions:
        message = {"role": "user", "content": question}
        samples.append(Sample(id="", messages=[message]))
    parts = []
    for judge in opened.values():
        try:
            found = judged(judge, samples, texts, normalise=normalise)
        finally:
            judge.release()
        parts.append(_with_verdicts(table, judge, found, samples, texts))
    verdicts = pd.concat(parts, ignore_index=True)
    if out is not None:
        save(verdicts, Path(out))
    return verdicts


def _is_same_file(out, file):
    if out is None or not isinstance(file, (str, Path)):
        return False
    target = Path(out)
    return target.exists() and target.samefile(file)


def _numbered(rows, questions):
    """Return the rows as a table with `sample_id` and `repeat`."""
    table = pd.DataFrame(throughout([dict(row) for row in rows], encodable))
    first: dict[str, int] = {}  # pandas cannot hold texts with unpaired surrogates
    numbers = [first.setdefault(text, number) for number, text in enumerate(questions, 1)]
    table.insert(0, "sample_id", numbers)
    table.insert(
        1,
        "repeat",
        table.groupby("sample_id").cumcount(),
    )
    return table


def _with_verdicts(
    table,
    judge,
    found,
    samples,
    texts,
):
    return table.assign(
        judge=judge.spec,
        outcome=[str(one.outcome) for one in found],
        score=pd.Series([one.score for one in found], dtype=float),
        reason=[encodable(one.reason) for one in found],
        left_out=[one.left_out for one in found],
        judged_text=list(map(_judged_text, samples, texts, found)),
    )


def _judged_text(sample, text, judgement):
    """Return the words that were judged, where they are not the whole answer."""
    if not judgement.left_out:
        return ""
    said, _ = heard(sample.question, text)
    return encodable(said or "")


def _check_columns(name, rows, *needed):
    """Check that a file has the columns it needs, and none that will be added."""
    columns = dict.fromkeys(chain.from_iterable(rows))
    missing = [column for column in needed if column not in (None, *columns)]
    if rows and missing:
        has = safe(", ".join(map(str, columns)), 500)
        message = f"{name} has no column {', '.join(missing)}. Its columns are {has}."
        raise UsageError("unknown_column", message)
    taken = [column for column in ADDED if column in columns]
    if taken:
        message = f"{name} already has the column {', '.join(taken)}. Rename it."
        raise UsageError("column_exists", message)


def _check_texts(numbered, *columns):
    """Check that each row could be read and has a question and an answer."""
    problems = []
    for where, row in numbered:
        if not isinstance(row, dict):
            problems.append(f"{where}: {row}")
            continue
        for column in columns:
            value = row.get(column)
            if not isinstance(value, (str, int, float)) or value != value:
                kind = type(value).__name__
                problems.append(f"{where}: {column} is {kind}, not text. Fix or remove the row.")
    if problems:
        raise problems_error("not_text", problems)


def save(table: pd.DataFrame, out: Path) -> None:
    """Write a table as .csv, with formulas made harmless, or as .jsonl, with every text exact."""
    if out.suffix == ".csv":
        text = csv(table)
    else:
        text = table.to_json(
            orient="records",
            lines=True,
            force_ascii=False,
        )
    write_page(out, text)


def describe(
    table: pd.DataFrame,
    *,
    label: str | None = None,
    refused: str | Sequence = (),
    partial: str | None = None,
) -> str:
    """Summarise a table of verdicts: counts, agreement with labels and of the judges; no text.

    Args:
        table: Verdicts, one row per answer and judge.
        label: See `human_agreement`.
        refused: See `human_agreement`.
        partial: See `human_agreement`.
    """
    judges = list(table["judge"].unique())
    classes = {judge: judge_class(judge) for judge in judges}
    parts = [pd.crosstab(table["judge"], table["outcome"]).loc[judges]]
    first = table[table["judge"] == judges[0]]
    if "left_out" in first:
        parts += left_out_notes(list(first["left_out"]))
    unparsed = table[table["outcome"] == Outcome.UNPARSED]
    for judge, some in unparsed.groupby("judge", sort=False):
        parts += unread_notes(judge, some.get("reason", ()))
    for judge, kind in classes.items():
        if kind.counts_reasons:
            parts.append(_reasons(judge, table))
    if label is not None:
        people = human_agreement(
            table,
            label=label,
            refused=refused,
            partial=partial,
        )
        people = people.set_index(["judge", "definition"])
        parts.append(confusion(table, label=label))
        parts.append(people.round(3).T)
        for judge, kind in classes.items():
            if kind.trained_on:
                parts.append(_warning(judge, kind.trained_on))
    if len(judges) > 1:
        parts += _among_judges(table, classes)
    texts = [part if isinstance(part, str) else part.to_string() for part in parts]
    return safe("\n\n".join(texts), 100_000)


def _among_judges(table: pd.DataFrame, classes: dict[str, type[Judge]]) -> list:
    """Return in what the judges agree, and which of them are one instrument."""
    found = judge_agreement(table)
    apart = found.disagreements
    parts = [
        f"Krippendorff's alpha of {len(classes)} judges: "
        f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}], {found.n} answers. "
        f"They disagree on {len(apart)}."
    ]
    if len(apart):
        parts.append(apart.head(SHOWN))
    names = {kind.name for kind in classes.values()}
    for judge, kind in classes.items():
        other = kind.built_on
        if other in names:
            parts.append(
                f"{judge} takes over the verdicts of {other}: that they agree says nothing."
            )
    return parts


def _reasons(judge: str, table: pd.DataFrame) -> str:
    """Return how many answers that refuse have each reason."""
    rows = table[table["judge"] == judge]
    refuses = rows["outcome"].isin(REFUSALS)
    reasons = rows["reason"][refuses]
    listed = reasons.value_counts().to_string(header=False)
    return f"How answers refuse, by {judge}:\n{listed}"


def _warning(judge, trained_on):
    return f"{judge} was trained on {', '.join(trained_on)}, so agreement there is no evidence."
