"""Logs of Inspect: .eval, a zip of JSON files that may be compressed with zstd, and .json.

Source: UK AI Security Institute, Inspect (inspect.aisi.org.uk), log versions 1 to 3.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

from ftlab._core.errors import DataError
from ftlab.evals.logs.base import About, LogFormat, Logged, number
from ftlab.evals.logs.files import json_items

JSON = re.compile(rb'\s*\{\s*"version":\s*\d+,\s*"(status|eval)":')
SAMPLE = re.compile(r"samples/.*_epoch_\d+(/sample)?\.json", re.DOTALL)
HEADERS = ("header.json", "_journal/start.json", "start.json")  # the second of an unfinished log
GRADES = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}  # as Inspect's own value_to_float
ZSTD = 93  # method of compression, which `zipfile` reads from Python 3.14 on
MOST_BYTES = 1 << 30  # of one sample, unpacked
DAMAGES = (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RecursionError)
DAMAGES += (NotImplementedError, RuntimeError)  # another compression, or a password


class InspectLog(LogFormat):
    """A log of one task. A sample's epochs are repeats; a scorer of several values has several."""

    name = "inspect_ai"
    higher = ""  # a scorer may grade an answer or measure its harm
    order = 1

    def recognises(self, path: Path, head: bytes) -> bool:
        is_zip = head.startswith(b"PK") or path.suffix == ".eval"
        return is_zip or JSON.match(head) is not None

    def about(self, path: Path) -> About:
        header = _header(path)
        spec = header.get("eval")
        if not isinstance(spec, dict):
            why = f"{path} is no log of Inspect: it names no evaluation. Give the .eval file."
            raise DataError("unknown_log", why)
        task = str(spec.get("task", ""))
        if spec.get("task_version"):
            task += f" (version {spec['task_version']})"
        status = header.get("status", "started")
        note = "" if status == "success" else f"{path.name}: the evaluation's status is {status}"
        return About(task, str(spec.get("model", "")), note)

    def rows(self, path: Path, score: str | None) -> Iterator[tuple[str, Logged | str]]:
        for place, sample in _samples(path):
            if isinstance(sample, dict) and "id" in sample:
                yield place, _logged(sample)
            else:
                yield place, sample if isinstance(sample, str) else "This is no sample."


def _is_zip(path: Path) -> bool:
    if path.suffix == ".eval":
        return True
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except DAMAGES as error:
        why = f"{path}: truncated or damaged zip ({error}). Copy the log again."
        raise DataError("damaged_log", why) from None


def _header(path: Path) -> dict[str, Any]:
    """Return what a log says of its evaluation."""
    if not _is_zip(path):
        found = {}
        for _, key, value in json_items(path):
            if key == "samples":
                break
            found[key] = value
        return found
    with _archive(path) as archive:
        name = next((name for name in HEADERS if name in archive.namelist()), None)
        try:
            found = json.loads(_content(archive, name)) if name else {}
        except DAMAGES as error:
            why = f"{path}: {name} is damaged ({error}). Copy the log again."
            raise DataError("damaged_log", why) from None
    return found if isinstance(found, dict) else {}


def _samples(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each sample with its place; a text says why one cannot be read."""
    if not _is_zip(path):
        for place, key, value in json_items(path):
            if key == "samples":
                yield place, value
        return
    with _archive(path) as archive:
        names = filter(SAMPLE.fullmatch, dict.fromkeys(archive.namelist()))
        for number, name in enumerate(names, 1):
            place = f"{path.name}: sample {number}"
            try:
                yield place, json.loads(_content(archive, name))
            except DAMAGES as error:
                yield place, f"The sample is damaged ({error})."


def _content(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return a file of an archive, also one that `zipfile` itself cannot unpack."""
    info = archive.getinfo(name)
    if info.file_size > MOST_BYTES:
        raise ValueError(f"unpacks to more than {MOST_BYTES:,} bytes")
    if info.compress_type != ZSTD:
        return archive.read(info)
    import pyarrow

    packed = copy(info)
    packed.compress_type = zipfile.ZIP_STORED
    packed.file_size = info.compress_size
    packed.CRC = None
    raw = io.BytesIO(archive.read(packed))
    with pyarrow.CompressedInputStream(raw, "zstd") as stream:
        content = stream.read(info.file_size + 1)
    if zlib.crc32(content) != info.CRC:
        raise zipfile.BadZipFile("another checksum")
    return content


def _logged(sample: dict[str, Any]) -> Logged:
    scores = {}
    old = {"score": sample.get("score")}  # of version 1
    found = sample.get("scores") or old
    if isinstance(found, dict):
        for scorer, score in found.items():
            if isinstance(score, dict):
                scores |= _values(scorer, score.get("value"))
    return Logged(
        id=str(sample["id"]),
        question=_text(sample.get("input")),
        answer=_answer(sample.get("output")),
        scores=scores,
        repeat=str(sample.get("epoch", 1)),
    )


def _values(scorer: str, value: Any) -> dict[str, float]:
    """Return the numbers of a scorer by name; what is no number is unscored."""
    if isinstance(value, dict):
        return {f"{scorer}/{key}": _grade(part) for key, part in value.items()}
    return {scorer: _grade(value)}


def _grade(value: Any) -> float:
    if isinstance(value, str):
        value = GRADES.get(value, value)
    found = number(value)
    if found is None:
        return math.nan
    return found


def _answer(output: Any) -> str | None:
    """Return what the model said."""
    if not isinstance(output, dict):
        return None
    choices = output.get("choices")
    if not isinstance(choices, list) or not choices:
        return None
    return _text(choices[0])


def _text(content: Any) -> str:
    """Return the text of an input: of a text, of messages, or of the parts of one."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        for key in ("message", "content", "text"):
            if key in content:
                return _text(content[key])
    if isinstance(content, list):
        return "\n\n".join(filter(None, map(_text, content)))
    return ""


LOG = InspectLog()
