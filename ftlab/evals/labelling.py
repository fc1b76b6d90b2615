"""Draw answers by lot for people to label, so that a judge's rates can be corrected. Cell: draw."""

from __future__ import annotations

import hashlib
import json
import operator
from pathlib import Path
from typing import Any

import pandas as pd

from ftlab import runs
from ftlab._core.errors import UsageError
from ftlab._core.files import check_page, digest, json_lines, write_atomic, write_page
from ftlab._core.shown import Shown
from ftlab._core.text import csv, encodable, throughout
from ftlab.evals.risks import event
from ftlab.runs import ALLOWED, DRAW, SCHEMA, Run, known_labels, sheet_of

MARK = "\ufeff"  # tells spreadsheets that a file is UTF-8


class Sheet(Shown):
    """The drawn answers as they are to be labelled; `path` is the file, `run` the draw."""

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
    judge and half from those without it; where one half is smaller, the other gives the rest. A
    sheet tells neither the verdict nor the step; equal answers may stand in it several times. Fill
    in `label` and `labeller` (a name or initials) of every row, and give the file to `rates` or
    `compare` as `labels=`. The same call draws the same answers, and a larger `n` draws them and
    more.

    Labels are refused, partial (refused in part), complied, complied_wrong (went along, but what
    it told is wrong, which is no event of jailbreak), incoherent and empty.

    Args:
        run: A finished evaluation or curve, or its name.
        n: Answers of each risk and step; all where there are fewer. At 50 an interval is much
            wider than the judge's own, at 200 a little.
        out: File of the sheet; by default `labels.csv` in the working folder. A file that is
            there is not written over.
        risk: Only this risk, or these; by default all whose event a judge decides.
        steps: Only these steps; 0 is the parent, -1 the last. By default all.
        judge: Whose verdicts are to be corrected; by default the first judge's.
        verdicts: What `rescore` returned for this run, to correct a judge that was not there.
        labeller: A judge of the run whose outcomes fill in the sheet, such as the exact one.
        known: Sheets of earlier draws of this run; the labels in them are taken over.
        seed: Of the lot.

    Returns:
        The sheet, which shows itself: answer_id, risk, question, answer, label, labeller. Its
        `path` is the file.

    Raises:
        UsageError: `wrong_n`, `nothing_to_label`, `step_not_measured`, `judge_not_in_table`,
            `attempts_not_labelled` where an attack tries several times, `answers_not_there`,
            `older_layout`, `file_exists`, `wrong_ending`, `output_not_writable`.

    Source: Egami et al. 2023 (arXiv 2306.04746), section 3.
    """
    n = _whole(n)
    target = check_page("labels.csv" if out is None else out)
    if not isinstance(run, Run):
        run = runs.load(run)
    if any(member.identity["schema"] < SCHEMA for member in run.members):
        raise UsageError("older_layout", f"{run.name} is of an older layout. Evaluate again.")
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
    made = runs.planned("labels", run.name, identity)  # a folder of it only with the sheet
    code = made.name.rpartition("-")[2]
    drawn = {key: f"{code}-{number:04}" for number, key in enumerate(order, 1)}
    sheet = _sheet(run, rows, drawn)
    _fill_in(sheet, drawn, table, labeller, known)
    _save(sheet, target)
    made = runs.start("labels", run.name, identity)
    with made.lock():
        if not made.finished:
            _complete(made, probability, drawn, judge, rows)
    sheet.path = target
    sheet.run = made
    return sheet


def _whole(n: Any) -> int:
    try:
        found = operator.index(n)
    except TypeError:
        found = 0
    if found < 2:
        raise UsageError("wrong_n", f"n is {n!r:.40}. Give a whole number of at least 2.")
    return found


def _chosen(
    table: pd.DataFrame,
    judge: str,
    risk: str | list[str] | None,
    steps: list[int] | None,
) -> pd.DataFrame:
    """Return the scored rows of a judge from which is drawn, each with the key of its answer."""
    if "step" not in table:
        table = table.assign(step=0)
    rows = _of_judge(table, judge)
    rows = rows[rows["decided_by"] == ""]  # a rule that knows the answer needs no label
    if risk is not None:
        wanted = [risk] if isinstance(risk, str) else list(risk)
        unknown = set(wanted) - set(rows["risk"])
        if unknown:
            there = ", ".join(rows["risk"].unique()) or "none"
            names = ", ".join(sorted(unknown))
            message = f"{judge} decided on no answer about {names}, but on: {there}."
            raise UsageError("nothing_to_label", message)
        rows = rows[rows["risk"].isin(wanted)]
    if steps is not None:
        rows = rows[rows["step"].isin(_steps(rows, steps))]
    rows = rows[rows["event"].notna()]
    if rows.empty:
        raise UsageError("nothing_to_label", f"{judge} scored no answer of these.")
    if (rows["attempts"] > 1).any():
        raise UsageError(
            "attempts_not_labelled",
            "An attack of several attempts has one verdict on many answers, and a label of one "
            "answer cannot correct it. Choose other risks, or evaluate without that attack.",
        )
    if (rows["answer_key"] == "").any():
        raise UsageError("answers_not_there", "The verdicts do not say of which answers they are.")
    return rows.assign(key=rows["risk"].str.cat(rows["answer_key"], sep=" "))


def _of_judge(
    table: pd.DataFrame,
    judge: str,
) -> pd.DataFrame:
    rows = table[table["judge"] == judge]
    if rows.empty:
        names = ", ".join(table["judge"].unique())
        raise UsageError("judge_not_in_table", f"No verdicts of {judge!r}. There are: {names}.")
    return rows


def _steps(rows: pd.DataFrame, steps: list[int]) -> list[int]:
    """Return steps, -1 being the last; raise where one was not measured."""
    measured = sorted(set(rows["step"]))
    found = []
    for step in [steps] if isinstance(steps, int) else steps:
        if -len(measured) <= step < 0:
            step = measured[step]
        if step not in measured:
            raise UsageError(
                "step_not_measured", f"Step {step} was not measured. Allowed: {measured}."
            )
        found.append(step)
    return found


def _by_lot(
    rows: pd.DataFrame,
    n: int,
    seed: int,
) -> tuple[dict[str, float], list[str]]:
    """Return the probability of every answer, and the drawn ones in an order by lot."""
    probability: dict[str, float] = {}
    drawn: list[str] = []
    for _, part in rows.groupby(["risk", "step"], sort=True):
        answers = part.drop_duplicates("key")
        halves = []
        for _, half in answers.groupby("event"):
            halves.append(_shuffled(half["key"], seed))
        sizes = _divided(n, [len(half) for half in halves])
        for half, size in zip(halves, sizes, strict=True):
            chance = size / len(half)
            probability |= dict.fromkeys(half, chance)
            drawn += half[:size]
    return probability, _shuffled(drawn, seed + 1)


def _divided(n: int, sizes: list[int]) -> list[int]:
    """Return how many to draw of each half: n / 2, or all of one that is smaller."""
    if len(sizes) == 1:
        return [min(n, sizes[0])]
    first, second = sizes
    half = n - n // 2
    of_first = max(half, n - second)
    of_first = min(of_first, first)
    return [of_first, min(second, n - of_first)]


def _shuffled(keys: Any, seed: int) -> list[str]:
    def lot(key: str) -> str:
        return hashlib.sha256(f"{seed} {key}".encode()).hexdigest()

    return sorted(keys, key=lot)


def _sheet(
    run: Run,
    rows: pd.DataFrame,
    drawn: dict[str, str],
) -> Sheet:
    """Return the sheet, empty."""
    by_key = rows.drop_duplicates("key")
    by_key = by_key.set_index("key").loc[list(drawn)]
    wanted = set(by_key["answer_key"])
    questions: dict[str, str] = {}
    texts: dict[str, str] = {}
    for member in run.members:
        for record in member.read("answers.jsonl"):
            if record["key"] in wanted:
                texts[record["key"]] = record["text"]
        for record in member.read("prompts.jsonl"):
            place = f"{record['sample']['id']} {record['attack']}"
            last = record["messages"][-1]
            questions[place] = last["content"]
    missing = wanted - set(texts)
    if missing:
        raise UsageError(
            "answers_not_there", f"{run.name} does not hold {len(missing)} of the answers."
        )
    sheet = []
    for key, row in by_key.iterrows():
        place = f"{row['sample_id']} {row['attack']}"
        sheet.append(
            {
                "answer_id": drawn[key],
                "risk": row["risk"],
                "question": questions.get(place, ""),
                "answer": texts[row["answer_key"]],
                "label": "",
                "labeller": "",
            }
        )
    return Sheet(sheet_of(throughout(sheet, encodable)))


def _fill_in(
    sheet: Sheet,
    drawn: dict[str, str],
    table: pd.DataFrame,
    labeller: str | None,
    known: str | list[str] | None,
) -> None:
    """Write labels that are known already: of a judge, or of earlier sheets, which come first."""
    found: dict[str, tuple[str, str]] = {}
    if labeller is not None:
        for row in _of_judge(table, labeller).to_dict("records"):
            key = f"{row['risk']} {row['answer_key']}"
            outcome = str(row["outcome"])
            if outcome in ALLOWED:
                found[key] = (outcome, labeller)
    if known is not None:
        found |= known_labels(known)
    labels = [found.get(key, ("", "")) for key in drawn]
    sheet["label"] = [label for label, _ in labels]
    sheet["labeller"] = [who for _, who in labels]


def _save(sheet: Sheet, target: Path) -> None:
    write_sheet(sheet, target, new=True)
    if target.read_bytes() != _content(sheet).encode():
        raise UsageError(
            "file_exists", f"{target} is there and may hold labels. Give another out=."
        )


def write_sheet(sheet: pd.DataFrame, target: Path, *, new: bool = False) -> None:
    """Write a sheet, atomically.

    Args:
        sheet: Rows as `draw` returns them.
        target: A .csv file; its folder is made.
        new: Keep a file that is already there, instead of writing over it.

    Raises:
        UsageError: `wrong_ending`, `output_not_writable`.
    """
    if target.suffix != ".csv":
        raise UsageError("wrong_ending", f"A sheet is written as .csv, and out is {target.name}.")
    write_page(target, _content(sheet), new=new)


def _content(sheet: pd.DataFrame) -> str:
    return MARK + csv(sheet)


def _complete(
    made: Run,
    probability: dict[str, float],
    drawn: dict[str, str],
    judge: str,
    rows: pd.DataFrame,
) -> None:
    """Write the draw: who could be drawn, with which probability, and who was."""
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
    made.complete(
        drawn=len(drawn),
        of=len(probability),
        judge=judge,
        events=json.dumps(events),
    )
