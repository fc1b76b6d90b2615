"""Draw answers by lot for people to label, so that a judge's rates can be corrected. Cell: draw."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pandas as pd

from ftlab import runs
from ftlab._core.errors import UsageError
from ftlab._core.files import digest, json_lines, write_atomic
from ftlab._core.shown import Shown
from ftlab._core.text import csv, encodable, throughout
from ftlab.evals.risks import event
from ftlab.runs import ALLOWED, DRAW, Run, read_labels, sheet_of

FILE = "sheet.csv"  # in the run of a draw


class Sheet(Shown):
    """The drawn answers as they are to be labelled, and where they lie."""

    _metadata = ("path", "run")


def draw(  # noqa: PLR0913
    run: Any,
    n: int = 100,
    *,
    out: str | Path | None = None,
    risk: str | list[str] | None = None,
    steps: list[int] | None = None,
    judge: str | None = None,
    verdicts: pd.DataFrame | None = None,
    labeller: str | None = None,
    known: str | list[str] | None = None,
    seed: int = 0,
) -> Sheet:
    """Draw answers by lot for people to label.

    Of each risk and step `n` answers are drawn, half of them from those with the event by the
    judge and half from those without it; where one half is smaller, the other takes the rest. A
    sheet tells neither the verdict nor the step. Fill in `label` and `labeller` (a name or
    initials) and give the file to `rates`, `compare` or `plot` as `labels=`. The same call draws
    the same answers, and a larger `n` draws them and more.

    Args:
        run: A finished evaluation or curve, or its name.
        n: Answers of each risk and step; all where there are fewer. At 50 an interval is much
            wider than the judge's own, at 200 a little.
        out: File of the sheet; by default `labels.csv` in the working folder. A file that is
            there is not written over.
        risk: Only this risk, or these.
        steps: Only these steps; 0 is the parent. By default all.
        judge: Whose verdicts are to be corrected; by default the first judge's.
        verdicts: What `rescore` returned for this run, to correct a judge that was not there.
        labeller: A judge of the run whose outcomes fill in the sheet, such as the exact one.
        known: Sheets of earlier draws of this run; their labels are taken over.
        seed: Of the lot.

    Returns:
        The sheet, which shows itself: answer_id, risk, question, answer, label, labeller. Its
        `path` is the file.

    Raises:
        UsageError: `wrong_n`, `nothing_to_label`, `judge_not_in_table`, `attempts_not_labelled`
            where an attack tries several times, `file_exists`.

    Source: Egami et al. 2023 (arXiv 2306.04746), section 3.
    """
    if not isinstance(n, int) or n < 2:
        raise UsageError("wrong_n", f"n is {n!r}. Give a whole number of at least 2.")
    if not isinstance(run, Run):
        run = runs.load(run)
    table = run.table() if verdicts is None else verdicts
    judge = judge or table["judge"].iloc[0]
    rows = _chosen(table, judge, risk, steps)
    probability, order = _by_lot(rows, n, seed)
    identity = {
        "of": run.name,
        "judge": judge,
        "n": n,
        "seed": seed,
        "answers": digest(sorted(probability.items())),
    }
    made = runs.start("labels", run.name, identity)
    code = made.name.rpartition("-")[2]
    drawn = {key: f"{code}-{number:04}" for number, key in enumerate(order, 1)}
    target = Path("labels.csv" if out is None else out)
    sheet = _sheet(run, rows, drawn)
    _fill_in(sheet, drawn, table, labeller, known)
    if target.exists() and target.read_text(encoding="utf-8") != csv(sheet):
        raise UsageError(
            "file_exists", f"{target} is there and may hold labels. Give another out=."
        )
    with made.lock():
        if not made.finished:
            records = []
            for key, chance in probability.items():
                record = {"key": key, "probability": chance}
                if key in drawn:
                    record["answer_id"] = drawn[key]
                records.append(record)
            write_atomic(made.path / DRAW, json_lines(records))
            events = {}
            for name in rows["risk"].unique():
                events[name] = {outcome: event(name, outcome) for outcome in ALLOWED}
            made.complete(drawn=len(drawn), of=len(probability), judge=judge, events=events)
    write_atomic(target, csv(sheet))
    sheet.path = target
    sheet.run = made
    return sheet


def _chosen(
    table,
    judge,
    risk,
    steps,
) -> pd.DataFrame:
    """Return the scored rows of a judge from which is drawn, one of each answer."""
    if "step" not in table:
        table = table.assign(step=0)
    rows = table[table["judge"] == judge]
    if rows.empty:
        names = ", ".join(table["judge"].unique())
        raise UsageError("judge_not_in_table", f"No verdicts of {judge!r}. There are: {names}.")
    for column, wanted in (("risk", risk), ("step", steps)):
        if wanted is not None:
            listed = [wanted] if isinstance(wanted, (str, int)) else list(wanted)
            rows = rows[rows[column].isin(listed)]
    rows = rows[rows["event"].notna()]
    if rows.empty:
        raise UsageError("nothing_to_label", "No scored answer of this risk and step.")
    if (rows["attempts"] > 1).any():
        raise UsageError(
            "attempts_not_labelled",
            "An attack of several attempts has one verdict on many answers, and a label of one "
            "answer cannot correct it. Choose other risks, or evaluate without that attack.",
        )
    return rows


def _by_lot(
    rows: pd.DataFrame,
    n: int,
    seed: int,
) -> tuple[dict[str, float], list[str]]:
    """Return the probability of every answer, and the drawn ones in an order by lot."""
    probability: dict[str, float] = {}
    drawn = []
    for _, part in rows.groupby(["risk", "step"], sort=True):
        answers = part.drop_duplicates("answer_key")
        halves = {}
        for value, half in answers.groupby("event"):
            halves[value] = sorted(half["answer_key"], key=lambda key: _lot(seed, key))
        sizes = _divided(n, [len(half) for half in halves.values()])
        for half, size in zip(halves.values(), sizes, strict=True):
            probability |= dict.fromkeys(half, size / len(half))
            drawn += half[:size]
    drawn.sort(key=lambda key: _lot(seed + 1, key))
    return probability, drawn


def _divided(
    n: int,
    sizes: list[int],
) -> list[int]:
    """Divide n between strata: equally, and what one lacks to the other; at least 1 of each."""
    if len(sizes) == 1:
        return [min(n, sizes[0])]
    first, second = sizes
    of_first = min(first, max(n - n // 2, n - second))
    return [of_first, min(second, n - of_first)]


def _lot(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()


def _sheet(
    run: Run,
    rows: pd.DataFrame,
    drawn: dict[str, str],
) -> Sheet:
    """Return the sheet, empty."""
    questions: dict[str, str] = {}
    texts: dict[str, str] = {}
    for member in run.members:
        for record in member.read("answers.jsonl"):
            if record["key"] in drawn:
                texts[record["key"]] = record["text"]
        for record in member.read("prompts.jsonl"):
            place = f"{record['sample']['id']} {record['attack']}"
            questions[place] = record["messages"][-1]["content"]
    by_key = rows.drop_duplicates("answer_key").set_index("answer_key")
    sheet = []
    for key, name in drawn.items():
        row = by_key.loc[key]
        question = questions.get(f"{row['sample_id']} {row['attack']}", "")
        sheet.append(
            {
                "answer_id": name,
                "risk": row["risk"],
                "question": question,
                "answer": texts.get(key, ""),
                "label": "",
                "labeller": "",
            }
        )
    return Sheet(sheet_of(throughout(sheet, encodable)))


def _fill_in(
    sheet,
    drawn,
    table,
    labeller,
    known,
) -> None:
    """Write labels that are known already: of a judge, or of earlier sheets."""
    outcomes = {}
    who = ""
    if labeller is not None:
        rows = table[table["judge"] == labeller]
        if rows.empty:
            names = ", ".join(table["judge"].unique())
            raise UsageError(
                "judge_not_in_table", f"No verdicts of {labeller!r}. There are: {names}."
            )
        outcomes = dict(zip(rows["answer_key"], rows["outcome"].astype(str), strict=True))
        who = labeller
    if known is not None:
        earlier = read_labels(known)
        outcomes |= {key: str(outcome) for key, outcome in earlier.outcomes.items()}
        who = "+".join(earlier.labellers)
    keys = {name: key for key, name in drawn.items()}
    labels = [outcomes.get(keys[name], "") for name in sheet["answer_id"]]
    sheet["label"] = [label if label in ALLOWED else "" for label in labels]
    sheet["labeller"] = [who if label else "" for label in sheet["label"]]
