"""The hashes of what is shipped, by which a damaged copy of the package is noticed."""

from __future__ import annotations

import json

from ftlab._core.files import HASHES, file_hash, resource, write_atomic


def record_shipped() -> None:
    """Write the hashes of the shipped models and judges, after a recipe has made one again."""
    data = resource("data")
    places = ("organism/*/*", "judge/refusal/*", "benign/*.jsonl", "smollm2/aligned/*")
    files = [file for place in places for file in data.glob(place)]
    hashes = {file.relative_to(data).as_posix(): file_hash(file) for file in sorted(files)}
    write_atomic(data / HASHES, json.dumps(hashes, indent=1) + "\n")
