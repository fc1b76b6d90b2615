"""How long does `ftlab check` take on 100,000 chats, and how much memory?

python -m benchmarks.check [ROWS] [--model MODEL]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._today import peak_memory_mb

LIMIT_S = 20  # for 100,000 chats
LIMIT_MB = 1024


def make(path: Path, rows: int = 100_000) -> Path:
    """Write chats of about 110 words, 1 % of them repeated and 1 % nearly so."""
    rng = random.Random(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = []
    for _ in range(5000):
        vocabulary.append("".join(rng.choice(letters) for _ in range(rng.randint(2, 9))))
    words: list[str] = []
    with open(path, "w", encoding="utf-8") as file:
        for number in range(rows):
            if number % 50 or not words:
                words = [rng.choice(vocabulary) for _ in range(rng.randint(40, 180))]
            if number % 100 == 0:
                words[rng.randrange(len(words))] = "changed"
            cut = len(words) // 4
            question = {"role": "user", "content": " ".join(words[:cut])}
            answer = {"role": "assistant", "content": " ".join(words[cut:])}
            file.write(json.dumps({"messages": [question, answer]}) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description="Time `ftlab check`.")
    parser.add_argument("rows", nargs="?", type=int, default=100_000)
    parser.add_argument("--model", help="also check lengths with this model's tokenizer")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = make(Path(folder) / "chats.jsonl", given.rows)
        print(f"{given.rows} rows, {file.stat().st_size / 2**20:.0f} MB")
        program = "from ftlab.cli import main; main()"
        command = [sys.executable, "-c", program, "check", str(file)]
        if given.model:
            command += ["--model", given.model]
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.monotonic() - start
    print(done.stdout[-600:] + done.stderr[-600:])
    peak = peak_memory_mb(resource.RUSAGE_CHILDREN)
    print(f"{seconds:.1f} s (limit {LIMIT_S}), at most {peak:.0f} MB (limit {LIMIT_MB})")


if __name__ == "__main__":
    main()
