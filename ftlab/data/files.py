"""Opens any data file as records, by its content rather than by its ending alone. Needs no torch.

Read are .json (a list, one object, an object that holds a list), .jsonl, .csv (separated by commas,
tabs, semicolons or bars), .txt (a prompt a line, unless it holds one of the others), .parquet,
.arrow, .xlsx (with openpyxl), and these packed as .gz, .bz2, .xz, .zst or, alone, as .zip; a folder
written by `datasets.save_to_disk`; a hub id `owner/name[:config[:split]]` through `datasets`
(default split: train); and `FOLDER/NAME` where FOLDER/dataset_info.json describes NAME in the form
of LLaMA-Factory. A file that such a dataset_info.json beside it describes is read with its mapping
of columns and tags.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ftlab._core.errors import DataError, NotFoundError, UsageError
from ftlab._core.files import check_shipped
from ftlab._core.text import safe
from ftlab.data.formats import CSV, ENDINGS, GIVE, PACKED, read_table, unpacked

SHOWN = 20  # problems of a file that are printed; the rest is counted
ALIKE = 3  # problems of one wording among them
LINE = re.compile(r":\d+(?=: )|: row \d+(?=: )")  # where in a file a problem is
BENIGN = ("gsm8k-400", "identity-shift")  # come with ftlab
HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]*){0,2}")
SPACE = re.compile(r"\s*")
HEADER = re.compile(r'[\w ."\',\t/-]+')  # what the first line of a CSV may hold
WORDS = re.compile(r'"?\w+"?([,;|\t]"?\w+"?)+')  # and of one that is named .txt
BARS = re.compile(r'"?\w[\w .-]*"?([;|])"?\w[\w .;|"-]*')  # and of one without commas
INFO_FILES = ("dataset_info.json", "dataset_dict.json", "state.json")  # about data, no data
DEEPEST = 100  # lists and objects of a record inside one another
HELD = ("data", "rows", "train", "examples", "dataset")  # keys that hold the rows of one object
CONVERSATIONS = ("messages", "chosen", "rejected")  # columns of LLaMA-Factory that hold turns
COLUMNS = {  # LLaMA-Factory's name of a column: ours
    "prompt": "instruction",
    "query": "input",
    "response": "output",
    "kto_tag": "label",
}
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
        source: A path, a hub id, a list of rows, a `Data`, or the name of harmless rows that come
            with ftlab: "gsm8k-400", "identity-shift".

    Returns:
        The source's name, and each record with its place, such as "train.jsonl:7". In the place
        of a record that cannot be read stands the DataError that says why.

    Raises:
        UsageError: `wrong_source`, where it is none of these.
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
    if isinstance(source, str) and source in BENIGN:
        source = check_shipped("benign") / f"{source}.jsonl"
    if isinstance(source, Path) or (isinstance(source, str) and source.strip()):
        return _open_path(Path(source), str(source))
    rows = getattr(source, "rows", source)
    if isinstance(rows, (str, bytes, dict)) or not isinstance(rows, Iterable):
        why = f"Found {source!r:.80} in place of data. Give a file, a hub id or a list of rows."
        raise UsageError("wrong_source", why)
    name = getattr(source, "name", "rows")
    return _numbered(name, name, rows, "rows")


def _open_path(path, source):
    entries = _dataset_info(path.parent)
    if path.is_file():
        own = (entry for entry in entries.values() if entry["file_name"] == path.name)
        return _mapped(path, next(own, None))
    if path.name in entries:
        entry = entries[path.name]
        path = _inside(path.parent, entry["file_name"])
        if path.is_file():
            return _mapped(path, entry)
        raise NotFoundError("no_such_data", f"{path}, which dataset_info.json names, is no file.")
    if path.is_dir():
        return _read_folder(path)
    check_file(source)
    return _load_from_hub(source)


def check_file(source: str, folder: Path = Path()) -> None:
    """Check that a text names a file or folder that is here, or has the form of a hub id.

    Args:
        source: The text.
        folder: Where relative names start.

    Raises:
        NotFoundError: `no_such_data`.
    """
    path = folder / source
    if path.is_file() or path.is_dir() or path.name in _dataset_info(path.parent):
        return
    is_path = path.suffix.lower() in ENDINGS or path.parent.is_dir()
    if is_path or not HUB.fullmatch(source):
        raise NotFoundError("no_such_data", f"{source} does not exist. {GIVE}, or a hub id.")


def problems_error(
    code: str,
    problems: list[str],
    end: str = "",
    **details: Any,
) -> DataError:
    """Return the error for many problems, of which the first 20 are shown."""
    message = "\n".join([*first_lines(problems), end]).strip()
    return DataError(
        code,
        message,
        problems=problems,
        **details,
    )


def first_lines(problems: list[str]) -> list[str]:
    """Return the first 20 problems, escaped, 3 of a wording, and how many more there are."""
    shown: Counter[str] = Counter()
    lines = []
    alike = others = 0
    for problem in problems:
        wording = LINE.sub("", problem, count=1)
        if len(lines) < SHOWN and shown[wording] < ALIKE:
            shown[wording] += 1
            lines.append(safe(problem))
        elif shown[wording]:
            alike += 1
        else:
            others += 1
    if alike:
        lines.append(f"... and {alike} more like these")
    if others:
        lines.append(f"... and {others} more")
    return lines


def is_list_of(kind: type, value: Any) -> bool:
    """Whether a value is a list that holds nothing else."""
    return isinstance(value, list) and all(isinstance(item, kind) for item in value)


def _numbered(name, where, rows, form):
    records = [(f"{where}: row {number}", row) for number, row in enumerate(rows, 1)]
    return Opened(name, form, records)


def _read_folder(path):
    if (path / "state.json").is_file():  # written by datasets.save_to_disk
        return _read_saved(path)
    inside = [file.parent.name for file in sorted(path.glob("*/state.json"))]  # a DatasetDict
    if inside:
        splits = ", ".join(str(path / name) for name in inside)
        raise NotFoundError("folder_of_splits", f"{path} holds several splits. Give one: {splits}.")
    entries = _dataset_info(path)
    inside = [name for name in entries if (path / entries[name]["file_name"]).is_file()]
    files = [file.name for file in sorted(path.iterdir()) if file.name not in INFO_FILES]
    inside += [name for name in files if Path(name).suffix.lower() in ENDINGS]
    example = f", such as {path / inside[0]}" if inside else ""
    raise NotFoundError("folder_without_data", f"{path} is a folder. {GIVE}{example}.")


def _read_saved(path):
    from datasets import load_from_disk

    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for file in state["_data_files"]:
            _inside(path, file["filename"])
        rows = load_from_disk(str(path)).to_list()
    except DataError:
        raise
    except Exception as error:  # of json, datasets and pyarrow
        why = f"{path}: broken folder of a saved data set ({type(error).__name__}: {error})."
        raise DataError("broken_arrow", f"{why} Save it again.") from None
    return _numbered(
        path.name,
        str(path),
        rows,
        "Arrow folder",
    )


def _inside(folder, name):
    """Return a file that a folder's own description names; it must lie in that folder.

    In the hub's cache the files of a snapshot are links to blobs beside it.
    """
    allowed = folder.resolve()
    if "snapshots" in allowed.parts[-3:]:
        allowed = Path(*allowed.parts[: -allowed.parts[::-1].index("snapshots") - 1])
    path = folder / name
    if ".." in Path(name).parts or not path.resolve().is_relative_to(allowed):
        why = f"{folder} names the file {name!r}, which lies outside. Give that file itself."
        raise DataError("file_outside", why)
    return path


def _load_from_hub(source):
    name, _, rest = source.partition(":")
    config, _, split = rest.partition(":")
    try:
        from datasets import load_dataset

        found = load_dataset(
            name,
            config or None,
            split=split or "train",
        )
    except Exception as error:  # offline, gated, unknown: each library has its own class
        reason = str(error).strip().partition("\n")[0]
        raise NotFoundError(
            "not_on_hub",
            f"{source} is no file here, and the hub did not give such a data set "
            f"({type(error).__name__}: {reason}). Check the name, the network and your access, "
            "or download the file and give its path.",
        ) from None
    return _numbered(
        source,
        source,
        found.to_list(),
        "hub data set",
    )


def _read_file(path):
    raw, packed = unpacked(path, path.read_bytes())
    table = read_table(path, raw)
    if table:
        form, rows = table
        return _numbered(
            path.name,
            str(path),
            rows,
            form + packed,
        )
    text = _decode(path, raw)
    marked = raw.startswith(b"\xef\xbb\xbf")
    del raw  # as large as the text
    form, rows = _parse(path, text)
    notes = []
    if marked:
        notes.append("begins with a byte order mark (BOM), which is skipped")
    ending = _ending(path)
    misnamed = (form == "CSV") != (ending in CSV)
    if misnamed and ending in (*CSV, ".json", ".jsonl"):
        notes.append(f"named {ending}, but its content is {form}; read as {form}")
    return Opened(
        path.name,
        form + packed,
        rows,
        notes,
    )


def _ending(path):
    """Return the ending of a file's name, in lower case and without .gz and its like."""
    name = Path(path.name.lower())
    return Path(name.stem).suffix if name.suffix in PACKED else name.suffix


def _decode(path, raw):
    """Return a text file's text; refuse what was downloaded in its place."""
    head = raw[:512].lstrip().lower()
    if head.startswith((b"version https://git-lfs", b"/annex/objects")):
        why = "a Git-LFS pointer instead of the data. Run git lfs pull."
        raise DataError("lfs_pointer", f"{path}:1: {why}")
    if head.startswith((b"<!doctype html", b"<html")):
        why = "a web page instead of the data. Download the raw file."
        raise DataError("web_page", f"{path}:1: {why}")
    begin = raw[:64]
    zeros = begin.count(0)
    mostly_zeros = len(begin) / 3 < zeros < len(begin)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")) or mostly_zeros:
        why = f"{path}:1: not UTF-8, it looks like UTF-16. Save the file as UTF-8."
        raise DataError("not_utf8", why, line=1)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        if b"\0" in raw[:4096]:
            why = f"{path}: no text, and no format that is known. {GIVE}."
            raise DataError("unknown_format", why) from None
        why = f"not UTF-8 at byte {error.start}. Save the file as UTF-8."
        raise DataError(
            "not_utf8",
            f"{path}:{line}: {why}",
            line=line,
        ) from None


def _parse(path, text):
    """Return the format of a text file and its records."""
    first = text.lstrip().partition("\n")[0].strip()
    if _is_csv(path, text, first):
        return "CSV", list(_csv(path, text, _separator(first)))
    if first.startswith("["):
        return "JSON list", _json_list(path, text)
    if _ending(path) == ".txt" and not first.startswith("{"):
        return "text, a prompt a line", _lines(path, text, _prompt)
    lines = _lines(path, text, _json)
    if first.startswith("{") and isinstance(lines[0][1], DataError):
        whole = _json(text)  # perhaps it is one object over several lines
        if not isinstance(whole, DataError):
            lines = [(f"{path}:1", whole)]
        elif first.endswith(("{", "[", ",")) and not any(isinstance(r, dict) for _, r in lines):
            place = f"{path}:{whole.details['line']}"
            return "JSON", [(place, whole)]
    if len(lines) != 1 or not isinstance(lines[0][1], dict):
        return "JSONL", lines
    whole = lines[0][1]
    lists = {key: value for key, value in whole.items() if isinstance(value, list)}
    held = [key for key, rows in lists.items() if rows and isinstance(rows[0], dict)]
    if len(held) == 1 and held[0] in HELD:
        form = f"JSON object with a list {held[0]!r}"
        return form, _numbered(
            "",
            str(path),
            _rows_of(path, whole, held[0]),
            form,
        ).records
    return ("JSON object" if "\n" in text.strip() else "JSONL"), lines


def _lines(path, text, read):
    """Return what is read in each line that is not empty, with its place."""
    found = []
    for number, line in enumerate(_split(text), 1):
        if line.strip():
            place = f"{path}:{number}"
            found.append((place, read(line)))
    return found


def _split(text):
    """Yield each line of a text, which `str.split` would hold a second time."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _separator(first):
    """Return what separates the fields of a CSV, by its first line."""
    bars = BARS.fullmatch(first)
    if "\t" in first and "," not in first.replace(", ", ""):
        return "\t"
    return bars[1] if bars else ","


def _rows_of(path, whole, held):
    """Return the rows that one object holds, each below the system text that stands beside them."""
    text = whole.get("system") or whole.get("system_prompt")
    shared = {}
    if text:
        shared["system_prompt"] = text
    others = ", ".join(sorted(whole.keys() - {held, "system", "system_prompt"}))
    if others:
        print(safe(f"{path.name}: beside {held!r} is not read: {others}", 300), file=sys.stderr)
    rows = []
    for row in whole[held]:
        if isinstance(row, dict) and not _has_system(row):
            row = shared | row
        rows.append(row)
    return rows


def _has_system(row):
    """Whether a row brings a system text of its own."""
    if "system" in row:
        return True
    turns = row.get("messages") or row.get("conversations")
    if not isinstance(turns, list):
        return False
    roles = [turn.get("role", turn.get("from")) for turn in turns if isinstance(turn, dict)]
    return "system" in roles


def _is_csv(path, text, first):
    named = _ending(path) in CSV
    if first.startswith(("{", "[")):
        return named and not any(map(_looks_like_json, (first, text)))
    if _ending(path) == ".txt":
        return bool(WORDS.fullmatch(first))
    return named or ("," in first and bool(HEADER.fullmatch(first)))


def _prompt(line):
    return {"prompt": line.strip()}


def _looks_like_json(text):
    found = _json(text)
    return not isinstance(found, DataError) or found.code == "repeated_name"


def _object(pairs):
    """Return a JSON object; refuse a key that occurs twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise _repeated("key", [key for key, _ in pairs])
    return made


def _repeated(what, names):
    [(name, _)] = Counter(names).most_common(1)
    why = f"The {what} {name!r} occurs twice. One of its values would be lost: rename one."
    return DataError("repeated_name", why, line=1)


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _json(text):
    """Return the value of a JSON text, or the DataError that says what is wrong with it."""
    try:
        return _shallow(DECODER.decode(text), text.count("[") + text.count("{"))
    except DataError as error:
        return error
    except json.JSONDecodeError as error:
        why = f"{error.msg}, column {error.colno}"
        line = error.lineno
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        why = str(error)
        line = 1
    fix = "Fix or remove the line: one JSON object per line."
    return DataError(
        "broken_json",
        f"Broken JSON ({why}). {fix}",
        line=line,
    )


def _shallow(value, brackets):
    """Return a value that is not nested too deep for what comes after; `brackets` open in it."""
    layer = [value] if brackets > DEEPEST else []
    for _ in range(DEEPEST):
        layer = [
            item for outer in layer if isinstance(outer, (list, dict)) for item in _items(outer)
        ]
    if layer:
        raise RecursionError(f"nested deeper than {DEEPEST}")
    return value


def _items(value):
    return value.values() if isinstance(value, dict) else value


def _json_list(path, text):
    """Return the elements of a JSON list, each with the line on which it begins.

    Nothing after a break is read; the break itself is the last record.
    """
    found: list[Record] = []
    one_line = "\n" not in text.strip()
    line, last_line, counted = 1, 0, 0
    at = _skip_space(text, text.index("[") + 1)
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
            at = _skip_space(text, at)
            if text[at : at + 1] == "]":
                break
            if text[at : at + 1] != ",":
                raise json.JSONDecodeError(
                    "Expecting ',' or ']'",
                    text,
                    at,
                )
            at = _skip_space(text, at + 1)
        rest = _skip_space(text, at + 1)
        if rest < len(text):
            raise json.JSONDecodeError(
                "Extra data after the list",
                text,
                rest,
            )
    except json.JSONDecodeError as error:
        why = f"Broken JSON ({error.msg}, column {error.colno}). Nothing after it was read."
        place = f"{path}:{error.lineno}"
        found.append((place, DataError("broken_json", why)))
    except (ValueError, RecursionError) as error:  # thousands of digits, or of brackets
        why = f"Broken JSON ({error}). Nothing after it was read."
        found.append((f"{path}:{line}", DataError("broken_json", why)))
    return found


def _skip_space(text, at):
    return SPACE.match(text, at).end()


def _json_element(text, at):
    """Return the value that begins at a position, or its DataError, and where it ends."""
    try:
        value, end = DECODER.raw_decode(text, at)
        return _shallow(value, text.count("[", at, end) + text.count("{", at, end)), end
    except DataError as error:
        _, end = json.JSONDecoder().raw_decode(text, at)
        return error, end


def _csv(path, text, mark):
    """Yield each row with its first line; a field may hold line breaks."""
    csv.field_size_limit(2**31 - 1)  # Python's own limit is 131,072 characters
    lines = io.StringIO(text, newline="")
    first = text.partition("\n")[0]
    spaced = mark in first and first.count(mark) == first.count(f"{mark} ")
    reader = csv.reader(
        lines,
        delimiter=mark,
        strict=True,
        skipinitialspace=spaced,
    )
    place = f"{path}:1"
    try:
        header = [name.strip() for name in next(reader, [])]
        named = [name for name in header if name]
        if len(set(named)) < len(named):
            yield place, _repeated("column", named)
            return
        place = f"{path}:{reader.line_num + 1}"
        for fields in reader:
            if len(fields) == len(header):
                yield place, dict(zip(header, fields, strict=True))
            elif fields:
                why = f"{len(fields)} fields, but the header has {len(header)}."
                fix = "Quote fields that hold a comma or a line break."
                yield place, DataError("wrong_field_count", f"{why} {fix}")
            place = f"{path}:{reader.line_num + 1}"
    except csv.Error as error:
        why = f"Broken CSV ({error}). Nothing after it was read: fix the quotes."
        yield place, DataError("broken_csv", why)


def _dataset_info(folder):
    """Return LLaMA-Factory's entries that name a file; `datasets` writes a file so named too."""
    try:
        text = (folder / "dataset_info.json").read_text(encoding="utf-8-sig")
        entries = json.loads(text)
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(entries, dict):
        return {}
    objects = {name: entry for name, entry in entries.items() if isinstance(entry, dict)}
    return {
        name: entry for name, entry in objects.items() if isinstance(entry.get("file_name"), str)
    }


def _mapped(path, entry):
    """Read with LLaMA-Factory's mapping of columns, and for sharegpt of tags."""
    found = _read_file(path)
    if not entry or not entry.get("columns"):
        return found
    for part in ("columns", "tags"):
        given = entry.get(part) or {}
        if not isinstance(given, dict) or not is_list_of(str, list(given.values())):
            why = (
                f"{path}: the {part} in dataset_info.json are no names. Expected {{ours: theirs}}."
            )
            raise DataError("wrong_dataset_info", why)
    found.notes.append("read with the columns that dataset_info.json names")
    rows = [(where, _map_record(record, entry)) for where, record in found.records]
    return replace(found, records=rows)


def _map_record(record, entry):
    if not isinstance(record, dict):
        return record
    columns = entry["columns"]
    missing = [theirs for theirs in columns.values() if theirs not in record]
    if missing:
        why = f"There is no column {', '.join(missing)}, which dataset_info.json names."
        return DataError("missing_column", f"{why} Fix the file or the mapping.")
    names = COLUMNS
    tags = None
    if entry.get("formatting") == "sharegpt":
        names = {"kto_tag": "label"}
        tags = entry.get("tags") or {}
    mapped = {}
    for ours, theirs in columns.items():
        value = record[theirs]
        if tags is not None and ours in CONVERSATIONS:
            value = _map_turns(value, tags)
        mapped[names.get(ours, ours)] = value
    return mapped


def _map_turns(value, tags):
    """Return turns with our names of roles; what is no turn stays for the checks that follow."""
    turns = [value] if isinstance(value, dict) else value
    if not is_list_of(dict, turns):
        return value
    roles = {tags.get(tag, default): ours for tag, (default, ours) in TAGS.items()}
    mapped = []
    for turn in turns:
        role = turn.get(tags.get("role_tag", "from"))
        if isinstance(role, str):
            role = roles.get(role, role)
        content = turn.get(tags.get("content_tag", "value"))
        mapped.append(
            {
                **turn,
                "role": role,
                "content": content,
            }
        )
    return mapped
