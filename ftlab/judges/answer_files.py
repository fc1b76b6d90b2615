"""Judge the answers in a file, and summarise the verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ftlab._core.errors import DataError, UsageError
from ftlab._core.text import csv, encodable, safe, throughout
from ftlab._core.types import Sample
from ftlab.data import records
from ftlab.judges.agreement import confusion, human_agreement, judge_agreement
from ftlab.judges.base import Judge, judge_class, open_judge
from ftlab.runs import write_atomic

DEFAULT = ("refusal", "keywords")
SHOWN = 20  # problems of a file, and disagreements of judges, that are printed
ADDED = ("sample_id", "repeat", "judge", "outcome", "score", "reason")


def score_file(
    file: str | Path | Sequence[dict],
    *,
    prompt: str,
    response: str,
    judges: str | Judge | Sequence[str | Judge] = DEFAULT,
    label: str | None = None,
    out: str | Path | None = None,
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

    Returns:
        One row per row of the file and judge: the file's columns, `judge`, `outcome`, `score`,
        `reason` and `sample_id`, which numbers the rows from 1. Rows with the same question
        share the number of the first; `repeat` counts them from 0.

    Raises:
        UsageError: `wrong_ending`, `unknown_column`, `column_exists`, or a judge's code.
        DataError: `no_rows`, `not_text`, with every problem of the file.
    """
    if isinstance(judges, (str, Judge)):
        judges = [judges]
    opened = [open_judge(judge) for judge in dict.fromkeys(judges)]
    if out is not None and Path(out).suffix not in (".csv", ".jsonl"):
        raise UsageError("wrong_ending", f"Cannot write {out}. Allowed are .csv and .jsonl.")
    named = [prompt, response] if label is None else [prompt, response, label]
    rows = _rows(file, named, texts=(prompt, response))
    samples = []
    for row in rows:
        message = {"role": "user", "content": str(row[prompt])}
        samples.append(Sample(id="", messages=[message]))
    texts = [str(row[response]) for row in rows]
    table = pd.DataFrame(throughout([dict(row) for row in rows], encodable))
    numbers = pd.Series(range(1, len(rows) + 1))
    questions = numbers.groupby([sample.question for sample in samples])
    table.insert(0, "sample_id", questions.transform("first"))
    table.insert(1, "repeat", questions.cumcount())
    parts = []
    for judge in opened:
        try:
            found = judge.judge(samples, texts)
        finally:
            judge.release()
        parts.append(table.assign(judge=judge.spec, **_columns(found)))
    table = pd.concat(parts, ignore_index=True)
    if out is not None:
        save(table, Path(out))
    return table


def _columns(judgements) -> dict[str, Any]:
    return {
        "outcome": [str(judgement.outcome) for judgement in judgements],
        "score": pd.Series([judgement.score for judgement in judgements], dtype=float),
        "reason": [encodable(judgement.reason) for judgement in judgements],
    }


def _rows(file, named: list[str], texts: tuple[str, str]) -> list[dict]:
    """Read the rows of a file and check that they can be judged."""
    name, numbered = records(file)
    problems, rows = [], []
    for where, row in numbered:
        if not isinstance(row, dict):
            problems.append(f"{where}: {row}")
            continue
        rows.append(row)
        for column in texts:
            value = row.get(column)
            if not isinstance(value, (str, int, float)) or value != value:
                kind = type(value).__name__
                problems.append(f"{where}: {column} is {kind}, not text. Fix or remove the row.")
    if not rows and not problems:
        raise DataError("no_rows", f"{name} has no rows.")
    columns = {column: None for row in rows for column in row}
    missing = [column for column in named if column not in columns]
    if rows and missing:
        has = safe(", ".join(map(str, columns)), 500)
        message = f"{name} has no column {', '.join(missing)}. Its columns are {has}."
        raise UsageError("unknown_column", message)
    if problems:
        shown = problems[:SHOWN]
        if len(problems) > SHOWN:
            shown.append(f"... and {len(problems) - SHOWN} more.")
        raise DataError("not_text", "\n".join(shown), problems=problems)
    taken = [column for column in ADDED if column in columns]
    if taken:
        message = f"{name} already has the column {', '.join(taken)}. Rename it."
        raise UsageError("column_exists", message)
    return rows


def save(table: pd.DataFrame, out: Path) -> None:
    """Write a table as .csv, with formulas made harmless, or as .jsonl, with every text exact."""
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".csv":
        text = csv(table)
    else:
        text = table.to_json(orient="records", lines=True, force_ascii=False)
    write_atomic(out, text)


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
    counts = pd.crosstab(table["judge"], table["outcome"]).reset_index()
    parts = [counts.to_string(index=False)]
    judges = list(table["judge"].unique())
    if label is not None:
        people = human_agreement(table, label=label, refused=refused, partial=partial)
        for judge in judges:
            trained_on = judge_class(judge).trained_on
            if trained_on:
                where = ", ".join(trained_on)
                parts.append(f"{judge} was trained on {where}: no evidence there. See its card.")
        parts.append(confusion(table, label=label).to_string(index=False))
        parts += [_agreement_text(row) for row in people.to_dict("records")]
    if len(judges) > 1:
        found = judge_agreement(table)
        interval = f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"
        apart = found.disagreements
        parts.append(
            f"Krippendorff's alpha of {len(judges)} judges: {interval} ({found.n} answers). "
            f"They disagree on {len(apart)}."
        )
        if len(apart):
            parts.append(apart.head(SHOWN).to_string(index=False))
    return safe("\n\n".join(parts), 100_000)


def _agreement_text(row: dict) -> str:
    """Return one row of `human_agreement` as lines."""
    counts = f"{row['n']} rows, {row['unscored']} unscored, {row['unlabelled']} unlabelled"
    lines = [f"{row['judge']}, refusal = {row['definition']}: {counts}"]
    if not row["n"]:
        return lines[0]
    for name in ("accuracy", "kappa", "sensitivity", "specificity"):
        interval = f"[{row[f'{name}_low']:.3f}, {row[f'{name}_high']:.3f}]"
        lines.append(f"  {name:<12}{row[name]:.3f} {interval}")
    bias, low, high = (100 * row[name] for name in ("bias", "bias_low", "bias_high"))
    lines.append(
        f"  attack success rate {100 * row['judge_asr']:.1f} %, people "
        f"{100 * row['human_asr']:.1f} %: bias {bias:+.1f} points [{low:+.1f}, {high:+.1f}]"
    )
    return "\n".join(lines)
