"""Any data file -> records, by its content and not by its ending alone. Needs no torch.

Opened: .json (a list, one object, an object holding a list), .jsonl, .csv and tab-separated, .parquet, .gz of these;
`FOLDER/NAME` where FOLDER/dataset_info.json describes NAME (LLaMA-Factory), a folder of `datasets.save_to_disk`, and hub
ids `owner/name[:config[:split]]` through `datasets` (split: train). A file that LLaMA-Factory's dataset_info.json beside
it describes is read with that mapping of columns and tags.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path

HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]*){0,2}")
ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".gz", ".txt")
GIVE = "give a .jsonl, .json, .csv or .parquet file (also .gz of these)"
COLUMNS = {"prompt": "instruction", "query": "input", "response": "output", "kto_tag": "label"}  # theirs: ours
TAGS = {
    "user_tag": ("human", "user"), "assistant_tag": ("gpt", "assistant"), "system_tag": ("system", "system"),
    "function_tag": ("function_call", "function_call"), "observation_tag": ("observation", "tool"),
}  # fmt: skip


class DataError(ValueError):
    """A file's content cannot be used. The command line exits with 1 (usage errors: 2)."""


@dataclass
class Opened:
    """A source's records, each with where it stands; a record that cannot be read is a ValueError saying why."""

    name: str
    format: str
    records: list[tuple[str, object]]
    notes: list[str] = field(default_factory=list)


def records(source) -> tuple[str, list[tuple[str, object]]]:
    """-> (name, [(where, record or ValueError)]) of a path, a hub id, rows or a `Data`; errors as in `opened`."""
    found = opened(source)
    return found.name, found.records


def opened(source) -> Opened:
    """-> `Opened`. Raises FileNotFoundError (also a hub id that the hub did not give), DataError (nothing readable)."""
    if not isinstance(source, (str, Path)):
        name = getattr(source, "name", "rows")
        rows = getattr(source, "rows", source)
        return Opened(name, "rows", [(f"{name}: row {i}", r) for i, r in enumerate(rows, 1)])
    path = Path(source)
    if path.is_file():
        return _mapped(path, _file(path), _described(path.parent, file=path.name))
    if entry := _described(path.parent, name=path.name):
        return _mapped(path, _file(path.parent / entry["file_name"]), entry)
    if path.is_dir():
        return _folder(path)
    if HUB.fullmatch(str(source)) and path.suffix.lower() not in ENDINGS and not path.parent.is_dir():
        return _hub(str(source))
    raise FileNotFoundError(
        f"{path} does not exist; {GIVE}, or a hub id as openai/gsm8k:main (training data: also organism:almanac, ...)"
    )


def _folder(path: Path) -> Opened:
    if (path / "state.json").is_file():  # datasets.save_to_disk
        from datasets import load_from_disk

        return _table(path.name, str(path), load_from_disk(str(path)).to_list(), "Arrow folder")
    known = [n for n, e in _info(path).items() if (path / e["file_name"]).is_file()]
    has = known or sorted(p.name for p in path.iterdir() if p.suffix.lower() in ENDINGS)
    raise FileNotFoundError(f"{path} is a folder; {GIVE}" + (f", as {path / has[0]}" if has else ""))


def _hub(source: str) -> Opened:
    name, config, split = (*source.split(":"), "", "")[:3]
    try:
        from datasets import load_dataset

        rows = load_dataset(name, config or None, split=split or "train").to_list()
    except Exception as e:  # offline, gated, unknown name, config or split: each library has its own class
        why = (str(e).strip().split("\n") or [""])[0]
        raise FileNotFoundError(
            f"{source}: no such file here, and the hub gave no such data set ({type(e).__name__}: {why}); check the name, "
            "the network and your access, or download the file and give its path"
        ) from None
    return _table(source, source, rows, "hub data set")


def _table(name: str, where: str, rows: list, form: str) -> Opened:
    return Opened(name, form, [(f"{where}: row {i}", r) for i, r in enumerate(rows, 1)])


def _file(path: Path) -> Opened:
    raw, packed = path.read_bytes(), ""
    if raw[:2] == b"\x1f\x8b":
        try:
            raw, packed = gzip.decompress(raw), ", gzip"
        except (EOFError, OSError, zlib.error) as e:
            raise DataError(f"{path}:1: truncated or damaged gzip ({e}); download the file again") from None
    if raw[:4] == b"PAR1":
        import pyarrow.parquet

        try:
            rows = pyarrow.parquet.read_table(io.BytesIO(raw)).to_pylist()
        except Exception as e:  # pyarrow's own classes
            raise DataError(f"{path}: broken Parquet ({e}); download the file again") from None
        return _table(path.name, str(path), rows, "Parquet" + packed)
    head = raw[:512].lstrip().lower()
    if head.startswith(b"version https://git-lfs") or head.startswith(b"/annex/objects"):
        raise DataError(
            f"{path}:1: a Git-LFS pointer in place of the data; call git lfs pull, or download the file itself"
        )
    if head.startswith((b"<!doctype html", b"<html")):
        raise DataError(f"{path}:1: a web page in place of the data; download the raw file")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = raw.count(b"\n", 0, e.start) + 1
        guess = "; it looks like UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise DataError(f"{path}:{line}: not UTF-8 at byte {e.start}{guess}; save the file as UTF-8") from None
    form, rows = _read(path, text)
    notes = ["begins with a byte order mark (BOM); read without it"] if raw.startswith(b"\xef\xbb\xbf") else []
    ending = Path(path.name.lower().removesuffix(".gz")).suffix
    if ("CSV" in form) != (ending in (".csv", ".tsv")) and ending in ENDINGS[:4]:
        notes.append(f"named {ending}, but its content is {form}; read as {form}")
    return Opened(path.name, form + packed, rows, notes)


def _read(path: Path, text: str) -> tuple[str, list]:
    """-> (format, records with their lines) of a text file."""
    start, is_csv = text.lstrip()[:1], path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))
    first = text.lstrip().split("\n", 1)[0].strip()
    if start in ("{", "[") and is_csv:
        is_csv = type(_json(first)) is type(_json(text)) is ValueError
    if is_csv or (start not in ("{", "[", "") and "," in first and re.fullmatch(r'[\w ."\',\t/-]+', first)):
        mark = "\t" if "\t" in first and "," not in first else ","
        return "CSV", [(f"{path}:{n}", row) for n, row in _csv(text, mark)]
    if start == "[":
        return "JSON list", _array(path, text, text.index("["))
    lines = [(f"{path}:{n}", _json(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if lines and isinstance(lines[0][1], ValueError) and start == "{":  # one object over several lines?
        whole = _json(text)
        if not isinstance(whole, ValueError):
            lines = [(f"{path}:1", whole)]
        elif first[-1] in "{[," and not any(isinstance(r, dict) for _, r in lines):
            return "JSON", [(f"{path}:{whole.line}", whole)]
    if len(lines) == 1 and isinstance(lines[0][1], dict):
        held = [k for k, v in lines[0][1].items() if isinstance(v, list) and v and isinstance(v[0], dict)]
        if len(held) == 1 and held[0] in ("data", "rows", "train", "examples", "dataset"):
            rows = lines[0][1][held[0]]
            return f"JSON object with a list {held[0]!r}", [(f"{path}: row {i}", r) for i, r in enumerate(rows, 1)]
        return ("JSON object" if "\n" in text.strip() else "JSONL"), lines
    return "JSONL", lines


class Twice(ValueError):
    """An object with the same key twice."""

    line = 1


def _object(pairs: list[tuple]) -> dict:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise Twice(_twice("key", [k for k, _ in pairs]))
    return made


def _twice(what: str, names: list[str]) -> str:
    name = next(n for i, n in enumerate(names) if n in names[:i])
    return f"the {what} {name!r} occurs twice; one of its values would be lost; rename or remove one"


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _json(text: str):
    try:
        return DECODER.decode(text)
    except Twice as e:
        return e
    except json.JSONDecodeError as e:
        error = ValueError(f"broken JSON ({e.msg}, column {e.colno}); one JSON object a line; mend or remove the line")
        error.line = e.lineno
        return error
    except (ValueError, RecursionError) as e:  # a number of thousands of digits; thousands of brackets
        error = ValueError(f"broken JSON ({e}); one JSON object a line; mend or remove the line")
        error.line = 1
        return error


def _array(path: Path, text: str, start: int) -> list:
    """-> the elements of a JSON list, each with the line it begins on; what stands after a break is not read."""
    space = re.compile(r"\s*")
    out, line, counted, i = [], 0, 0, space.match(text, start + 1).end()
    try:
        while text[i : i + 1] != "]" or out:
            before, line, counted = line, max(line, 1) + text.count("\n", counted, i), i
            try:
                value, i = DECODER.raw_decode(text, i)
            except Twice as e:
                value, i = e, json.JSONDecoder().raw_decode(text, i)[1]
            same = line == before or "\n" not in text.strip()
            out.append((f"{path}:{line}" + (f" row {len(out) + 1}" if same else ""), value))
            i = space.match(text, i).end()
            if text[i : i + 1] == "]":
                break
            if text[i : i + 1] != ",":
                raise json.JSONDecodeError("Expecting ',' or ']'", text, i)
            i = space.match(text, i + 1).end()
        if text[i + 1 :].strip():
            raise json.JSONDecodeError("Extra data after the list", text, space.match(text, i + 1).end())
    except json.JSONDecodeError as e:
        why = f"broken JSON ({e.msg}, column {e.colno}); nothing after it was read; a list of objects, or one object a line"
        out.append((f"{path}:{e.lineno}", ValueError(why)))
    return out


def _csv(text: str, mark: str):
    """Yields (number of its first line, row) of every row; a field may hold line breaks."""
    csv.field_size_limit(2**31 - 1)  # Python's own limit is 131,072 characters
    reader, start = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True), 1
    try:
        header = next(reader, [])
        if len(set(filter(None, header))) < len(named := list(filter(None, header))):
            yield 1, ValueError(_twice("column", named))
            return
        start = reader.line_num + 1
        for fields in reader:
            if len(fields) == len(header):
                yield start, dict(zip(header, fields, strict=True))
            elif fields:
                found = f"{len(fields)} fields, the header has {len(header)}"
                yield start, ValueError(f"{found}; quote fields that hold a comma or a line break")
            start = reader.line_num + 1
    except csv.Error as e:
        yield start, ValueError(f"broken CSV ({e}); nothing after it was read; mend the quotes")


def _info(folder: Path) -> dict[str, dict]:
    """-> LLaMA-Factory's entries with a file name, by name; {} where there are none (`datasets` has a file of that name)."""
    try:
        entries = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    entries = entries if isinstance(entries, dict) else {}
    return {n: e for n, e in entries.items() if isinstance(e, dict) and isinstance(e.get("file_name"), str)}


def _described(folder: Path, *, name: str = "", file: str = "") -> dict | None:
    entries = _info(folder)
    return entries.get(name) or next((e for e in entries.values() if file and e["file_name"] == file), None)


def _mapped(path: Path, found: Opened, entry: dict | None) -> Opened:
    """Records by LLaMA-Factory's mapping (their data/README.md): `columns`, and for sharegpt `tags`."""
    columns = (entry or {}).get("columns")
    if not columns:
        return found
    tags = entry.get("tags") or {}
    role, content = tags.get("role_tag", "from"), tags.get("content_tag", "value")
    roles = {tags.get(tag, default): ours for tag, (default, ours) in TAGS.items()}

    def turns(value):
        many = [value] if isinstance(value, dict) else value
        if not isinstance(many, list) or not all(isinstance(t, dict) for t in many):
            return value
        return [{**t, "role": roles.get(t.get(role), t.get(role)), "content": t.get(content)} for t in many]

    def convert(record):
        if not isinstance(record, dict):
            return record
        if missing := [c for c in columns.values() if c not in record]:
            return ValueError(
                f"no column {', '.join(missing)}, which dataset_info.json names; mend the file or the mapping"
            )
        if entry.get("formatting") == "sharegpt":
            return {k: turns(record[c]) if k in ("messages", "chosen", "rejected") else record[c] for k, c in columns.items()} | (
                {"label": record[columns["kto_tag"]]} if "kto_tag" in columns else {}
            )  # fmt: skip
        return {COLUMNS.get(k, k): record[c] for k, c in columns.items()}

    rows = [(where, convert(record)) for where, record in found.records]
    return Opened(found.name, found.format, rows, [*found.notes, "read with the columns that dataset_info.json names"])
