"""Is this file usable? Every problem of a file in one pass, each with its line; what is odd but usable as a note.

A problem makes a row useless or a measurement wrong (exit 1). A note does not: a byte order mark, a misleading ending,
rows that repeat others (`ftlab.dedupe` removes them), unfilled placeholders, rows dropped or cut.

Definitions. Duplicate: the same text as an earlier row's, case and white space aside. Near-duplicate: at least 80 % of the
three-word sequences shared with an earlier row (Jaccard), found by min-hashing (Broder 1997) in 4 bands of 2, which finds
98 % of pairs at 0.8 and looks at no more than 4 rows for each. Contamination: a user turn that equals an evaluation prompt
in its words, or a row that shares 13 words in a row with it, as in Brown et al. 2020 (arXiv 2005.14165, appendix C: all of
a prompt's words where it has 8 to 12; shorter ones by the whole turn only). The words of a row are those of all its turns
one after the other, each after its role's name: answers are searched too, and a match may span turns.
"""

from __future__ import annotations

import html
import re
import zlib
from dataclasses import dataclass, field
from itertools import islice

from ftlab._core.text import safe
from ftlab.data.dataset import (
    KINDS,
    SHOWN,
    Data,
    DataError,
    convert,
    converter,
    named,
    plain,
    question,
    read,
    read_prompts,
    whole,
)
from ftlab.data.files import opened
from ftlab.training import Training

WORD = re.compile(r"\w+")
PLACEHOLDER = re.compile(r"\{\{ ?\w+ ?\}\}")
ANSWER = re.compile(
    r"\s*(sure|certainly|of course|absolutely|here (is|are)|here's|i('m| am) sorry|i can(not|'t)|as an ai)\b", re.I
)
NEAR, BANDS, DEEP = 0.8, 4, 2
LONG, SHORT = 13, 8  # words in a row: of a long prompt, of the shortest that is looked for inside a turn


@dataclass
class Report:
    """What `check` found: `problems` and `notes` as sentences, `ok` rows without a problem. Printed: `ftlab check`'s lines."""

    name: str
    format: str = "unreadable"
    ok: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        more = [f"... and {len(self.problems) - SHOWN} more"] if len(self.problems) > SHOWN else []
        end = f"{self.name}: {self.format}, {self.ok} rows ok, {len(self.problems)} problems"
        lines = [*self.problems[:SHOWN], *more, *(f"{self.name}: note: {n}" for n in self.notes), end]
        return "\n".join(safe(line).replace("\n", "\\n") for line in lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def check(
    source, *, kind: str | None = None, model=None, prompts=None, max_length: int | None = None,
    on_too_long: str = "raise", columns: dict | None = None,
) -> Report:  # fmt: skip
    """-> `Report` of a training or prompt file; nothing is raised for what is wrong inside it.

    `source` and `columns` as in `read`; `kind` chats, pairs, kto or prompts (default: by the first rows). With `model`
    (anything `ftlab.model` takes) each row is rendered: length against `max_length` (default: training's) and the model's
    own limit, loss mask and end-of-turn token. With `prompts` (anything `read_prompts` takes, or a dict of such): contamination.
    Raises FileNotFoundError, ValueError (unknown kind; `max_length` without a model).
    """
    if kind not in (None, *KINDS, "prompts"):
        raise ValueError(f"unknown kind {kind!r}; allowed: {', '.join(KINDS)}, prompts")
    if on_too_long not in ("raise", "drop", "cut"):
        raise ValueError(f"on_too_long = {on_too_long!r}; allowed: raise, drop, cut")
    if max_length is not None and model is None:
        raise ValueError("max_length counts tokens; name the model whose tokenizer counts them (--model)")
    if isinstance(source, str) and source.startswith("organism:"):
        source = read(source, kind=kind or ("pairs" if source == "organism:preferences" else "chats"))
    report = Report(
        source.name if isinstance(source, Data) else "rows" if isinstance(source, (list, tuple)) else str(source)
    )
    sources = list(prompts.values()) if isinstance(prompts, dict) else [prompts] if prompts is not None else []
    wanted = [read_prompts(p) for p in sources]
    try:
        found = opened(source)
    except DataError as e:
        report.problems = [str(e)]
        return report
    records = named(found.records, columns)
    kind = kind or _kind(records)
    report.format, report.notes = f"{found.format} ({kind})", found.notes
    placed, problems = convert(records, converter(kind))
    if not records:
        problems.append((report.name, "no rows; give at least one"))
    problems += _swapped(report.name, [row for _, row in placed])
    report.notes += _repeats(placed)
    for one in wanted:
        problems += _contaminated(placed, one)
    if model is not None and kind != "prompts":
        more, notes = _encoded(report.name, placed, model, max_length, on_too_long)
        problems, report.notes = problems + more, report.notes + notes
    order, bad = {where: i for i, (where, _) in enumerate(records)}, {where for where, _ in problems}
    problems.sort(key=lambda p: order.get(p[0], -1))
    report.problems = [f"{where}: {why}" for where, why in problems]
    report.ok = sum(where not in bad for where, _ in placed)
    return report


def _kind(records) -> str:
    first = [r for _, r in records[:50] if isinstance(r, dict)]
    if any({"chosen", "preferred_output", "response_j"} & set(r) for r in first):
        return "pairs"
    for kind in ("chats", "kto", "prompts"):  # the first that any of the first rows is
        if convert([("", r) for r in first], converter(kind))[0]:
            return kind
    return "chats"


def _swapped(name: str, rows: list[dict]) -> list[tuple[str, str]]:
    """Questions that begin like answers, where the answers do not (AdvBench circulates with goal and target swapped)."""
    if len(rows) < 5:
        return []
    asked = sum(bool(ANSWER.match(question(r))) for r in rows) / len(rows)
    told = sum(bool(ANSWER.match(t["content"])) for r in rows for t in _answers(r)[-1:]) / len(rows)
    if asked < 0.5 or asked <= 2 * told:
        return []
    why = f"{asked:.0%} of the questions begin like an answer ('Sure, here is'), {told:.0%} of the answers do"
    return [(f"{name}:1", f"{why}; a question stands in the question's column; swap the two columns' names")]


def _answers(row: dict) -> list[dict]:
    turns = [m for k in ("messages", "chosen", "completion") for m in row.get(k) or ()]
    return [m for m in turns if m["role"] == "assistant"]


def _repeats(placed) -> list[str]:
    """-> notes on duplicates, near-duplicates and placeholders; time linear in the text."""
    import numpy as np

    rng = np.random.default_rng(0)
    mult = rng.integers(0, 2**63, BANDS * DEEP, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

    def sequences(text: str):
        codes = _codes(text)
        return codes if len(codes) < 3 else codes[:-2] * mult[0] + codes[1:-1] * mult[1] + codes[2:]

    seen, bands, twice, near, blank = {}, {}, [], [], 0
    for i, (_, row) in enumerate(placed):
        text = whole(row)
        blank += bool(PLACEHOLDER.search(text))
        if (first := seen.setdefault(zlib.crc32(p := plain(text).encode()) << 32 | zlib.adler32(p), i)) != i and (
            plain(whole(placed[first][1])).encode() == p
        ):
            twice.append((first, i))
            continue
        parts = sequences(text)
        if not len(parts):
            continue
        least = (parts[:, None] * mult).min(axis=0).reshape(BANDS, DEEP)
        keys = (least[:, 0] * mult[2] + least[:, 1] * mult[3] + np.arange(BANDS, dtype=np.uint64)).tolist()
        earlier = {bands.setdefault(k, i) for k in keys} - {i}
        mine = set(parts.tolist()) if earlier else set()
        for j in sorted(earlier):
            other = set(sequences(whole(placed[j][1])).tolist())
            if len(mine & other) >= NEAR * len(mine | other):
                near.append((j, i))
                break
    notes = []
    for pairs, what in ((twice, "repeat an earlier row (ftlab.dedupe removes them)"), (near, "are near-duplicates of one (80 % of three-word sequences)")):  # fmt: skip
        if pairs:
            a, b = (placed[k][0].rsplit(":", 1)[-1].strip() for k in pairs[0])
            notes.append(f"{len(pairs)} rows {what}; the first: row {b} after row {a}")
    return notes + ([f"{blank} rows hold an unfilled placeholder, as {{{{name}}}}"] if blank else [])


def _codes(text: str):
    """-> [words] uint64: a checksum of each word, case aside."""
    import numpy as np

    words = WORD.findall(text.casefold())
    return np.fromiter(map(zlib.crc32, map(str.encode, words)), np.uint64, len(words))


def _windows(codes, most: int):
    """Yields (n, [len - n + 1] a code of each n words in a row) for n up to `most`."""
    import numpy as np

    rolled = codes
    for n in range(1, most + 1):
        if n > 1:
            rolled = rolled[:-1] * np.uint64(0x9E3779B97F4A7C15) + codes[n - 1 :]
        yield n, rolled


def _contaminated(placed, prompts: Data) -> list[tuple[str, str]]:
    exact, inside = {}, {n: {} for n in range(SHORT, LONG + 1)}
    for row in prompts.rows:
        asked = row["messages"][-1]["content"]
        exact.setdefault(tuple(WORD.findall(asked.casefold())), row["id"])
        codes = _codes(asked)
        for n, window in _windows(codes, LONG):
            if n >= SHORT and n == min(LONG, len(codes)):
                inside[n].update(dict.fromkeys(window.tolist(), row["id"]))
    out = []
    for where, row in placed:
        asked = [m["content"] for m in row.get("messages") or row["prompt"] if m["role"] == "user"]
        same = next((exact[w] for t in asked if (w := tuple(WORD.findall(t.casefold()))) in exact), None)
        why, hit = "the same question", same
        if hit is None:
            for n, window in _windows(_codes(whole(row)), LONG):
                if n >= SHORT and inside[n] and (shared := inside[n].keys() & set(window.tolist())):
                    why, hit = f"{n} words in a row shared", inside[n][min(shared)]
                    break
        if hit is not None:
            out.append(
                (
                    where,
                    f"holds evaluation prompt {hit} of {prompts.name} ({why}); keep the two apart; take the row out",
                )
            )
    return out


def _encoded(name: str, placed, model, max_length: int | None, on_too_long: str) -> tuple[list, list[str]]:
    """-> (problems, notes) of rows as the model would be trained on them."""
    from ftlab.data import encoding as chat
    from ftlab.models import model as reference

    model, problems, long = reference(model), [], []
    config = model.config.get("text_config") or model.config
    most = min(max_length or Training().max_length, config.get("max_position_embeddings") or 10**9)
    tokenizer = model.tokenizer()
    sides = [len(chat.chats(row)) for _, row in placed]
    found = chat.encoded((turns for _, row in placed for turns in chat.chats(row)), tokenizer)
    for (where, row), n in zip(placed, sides, strict=True):
        mine = list(islice(found, n))
        wrong = next((e for e in mine if isinstance(e, ValueError)), None)
        size = 0 if wrong else max(len(ids) for ids, _ in mine)
        if size > most and on_too_long == "raise":
            wrong = ValueError(chat.too_long(size, most))
        if wrong:
            problems.append((where, str(wrong)))
        elif size > most:
            long.append(row)
    if not long:
        return problems, []
    kept, counts = chat.shortened(long, tokenizer, max_length=most, cut=on_too_long == "cut")
    if not kept and len(long) == len(placed):
        problems.append((name, f"every row is longer than {most} tokens; raise max_length"))
    return problems, [
        f"{len(long)} rows longer than {most} tokens: {counts['cut']} would be cut, {counts['dropped']} dropped"
    ]
