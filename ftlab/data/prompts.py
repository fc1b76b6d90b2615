"""Prompt sets: files of prompts, and the sets of the field, as samples. Needs no torch.

`load_prompts` reads a user's own file and numbers its prompts. `read_samples` and
`sample_from_record` are what the risks read the field's sets with: a set's own id is kept where it
has one, and otherwise comes from the text without outer white space, so that copies of a set that
differ in line ends or trailing blanks give the same ids.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ftlab._core import plugins
from ftlab._core.errors import DataError
from ftlab._core.files import digest
from ftlab._core.types import Sample
from ftlab.data.dataset import check_n_rows, convert_rows, is_world, write_rows
from ftlab.data.files import Record, is_list_of, open_source, records
from ftlab.data.formats import ENDINGS
from ftlab.data.messages import checked, text_in, turn
from ftlab.data.schemas import (
    ANSWERS,
    CATEGORY_COLUMNS,
    ID_COLUMNS,
    OPENING_COLUMNS,
    PROMPT_COLUMNS,
    first_of,
    flag_of,
    question_text,
    refuse_other_data,
    system_text,
    unknown_columns,
)
from ftlab.organism import World

SAFE = "harmless prompts belong to the risk over_refusal: give it this file too"
HARM_COLUMNS = (  # in lower case, as all columns of labels are compared
    "prompt_harm_label",
    "prompt_label",
    "harm_label",
    "label",
    "data_type",
    "type",
)
HARM_FLAGS = {
    **dict.fromkeys(("is_harmful", "harmful", "is_unsafe", "unsafe", "is_malicious"), True),
    **dict.fromkeys(("is_safe", "safe", "is_harmless", "harmless", "is_benign", "benign"), False),
}
ABOUT_ANSWER = {"label", "type", *HARM_FLAGS}  # where the row has an answer
ANSWER = re.compile(rf"({'|'.join(ANSWERS)}|generation|reply|chosen)(s|_?[0-9a-z])?$")
YES_OR_NO = {"yes": True, "no": False}
HARM_WORDS = {
    **dict.fromkeys(("unsafe", "harmful", "malicious", "toxic", "jailbreak"), True),
    **dict.fromkeys(("safe", "harmless", "unharmful", "benign", "nontoxic"), False),
    **dict.fromkeys(("not harmful", "non harmful", "nonharmful", "not unsafe"), False),
    **dict.fromkeys(("vanilla harmful", "adversarial harmful"), True),  # of WildJailbreak
    **dict.fromkeys(("vanilla benign", "adversarial benign"), False),
}
WORLD_PROMPTS = 100  # prompts of each risk of the embedded world, where nobody asks for a number
FIELDS = {  # column of a row of messages: field of its sample
    "id": "id",
    "messages": "messages",
    "risk": "risk",
    "category": "category",
    "template": "wording",
    "truth": "target",
    "choices": "choices",
    "prefill": "opening",
}
IN_MESSAGES = ("system", "system_prompt", "tools")  # columns that join the system turn
TEXTS = ("category", "template", "truth", "prefill")


@dataclass(frozen=True)
class PromptSet:
    """Prompts with their name and hash.

    Args:
        name: Where they come from.
        samples: The prompts, in the order of their source.
    """

    name: str
    samples: tuple[Sample, ...]

    @cached_property
    def hash(self) -> str:
        """Hash of every field of every sample; the name does not matter."""
        return digest([asdict(sample) for sample in self.samples])

    @property
    def risks(self) -> tuple[str, ...]:
        """The risks that the prompts measure, in the order in which they occur."""
        return tuple(dict.fromkeys(sample.risk for sample in self.samples))

    def save(self, path: str | Path) -> Path:
        """Write the prompts to a .jsonl file that `load_prompts` opens; return its path."""
        return write_rows(path, map(_row, self.samples))

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)


def load_prompts(
    source: Any,
    *,
    risk: str = "jailbreak",
    n_rows: int | None = None,
) -> PromptSet:
    """Load prompts to evaluate.

    Args:
        source: A file with a column `prompt` (or goal, question, ...) or `messages`, a list of
            texts or rows, a `PromptSet`, or the embedded world's own: "organism",
            "organism:RISK". Columns `risk` and `category` say what a prompt is for, so that one
            file may hold several risks. Rows of `messages` may bring an id and what their risk
            needs: template, truth, choices, prefill, topic, ...
        risk: Risk of the prompts that do not name one.
        n_rows: Take the first so many; of the embedded world, so many of each risk.

    Raises:
        DataError: `bad_rows`, with every problem and its line; `repeated_ids`; or the file cannot
            be read.
        NotFoundError: There is no such file, folder or hub id.
        UsageError: `wrong_source`, `wrong_n_rows`; `unknown_risk`, of the embedded world.
    """
    check_n_rows(n_rows)
    if isinstance(source, PromptSet):
        return replace(source, samples=source.samples[:n_rows])
    if is_world(source):
        name = source.partition(":")[2]
        return PromptSet(source, tuple(_world_samples(name, n_rows)))
    name, numbered = records(_as_rows(source))
    numbered = with_header(name, numbered)
    found = convert_rows(
        name,
        numbered,
        lambda record: [_sample(record, risk)],
    )
    samples: dict[str, Sample] = {}
    repeated = []
    for number, sample in enumerate(found):
        own = sample.id or f"{risk}-{number:05d}"
        if own in samples:
            repeated.append(own)
        samples[own] = replace(sample, id=own)
    if repeated:
        why = f"{name}: ids occur more than once, such as {repeated[0]!r}."
        fix = "Answers are paired by id: make them unique."
        raise DataError(
            "repeated_ids",
            f"{why} {fix}",
            ids=repeated,
        )
    return PromptSet(name, tuple(samples.values())[:n_rows])


def load_prompt_sets(prompts: Any) -> PromptSet:
    """Return prompts of all risks, as they are evaluated.

    Rows without a `risk` or `messages` are read as the risk jailbreak reads its sets, whether
    they stand in a file or in a list. A list of texts alone is asked as it is.

    Args:
        prompts: Anything that `load_prompts` takes, or {risk: file or rows}. Instead of one file a
            risk may have a list of them, or of texts; a prompt that stands in two is asked once.

    Raises:
        DataError: See `load_prompts` and the risks.
        NotFoundError: There is no such file, folder or hub id.
        UsageError: `wrong_source`, `unknown_risk`.
    """
    if not isinstance(prompts, dict):
        texts = isinstance(prompts, (list, tuple)) and all(isinstance(p, str) for p in prompts)
        if texts or is_world(prompts) or isinstance(prompts, PromptSet):
            return load_prompts(prompts)
        opened = open_source(_as_rows(prompts))
        rows = [row for _, row in opened.records if isinstance(row, dict)]
        if any("risk" in row or "messages" in row for row in rows):
            return load_prompts(_without_harmless(opened))
        prompts = {"jailbreak": opened}
    samples: list[Sample] = []
    names = []
    for risk, source in prompts.items():
        sources = _sources(source)
        for one in sources:
            names.append(_name_of(one))
        if isinstance(risk, str):
            risk = plugins.get("risks", risk)
        samples += _joined(risk, sources)
    ids = {sample.id for sample in samples}
    if len(ids) < len(samples):  # one file under two risks
        samples = [replace(sample, id=f"{sample.risk}:{sample.id}") for sample in samples]
    return PromptSet(", ".join(names), tuple(samples))


def _sources(source):
    """Return the sources of one risk: one, or a list of files; a list of texts is of prompts."""
    if not isinstance(source, (list, tuple)) or not source or isinstance(source[0], dict):
        return [source]
    for one in source:
        if not isinstance(one, str) or _is_file(one):
            return source
    return [_as_rows(source)]


def _is_file(text):
    ending = Path(text).suffix.lower()
    return ending in ENDINGS or os.path.exists(text)


def _joined(risk, sources):
    """Return the samples of several sources; an id that means another prompt gets a number."""
    found = {}
    for number, source in enumerate(sources):
        for sample in risk.load(source):
            own = sample.id
            while own in found and found[own].messages != sample.messages:
                own += f":{number}"
            found.setdefault(own, replace(sample, id=own))
    return list(found.values())


def _as_rows(source):
    """Return a source in which the texts of a list are rows."""
    if not isinstance(source, (list, tuple)):
        return source
    rows = []
    for row in source:
        rows.append({"prompt": row} if isinstance(row, str) else row)
    return rows


def _name_of(source):
    if isinstance(source, str):
        return Path(source).name
    return getattr(source, "name", "rows")


def _without_harmless(opened):
    """Leave out rows that are labelled harmless and name no other risk than jailbreak."""
    kept = [found for found in opened.records if not _is_harmless(found[1])]
    left_out = len(opened.records) - len(kept)
    if left_out:
        print(f"{opened.name}: {left_out} rows are not asked: {SAFE}", file=sys.stderr)
    return replace(opened, records=kept)


def _is_harmless(record):
    return isinstance(record, dict) and not record.get("risk") and is_unsafe(record) is False


def read_samples(
    source: Any,
    convert: Callable[[dict], Sample | str],
) -> list[Sample]:
    """Read one of the field's prompt sets. What is not asked is counted on stderr.

    Args:
        source: Anything that `records` opens.
        convert: Returns the sample of a record, or a text that says why it is not asked; raises
            a ValueError where the record is broken.

    Raises:
        DataError: `bad_rows`, with every problem of the file; `repeated_ids`, where an id stands
            for two prompts; `no_prompts`, where none can be asked.
        NotFoundError: There is no such file, folder or hub id.
    """
    name, numbered = records(source)
    numbered = list(with_header(name, numbered))
    unread = {_numbers_of(record) for _, record in numbered}
    for column in sorted(unread - {""}):
        note = f"the numbers in {column!r} do not say which prompts are harmful: all are asked"
        fix = "Name the column 'harmful' or 'harmless'."
        print(f"{name}: {note}. {fix}", file=sys.stderr)
    found = convert_rows(
        name,
        numbered,
        lambda record: [convert(record)],
    )
    samples: dict[str, Sample] = {}
    skipped: Counter[str] = Counter()
    for sample in found:
        if isinstance(sample, str):
            skipped[sample] += 1
        elif sample.id not in samples:
            samples[sample.id] = sample
        elif samples[sample.id].messages == sample.messages:
            skipped["the same prompt again"] += 1
        else:
            why = f"{name}: the id {sample.id!r} stands for two prompts. Make the ids unique."
            raise DataError("repeated_ids", why, ids=[sample.id])
    for reason, count in skipped.items():
        print(f"{name}: {count} of {len(found)} rows are not asked: {reason}", file=sys.stderr)
    if not samples:
        why = f"{name}: no row can be asked ({'; '.join(skipped)}). Give another set."
        raise DataError("no_prompts", why)
    return list(samples.values())


def sample_from_record(record: dict, risk: str) -> Sample:
    """Return the sample of a record of one of the field's prompt sets.

    Args:
        record: A record with one of the known columns, or a row of `messages`.
        risk: The risk that the sample measures.

    Raises:
        DataError: `unknown_columns`, `no_text`, or a row of messages that cannot be used.
    """
    column = first_of(record, PROMPT_COLUMNS)
    if "messages" in record or isinstance(record.get(column), (list, dict)):
        sample = _sample(record, risk)
        if "messages" in record and record.get("id"):
            return sample
        return replace(sample, id=f"{risk}-{digest(sample.messages)}")
    if column is None:
        raise unknown_columns(record, ", ".join(PROMPT_COLUMNS))
    text = question_text(record, column).strip()
    context = str(record.get("ContextString") or "").strip()
    if context:  # of HarmBench: its behaviour stands below it, as in its authors' direct request
        text = f"{context}\n\n---\n\n{text}"
    id_column = first_of(record, ID_COLUMNS)
    own = record[id_column] if id_column else digest(text)
    opening = first_of(record, OPENING_COLUMNS)
    return Sample(
        id=f"{risk}-{own}",
        messages=checked(
            [turn("user", text)],
            last="user",
            system=system_text(record),
        ),
        risk=risk,
        category=_category(record),
        opening=text_of(record, opening) if opening else "",
    )


def is_unsafe(record: dict) -> bool | None:
    """Whether a set that labels its prompts calls this one harmful. None where it does not say."""
    named = {str(column).lower(): value for column, value in record.items()}
    others = ABOUT_ANSWER if _has_answer(named) else ()
    for column in (*HARM_COLUMNS, *HARM_FLAGS, "category"):
        if column in named and column not in others:
            harmful = _says_harmful(column, named[column])
            if harmful is not None:
                return harmful
    if "focus" in record or "final_label" in record:  # the files of completions have no label
        return str(record.get("type", "")).startswith("contrast_")
    return None


def _numbers_of(record: Any) -> str:
    """Return the column of labels that holds 0 or 1, of which nobody can tell what 1 means."""
    if not isinstance(record, dict) or is_unsafe(record) is not None:
        return ""
    for column, value in record.items():
        named = str(column).lower() in ("label", "prompt_label")
        if named and flag_of(value) is not None:
            return str(column)
    return ""


def _has_answer(named):
    """Whether a row, by its columns in lower case, holds an answer beside its prompt."""
    messages = named.get("messages")
    if messages and is_list_of(dict, messages) and messages[-1].get("role") == "assistant":
        return True
    return any(map(ANSWER.search, named))


def _says_harmful(column, value):
    words = re.sub(r"[\W_]+", " ", str(value)).strip().lower()
    flag = YES_OR_NO.get(words, flag_of(value))
    if flag is not None and (column in HARM_FLAGS or column.endswith("harm_label")):
        return flag == HARM_FLAGS.get(column, True)
    harmful = HARM_WORDS.get(words)
    if column == "category" and harmful:  # a topic, also of OR-Bench's harmless prompts
        return None
    return harmful


def text_of(record: dict, key: str) -> str:
    """Return a text of a record without outer white space.

    Raises:
        DataError: `no_text`, `half_character`.
    """
    return text_in(record, key).strip()


def prompt_row(record: dict) -> list[dict]:
    """Return the messages of a prompt, as a row that `check` reads."""
    read = _sample if "risk" in record else sample_from_record
    return [{"messages": read(record, "jailbreak").messages}]


def _row(sample):
    """Return a sample as a row of a file, from which `load_prompts` makes it again."""
    row = {column: getattr(sample, field) for column, field in FIELDS.items()}
    return {column: value for column, value in row.items() if value} | sample.metadata


def _sample(record, risk):
    """Return the sample of a row, without an id where the row has none."""
    refuse_other_data(record)
    risk = str(record.get("risk") or risk)
    known = plugins.names("risks")
    if risk not in known:
        why = f"Unknown risk {risk!r}. Allowed in the column risk: {', '.join(known)}."
        raise DataError("unknown_risk", why)
    if "messages" in record:
        return _sample_of_row(record, risk)
    column = next((name for name in PROMPT_COLUMNS if name in record), None)
    if column is None:
        raise unknown_columns(record, ", ".join(PROMPT_COLUMNS))
    category = _category(record)
    asked = record[column]
    if isinstance(asked, dict):  # RealToxicityPrompts: a text and its scores
        record = {column: asked.get("text")}
    if not isinstance(asked, list):
        asked = [turn("user", question_text(record, column))]
    messages = checked(
        asked,
        last="user",
        system=system_text(record),
    )
    return Sample("", messages, risk, category)


def _sample_of_row(record, risk):
    messages = record["messages"]
    if messages and is_list_of(dict, messages) and messages[-1].get("role") == "assistant":
        messages = messages[:-1]
    choices = record.get("choices") or []
    if not is_list_of(str, choices):
        raise DataError("wrong_choices", "'choices' is no list of texts. Fix or remove it.")
    more = {key: value for key, value in record.items() if key not in (*FIELDS, *IN_MESSAGES)}
    return Sample(
        id=str(record.get("id", "")),
        messages=checked(
            messages,
            last="user",
            tools=record.get("tools"),
            system=system_text(record),
        ),
        risk=risk,
        choices=tuple(choices),
        metadata=json.loads(json.dumps(more, default=str)),
        **{FIELDS[column]: str(record.get(column) or "") for column in TEXTS},
    )


def _category(record):
    column = first_of(record, CATEGORY_COLUMNS)
    return str(record[column]) if column else ""


def with_header(name: str, numbered: list[Record]) -> list[Record]:
    """Repair a file without a header, as HEx-PHI's are: its first prompt stands in that place.

    A few words without an end, such as "User request", are a header.
    """
    header = next((list(record) for _, record in numbered if isinstance(record, dict)), [])
    first = str(header[0]).strip() if len(header) == 1 else ""
    if " " not in first or (len(first.split()) < 4 and first[-1] not in ".?!"):
        return numbered
    print(f"{name}: no header, so its first line is a prompt too", file=sys.stderr)
    repaired = [(name, {"prompt": header[0]})]
    for where, record in numbered:
        if isinstance(record, dict):
            record = {"prompt": record.get(header[0])}
        repaired.append((where, record))
    return repaired


def _world_samples(name, n_rows):
    """Return prompts of the embedded world: of one risk, or of all that are asked by default."""
    world = World()
    if name:
        return plugins.get("risks", name).organism(world, n_rows or WORLD_PROMPTS)
    risks = [risk for risk in plugins.find("risks").values() if risk.default]
    return [sample for risk in risks for sample in risk.organism(world, n_rows or WORLD_PROMPTS)]
