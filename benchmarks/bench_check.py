"""`ftlab check` on a made file of 100,000 chats: seconds and peak memory. `python tests/bench_check.py [rows] [model]`."""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_S, LIMIT_MB = 20, 1024


def make(path: Path, rows: int = 100_000) -> Path:
    """-> a JSONL of chats of about 110 words, 1 % repeated and 1 % nearly so."""
    rng = random.Random(0)
    words = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 9))) for _ in range(5000)]
    made: list[list[str]] = []
    with open(path, "w", encoding="utf-8") as f:
        for i in range(rows):
            text = [rng.choice(words) for _ in range(rng.randint(40, 180))] if i % 50 or not made else list(made[-1])
            if i % 100 == 0:
                text[rng.randrange(len(text))] = "changed"
            made = [text]
            cut = len(text) // 4
            turns = [
                {"role": "user", "content": " ".join(text[:cut])},
                {"role": "assistant", "content": " ".join(text[cut:])},
            ]
            f.write(json.dumps({"messages": turns}) + "\n")
    return path


if __name__ == "__main__":
    rows, model = int(sys.argv[1]) if sys.argv[1:] else 100_000, sys.argv[2:3]
    with tempfile.TemporaryDirectory() as folder:
        file = make(Path(folder) / "chats.jsonl", rows)
        print(f"{rows} rows, {file.stat().st_size / 2**20:.0f} MB")
        start = time.monotonic()
        call = [
            sys.executable,
            "-c",
            "from ftlab.cli import main; main()",
            "check",
            str(file),
            *(["--model", *model] if model else []),
        ]
        done = subprocess.run(call, capture_output=True, text=True)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(
            done.stdout[-600:] + done.stderr[-600:],
            f"{time.monotonic() - start:.1f} s, {peak:.0f} MB at most",
            sep="\n",
        )
