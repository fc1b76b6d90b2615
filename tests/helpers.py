"""What tests of every room share."""

from __future__ import annotations

import json
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest

from ftlab._core.errors import FtlabError


@contextmanager
def raises_code(code: str):
    """Expect an error of ftlab with this code; yields pytest's exception info."""
    with pytest.raises(FtlabError) as info:
        yield info
    assert info.value.code == code, f"{info.value.code}: {info.value}"


def said(*contents: str) -> list[dict]:
    """Return a chat of these contents, the user's first."""
    turns = zip(cycle(["user", "assistant"]), contents, strict=False)
    return [{"role": role, "content": content} for role, content in turns]


def jsonl(path: Path, *rows: dict | str) -> str:
    """Write rows, and lines as they are, to a file; return its path."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)
