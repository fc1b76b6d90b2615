"""Data sets of the field: where they are, their licence, gate and purpose; fetched by name only.

The registry is `data/sources.json`. Files go into the folder `FTLAB_DATA` (default:
~/.cache/ftlab/data), never into the project. A file is checked against its checksum where one is
known, and then an interrupted download is resumed from `.NAME.HASH.part`. Needs no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator

from ftlab._core.config import Config
from ftlab._core.errors import DataError, UsageError
from ftlab._core.files import digest, resource, write_atomic
from ftlab._core.text import redacted, safe

TIMEOUT_S = 60  # without a byte
LISTED = "name rows kind licence gate checksum here purpose stand_in".split()


class FieldSet(Config):
    """One data set. `urls` are joined in their order; `hub` needs your own access."""

    title: str
    file: str  # name of the file that is written
    urls: tuple[str, ...] = ()
    hub: str | None = None  # owner/name/file, fetched by huggingface_hub
    revision: str | None = None  # commit that url or hub name; None: the file may change
    page: str  # where people read about it
    licence: str
    gate: Literal["open", "accept", "ask", "withdrawn"]  # accept: terms on the hub; ask: by request
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")  # of the file as fetched
    rows: int | None = Field(None, ge=1)
    columns: tuple[str, ...]
    kind: Literal["prompts", "chats", "pairs"]
    purpose: str
    how: str = ""  # how to get it where `download` cannot
    stand_in: str  # data of the embedded world that can take its place

    @field_validator("urls")
    @classmethod
    def _https(cls, urls):
        wrong = [url for url in urls if not url.startswith("https://")]
        if wrong:
            raise ValueError(f"{wrong[0]}: https only")
        return urls


@lru_cache
def field_sets() -> dict[str, FieldSet]:
    """Return the registry by name.

    Raises:
        DataError: `wrong_registry`, where an entry of data/sources.json is not valid.
    """
    file = resource("data") / "sources.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    try:
        return {name: FieldSet(**entry) for name, entry in sorted(entries.items())}
    except ValidationError as error:
        raise DataError("wrong_registry", f"data/sources.json: {error}") from None


def folder() -> Path:
    """Return the folder of fetched files: `FTLAB_DATA`, or ~/.cache/ftlab/data."""
    default = Path.home() / ".cache" / "ftlab" / "data"
    return Path(os.environ.get("FTLAB_DATA") or default).expanduser()


def catalogue() -> Any:
    """Return a table of the field's data sets.

    Returns:
        A DataFrame with one row per set: name, rows, kind, licence, gate, whether its checksum is
        known, whether it is here already, its purpose, and its stand-in in the embedded world.
    """
    import pandas as pd

    rows = []
    for name, entry in field_sets().items():
        found = entry.model_dump() | {
            "name": name,
            "rows": entry.rows or "?",
            "checksum": bool(entry.sha256),
            "here": (folder() / entry.file).is_file(),
        }
        rows.append({column: found[column] for column in LISTED})
    return pd.DataFrame(rows)


def download(name: str, out: str | Path | None = None) -> Path:
    """Fetch a data set where it is not here yet, verify its checksum and return its path.

    Args:
        name: A name of `catalogue`.
        out: File to write. Default: in the folder `FTLAB_DATA`.

    Raises:
        UsageError: `unknown_data_set`.
        DataError: `not_downloadable`, `download_failed` (offline, gated, interrupted), or
            `wrong_checksum`. Nothing is then written under the file's name.
    """
    if name not in field_sets():
        allowed = ", ".join(field_sets())
        raise UsageError("unknown_data_set", f"Unknown data set {name!r}. Allowed: {allowed}.")
    entry = field_sets()[name]
    path = Path(out) if out else folder() / entry.file
    if path.is_file():
        _verify(name, entry, path.read_bytes(), f"{path}. Remove it and call again.")
        return path
    instead = f"Meanwhile use the stand-in: {entry.stand_in}."
    if not entry.urls and not entry.hub:
        why = f"{name} cannot be downloaded (gate: {entry.gate}): {entry.how}"
        raise DataError("not_downloadable", f"{why} {instead}", gate=entry.gate)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {}
    for url in entry.urls if entry.sha256 else ():
        parts[url] = path.with_name(f".{path.name}.{digest([url, entry.sha256])}.part")
    try:
        content = _from_hub(entry) if entry.hub else b""
        for url in entry.urls:
            content += _fetch(url, parts.get(url))
    except Exception as error:  # each library has its own classes
        reason = " ".join(str(error).split())
        reason = safe(redacted(reason), 200)
        why = f"{name} was not fetched from {entry.page} ({type(error).__name__}: {reason})."
        if entry.gate != "open":
            why += f" It is gated: {entry.how}"
        why = f"{why} Go online, or put the file at {path}. {instead}"
        raise DataError("download_failed", why, reason=reason, gate=entry.gate) from None
    for part in parts.values():  # whole; if it is not what was promised, it must not be resumed
        part.unlink(missing_ok=True)
    _verify(name, entry, content, f"what {entry.page} sent. Nothing was written.")
    write_atomic(path, content)
    return path


def _fetch(url, part):
    """Return the content of an address, resumed from the file `part` if there is one.

    Raises OSError, also where less came than was promised.
    """
    have = 0
    headers = {}
    if part and part.exists():
        have = part.stat().st_size
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        request = urllib.request.Request(url, headers=headers)
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # nothing comes after what is here
            part.unlink()
        why = f"{error.code} {error.reason}"
        wait = error.headers.get("Retry-After")
        if wait:
            why += f"; call again after {wait} (s, or a time)"
        raise OSError(why) from None
    if answer.status != 206:  # the server sends all of it once more
        have = 0
    file = open(part, "ab+" if have else "wb+") if part else io.BytesIO()
    with answer, file:
        shutil.copyfileobj(answer, file)
        file.seek(0)
        content = file.read()
    promised = have + int(answer.headers.get("Content-Length") or 0)
    if len(content) < promised:
        why = f"incomplete download, {len(content)} of {promised} bytes"
        raise OSError(f"{why}; call again to resume")
    if url.endswith(".jsonl") and not content.endswith(b"\n"):
        content += b"\n"
    return content


def _from_hub(entry):
    from huggingface_hub import hf_hub_download

    owner, name, file = entry.hub.split("/", 2)
    found = hf_hub_download(
        f"{owner}/{name}",
        file,
        repo_type="dataset",
        revision=entry.revision,
    )
    return Path(found).read_bytes()


def _verify(name, entry, content, where):
    found = hashlib.sha256(content).hexdigest()
    if entry.sha256 and found != entry.sha256:
        expected = entry.sha256[:16]
        why = f"{name}: SHA-256 {found[:16]}... instead of {expected}... in {where}"
        raise DataError("wrong_checksum", why)
