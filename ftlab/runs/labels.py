"""Labels of drawn answers: the sheet that people fill in, read and checked.

A draw is a run of kind `labels`. Its `draw.jsonl` names every answer that could be drawn, with the
probability of it; the sheet holds the drawn ones, in an order that tells nothing of the verdict.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ftlab._core.errors import DataError, UsageError
from ftlab._core.files import file_hash
from ftlab._core.text import safe
from ftlab._core.types import Outcome
from ftlab.runs.store import Run, home, load

if TYPE_CHECKING:
    import pandas as pd

DRAW = "draw.jsonl"
SHEET = (
    "answer_id",
    "risk",
    "question",
    "answer",
    "label",
    "labeller",
)
ALLOWED = tuple(str(outcome) for outcome in Outcome if outcome.scored)
SEPARATORS = (",", ";", "\t")  # as spreadsheets of different countries write them
ENCODINGS = ("utf-8-sig", "cp1252")  # ours, and what old spreadsheets save
SHOWN = 20  # problems that are listed

Votes = dict[str, dict[str, str]]  # of each answer: label by labeller


@dataclass(frozen=True)
class Labels:
    """Labels of drawn answers, each decided. An answer's key names its risk too.

    Args:
        outcomes: Of each labelled answer, by its key.
        probabilities: With which each answer that could be drawn was, by its key.
        events: Of each risk, the event (1.0 or 0.0) of every outcome.
        judge: Whose verdicts decided what was drawn.
        labellers: Who labelled.
        files: SHA-256 of each file.
        both: (first, second) label of every answer that two people labelled.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    probabilities: dict[str, float] = field(default_factory=dict)
    events: dict[str, dict[str, float]] = field(default_factory=dict)
    judge: str = ""
    labellers: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)
    both: tuple[tuple[str, str], ...] = ()


def read_labels(files: str | Path | Sequence[str | Path]) -> Labels:
    """Read sheets that were filled in; where people differ, most of them decide.

    Args:
        files: A sheet of `ftlab.evals.draw`, or several: of other draws or by other people.

    Raises:
        UsageError: `no_labels`, `unknown_draw`, `draws_overlap`.
        DataError: `wrong_labels`, with every problem: an answer without a label, a label that is
            not allowed, no labeller, an answer that was not drawn, two labels of equal weight.
    """
    paths = _paths(files)
    problems: list[str] = []
    given: Votes = defaultdict(dict)
    for path in paths:
        rows = _rows(path)
        empty = [row for row in rows if not _label(row)]
        if empty:
            some = safe(_id(empty[0]), 40)
            problems.append(f"{path.name}: {len(empty)} of {len(rows)} rows have no label: {some}")
        for row in rows:
            where = f"{path.name}, {safe(row['answer_id'], 40)}"
            _take(row, given, where, problems)
    probabilities: dict[str, float] = {}
    events: dict[str, dict[str, float]] = {}
    votes: Votes = {}
    names = {}
    judges = set()
    for code in dict.fromkeys(map(_code, given)):
        run = draw_of(code)
        events |= json.loads(run.stats["events"])
        judges.add(run.stats["judge"])
        keys = _population(run, probabilities)
        _refuse_gaps(
            code,
            keys,
            given,
            problems,
        )
        for name, key in keys.items():
            names[key] = name
            votes.setdefault(key, {}).update(given.get(name, {}))
    if len(judges) > 1:
        raise _overlap(f"by the verdicts of {', '.join(sorted(judges))}")
    outcomes = {}
    for key, labels in sorted(
        votes.items(),
        key=lambda vote: names[vote[0]],
    ):
        label = _decided(names[key], labels, problems)
        if label:
            outcomes[key] = Outcome(label)
    if problems:
        raise _wrong(problems)
    labellers = {who for labels in given.values() for who in labels}
    return Labels(
        outcomes=outcomes,
        probabilities=probabilities,
        events=events,
        judge=judges.pop() if judges else "",
        labellers=tuple(sorted(labellers)),
        files={str(path): file_hash(path) for path in paths},
        both=_labelled_twice(votes),
    )


def known_labels(files: str | Path | Sequence[str | Path]) -> dict[str, tuple[str, str]]:
    """Return (label, labeller) of each answer that sheets have a label of, by its key.

    Of several labels of one answer the first is taken; empty ones are left out.
    """
    found: dict[str, tuple[str, str]] = {}
    keys: dict[str, dict[str, str]] = {}
    for path in _paths(files):
        for row in _rows(path):
            name = _id(row)
            code = _code(name)
            if code not in keys:
                keys[code] = _population(draw_of(code), {})
            label = _label(row)
            if label in ALLOWED and name in keys[code]:
                key = keys[code][name]
                found.setdefault(key, (label, row["labeller"].strip()))
    return found


def read_sheet(file: str | Path) -> pd.DataFrame:
    """Return a sheet as it is on disk, with every column that people added to it.

    Args:
        file: A sheet of `ftlab.evals.draw`.

    Returns:
        Its rows, whose index is the key of the answer, or "" where it was not drawn. The text in
        `label` is in the spelling of labels, allowed or not.

    Raises:
        UsageError: `no_labels`, `unknown_draw`.
    """
    import pandas as pd

    keys: dict[str, dict[str, str]] = {}
    rows = {}
    for row in _rows(Path(file)):
        name = _id(row)
        code = _code(name)
        if code not in keys:
            keys[code] = _population(draw_of(code), {})
        row["label"] = _label(row)
        row["labeller"] = row["labeller"].strip()
        rows.setdefault(name, row)
    index = [keys[_code(name)].get(name, "") for name in rows]
    return pd.DataFrame(
        list(rows.values()),
        index=index,
    )


def draw_of(code: str) -> Run:
    """Return the run of a draw from the beginning of its answers' ids.

    Raises:
        UsageError: `unknown_draw`; as `load`, where the draw was changed.
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
    return load(found[0])


def sheet_of(rows: list[dict[str, str]]) -> pd.DataFrame:
    """Return the rows of a sheet as a table with its columns."""
    import pandas as pd

    return pd.DataFrame(
        rows,
        columns=SHEET,
    )


def _paths(files: str | Path | Sequence[str | Path]) -> list[Path]:
    files = getattr(files, "path", files)  # a sheet as it was drawn
    if isinstance(files, (str, Path)):
        files = [files]
    if not isinstance(files, (list, tuple)):
        raise UsageError("no_labels", "labels are not a file. Give the sheet's file, or a list.")
    return [Path(file) for file in files]


def _code(name: str) -> str:
    """Return the draw that an answer's id names."""
    return name.rpartition("-")[0]


def _id(row: dict[str, str]) -> str:
    return row["answer_id"].strip().lstrip("'")


def _label(row: dict[str, str]) -> str:
    return row["label"].strip().lower().replace(" ", "_")


def _population(
    run: Run,
    probabilities: dict[str, float],
) -> dict[str, str]:
    """Return the key of every drawn answer by its id; note every answer's probability."""
    keys = {}
    for record in run.read(DRAW):
        key = record["key"]
        chance = record["probability"]
        if probabilities.setdefault(key, chance) != chance:
            raise _overlap("with other numbers")
        if "answer_id" in record:
            keys[record["answer_id"]] = key
    return keys


def _overlap(how: str) -> UsageError:
    return UsageError(
        "draws_overlap",
        f"The sheets are of several draws, made {how}. Give those of one of them; "
        "draw(..., known=FILE) takes over earlier labels.",
    )


def _rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a sheet, whatever its separator; empty ones are left out."""
    table = _table(file)
    needed = ["answer_id", "label", "labeller"]
    missing = [name for name in needed if name not in table]
    if missing:
        raise UsageError(
            "no_labels",
            f"{file} has no column {', '.join(missing)}. Fill in the sheet of ftlab.evals.draw.",
        )
    filled = []
    for row in table.to_dict("records"):
        if any(row[name].strip() for name in needed):
            filled.append(row)
    return filled


def _table(file: Path) -> pd.DataFrame:
    import pandas as pd

    reason = ""
    for encoding in ENCODINGS:
        try:
            with open(
                file,
                encoding=encoding,
            ) as text:
                header = text.readline()
            separator = max(SEPARATORS, key=header.count)
            return pd.read_csv(
                file,
                sep=separator,
                dtype=str,
                keep_default_na=False,
                encoding=encoding,
                index_col=False,
            )
        except FileNotFoundError:
            raise UsageError("no_labels", f"{file} does not exist.") from None
        except (ValueError, OSError) as error:
            reason = reason or safe(str(error), 200)
    raise UsageError("no_labels", f"{file} cannot be read as CSV: {reason}")


def _take(
    row: dict[str, str],
    given: Votes,
    where: str,
    problems: list[str],
) -> None:
    """Note the label of one row, or what is wrong with it."""
    name = _id(row)
    label = _label(row)
    who = row["labeller"].strip()
    if label and label not in ALLOWED:
        allowed = ", ".join(ALLOWED)
        problems.append(f"{where}: label {safe(label, 30)!r} is not one of {allowed}")
    elif label and not who:
        problems.append(f"{where}: no labeller; write a name or initials")
    elif given[name].get(who, label) != label:
        problems.append(f"{where}: {safe(who, 30)} gave two labels")
    given[name][who] = label


def _refuse_gaps(
    code: str,
    keys: dict[str, str],
    given: Votes,
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
        if _code(name) == code and name not in keys:
            problems.append(f"{safe(name, 40)}: was not drawn")


def _decided(
    name: str,
    labels: dict[str, str],
    problems: list[str],
) -> str:
    """Return the label that most people gave; "" where two have equal weight."""
    allowed = [label for label in labels.values() if label in ALLOWED]
    if not allowed:
        return ""
    (label, most), *others = Counter(allowed).most_common(2)
    if others and others[0][1] == most:
        said = ", ".join(f"{safe(who, 20)} {label}" for who, label in sorted(labels.items()))
        problems.append(f"{name}: {said}; let one more person decide, in a sheet of such rows")
        return ""
    return label


def _labelled_twice(votes: Votes) -> tuple[tuple[str, str], ...]:
    """Return the labels of two people, of every answer that has them.

    They are those who labelled most: one who decided where two differ is neither of them.
    """
    counts = Counter(who for labels in votes.values() for who in labels)

    def rank(who: str) -> tuple[int, str]:
        return -counts[who], who

    pairs = []
    for labels in votes.values():
        if len(labels) > 1:
            first, second = sorted(labels, key=rank)[:2]
            pairs.append((labels[first], labels[second]))
    return tuple(pairs)


def _wrong(problems: list[str]) -> DataError:
    listed = "\n".join(problems[:SHOWN])
    more = len(problems) - SHOWN
    if more > 0:
        listed += f"\nand {more} more"
    message = f"The labels cannot be used ({len(problems)} problems):\n{listed}"
    return DataError("wrong_labels", message, problems)
