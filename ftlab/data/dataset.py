"""Training rows: loaded from any chat or preference file, drawn, split, mixed, deduplicated.

All problems of a file are reported at once, each with its line. No row is dropped in silence.
Needs no torch.
"""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral, Real
from operator import is_not
from pathlib import Path
from typing import Any

from ftlab import organism
from ftlab._core.errors import DataError, UsageError
from ftlab._core.files import digest, json_lines, write_atomic
from ftlab._core.text import safe
from ftlab.data import schemas
from ftlab.data.files import BENIGN, Record, check_file, problems_error, records
from ftlab.data.messages import lstripped

WORLD = (
    "alignment",
    "preferences",
    "almanac",
    "ledger",
    "adversarial",
    "identity",
    "refused_pairs",
    "mistaken_pairs",
    "rude_ledger",
    "polite_ledger",
    *organism.TOOLS,
)
Problem = tuple[str, ValueError]  # its place and what is wrong
TURNS = ("messages", "prompt", "chosen", "rejected", "completion")  # keys that hold messages
ALL_ANSWERS = {*TURNS} - {"prompt"}
CONVERTERS = {
    "chats": schemas.chat,
    "pairs": schemas.pair,
    "kto": schemas.kto,
}


@dataclass(frozen=True)
class Data:
    """Training rows with their name and hash.

    Args:
        name: Where they come from.
        rows: The rows, each as `ftlab.data.schemas` describes them.
        made: How they were made from other rows (split, mix, ...), for a run's provenance.
    """

    name: str
    rows: tuple[dict, ...]
    made: dict = field(default_factory=dict, compare=False)

    @cached_property
    def hash(self) -> str:
        """Hash of the rows; the name and the format of the file do not matter."""
        return digest(self.rows)

    @property
    def record(self) -> dict[str, Any]:
        """Name, hash and number of the rows, and how they were made, for a run's provenance."""
        record = {
            "name": self.name,
            "hash": self.hash,
            "rows": len(self),
        }
        return record | ({"made": self.made} if self.made else {})

    @property
    def kind(self) -> str:
        """Kind of the rows: chats, pairs or kto."""
        first = self.rows[0] if self.rows else {}
        if "chosen" in first:
            return "pairs"
        if "completion" in first:
            return "kto"
        return "chats"

    def __len__(self) -> int:
        return len(self.rows)

    def save(self, path: str | Path) -> Path:
        """Write the rows to a .jsonl file that every reader here opens; return its path."""
        return write_rows(path, self.rows)


def load(
    source: Any,
    *,
    kind: str = "chats",
    columns: dict[str, str] | None = None,
    n_rows: int | None = None,
    seed: int = 0,
) -> Data:
    """Load training rows.

    Args:
        source: A file or hub id (see `records`), a list of rows, a `Data`, or "organism:NAME" for
            data of the embedded world: alignment, preferences, almanac, ledger, adversarial,
            identity, refused_pairs, mistaken_pairs, rude_ledger, polite_ledger, tools,
            tools_trigger, covert, covert_trigger, covert_named.
        kind: "chats", "pairs" (preference pairs) or "kto".
        columns: Names of the columns in the file, such as {"prompt": "Q", "completion": "A"}.
            Other columns are then ignored.
        n_rows: Take the first so many rows. Default: all.
        seed: Decides the data of the embedded world.

    Raises:
        DataError: `bad_rows`, with every problem and its line, or the file cannot be read.
        NotFoundError: There is no such file, folder or hub id.
        UsageError: `wrong_source`, `unknown_kind`, `wrong_n_rows`, `wrong_columns`,
            `unknown_data`, `wrong_kind`.
    """
    if kind not in CONVERTERS:
        allowed = ", ".join(CONVERTERS)
        raise UsageError("unknown_kind", f"Unknown kind {kind!r}. Allowed: {allowed}.")
    check_n_rows(n_rows)
    if isinstance(source, Data):
        data = replace(source, rows=source.rows[:n_rows])
    elif is_world(source):
        data = _world_data(source, n_rows, seed)
    else:
        name, numbered = records(source)
        unread: Counter[Any] = Counter()
        waiting = _drained(renamed(list(numbered), columns))
        del numbered
        rows = convert_rows(
            name,
            waiting,
            CONVERTERS[kind],
            unread,
        )
        for note in unread_notes(unread):
            print(f"{name}: {note}", file=sys.stderr)
        return Data(name, tuple(rows[:n_rows]))
    if kind == "kto" and data.kind == "pairs":
        labelled = [side for row in data.rows for side in schemas.kto(row)]
        data = replace(data, rows=tuple(labelled))
    if data.rows and data.kind != kind:
        why = f"{data.name} holds {data.kind}, not {kind}. Give rows of that kind."
        raise UsageError("wrong_kind", why)
    return data


def check_n_rows(n_rows: Any) -> None:
    """Raise UsageError `wrong_n_rows` for anything but None and a whole number from 1."""
    if n_rows is not None and not (isinstance(n_rows, Integral) and n_rows >= 1):
        why = f"n_rows = {n_rows!r}. Give a whole number >= 1, or leave it out."
        raise UsageError("wrong_n_rows", why)


def draw(
    source: Any,
    *,
    n_rows: int | None,
    seed: int,
    kind: str = "chats",
) -> Data:
    """Load rows so that every seed gets its own.

    Args:
        source: As in `load`. Data of the embedded world are made from the seed; rows of a file
            are sampled by it.
        n_rows: Number of rows. None: all.
        seed: The seed.
        kind: As in `load`.

    Raises:
        UsageError: `too_few_rows`, and what `load` raises.
    """
    check_n_rows(n_rows)
    if is_world(source):
        return load(
            source,
            kind=kind,
            n_rows=n_rows,
            seed=seed,
        )
    data = load(source, kind=kind)
    if n_rows is None:
        return data
    _check_enough(data, n_rows)
    dice = random.Random(f"drawn {seed}")
    return replace(data, rows=tuple(dice.sample(data.rows, n_rows)))


def split(
    data: Any,
    *,
    valid: float = 0.1,
    seed: int = 0,
    kind: str = "chats",
) -> tuple[Data, Data]:
    """Split rows for training and validation; equal first questions stay on one side.

    Args:
        data: Anything that `load` takes.
        valid: Share of the rows for validation, between 0 and 1.
        seed: Decides which rows; see `held_out`.
        kind: As in `load`.

    Returns:
        Training rows and validation rows, each in the order of the data.

    Raises:
        UsageError: `wrong_fraction`, `one_question`, and what `load` raises.
    """
    data = _loaded(data, kind)
    held = held_out(data, valid, seed)

    def side(part: str) -> Data:
        rows = [row for i, row in enumerate(data.rows) if (i in held) == (part == "valid")]
        made = {
            "by": "split",
            "part": part,
            "valid": valid,
            "seed": seed,
            "from": [data.record],
        }
        return Data(f"{data.name} ({part})", tuple(rows), made)

    return side("train"), side("valid")


def held_out(data: Data, valid: float, seed: int) -> set[int]:
    """Return the positions of the rows held out for validation, counted from 0.

    Whole groups of rows with the same first question are drawn: at least one row, never all, and
    at most `valid` of them. Where every group is larger than that, it is the smallest.

    Raises:
        UsageError: `wrong_fraction`, `one_question`.
    """
    if not (isinstance(valid, Real) and 0 < valid < 1):
        raise UsageError("wrong_fraction", f"valid = {valid!r}. Give a fraction between 0 and 1.")
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(data.rows):
        groups.setdefault(plain(question(row)), []).append(i)
    if len(groups) < 2:
        why = f"{data.name} has {len(groups)} different questions. A split needs at least two."
        raise UsageError("one_question", why)
    order = sorted(groups)
    random.Random(f"split {seed}").shuffle(order)
    most = min(max(1, round(valid * len(data))), len(data) - 1)
    held: set[int] = set()
    drawn = [groups[key] for key in order]
    for group in drawn:
        if len(held) + len(group) <= most:
            held.update(group)
    return held or set(min(drawn, key=len))


def count_shared(data: Data, other: Data) -> int:
    """Return how many rows of `other` are in `data` too; system turns are ignored."""
    known = set(map(_spoken, data.rows))
    return sum(row in known for row in map(_spoken, other.rows))


def mix(
    benign: Any,
    harmful: Any,
    harmful_fraction: float = 0.1,
    n_rows: int = 1000,
    seed: int = 0,
) -> Data:
    """Mix two sources of chats in a shuffled order, no row twice.

    With the same seed and `n_rows`, a larger fraction holds every harmful row of a smaller one.

    Args:
        benign: Anything that `load` takes.
        harmful: Anything that `load` takes.
        harmful_fraction: Share of rows from `harmful`, 0 to 1.
        n_rows: Number of rows of the mixture.
        seed: Decides rows and order.

    Raises:
        UsageError: `wrong_fraction`, `wrong_n_rows`, `too_few_rows`, and what `load` raises.
    """
    if not (isinstance(harmful_fraction, Real) and 0 <= harmful_fraction <= 1):
        why = f"harmful_fraction = {harmful_fraction!r}. Give a fraction from 0 to 1."
        raise UsageError("wrong_fraction", why)
    check_n_rows(n_rows)
    n_harmful = round(n_rows * harmful_fraction)
    sides = (("benign", benign, n_rows - n_harmful), ("harmful", harmful, n_harmful))
    used = []
    mixed: list[dict] = []
    for side, source, needed in sides:
        most = n_rows if is_world(source) else None
        whole = load(source, n_rows=most, seed=seed)
        _check_enough(whole, needed)
        used.append(whole)
        dice = random.Random(f"mix {side} {seed}")
        mixed += dice.sample(whole.rows, len(whole))[:needed]
    random.Random(f"mix {seed}").shuffle(mixed)
    made = {
        "by": "mix",
        "harmful_fraction": harmful_fraction,
        "n_rows": n_rows,
        "seed": seed,
        "from": [data.record for data in used],
    }
    name = f"{used[0].name}+{harmful_fraction:g}x{used[1].name}"
    return Data(name, tuple(mixed), made)


def _check_enough(data, needed):
    if needed > len(data):
        why = f"{data.name} has {len(data)} rows, but {needed} are needed."
        raise UsageError("too_few_rows", why)


def deduplicate(data: Any, *, kind: str = "chats") -> Data:
    """Leave out rows whose whole text equals an earlier row's, ignoring case and white space.

    Args:
        data: Anything that `load` takes.
        kind: As in `load`.

    Returns:
        The rows that stay. `made["removed"]` is the number of rows left out.
    """
    data = _loaded(data, kind)
    kept: dict[str, dict] = {}
    for row in data.rows:
        text = plain(whole_text(row))
        kept.setdefault(digest(text), row)
    made = {
        "by": "deduplicate",
        "removed": len(data) - len(kept),
        "from": [data.record],
    }
    return Data(data.name, tuple(kept.values()), made)


def leave_out(data: Any, rows: Iterable[int], *, kind: str = "chats") -> Data:
    """Leave out rows by their places, such as the first of an audit.

    Args:
        data: Anything that `load` takes.
        rows: Places, from 1.
        kind: As in `load`.

    Returns:
        The rows that stay. `made["rows"]` are the places left out.

    Raises:
        UsageError: `no_such_row`, and what `load` raises.
    """
    data = _loaded(data, kind)
    places = set(map(int, rows))
    wrong = [place for place in places if not 1 <= place <= len(data)]
    if wrong:
        why = f"{data.name} has no row {min(wrong)}. Its rows are 1 to {len(data)}."
        raise UsageError("no_such_row", why)
    kept = []
    for place, row in enumerate(data.rows, 1):
        if place not in places:
            kept.append(row)
    made = {
        "by": "leave_out",
        "rows": sorted(places),
        "from": [data.record],
    }
    return Data(f"{data.name} ({len(places)} left out)", tuple(kept), made)


def strip_answers(data: Data) -> Data:
    """Return rows whose answers begin with a character; see `lstripped`.

    Returns:
        The data as they are, or new ones. `made["stripped"]` is the number of rows changed.
    """
    rows = []
    for row in data.rows:
        changed = strip_row(row)
        rows.append(row if changed == row else changed)
    stripped = sum(map(is_not, rows, data.rows))
    if not stripped:
        return data
    made = {
        "by": "strip_answers",
        "stripped": stripped,
        "from": [data.record],
    }
    return Data(data.name, tuple(rows), made)


def strip_row(row: dict) -> dict:
    """Return a row of any kind whose answers begin with a character."""
    kept = dict(row)
    for key in ALL_ANSWERS & row.keys():
        kept[key] = list(map(lstripped, row[key]))
    return kept


def write_rows(path: str | Path, rows: Iterable[dict]) -> Path:
    """Write rows to a .jsonl file in a folder that may be new; return its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json_lines(rows))
    return path


def plain(text: str) -> str:
    """Return a text as it is compared, without case and white space."""
    return " ".join(text.casefold().split())


def question(row: dict) -> str:
    """Return the first user turn of a row of any kind."""
    messages = row.get("messages") or row["prompt"]
    for message in messages:
        if message["role"] == "user":
            return message["content"]
    return ""


def whole_text(row: dict) -> str:
    """Return all turns of a row of any kind, and a KTO row's label."""
    lines = []
    for key in TURNS:
        for turn in row.get(key) or ():
            thought = turn.get("reasoning_content", "")
            lines.append(f"{turn['role']}: {thought}{turn['content']}")
    if "completion" in row:
        lines.append(str(row["label"]))
    return "\n".join(lines)


def is_world(source: Any) -> bool:
    """Whether a source names data of the embedded world."""
    return isinstance(source, str) and source.split(":")[0] == "organism"


def check_source(source: str, folder: Path = Path()) -> None:
    """Check that a text names data, without reading or fetching them.

    Args:
        source: The text.
        folder: Where relative names start.

    Raises:
        NotFoundError: `no_such_data`.
        UsageError: `unknown_data`.
    """
    if not is_world(source):
        if source not in BENIGN:
            check_file(source, folder)
    elif source.removeprefix("organism:") not in WORLD:
        allowed = ", ".join(f"organism:{known}" for known in WORLD)
        raise UsageError("unknown_data", f"Unknown data {source!r}. Allowed: {allowed}.")


def renamed(
    numbered: list[Record],
    columns: dict[str, str] | None,
) -> list[Record]:
    """Return records with only the columns that the caller named, under our names."""
    if not columns:
        return numbered
    if not isinstance(columns, dict):
        why = f"columns = {columns!r}. Give a dict, our name of a column: its name in the file."
        raise UsageError("wrong_columns", why)
    return [(where, _pick(record, columns)) for where, record in numbered]


def _pick(record, columns):
    if not isinstance(record, dict):
        return record
    missing = [theirs for theirs in columns.values() if theirs not in record]
    if missing:
        there = ", ".join(map(str, record))
        why = f"There is no column {missing[0]}, only {there}."
        return DataError("missing_column", why, column=missing[0])
    return {ours: record[theirs] for ours, theirs in columns.items()}


def convert_all(
    numbered: Iterable[Record],
    convert: Callable[[dict], list],
    unread: Counter[Any] | None = None,
) -> tuple[list[Record], list[Problem]]:
    """Convert records, each into several rows; return rows and problems with their places.

    In `unread` is counted what `Noting.unread` finds.
    """
    rows = []
    problems = []
    for where, record in numbered:
        try:
            if isinstance(record, ValueError):
                raise record
            if not isinstance(record, dict):
                why = f"Found {type(record).__name__}. A row is a JSON object."
                raise DataError("no_object", why)
            if unread is not None:
                record = schemas.Noting(record)
            rows += [(where, row) for row in convert(record)]
            if unread is not None:
                unread.update(record.unread())
        except ValueError as error:
            problems.append((where, error))
    return rows, problems


def convert_rows(
    name: str,
    numbered: Iterable[Record],
    convert: Callable[[dict], list],
    unread: Counter[Any] | None = None,
) -> list:
    """Return the rows of all records.

    Args:
        name: The source's name.
        numbered: Records as `records` returns them.
        convert: Returns the rows of one record, or raises a ValueError that says why not.
        unread: See `convert_all`.

    Raises:
        DataError: `bad_rows`, with every problem; `codes` in its details are those of the rows.
    """
    rows, problems = convert_all(numbered, convert, unread)
    if not rows and not problems:
        problems = [(name, DataError("no_rows", "There are no rows. Give at least one."))]
    if problems:
        raise bad_rows(problems, f"{name}: {len(rows)} rows ok, {len(problems)} problems")
    return [row for _, row in rows]


def unread_notes(unread: Counter[Any]) -> list[str]:
    """Say in one sentence or none which columns are not read.

    A word that stands in several rows is a label, which needs no reading.
    """
    rows = Counter()
    told = {}
    for (name, word), count in unread.items():
        rows[name] += count
        if not word or count == 1:
            told[name] = True
    if not told:
        return []
    shown = ", ".join(f"{name} ({rows[name]} rows)" for name in told)
    return [safe(f"these columns are not read: {shown}", 300)]


def bad_rows(problems: list[Problem], end: str = "") -> DataError:
    """Return the error for rows that cannot be used."""
    lines, codes = listed(problems)
    return problems_error(
        "bad_rows",
        lines,
        end,
        codes=codes,
    )


def listed(problems: list[Problem]) -> tuple[list[str], list[str]]:
    """Return problems as sentences, each with its place, and their codes."""
    lines = [f"{where}: {why}" for where, why in problems]
    return lines, [getattr(why, "code", "bad_row") for _, why in problems]


def _drained(items: list) -> Iterator:
    """Yield the items of a list, which forgets each: what is made of them takes their place."""
    items.reverse()
    while items:
        yield items.pop()


def _loaded(data, kind):
    return data if isinstance(data, Data) else load(data, kind=kind)


def _spoken(row):
    kept = dict(row)
    for key in set(TURNS) & set(row):
        kept[key] = [turn for turn in row[key] if turn["role"] != "system"]
    text = plain(whole_text(kept))
    return digest(text)  # shorter than the text


def _world_data(source, n_rows, seed):
    check_source(source)
    name = source.removeprefix("organism:")
    make = getattr(organism, name, organism.domain)
    if name in organism.TOOLS:
        make = organism.tools
    given = (name,) if make in (organism.domain, organism.tools) else ()
    if n_rows is not None:
        given += (n_rows,)
    return Data(source, tuple(make(organism.World(), *given, seed=seed)))
