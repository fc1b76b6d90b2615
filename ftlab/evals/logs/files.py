"""Reads logs from beginning to end, of which only one record at a time is held in memory."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from ftlab._core.errors import DataError

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".ndjson")
CHUNK = 1 << 20  # characters
MOST = 1 << 28  # characters of one value
MOST_FIELD = 1 << 27  # characters of a field of a CSV
SPACE = re.compile(r"\s*")
NOT_UTF8 = re.compile("[\udc80-\udcff]")
DECODER = json.JSONDecoder()
OF_NUMBERS = ("", *"0123456789.eE+-")  # with which a number may go on
CUT = 16  # characters before the end of a chunk in which a break may be the cut


def opened(path: Path) -> TextIO:
    """Open a text whose bytes that are no UTF-8 become unpaired surrogates."""
    return open(path, encoding="utf-8-sig", errors="surrogateescape", newline="")


def records(path: Path) -> Iterator[tuple[str, dict | str]]:
    """Yield the records of a .jsonl, .json or .csv file; a text says why one cannot be read.

    Raises:
        DataError: The rest of the file cannot be read: `broken_json`, `broken_csv`, `not_utf8`.
    """
    with opened(path) as file:
        first = file.readline()
        while first and not first.strip():
            first = file.readline()
    if first.lstrip().startswith("["):
        for place, _, value in json_items(path):
            yield place, value if isinstance(value, dict) else "This is no object."
    elif first.lstrip().startswith("{"):
        yield from _json_lines(path)
    else:
        yield from _csv_rows(path, first)


def _json_lines(path: Path) -> Iterator[tuple[str, dict | str]]:
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield f"{path.name}:{number}", _object(line)


def _object(line: str) -> dict | str:
    """Return the object of a line, or what is wrong with it."""
    if NOT_UTF8.search(line):
        return "This is not UTF-8. Save the file as UTF-8."
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"Broken JSON ({error.msg}, column {error.colno})."
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return "The JSON is nested too deep, or holds a number that is too long."
    return value if isinstance(value, dict) else "This is no JSON object."


def _csv_rows(
    path: Path,
    first: str,
) -> Iterator[tuple[str, dict | str]]:
    separator = max(",;\t", key=first.count)
    limit = csv.field_size_limit(MOST_FIELD)
    place = path.name
    try:
        with opened(path) as file:
            reader = csv.DictReader(
                file,
                delimiter=separator,
                strict=True,
            )
            place = f"{path.name}:1"
            for row in reader:
                yield f"{path.name}:{reader.line_num}", _fields(row)
                place = f"{path.name}:{reader.line_num + 1}"
    except csv.Error as error:
        raise DataError("broken_csv", f"{place}: Broken CSV ({error}).") from None
    finally:
        csv.field_size_limit(limit)


def _fields(row: dict) -> dict | str:
    if None in row or None in row.values():
        return "The row has more or fewer fields than the header. Quote fields with commas."
    if any(map(NOT_UTF8.search, row.values())):
        return "This is not UTF-8. Save the file as UTF-8."
    return row


def json_items(path: Path) -> Iterator[tuple[str, str, Any]]:
    """Yield (place, key, value) of what the outermost object of a JSON file holds.

    A list yields its elements one by one, each with the list's key; "" in an outermost list.

    Raises:
        DataError: `broken_json`, `not_utf8`.
    """
    with opened(path) as file:
        text = _Json(path, file)
        if text.peek() == "[":
            for value in text.values():
                yield text.place, "", value
            return
        text.take("{")
        while text.peek() != "}":
            key = text.value()
            text.take(":")
            for value in text.values():
                yield text.place, key, value
            if text.take(",}") == "}":
                break


class _Json:
    """A JSON text that is read value by value; `place` is where the last one began."""

    def __init__(self, path: Path, file: TextIO):
        self.path = path
        self.file = file
        self.text = ""
        self.at = 0
        self.line = 1  # of the beginning of `text`
        self.place = f"{path.name}:1"

    def values(self) -> Iterator[Any]:
        """Yield the elements of the list that comes next, or what comes next."""
        if self.peek() != "[":
            yield self.value()
            return
        self.take("[")
        if self.peek() == "]":
            self.take("]")
            return
        while True:
            yield self.value()
            if self.take(",]") == "]":
                return

    def peek(self) -> str:
        """Return the next character that is no space; "" at the end."""
        while True:
            self.at = SPACE.match(self.text, self.at).end()
            if self.at < len(self.text) or not self._more(CHUNK):
                return self.text[self.at : self.at + 1]

    def take(self, allowed: str) -> str:
        """Step over one of these characters, and return it."""
        found = self.peek()
        if not found or found not in allowed:
            raise self._broken(f"expected one of {allowed}", self.at)
        self.at += 1
        return found

    def value(self) -> Any:
        """Return the next value."""
        self.peek()
        line = self.line + self.text.count("\n", 0, self.at)
        self.place = f"{self.path.name}:{line}"
        size = CHUNK
        while True:
            end = 0
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                problem = self._broken(error.msg, error.pos)
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self.text) - CUT
                if not is_cut or size > MOST:
                    raise problem from None
            except (ValueError, RecursionError):
                raise self._broken("nested too deep, or a number too long", self.at) from None
            after = self.text[end : end + 1]
            if end and not (isinstance(value, (int, float)) and after in OF_NUMBERS):
                self.at = end
                return value
            if not self._more(size):  # the end of the file
                if not end:
                    raise problem
                self.at = len(self.text)
                return value
            size *= 2

    def _more(self, size: int) -> bool:
        """Read on, and forget what lies behind; return whether there was anything."""
        new = self.file.read(size)
        self.line += self.text.count("\n", 0, self.at)
        self.text = self.text[self.at :]
        self.at = 0
        wrong = NOT_UTF8.search(new)
        if wrong:
            line = self.line + self.text.count("\n") + new.count("\n", 0, wrong.start())
            why = f"{self.path.name}:{line}: This is not UTF-8. Save the file as UTF-8."
            raise DataError("not_utf8", why)
        self.text += new
        return bool(new)

    def _broken(self, why: str, at: int) -> DataError:
        line = self.line + self.text.count("\n", 0, at)
        return DataError(
            "broken_json",
            f"{self.path.name}:{line}: Broken JSON ({why}). Copy the file again.",
        )
