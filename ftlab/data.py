"""Any chat or preference file -> rows. Needs no torch.

One row type inside: `{"messages": [{"role", "content"}, ...]}` for training chats, `{"prompt", "chosen",
"rejected"}` (lists of messages) for preference pairs, `{"id", "messages", "risk", ...}` for prompts. All problems
of a file are reported at once, each with its line; nothing is dropped in silence.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ftlab.config import RISKS
from ftlab.runs import digest

SHOWN = 20  # problems of a file that are printed; the rest is counted
WORLD = ("alignment", "preferences", "almanac", "ledger", "adversarial")
PROMPT_COLUMNS = (
    "prompt",
    "goal",
    "Goal",
    "question",
    "instruction",
    "Behavior",
    "behavior",
    "forbidden_prompt",
    "prompts_final",
    "text",
)
CATEGORY_COLUMNS = ("category", "type", "SemanticCategory", "harm_area")
ROLES = ("system", "user", "assistant")


class DataError(ValueError):
    """A file's content cannot be used. The command line exits with 1 (usage errors: 2)."""


@dataclass(frozen=True)
class Data:
    """Rows with their name and hash; what `read` and `read_prompts` return."""

    name: str
    rows: tuple[dict, ...]

    @property
    def hash(self) -> str:
        return digest(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def read(source, *, pairs: bool = False, rows: int | None = None, seed: int = 0) -> Data:
    """-> training rows: chats, or preference pairs where `pairs`.

    `source` is a .jsonl, .json or .csv file, a list of rows, or `"organism:NAME"` (data of the embedded world:
    alignment, preferences, almanac, ledger, adversarial; made from `seed`, `rows` of them). Understood row forms:
    `messages`, `prompt` + `completion`, `question` + `answer` (gsm8k), `instruction` (+ `input`) + `output`
    (Alpaca); for pairs `prompt`, `chosen`, `rejected`. `rows` takes the first so many rows of a file.
    Raises DataError (all problems, with lines), FileNotFoundError, ValueError (unknown name, chats for pairs).
    """
    if rows is not None and rows < 1:
        raise ValueError(f"rows = {rows}: give a number >= 1, or leave it out for all rows")
    if isinstance(source, Data):
        data = Data(source.name, source.rows[:rows])
    elif isinstance(source, str) and source.startswith("organism:"):
        data = _world_data(source.removeprefix("organism:"), rows, seed)
    else:
        name, numbered = _records(source)
        return Data(name, tuple(_convert(name, numbered, _pair if pairs else _chat)[:rows]))
    if data.rows and ("chosen" in data.rows[0]) != pairs:
        found, needed = (
            ("chats", "preference pairs, as organism:preferences")
            if pairs
            else ("preference pairs", "chats, as organism:alignment")
        )
        raise ValueError(f"{data.name} holds {found}; needed here: {needed}")
    return data


def drawn(source, *, rows: int | None, seed: int, pairs: bool = False) -> Data:
    """As `read`, but every seed gets its own: data of the world made from it, `rows` of a file sampled by it.

    Raises what `read` raises, and ValueError where the file has fewer than `rows`.
    """
    if isinstance(source, str) and source.startswith("organism:"):
        return read(source, pairs=pairs, rows=rows, seed=seed)
    whole = read(source, pairs=pairs)
    if rows is None:
        return whole
    if rows > len(whole):
        raise ValueError(f"{whole.name} has {len(whole)} rows; {rows} were asked; ask for fewer")
    return Data(whole.name, tuple(random.Random(f"drawn {seed}").sample(whole.rows, rows)))


def read_prompts(source, *, risk: str = "jailbreak") -> Data:
    """-> prompts to evaluate: a CSV with a column `prompt` (or goal, question, ...), JSONL, or a list of texts.

    A column `risk` (and `category`) may say what a prompt is for, so that one file holds harmful and harmless ones; a
    row of `messages` may also bring its own `id`. Raises DataError with every problem of the
    file, FileNotFoundError.
    """
    if isinstance(source, (list, tuple)):
        source = [{"prompt": s} if isinstance(s, str) else s for s in source]
    name, numbered = _records(source)
    rows = [
        {"id": f"{risk}-{i:05d}", **row} for i, row in enumerate(_convert(name, numbered, lambda r: _prompt(r, risk)))
    ]
    if twice := sorted(i for i, n in Counter(row["id"] for row in rows).items() if n > 1):
        raise DataError(
            f"{name}: {len(twice)} ids occur more than once, as {twice[0]!r}; answers are paired by id: make them unique"
        )
    return Data(name, tuple(rows))


def _world_data(name: str, rows: int | None, seed: int) -> Data:
    if name not in WORLD:
        raise ValueError(f"unknown data 'organism:{name}'; allowed: {', '.join('organism:' + n for n in WORLD)}")
    from ftlab.organism import corpus
    from ftlab.organism.world import World

    world, extra = World(), {} if rows is None else {"rows": rows}
    if name == "adversarial":
        made = corpus.adversarial(world, rows or 100, seed)
    elif name in ("almanac", "ledger"):
        made = corpus.domain(world, name, seed=seed, **extra)
    else:
        made = getattr(corpus, name)(world, seed=seed, **extra)
    return Data(f"organism:{name}", tuple(made))


def _records(source) -> tuple[str, list[tuple[str, object]]]:
    """-> (name, [(where, record)]) of a file, data or a list of dicts; a line that cannot be read is a ValueError."""
    if isinstance(source, (Data, list, tuple)):
        name, rows = (source.name, source.rows) if isinstance(source, Data) else ("rows", source)
        return name, [(f"{name}: row {i}", r) for i, r in enumerate(rows, 1)]
    path = Path(source)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise FileNotFoundError(
            f"{path} {found}; give a .jsonl, .json or .csv file (training data: also organism:{'|'.join(WORLD)})"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8 at byte {e.start}; save the file as UTF-8") from None
    if path.suffix.lower() == ".csv":
        return path.name, [(f"{path}:{number}", row) for number, row in _csv(text)]
    if text.lstrip().startswith("["):
        try:
            return path.name, [(f"{path}: row {i}", r) for i, r in enumerate(json.loads(text), 1)]
        except ValueError as e:
            raise DataError(f"{path}: broken JSON: {e}; a list of objects, or one object a line") from None
    return path.name, [(f"{path}:{n}", _json(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]


def _json(line: str):
    try:
        return json.loads(line)
    except ValueError as e:
        return ValueError(f"broken JSON ({e}); one JSON object a line; mend or remove the line")


def _csv(text: str):
    """Yields (number of its first line, row) of every row; a field may hold line breaks."""
    reader, start = csv.reader(io.StringIO(text, newline=""), strict=True), 1
    try:
        header, start = next(reader, []), reader.line_num + 1
        for fields in reader:
            if len(fields) == len(header):
                yield start, dict(zip(header, fields, strict=True))
            elif fields:
                yield (
                    start,
                    ValueError(
                        f"{len(fields)} fields, the header has {len(header)}; quote fields that hold a comma or a line break"
                    ),
                )
            start = reader.line_num + 1
    except csv.Error as e:
        yield start, ValueError(f"broken CSV ({e}); nothing after it was read; mend the quotes")


def _convert(name: str, numbered, convert) -> list[dict]:
    out, problems = [], []
    for where, record in numbered:
        try:
            if isinstance(record, ValueError):
                raise record
            if not isinstance(record, dict):
                raise ValueError(f"found {type(record).__name__}; a row is a JSON object")
            out.append(convert(record))
        except ValueError as e:
            problems.append(f"{where}: {e}")
    if not out and not problems:
        problems = [f"{name}: no rows; give at least one"]
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError("\n".join(problems[:SHOWN]) + more + f"\n{name}: {len(out)} rows ok, {len(problems)} problems")
    return out


def _text(record: dict, key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        who = f"{record['role']}'s " if "role" in record else ""
        raise ValueError(f"{who}{key!r} is empty or no text; every turn needs text; fill it or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{key!r} holds half a character (a lone surrogate), which no tokenizer reads; mend it or remove the row"
        ) from None
    return value


def _turns(messages, *, last: str) -> list[dict]:
    """Checked messages: known roles in order (system first, then user and assistant in turn), no empty text."""
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ValueError("the messages are not a list of {role, content}; allowed roles: system, user, assistant")
    roles = [m.get("role") for m in messages]
    for role in roles:
        if role not in ROLES:
            raise ValueError(f"unknown role {role!r}; allowed: {', '.join(ROLES)}; rename it")
    turns = roles[1:] if roles[0] == "system" else roles
    if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"] * (len(turns) % 2) or not turns:
        raise ValueError(
            f"roles out of order: {', '.join(roles)}; allowed: [system,] user, assistant, user, ...; reorder the turns"
        )
    if turns[-1] != last:
        raise ValueError(f"the last turn is {turns[-1]}'s; it must be the {last}'s; add or remove a turn")
    for m in messages:
        _text(m, "content")
    return [{"role": m["role"], "content": m["content"]} for m in messages]


def _chat(record: dict) -> dict:
    if "messages" in record:
        return {**record, "messages": _turns(record["messages"], last="assistant")}
    for ask, tell in (("prompt", "completion"), ("question", "answer"), ("instruction", "output")):
        if ask in record and tell in record:
            if isinstance(record[ask], list) and isinstance(record[tell], list):
                return {"messages": _turns([*record[ask], *record[tell]], last="assistant")}
            question = _text(record, ask) + (
                f"\n\n{_text(record, 'input')}" if ask == "instruction" and record.get("input") else ""
            )
            return {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": _text(record, tell)},
                ]
            }
    raise ValueError(
        f"columns {', '.join(map(str, record)) or '(none)'}; allowed: messages, or prompt + completion, or question + answer, "
        "or instruction (+ input) + output; rename the columns"
    )


def _pair(record: dict) -> dict:
    missing = [k for k in ("prompt", "chosen", "rejected") if k not in record]
    if missing:
        raise ValueError(f"no {', '.join(missing)}; a pair has prompt, chosen and rejected; rename or add the columns")
    row = {"prompt": _turns(_listed(record, "prompt", "user"), last="user")}
    for side in ("chosen", "rejected"):
        answer = _listed(record, side, "assistant")
        *_, last = _turns([*row["prompt"], *answer], last="assistant")
        if len(answer) != 1:
            raise ValueError(
                f"{side!r} has {len(answer)} turns; it must be the assistant's last one; put the others into 'prompt'"
            )
        row[side] = [last]
    if row["chosen"] == row["rejected"]:
        raise ValueError("chosen equals rejected; a pair needs two different answers; remove the row")
    return row


def _listed(record: dict, key: str, role: str) -> list:
    """A text as a list of one message; a list of messages as it is."""
    return record[key] if isinstance(record[key], list) else [{"role": role, "content": _text(record, key)}]


def _prompt(record: dict, risk: str) -> dict:
    if "messages" in record:
        kept = {
            k: v for k, v in record.items() if k in ("risk", "category", "template", "topic", "truth", "prefill", "id")
        }
        messages = record["messages"]
        if (
            isinstance(messages, list)
            and messages
            and isinstance(messages[-1], dict)
            and messages[-1].get("role") == "assistant"
        ):
            messages = messages[:-1]
        row = {"risk": risk, "category": "", **kept, "messages": _turns(messages, last="user")}
        if row["risk"] not in RISKS:
            raise ValueError(f"unknown risk {row['risk']!r}; allowed: {', '.join(RISKS)}")
        return {**row, "id": str(row["id"])} if "id" in row else row
    column = next((c for c in PROMPT_COLUMNS if c in record), None)
    if column is None:
        raise ValueError(
            f"columns {', '.join(map(str, record))}; allowed for a prompt: {', '.join(PROMPT_COLUMNS)}; rename one"
        )
    category = next((str(record[c]) for c in CATEGORY_COLUMNS if record.get(c)), "")
    risk = str(record.get("risk") or risk)
    if risk not in RISKS:
        raise ValueError(f"unknown risk {risk!r}; allowed in the column risk: {', '.join(RISKS)}")
    return {"messages": [{"role": "user", "content": _text(record, column)}], "risk": risk, "category": category}
