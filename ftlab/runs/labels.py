"""Labels of drawn answers: the sheet that people fill in, read and checked.

A draw is a run of kind `labels`. Its `draw.jsonl` names every answer that could be drawn, with the
probability of it; the sheet holds the drawn ones, in an order that tells nothing of the verdict.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ftlab._core.errors import DataError, UsageError
from ftlab._core.files import file_hash
from ftlab._core.text import safe
from ftlab._core.types import Outcome
from ftlab.runs.store import Run, home

if TYPE_CHECKING:
    import pandas as pd

DRAW = "draw.jsonl"
SHEET = ("answer_id", "risk", "question", "answer", "label", "labeller")
ALLOWED = tuple(str(outcome) for outcome in Outcome if outcome.scored)
SEPARATORS = (",", ";", "\t")  # as spreadsheets of different countries write them
SHOWN = 20  # problems that are listed


@dataclass(frozen=True)
class Labels:
    """Labels of drawn answers, each decided.

    Args:
        outcomes: Of each labelled answer, by the key of the answer.
        probabilities: With which each answer that could be drawn was, by its key.
        events: Of each risk, the event (1.0 or 0.0) of every outcome.
        judge: Whose verdicts decided what was drawn.
        labellers: Who labelled.
        files: SHA-256 of each file.
        both: (first, second) label of every answer that two people labelled.
    """

    outcomes: dict[str, Outcome]
    probabilities: dict[str, float]
    events: dict[str, dict[str, float]]
    judge: str
    labellers: tuple[str, ...]
    files: dict[str, str]
    both: tuple[tuple[str, str], ...]


def read_labels(files: str | Path | Sequence[str | Path]) -> Labels:
    """Read sheets that were filled in; where people differ, most of them decide.

    Args:
        files: A sheet of `ftlab.evals.draw`, or several: of other draws or by other people.

    Raises:
        UsageError: `no_labels`, `unknown_draw`.
        DataError: `wrong_labels`, with every problem: an answer without a label, a label that is
            not allowed, no labeller, an answer that was not drawn, two labels of equal weight.
    """
    files = [Path(file) for file in ([files] if isinstance(files, (str, Path)) else files)]
    given: dict[str, dict[str, str]] = defaultdict(dict)  # of each answer: label by labeller
    problems: list[str] = []
    for file in files:
        for row in _rows(file):
            _take(row, given, f"{file.name}, {safe(row['answer_id'], 40)}", problems)
    outcomes: dict[str, Outcome] = {}
    probabilities: dict[str, float] = {}
    events: dict[str, dict[str, float]] = {}
    judge = ""
    for code in dict.fromkeys(name.rpartition("-")[0] for name in given):
        run = draw_of(code)
        events |= run.stats["events"]
        judge = run.stats["judge"]
        records = run.read(DRAW)
        probabilities |= {record["key"]: record["probability"] for record in records}
        keys = {record["answer_id"]: record["key"] for record in records if "answer_id" in record}
        _refuse_gaps(code, keys, given, problems)
        for name, key in keys.items():
            label = _decided(name, given.get(name, {}), problems)
            if label:
                outcomes[key] = Outcome(label)
    if problems:
        raise _wrong(problems)
    labellers = {who for labels in given.values() for who in labels}
    hashes = {file.name: file_hash(file) for file in files}
    who = tuple(sorted(labellers))
    return Labels(
        outcomes,
        probabilities,
        events,
        judge,
        who,
        hashes,
        _labelled_twice(given),
    )


def _labelled_twice(given: dict[str, dict[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the labels of two people, of every answer that has them."""
    pairs = []
    for labels in given.values():
        if len(labels) > 1:
            first, second, *_ = (labels[who] for who in sorted(labels))
            pairs.append((first, second))
    return tuple(pairs)


def draw_of(code: str) -> Run:
    """Return the run of a draw from the beginning of its answers' ids.

    Raises:
        UsageError: `unknown_draw`.
    """
    found = []
    if code.isalnum():
        found = sorted(home().glob(f"labels-*-{code}"))
    if not found:
        raise UsageError(
            "unknown_draw",
            f"No draw {safe(code, 40)!r} among the runs in {home()}. The column answer_id must be "
            "as ftlab.evals.draw wrote it, and the runs must be there.",
        )
    return Run(found[0])


def _rows(file: Path) -> Iterable[dict[str, str]]:
    """Return the rows of a sheet, whatever its separator."""
    import pandas as pd

    try:
        with open(
            file,
            encoding="utf-8-sig",
            errors="replace",
        ) as text:
            header = text.readline()
        table = pd.read_csv(
            file,
            sep=max(
                SEPARATORS,
                key=header.count,
            ),
            dtype=str,
            keep_default_na=False,
            encoding="utf-8-sig",
        )
    except FileNotFoundError:
        raise UsageError("no_labels", f"{file} does not exist.") from None
    except (ValueError, OSError) as error:
        reason = safe(str(error), 200)
        raise UsageError("no_labels", f"{file} cannot be read as CSV: {reason}") from None
    missing = [name for name in ("answer_id", "label", "labeller") if name not in table]
    if missing:
        raise UsageError(
            "no_labels",
            f"{file} has no column {', '.join(missing)}. Fill in the sheet of ftlab.evals.draw.",
        )
    return table.to_dict("records")


def _take(
    row: dict[str, str],
    given: dict,
    where: str,
    problems: list[str],
) -> None:
    """Note the label of one row, or what is wrong with it."""
    name = row["answer_id"].strip().lstrip("'")
    label = row["label"].strip().lower().replace(" ", "_")
    who = row["labeller"].strip()
    if not label:
        problems.append(f"{where}: no label")
    elif label not in ALLOWED:
        allowed = ", ".join(ALLOWED)
        problems.append(f"{where}: label {safe(label, 30)!r} is not one of {allowed}")
    elif not who:
        problems.append(f"{where}: no labeller; write a name or initials")
    elif given[name].get(who, label) != label:
        problems.append(f"{where}: {safe(who, 30)} gave two labels")
    given[name][who] = label


def _refuse_gaps(
    code: str,
    keys: dict,
    given: dict,
    problems: list[str],
) -> None:
    """Note answers that were drawn and are in no sheet, and those that were never drawn."""
    left_out = [name for name in keys if name not in given]
    if left_out:
        problems.append(
            f"{len(left_out)} drawn answers are in no sheet, such as {left_out[0]}: labels of a "
            "part that was chosen would not be by lot"
        )
    for name in given:
        if name.rpartition("-")[0] == code and name not in keys:
            problems.append(f"{safe(name, 40)}: was not drawn")


def _decided(
    name: str,
    labels: dict[str, str],
    problems: list[str],
) -> str:
    """Return the label that most people gave; "" where two have equal weight."""
    counts = Counter(label for label in labels.values() if label in ALLOWED)
    if not counts:
        return ""
    (label, most), *others = counts.most_common(2)
    if others and others[0][1] == most:
        both = f"{label} and {others[0][0]}"
        problems.append(f"{name}: {both} have equal weight; let one more person decide")
        return ""
    return label


def _wrong(problems: list[str]) -> DataError:
    listed = "\n".join(problems[:SHOWN])
    more = len(problems) - SHOWN
    if more > 0:
        listed += f"\nand {more} more"
    message = f"The labels cannot be used ({len(problems)} problems):\n{listed}"
    return DataError("wrong_labels", message, problems)


def sheet_of(rows: list[dict[str, str]]) -> pd.DataFrame:
    """Return the rows of a sheet as a table with its columns."""
    import pandas as pd

    return pd.DataFrame(
        rows,
        columns=SHEET,
    )
