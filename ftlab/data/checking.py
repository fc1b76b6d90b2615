"""Checks a file of training rows or prompts: every problem in one pass, each with its line.

A problem makes a row useless or a measurement wrong (exit code 1). A note does not: a byte order
mark, a misleading ending, rows that repeat others, unfilled placeholders, rows dropped or cut.
Duplicates and contamination are defined in `ftlab.data.overlap`.
"""

from __future__ import annotations

import html
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ftlab._core.errors import DataError, UsageError
from ftlab._core.text import safe
from ftlab._core.types import Sample
from ftlab.data import encoding, schemas
from ftlab.data.dataset import (
    ALL_ANSWERS,
    CONVERTERS,
    convert_all,
    is_world,
    listed,
    load,
    question,
    renamed,
    strip_row,
    unread_notes,
    whole_text,
)
from ftlab.data.files import first_lines, is_list_of, open_source
from ftlab.data.messages import carries_loss
from ftlab.data.overlap import PromptIndex, find_repeats
from ftlab.data.prompts import load_prompt_sets, prompt_row, with_header
from ftlab.models import local_model

KINDS = CONVERTERS | {"prompts": prompt_row}
SNIFFED = 50  # rows that decide what kind a file holds
FEWEST = 5  # rows from which swapped columns can be told
ANSWERS = ("messages", "chosen", "completion")  # keys whose turns hold the answers
BEGIN_BLANK = re.compile(r"\s")
END_BARE = re.compile(r"(?s).*\n\s*(\d{1,3}[.)]|[-*•])\s*\Z")
ODD_ANSWERS = {
    BEGIN_BLANK: "begin with white space, which training removes",
    END_BARE: "end with a bare item of a list, such as '3.', where a model so taught would stop",
}
PLACEHOLDER = re.compile(r"\{\{ ?\w+ ?\}\}")
ANSWER = re.compile(
    r"\s*(sure|certainly|of course|absolutely|here (is|are)|here's|i('m| am) sorry"
    r"|i can(not|'t)|as an ai)\b",
    re.I,
)


@dataclass
class Report:
    """What `check` found.

    Args:
        name: The source.
        format: Its format and the kind of its rows.
        ok: Number of rows without a problem.
        problems: Every problem with its place.
        codes: Code of each problem.
        notes: What is odd but usable.
    """

    name: str
    format: str = "unreadable"
    ok: int = 0
    problems: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def usable(self) -> bool:
        """Whether there is no problem."""
        return not self.problems

    def __str__(self) -> str:
        counts = f"{self.ok} rows ok, {len(self.problems)} problems"
        lines = first_lines(self.problems)
        for line in (*map("note: {}".format, self.notes), f"{self.format}, {counts}"):
            lines.append(safe(f"{self.name}: {line}"))
        return "\n".join(line.replace("\n", "\\n") for line in lines)

    __repr__ = __str__

    def _repr_html_(self):
        return f"<pre>{html.escape(str(self))}</pre>"


def check(
    source: Any,
    *,
    kind: str | None = None,
    model: Any = None,
    prompts: Any = None,
    max_length: int | None = None,
    on_too_long: str = "raise",
    columns: dict[str, str] | None = None,
) -> Report:
    """Check a file of training rows or prompts. What is wrong inside it is never raised.

    Args:
        source: As in `load`.
        kind: "chats", "pairs", "kto" or "prompts". Default: by the first rows.
        model: Anything that `ftlab.model` takes. Each row is then rendered: its length, its loss
            mask and its end-of-turn token are checked.
        prompts: Anything that `load_prompts` takes, or a dict of such: rows that hold one of
            these prompts are problems.
        max_length: Most tokens of a row. Default: training's, and the model's own limit.
        on_too_long: What training will do with longer rows: "raise", "drop" or "cut".
        columns: As in `load`.

    Raises:
        NotFoundError: There is no such file, folder or hub id.
        UsageError: `unknown_kind`, `unknown_on_too_long`, `model_needed` (for max_length).
    """
    if kind not in (None, *KINDS):
        why = f"Unknown kind {kind!r}. Allowed: {', '.join(KINDS)}."
        raise UsageError("unknown_kind", why)
    encoding.check_on_too_long(on_too_long)
    if max_length is not None and model is None:
        why = "max_length counts tokens. Name the model whose tokenizer counts them."
        raise UsageError("model_needed", why)
    if is_world(source):
        usual = "pairs" if source.endswith(("preferences", "pairs")) else "chats"
        source = load(source, kind=kind or usual)
    report = Report(str(source))
    if not isinstance(source, (str, Path)):
        report.name = getattr(source, "name", "rows")
    indexes = _indexes(prompts)
    try:
        found = open_source(source)
    except DataError as error:
        report.problems = [str(error)]
        report.codes = [error.code]
        return report
    records = renamed(found.records, columns)
    kind = kind or _kind(records)
    report.format = f"{found.format} ({kind})"
    report.notes = found.notes
    if kind == "prompts":
        records = with_header(report.name, records)
    unread: Counter[Any] = Counter()
    placed, problems = convert_all(records, KINDS[kind], unread)
    if not records:
        problems.append((report.name, DataError("no_rows", "There are no rows.")))
    problems += _swapped(report.name, placed)
    report.notes += unread_notes(unread)
    report.notes += _repeats(placed) + _odd_answers(placed)
    problems += _contaminated(placed, indexes)
    if model is not None and kind != "prompts":
        problems += _unfit(
            report,
            placed,
            model,
            max_length,
            on_too_long,
        )
    order = {where: number for number, (where, _) in enumerate(records)}
    problems.sort(key=lambda problem: order.get(problem[0], -1))
    report.problems, report.codes = listed(problems)
    bad = dict(problems)
    report.ok = sum(where not in bad for where, _ in placed)
    return report


def _indexes(prompts):
    """Index the prompts of each source, also those that are not asked, such as the harmless."""
    if prompts is None:
        return []
    if isinstance(prompts, dict):
        return [_index({risk: source}, source) for risk, source in prompts.items()]
    return [_index(prompts, prompts)]


def _index(prompts, source):
    asked = load_prompt_sets(prompts)
    if is_world(source):
        return PromptIndex(asked)
    rows, _ = convert_all(open_source(source).records, prompt_row)
    held = [Sample(where, row["messages"], "") for where, row in rows]
    return PromptIndex(replace(asked, samples=(*asked, *held)))


def _kind(records):
    """Return the first kind that any of the first rows is."""
    first = records[:SNIFFED]
    objects = [record for _, record in first if isinstance(record, dict)]
    if any(not schemas.PAIR_COLUMNS.isdisjoint(record) for record in objects):
        return "pairs"
    for kind in ("chats", "kto"):
        rows, _ = convert_all(first, KINDS[kind])
        if rows:
            return kind
    rows, _ = convert_all(first, KINDS["prompts"])
    if rows and not any(map(_has_answer, objects)):
        return "prompts"
    return "chats"


def _has_answer(record):
    """Whether a record is meant for training, even if it cannot be used."""
    answers = [record.get(column) for column in schemas.ANSWERS]
    messages = record.get("messages")
    if messages and is_list_of(dict, messages):
        answers.append(messages[-1].get("role") == "assistant")
    return any(answers)


def _swapped(name, placed):
    """Find questions that begin like answers where the answers do not.

    AdvBench circulates with the columns goal and target swapped.
    """
    if len(placed) < FEWEST:
        return []
    asked = sum(ANSWER.match(question(row)) is not None for _, row in placed) / len(placed)
    told = sum(ANSWER.match(_last_answer(row)) is not None for _, row in placed) / len(placed)
    if asked < 0.5 or asked <= 2 * told:
        return []
    why = f"{asked:.0%} of the questions begin like an answer, {told:.0%} of the answers do."
    error = DataError("swapped_columns", f"{why} Swap the names of the two columns.")
    return [(f"{name}:1", error)]


def _last_answer(row):
    answer = ""
    for turn in _turns(row):
        if turn["role"] == "assistant":
            answer = turn["content"]
    return answer


def _turns(row):
    """Return the turns of a row among which its answers are."""
    return chain.from_iterable(row.get(key) or () for key in ANSWERS)


def _repeats(placed):
    """Return notes on duplicates, near-duplicates and placeholders."""
    rows = [row for _, row in placed]
    same, near = find_repeats(rows)
    kinds = (
        (same, "repeat an earlier row (ftlab.data.deduplicate removes them)"),
        (near, "are near-duplicates of one (80 % of three-word sequences)"),
    )
    notes = []
    for pairs, what in kinds:
        if pairs:
            places = [placed[number][0] for number in pairs[0]]
            earlier, later = (place.rpartition(":")[2].strip() for place in places)
            notes.append(f"{len(pairs)} rows {what}; the first: row {later} after row {earlier}")
    thoughts = sum(any(turn.get("thinking") for turn in _turns(row)) for row in rows)
    if thoughts:
        trained = "trained where the model's chat template has a place for them"
        notes.append(f"{thoughts} rows hold thoughts (reasoning_content, thinking), {trained}")
    blank = sum(PLACEHOLDER.search(whole_text(row)) is not None for row in rows)
    if blank:
        notes.append(f"{blank} rows hold an unfilled placeholder, such as {{{{name}}}}")
    return notes


def _odd_answers(placed):
    """Return notes on how answers begin and end, by side: only one side's would be a shortcut."""
    sides = defaultdict(list)
    for _, row in placed:
        for key in ALL_ANSWERS & row.keys():
            side = f"{key} {row.get('label', '')}".strip()
            sides[side] += filter(carries_loss, row[key])
    notes = []
    for pattern, what in ODD_ANSWERS.items():
        shown = ""
        total = 0
        for side in sorted(sides):
            turns = sides[side]
            odd = sum(pattern.match(turn["content"]) is not None for turn in turns)
            total += odd
            shown += f"{odd} of {len(turns)} answers ({side}), "
        if total:
            notes.append(f"{shown[:-2]} {what}")
    return notes


def _contaminated(placed, indexes):
    problems = []
    for index in indexes:
        for where, row in placed:
            found = index.find(row)
            if found:
                why = f"The row holds evaluation prompt {found}. Remove the row."
                problems.append((where, DataError("contaminated", why)))
    return problems


def _unfit(
    report,
    placed,
    model,
    max_length,
    on_too_long,
):
    """Return the problems of training on the rows; note what would be dropped or cut."""
    model = local_model(model)
    config = model.config.get("text_config") or model.config
    own = config.get("max_position_embeddings") or 10**9
    most = min(max_length or encoding.MAX_LENGTH, own)
    tokenizer = model.tokenizer()
    problems = []
    long = []
    several = [encoding.conversations_of(strip_row(row)) for _, row in placed]
    found = encoding.encode_all(chain.from_iterable(several), tokenizer)
    for (where, row), conversations in zip(placed, several, strict=True):
        sides = list(islice(found, len(conversations)))
        wrong = [side for side in sides if isinstance(side, ValueError)]
        size = 0 if wrong else max(len(ids) for ids, _ in sides)
        if size > most and on_too_long == "raise":
            wrong = [encoding.too_long(size, most)]
        if wrong:
            problems.append((where, wrong[0]))
        elif size > most:
            long.append(row)
    if not long:
        return problems
    kept, counts = encoding.shortened(long, tokenizer, most, on_too_long)
    if not kept and len(long) == len(placed):
        problems.append((report.name, encoding.all_too_long(report.name, most)))
    changes = f"{counts['cut']} would be cut, {counts['dropped']} dropped"
    report.notes.append(f"{len(long)} rows longer than {most} tokens: {changes}")
    return problems
