"""Opens any data file as records, by its content rather than by its ending alone. Needs no torch.

Read are .json (a list, one object, an object that holds a list), .jsonl, .csv and tab-separated
files, .parquet, and .gz of these; a folder written by `datasets.save_to_disk`; a hub id
`owner/name[:config[:split]]` through `datasets` (default split: train); and `FOLDER/NAME` where
FOLDER/dataset_info.json describes NAME in the form of LLaMA-Factory. A file that such a
dataset_info.json beside it describes is read with its mapping of columns and tags.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ftlab._core.errors import DataError, NotFoundError
from ftlab._core.text import safe

SHOWN = 20  # problems of a file that are printed; the rest is counted
HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]*){0,2}")
SPACE = re.compile(r"\s*")
ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".txt")
GIVE = "Give a .jsonl, .json, .csv or .parquet file (also .gz of these)"
HELD = ("data", "rows", "train", "examples", "dataset")  # keys that hold the rows of one object
CONVERSATIONS = ("messages", "chosen", "rejected")  # columns of LLaMA-Factory that hold turns
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "kto_tag": "label"}
TAGS = {  # LLaMA-Factory's name of a role: (its default, our role)
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant"),
    "system_tag": ("system", "system"),
    "function_tag": ("function_call", "function_call"),
    "observation_tag": ("observation", "tool"),
}

Record = tuple[str, Any]  # its place, such as "train.jsonl:7", and the record or a DataError


@dataclass
class Opened:
    """What a source holds.

    Args:
        name: The source's name, without its folder.
        format: Its format in words.
        records: Each record with its place. One that cannot be read is a DataError.
        notes: What is odd but usable.
    """

    name: str
    format: str
    records: list[Record]
    notes: list[str] = field(default_factory=list)


def records(source: Any) -> tuple[str, list[Record]]:
    """Open any source of rows.

    Args:
        source: A path, a hub id, a list of rows, or a `Data`.

    Returns:
        The source's name, and each record with its place, such as "train.jsonl:7". In the place
        of a record that cannot be read stands the DataError that says why.

    Raises:
        NotFoundError: `no_such_data`, `folder_without_data`, `not_on_hub`.
        DataError: Nothing in the file can be read.
    """
    found = open_source(source)
    return found.name, found.records


def open_source(source: Any) -> Opened:
    """Open a source as `records` does, with its format and what is odd about it.

    What it returns is a source too, so that nothing needs to read a file twice.
    """
    if isinstance(source, Opened):
        return source
    if not isinstance(source, (str, Path)):
        name = getattr(source, "name", "rows")
        return _numbered(name, name, getattr(source, "rows", source), "rows")
    path = Path(source)
    entries = _dataset_info(path.parent)
    if path.is_file():
        described = (entry for entry in entries.values() if entry["file_name"] == path.name)
        return _mapped(_read_file(path), next(described, {}))
    if path.name in entries:
        entry = entries[path.name]
        return _mapped(_read_file(path.parent / entry["file_name"]), entry)
    if path.is_dir():
        return _read_folder(path)
    is_hub_id = HUB.fullmatch(str(source)) and path.suffix.lower() not in ENDINGS
    if is_hub_id and not path.parent.is_dir():
        return _load_from_hub(str(source))
    raise NotFoundError("no_such_data", f"{path} does not exist. {GIVE}, or a hub id.")


def problems_error(code: str, problems: list[str], end: str = "", **details: Any) -> DataError:
    """Return the error for many problems: the first 20 as lines, and how many more there are."""
    lines = [safe(problem) for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"... and {len(problems) - SHOWN} more")
    if end:
        lines.append(end)
    return DataError(code, "\n".join(lines), problems=problems, **details)


def _numbered(name: str, where: str, rows: Iterable, form: str) -> Opened:
    numbered = [(f"{where}: row {number}", row) for number, row in enumerate(rows, 1)]
    return Opened(name, form, numbered)


def _read_folder(path: Path) -> Opened:
    if (path / "state.json").is_file():  # written by datasets.save_to_disk
        from datasets import load_from_disk

        return _numbered(path.name, str(path), load_from_disk(str(path)).to_list(), "Arrow folder")
    described = _dataset_info(path).items()
    inside = [name for name, entry in described if (path / entry["file_name"]).is_file()]
    if not inside:
        inside = sorted(p.name for p in path.iterdir() if p.suffix.lower() in ENDINGS)
    example = f", such as {path / inside[0]}" if inside else ""
    raise NotFoundError("folder_without_data", f"{path} is a folder. {GIVE}{example}.")


def _load_from_hub(source: str) -> Opened:
    name, config, split = (*source.split(":"), "", "")[:3]
    try:
        from datasets import load_dataset

        rows = load_dataset(name, config or None, split=split or "train").to_list()
    except Exception as error:  # offline, gated, unknown: each library has its own class
        reason = str(error).strip().partition("\n")[0]
        raise NotFoundError(
            "not_on_hub",
            f"{source} is no file here, and the hub did not give such a data set "
            f"({type(error).__name__}: {reason}). Check the name, the network and your access, "
            "or download the file and give its path.",
        ) from None
    return _numbered(source, source, rows, "hub data set")


def _read_file(path: Path) -> Opened:
    raw = path.read_bytes()
    packed = ""
    if raw[:2] == b"\x1f\x8b":
        packed = ", gzip"
        try:
            raw = gzip.decompress(raw)
        except (EOFError, OSError, zlib.error) as error:
            why = f"truncated or damaged gzip ({error}). Download the file again."
            raise DataError("damaged_gzip", f"{path}:1: {why}") from None
    if raw[:4] == b"PAR1":
        return _numbered(path.name, str(path), _parquet(path, raw), "Parquet" + packed)
    form, rows = _parse(path, _decode(path, raw))
    notes = []
    if raw.startswith(b"\xef\xbb\xbf"):
        notes.append("begins with a byte order mark (BOM), which is skipped")
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    misnamed = (form == "CSV") != (ending in (".csv", ".tsv"))
    if misnamed and ending in (".json", ".jsonl", ".csv", ".tsv"):
        notes.append(f"named {ending}, but its content is {form}; read as {form}")
    return Opened(path.name, form + packed, rows, notes)


def _parquet(path: Path, raw: bytes) -> list[dict]:
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_numbered(io.BytesIO(raw)).to_pylist()
    except Exception as error:  # pyarrow's own classes
        why = f"broken Parquet ({error}). Download the file again."
        raise DataError("broken_parquet", f"{path}: {why}") from None


def _decode(path: Path, raw: bytes) -> str:
    """Return a text file's text; refuse what was downloaded in its place."""
    head = raw[:512].lstrip().lower()
    if head.startswith((b"version https://git-lfs", b"/annex/objects")):
        why = "a Git-LFS pointer instead of the data. Run git lfs pull."
        raise DataError("lfs_pointer", f"{path}:1: {why}")
    if head.startswith((b"<!doctype html", b"<html")):
        why = "a web page instead of the data. Download the raw file."
        raise DataError("web_page", f"{path}:1: {why}")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        guess = ""
        if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
            guess = ", it looks like UTF-16"
        why = f"not UTF-8 at byte {error.start}{guess}. Save the file as UTF-8."
        raise DataError("not_utf8", f"{path}:{line}: {why}", line=line) from None


def _parse(path: Path, text: str) -> tuple[str, list[Record]]:
    """Return the format of a text file and its records."""
    first = text.lstrip().partition("\n")[0].strip()
    if _is_csv(path, text, first):
        mark = "\t" if "\t" in first and "," not in first else ","
        return "CSV", [(f"{path}:{line}", row) for line, row in _csv(text, mark)]
    if first.startswith("["):
        return "JSON list", _json_list(path, text)
    numbered = enumerate(text.split("\n"), 1)
    lines = [(f"{path}:{number}", _json(line)) for number, line in numbered if line.strip()]
    if first.startswith("{") and isinstance(lines[0][1], DataError):
        whole = _json(text)  # perhaps it is one object over several lines
        if not isinstance(whole, DataError):
            lines = [(f"{path}:1", whole)]
        elif first[-1] in "{[," and not any(isinstance(row, dict) for _, row in lines):
            return "JSON", [(f"{path}:{whole.details['line']}", whole)]
    if len(lines) > 1 or not lines or not isinstance(lines[0][1], dict):
        return "JSONL", lines
    held = [key for key, value in lines[0][1].items() if _is_list_of_objects(value)]
    if len(held) == 1 and held[0] in HELD:
        form = f"JSON object with a list {held[0]!r}"
        return form, _numbered(path.name, str(path), lines[0][1][held[0]], form).records
    return ("JSON object" if "\n" in text.strip() else "JSONL"), lines


def _is_csv(path: Path, text: str, first: str) -> bool:
    named = path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
    if first[:1] not in ("{", "["):
        header = "," in first and re.fullmatch(r'[\w ."\',\t/-]+', first)
        return named or bool(header)
    return named and not _looks_like_json(first) and not _looks_like_json(text)


def _looks_like_json(text: str) -> bool:
    found = _json(text)
    return not isinstance(found, DataError) or found.code == "repeated_name"


def _is_list_of_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _object(pairs: list[tuple[str, Any]]) -> dict:
    """Return a JSON object; refuse a key that occurs twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _repeated("key", [key for key, _ in pairs])
    return made


def _repeated(what: str, names: list[str]) -> DataError:
    name = next(name for i, name in enumerate(names) if name in names[:i])
    why = f"The {what} {name!r} occurs twice. One of its values would be lost: rename one."
    return DataError("repeated_name", why, line=1)


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _json(text: str) -> Any:
    """Return the value of a JSON text, or the DataError that says what is wrong with it."""
    try:
        return DECODER.decode(text)
    except DataError as error:
        return error
    except json.JSONDecodeError as error:
        why, line = f"{error.msg}, column {error.colno}", error.lineno
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        why, line = str(error), 1
    fix = "Fix or remove the line: one JSON object per line."
    return DataError("broken_json", f"Broken JSON ({why}). {fix}", line=line)


def _json_list(path: Path, text: str) -> list[Record]:
    """Return the elements of a JSON list, each with the line on which it begins.

    Nothing after a break is read; the break itself is the last record.
    """
    found: list[Record] = []
    one_line = "\n" not in text.strip()
    line, last_line, counted = 1, 0, 0
    at = SPACE.match(text, text.index("[") + 1).end()
    try:
        while found or text[at : at + 1] != "]":
            line += text.count("\n", counted, at)
            counted = at
            value, at = _json_element(text, at)
            place = f"{path}:{line}"
            if one_line or line == last_line:
                place += f" row {len(found) + 1}"
            found.append((place, value))
            last_line = line
            at = SPACE.match(text, at).end()
            if text[at : at + 1] == "]":
                break
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, at)
            at = SPACE.match(text, at + 1).end()
        rest = SPACE.match(text, at + 1).end()
        if rest < len(text):
            raise json.JSONDecodeError("Extra data after the list", text, rest)
    except json.JSONDecodeError as error:
        why = f"Broken JSON ({error.msg}, column {error.colno}). Nothing after it was read."
        found.append((f"{path}:{error.lineno}", DataError("broken_json", why)))
    return found


def _json_element(text: str, at: int) -> tuple[Any, int]:
    """Return the value that begins at a position, or its DataError, and where it ends."""
    try:
        return DECODER.raw_decode(text, at)
    except DataError as error:
        return error, json.JSONDecoder().raw_decode(text, at)[1]


def _csv(text: str, mark: str) -> Iterator[tuple[int, Any]]:
    """Yield each row with the number of its first line; a field may hold line breaks."""
    csv.field_size_limit(2**31 - 1)  # Python's own limit is 131,072 characters
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    start = 1
    try:
        header = next(reader, [])
        named = [name for name in header if name]
        if len(set(named)) < len(named):
            yield 1, _repeated("column", named)
            return
        start = reader.line_num + 1
        for fields in reader:
            if len(fields) == len(header):
                yield start, dict(zip(header, fields, strict=True))
            elif fields:
                why = f"{len(fields)} fields, but the header has {len(header)}."
                fix = "Quote fields that hold a comma or a line break."
                yield start, DataError("wrong_field_count", f"{why} {fix}")
            start = reader.line_num + 1
    except csv.Error as error:
        why = f"Broken CSV ({error}). Nothing after it was read: fix the quotes."
        yield start, DataError("broken_csv", why)


def _dataset_info(folder: Path) -> dict[str, dict]:
    """Return LLaMA-Factory's entries that name a file; `datasets` writes a file so named too."""
    try:
        text = (folder / "dataset_info.json").read_text(encoding="utf-8-sig")
        entries = json.loads(text)
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    described = {name: entry for name, entry in entries.items() if isinstance(entry, dict)}
    return {n: entry for n, entry in described.items() if isinstance(entry.get("file_name"), str)}


def _mapped(found: Opened, entry: dict) -> Opened:
    """Apply LLaMA-Factory's mapping of columns, and for sharegpt of tags (their data/README.md)."""
    if not entry.get("columns"):
        return found
    rows = [(where, _map_record(record, entry)) for where, record in found.records]
    note = "read with the columns that dataset_info.json names"
    return Opened(found.name, found.format, rows, [*found.notes, note])


def _map_record(record: Any, entry: dict) -> Any:
    if not isinstance(record, dict):
        return record
    columns = entry["columns"]
    missing = [theirs for theirs in columns.values() if theirs not in record]
    if missing:
        why = f"There is no column {', '.join(missing)}, which dataset_info.json names."
        return DataError("missing_column", f"{why} Fix the file or the mapping.")
    if entry.get("formatting") != "sharegpt":
        return {COLUMNS.get(ours, ours): record[theirs] for ours, theirs in columns.items()}
    mapped = {}
    for ours, theirs in columns.items():
        name = "label" if ours == "kto_tag" else ours
        mapped[name] = record[theirs]
        if ours in CONVERSATIONS:
            mapped[name] = _map_turns(record[theirs], entry.get("tags") or {})
    return mapped


def _map_turns(value: Any, tags: dict) -> Any:
    """Return turns with our names of roles; what is no turn stays for the checks that follow."""
    turns = [value] if isinstance(value, dict) else value
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return value
    roles = {tags.get(tag, default): ours for tag, (default, ours) in TAGS.items()}
    mapped = []
    for turn in turns:
        role = turn.get(tags.get("role_tag", "from"))
        if isinstance(role, str):
            role = roles.get(role, role)
        content = turn.get(tags.get("content_tag", "value"))
        mapped.append({**turn, "role": role, "content": content})
    return mapped
