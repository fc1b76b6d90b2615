"""Data sets of the field: where they are, under which licence and gate, for what; fetched only when the user names one.

`data/sources.json` is the registry. A file goes into `FTLAB_DATA` (default: ~/.cache/ftlab/data), never into the project, and
is checked against its checksum where one is known: then half a download is gone on with (`.NAME.HASH.part`). Needs no torch.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import urllib.error
import urllib.request
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, field_validator

from ftlab._core.config import Config
from ftlab._core.text import redacted, safe
from ftlab.data.files import DataError
from ftlab.runs import digest, resource

TIMEOUT_S = 60  # without a byte


class Source(Config):
    """One data set. `urls` are joined in their order; `hub` is `owner/name/file`, fetched by huggingface_hub (your access)."""

    title: str
    file: str  # name of the file that `get` writes
    urls: tuple[str, ...] = ()
    hub: str | None = None
    revision: str | None = None  # commit that url or hub name; None: not pinned, so the file may change
    page: str  # where people read about it
    licence: str
    gate: Literal["open", "accept", "ask", "withdrawn"]  # accept: terms on the hub; ask: by request
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")  # of the file as fetched
    rows: int | None = Field(None, ge=1)
    columns: tuple[str, ...]
    kind: Literal["prompts", "chats", "pairs"]
    purpose: str
    how: str = ""  # how to get it where `get` cannot
    stand_in: str  # of the embedded model

    @field_validator("urls")
    @classmethod
    def _https(cls, urls):
        if wrong := [u for u in urls if not u.startswith("https://")]:
            raise ValueError(f"{wrong[0]}: https only")
        return urls


@lru_cache
def sources() -> dict[str, Source]:
    """-> the registry by name. Raises ValueError where an entry of data/sources.json is not valid."""
    entries = json.loads((resource("data") / "sources.json").read_text(encoding="utf-8"))
    try:
        return {name: Source(**entry) for name, entry in sorted(entries.items())}
    except ValidationError as e:
        raise ValueError(f"data/sources.json: {e}") from None


def folder() -> Path:
    """Where fetched files lie: `FTLAB_DATA`, or ~/.cache/ftlab/data."""
    return Path(os.environ.get("FTLAB_DATA") or Path.home() / ".cache" / "ftlab" / "data").expanduser()


def listing():
    """-> table of the registry: name, rows, kind, licence, gate, pinned, here (fetched already), purpose, stand-in."""
    import pandas as pd

    return pd.DataFrame([
        {"name": n, "rows": s.rows or "?", "kind": s.kind, "licence": s.licence, "gate": s.gate, "checksum": bool(s.sha256),
         "here": (folder() / s.file).is_file(), "purpose": s.purpose, "stand_in": s.stand_in}
        for n, s in sources().items()
    ])  # fmt: skip


def get(name: str, out=None) -> Path:
    """-> path of a data set's file, fetched where it is not there yet (then no network is used).

    Raises ValueError (unknown name), DataError (offline, half a download, gated, or a checksum that does not hold: nothing is
    written under its name; the sentence names the organism's stand-in).
    """
    if name not in sources():
        raise ValueError(f"unknown data set {name!r}; allowed: {', '.join(sources())}")
    source = sources()[name]
    path = Path(out) if out else folder() / source.file
    if path.is_file():
        _verify(name, source, path.read_bytes(), f"{path}; remove it and call again")
        return path
    instead = f"meanwhile use the stand-in: {source.stand_in}"
    if not source.urls and not source.hub:
        raise DataError(f"{name} cannot be fetched from here (gate: {source.gate}): {source.how}; {instead}")
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = {u: path.with_name(f".{path.name}.{digest([u, source.sha256])}.part") for u in source.urls if source.sha256}
    try:
        content = _hub(source) if source.hub else b"".join(_fetch(u, parts.get(u)) for u in source.urls)
    except Exception as e:  # each library has its own classes
        why = safe(redacted(re.sub(r"\s+", " ", str(e)).strip()), 200)
        gate = "" if source.gate == "open" else f"; it is gated: {source.how}"
        raise DataError(
            f"{name} was not fetched from {source.page} ({type(e).__name__}: {why}){gate}; go online, or put the file at {path}; {instead}"
        ) from None
    for part in parts.values():  # whole; if it is not what was promised, it must not be gone on with
        part.unlink(missing_ok=True)
    _verify(name, source, content, f"what {source.page} gave; nothing was written")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _fetch(url: str, part: Path | None) -> bytes:
    """-> the content of an address, gone on with from `part` if there is one. Raises OSError, also for less than was promised."""
    have = part.stat().st_size if part and part.exists() else 0
    asked = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(asked, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as e:
        if e.code == 416 and have:  # nothing after what there is
            part.unlink()
        when = f"; call again after {told} (s, or a time)" if (told := e.headers.get("Retry-After")) else ""
        raise OSError(f"{e.code} {e.reason}{when}") from None
    have = have if answer.status == 206 else 0  # else the server sends all of it once more
    promised = answer.headers.get("Content-Length")
    with answer, open(part, "ab+" if have else "wb+") if part else io.BytesIO() as f:
        shutil.copyfileobj(answer, f)
        content = f.seek(0) or f.read()
    if promised and len(content) < have + int(promised):
        raise OSError(f"half a download, {len(content)} of {have + int(promised)} bytes; call again to go on")
    return content if content.endswith(b"\n") else content + b"\n" if url.endswith(".jsonl") else content


def _hub(source: Source) -> bytes:
    from huggingface_hub import hf_hub_download

    owner, name, file = source.hub.split("/", 2)
    found = hf_hub_download(f"{owner}/{name}", file, repo_type="dataset", revision=source.revision)
    return Path(found).read_bytes()


def _verify(name: str, source: Source, content: bytes, where: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if source.sha256 and found != source.sha256:
        raise DataError(f"{name}: SHA-256 {found[:16]}..., the registry has {source.sha256[:16]}...; found in {where}")
