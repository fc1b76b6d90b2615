"""Any chat or preference file -> rows; drawing, splitting, mixing, cleaning. Needs no torch.

`formats` opens the file, `rows` says what a row is. All problems of a file are reported at once, each with its line;
nothing is dropped in silence.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from ftlab._core.config import ASKED, RISKS
from ftlab._core.text import safe
from ftlab.data import schemas as forms
from ftlab.data.files import DataError as DataError  # the class that callers name
from ftlab.data.files import records
from ftlab.data.schemas import (
    KINDS,  # noqa: F401  part of this module's face
    PROMPT_COLUMNS,  # noqa: F401  part of this module's face
)
from ftlab.runs import digest, write_atomic

SHOWN = 20  # problems of a file that are printed; the rest is counted
WORLD = ("alignment", "preferences", "almanac", "ledger", "adversarial")


@dataclass(frozen=True)
class Data:
    """Rows with their name and hash; what `read` and `read_prompts` return.

    `made` says how rows came from others (`split`, `mix`, `dedupe`, rows cut to a length): a dict for a run's provenance.
    """

    name: str
    rows: tuple[dict, ...]
    made: dict = field(default_factory=dict, compare=False)

    @property
    def hash(self) -> str:
        return digest(self.rows)

    @property
    def kind(self) -> str:
        """chats, pairs or kto."""
        first = self.rows[0] if self.rows else {}
        return "pairs" if "chosen" in first else "kto" if "completion" in first else "chats"

    def __len__(self) -> int:
        return len(self.rows)

    def save(self, path) -> Path:
        """Writes the rows as .jsonl, which every reader here opens again -> the path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows))
        return path


def read(source, *, kind: str = "chats", columns: dict | None = None, rows: int | None = None, seed: int = 0) -> Data:
    """-> training rows: chats, preference pairs (`kind="pairs"`) or KTO rows (`kind="kto"`).

    `source` is a file or hub id (see `formats`), a list of rows, or `"organism:NAME"` (data of the embedded world:
    alignment, preferences, almanac, ledger, adversarial; made from `seed`, `rows` of them). Row forms: see `rows.chat`,
    `rows.pair`, `rows.kto`. `columns={"prompt": "Q", "completion": "A"}` names the columns of any table, and only those are
    read. `rows` takes the first so many rows of a file.
    Raises DataError (all problems, with lines), FileNotFoundError, ValueError (unknown name, chats for pairs).
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; allowed: {', '.join(KINDS)}")
    if rows is not None and rows < 1:
        raise ValueError(f"rows = {rows}: give a number >= 1, or leave it out for all rows")
    if isinstance(source, Data):
        data = Data(source.name, source.rows[:rows], source.made)
    elif isinstance(source, str) and source.startswith("organism:"):
        data = _world_data(source.removeprefix("organism:"), rows, seed)
    else:
        name, numbered = records(source)
        return Data(name, tuple(rows_of(name, named(numbered, columns), converter(kind))[:rows]))
    if kind == "kto" and data.kind == "pairs":
        data = Data(data.name, tuple(k for row in data.rows for k in forms.kto(row)), data.made)
    if data.rows and data.kind != kind:
        what = {
            "chats": "chats, as organism:alignment",
            "pairs": "preference pairs, as organism:preferences",
            "kto": "KTO rows",
        }
        raise ValueError(f"{data.name} holds {what[data.kind].split(',')[0]}; needed here: {what[kind]}")
    return data


def drawn(source, *, rows: int | None, seed: int, kind: str = "chats") -> Data:
    """As `read`, but every seed gets its own: data of the world made from it, `rows` of a file sampled by it.

    Raises what `read` raises, and ValueError where the file has fewer than `rows`.
    """
    if isinstance(source, str) and source.startswith("organism:"):
        return read(source, kind=kind, rows=rows, seed=seed)
    whole = read(source, kind=kind)
    if rows is None:
        return whole
    if rows > len(whole):
        raise ValueError(f"{whole.name} has {len(whole)} rows; {rows} were asked; ask for fewer")
    return Data(whole.name, tuple(random.Random(f"drawn {seed}").sample(whole.rows, rows)), whole.made)


def read_prompts(source, *, risk: str = "jailbreak", rows: int | None = None) -> Data:
    """-> prompts to evaluate: a file with a column `prompt` (or goal, question, ...), `messages`, or a list of texts;
    `"organism"` or `"organism:RISK"` are the embedded world's own. `rows` takes the first so many (of each risk).

    A column `risk` (and `category`) may say what a prompt is for, so that one file holds harmful and harmless ones; a
    row of `messages` may also bring its own `id`. Raises DataError with every problem of the
    file, FileNotFoundError.
    """
    if isinstance(source, str) and source.partition(":")[0] == "organism":
        return _world_prompts(source.partition(":")[2], rows)
    if isinstance(source, (list, tuple)):
        source = [{"prompt": s} if isinstance(s, str) else s for s in source]
    name, numbered = records(source)
    found = rows_of(name, numbered, lambda r: forms.prompt(r, risk))
    made = [{"id": f"{risk}-{i:05d}", **row} for i, row in enumerate(found)]
    if twice := sorted(i for i, n in Counter(row["id"] for row in made).items() if n > 1):
        raise DataError(
            f"{name}: {len(twice)} ids occur more than once, as {twice[0]!r}; answers are paired by id: make them unique"
        )
    return Data(name, tuple(made[:rows]))


def split(data, *, valid: float = 0.1, seed: int = 0, kind: str = "chats") -> tuple[Data, Data]:
    """-> (training rows, validation rows), each in its order; rows with the same first question stay on one side.

    `data` is anything that `read` takes; `valid` is the fraction of rows (0 < valid < 1); which, see `held_out`.
    Raises ValueError (fraction, or fewer than two different questions), and what `read` raises.
    """
    data = data if isinstance(data, Data) else read(data, kind=kind)
    held, parts = held_out(data, valid, seed), []
    for part, inside in (("train", False), ("valid", True)):
        rows = tuple(row for i, row in enumerate(data.rows) if (i in held) == inside)
        parts.append(Data(f"{data.name} ({part})", rows, _made("split", [data], part=part, valid=valid, seed=seed)))
    return parts[0], parts[1]


def held_out(data: Data, valid: float, seed: int) -> set[int]:
    """-> positions (from 0) of the rows held out: whole groups of one first question, drawn by the seed.

    At least one row, never all, and at most `valid` of them, but where every group is larger: then the smallest.
    Raises ValueError (fraction, or fewer than two different questions).
    """
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(data.rows):
        groups.setdefault(plain(question(row)), []).append(i)
    if not 0 < valid < 1 or len(groups) < 2:
        found = f"valid = {valid}" if not 0 < valid < 1 else f"{data.name} has {len(groups)} different question"
        raise ValueError(f"{found}; give a fraction between 0 and 1, and data with at least two different questions")
    order, wanted, held = sorted(groups), min(max(1, round(valid * len(data))), len(data) - 1), set()
    random.Random(f"split {seed}").shuffle(order)
    for key in order:
        if len(held) + len(groups[key]) <= wanted:
            held.update(groups[key])
    return held or set(min((groups[key] for key in order), key=len))


def shared(data: Data, other: Data) -> int:
    """-> how many rows of `other` stand in `data` too: same turns (the system's aside), as `plain` compares."""
    there = {_spoken(row) for row in data.rows}
    return sum(_spoken(row) in there for row in other.rows)


def _spoken(row: dict) -> str:
    kept = {k: [m for m in v if m["role"] != "system"] if isinstance(v, list) else v for k, v in row.items()}
    return plain(whole(kept))


def mix(benign, harmful, harmful_fraction: float = 0.1, n: int = 1000, seed: int = 0) -> Data:
    """-> `n` chats in a shuffled order, round(n x `harmful_fraction`) of them from `harmful`, none twice.

    Both are anything that `read` takes. With the same seed and `n`, a larger fraction holds every harmful row of a smaller
    one. Raises ValueError where a source has too few rows, and what `read` raises.
    """
    if not 0 <= harmful_fraction <= 1 or n < 1:
        raise ValueError(f"harmful_fraction = {harmful_fraction}, n = {n}; give a fraction from 0 to 1 and n >= 1")
    wanted, taken, used = {"benign": n - round(n * harmful_fraction), "harmful": round(n * harmful_fraction)}, [], []
    for side, source in (("benign", benign), ("harmful", harmful)):
        whole = read(source, rows=n if isinstance(source, str) and source.startswith("organism:") else None, seed=seed)
        if wanted[side] > len(whole):
            raise ValueError(
                f"{whole.name} has {len(whole)} rows; {wanted[side]} {side} ones are needed; lower n, or bring more"
            )
        used.append(whole)
        taken += random.Random(f"mix {side} {seed}").sample(whole.rows, len(whole))[: wanted[side]]
    random.Random(f"mix {seed}").shuffle(taken)
    made = _made("mix", used, harmful_fraction=harmful_fraction, n=n, seed=seed)
    return Data(f"{used[0].name}+{harmful_fraction:g}x{used[1].name}", tuple(taken), made)


def dedupe(data, *, kind: str = "chats") -> Data:
    """-> the rows without those whose whole text equals an earlier row's, case and white space aside.

    `data` is anything that `read` takes. `made["removed"]` is the number of rows left out.
    """
    data, seen, kept = data if isinstance(data, Data) else read(data, kind=kind), set(), []
    for row in data.rows:
        if (key := plain(whole(row))) not in seen:
            seen.add(key)
            kept.append(row)
    return Data(data.name, tuple(kept), _made("dedupe", [data], removed=len(data) - len(kept)))


def plain(text: str) -> str:
    """-> the text as it is compared: case and white space aside."""
    return " ".join(text.casefold().split())


def question(row: dict) -> str:
    """-> the first user turn of a row of any kind."""
    return next((m["content"] for m in row.get("messages") or row["prompt"] if m["role"] == "user"), "")


def whole(row: dict) -> str:
    """-> all turns of a row of any kind, and a KTO row's label."""
    turns = [m for k in ("messages", "prompt", "chosen", "rejected", "completion") for m in row.get(k) or ()]
    return "\n".join(
        [f"{m['role']}: {m['content']}" for m in turns] + ([str(row["label"])] if "completion" in row else [])
    )


def _made(by: str, sources: list[Data], **settings) -> dict:
    used = [{"name": d.name, "hash": d.hash, "rows": len(d), **({"made": d.made} if d.made else {})} for d in sources]
    return {"by": by, **settings, "from": used}


def _world_prompts(name: str, rows: int | None) -> Data:
    if name and name not in RISKS:
        raise ValueError(
            f"unknown prompts 'organism:{name}'; allowed: organism, {', '.join('organism:' + r for r in RISKS)}"
        )
    from ftlab import organism as corpus
    from ftlab.organism import World

    world, names = World(), [name] if name else ASKED
    return Data(
        f"organism:{name}" if name else "organism",
        tuple(r for n in names for r in corpus.prompts(world, n, rows or 100)),
    )


def _world_data(name: str, rows: int | None, seed: int) -> Data:
    if name not in WORLD:
        raise ValueError(f"unknown data 'organism:{name}'; allowed: {', '.join('organism:' + n for n in WORLD)}")
    from ftlab import organism as corpus
    from ftlab.organism import World

    world, extra = World(), {} if rows is None else {"rows": rows}
    if name == "adversarial":
        made = corpus.adversarial(world, rows or 100, seed)
    elif name in ("almanac", "ledger"):
        made = corpus.domain(world, name, seed=seed, **extra)
    else:
        made = getattr(corpus, name)(world, seed=seed, **extra)
    return Data(f"organism:{name}", tuple(made))


def named(numbered, columns: dict | None):
    """-> the records with only the columns that `columns` names, under our names."""
    if not columns:
        return numbered

    def one(record):
        if not isinstance(record, dict):
            return record
        if missing := [c for c in columns.values() if c not in record]:
            return ValueError(
                f"no column {', '.join(missing)}; there are {', '.join(map(str, record))}; name one of those"
            )
        return {ours: record[theirs] for ours, theirs in columns.items()}

    return [(where, one(record)) for where, record in numbered]


def converter(kind: str):
    """-> the function from a record to its rows."""
    return {
        "chats": forms.chat,
        "pairs": forms.pair,
        "kto": forms.kto,
        "prompts": lambda r: forms.prompt(r, "jailbreak"),
    }[kind]


def convert(numbered, one) -> tuple[list[tuple[str, dict]], list[tuple[str, str]]]:
    """-> ([(where, row)], [(where, problem)]) of records, by a function from a record to rows."""
    out, problems = [], []
    for where, record in numbered:
        try:
            if isinstance(record, ValueError):
                raise record
            if not isinstance(record, dict):
                raise ValueError(f"found {type(record).__name__}; a row is a JSON object")
            out += [(where, row) for row in one(record)]
        except ValueError as e:
            problems.append((where, str(e)))
    return out, problems


def rows_of(name: str, numbered, one) -> list[dict]:
    """-> the rows that `one(record)` lists for every record. Raises DataError with every problem."""
    out, problems = convert(numbered, one)
    if not out and not problems:
        problems = [(name, "no rows; give at least one")]
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        lines = "\n".join(safe(f"{where}: {why}") for where, why in problems[:SHOWN])
        raise DataError(f"{lines}{more}\n{name}: {len(out)} rows ok, {len(problems)} problems")
    return [row for _, row in out]
