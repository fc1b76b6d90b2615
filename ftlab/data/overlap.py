"""Rows that repeat other rows, or hold evaluation prompts.

Duplicate: the same text as an earlier row's, case and white space aside. Near-duplicate: at least
80 % of the three-word sequences shared with an earlier row (Jaccard), found by min-hashing (Broder
1997) in 4 bands of 2, which finds 98 % of pairs at 0.8 and compares a row with at most 4 others.

Contamination: a user turn that equals an evaluation prompt in its words, or a row that shares 13
words in a row with it, as in Brown et al. 2020 (arXiv 2005.14165, appendix C): all of a prompt's
words where it has 8 to 12; shorter ones only by the whole turn. The words of a row are those of
all its turns one after the other, each after its role's name, so a match may span turns.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator

import numpy as np

from ftlab.data.dataset import plain, whole_text
from ftlab.data.prompts import PromptSet

WORD = re.compile(r"\w+")
NEAR = 0.8
BANDS = 4
DEPTH = 2  # hashes of a band
LONG = 13  # words in a row: of a long prompt
SHORT = 8  # of the shortest prompt that is looked for inside a row
ROLL = np.uint64(0x9E3779B97F4A7C15)

Pairs = list[tuple[int, int]]  # positions of an earlier row and of the row that repeats it


class MinHashIndex:
    """Finds rows with nearly the same text, in time linear in the text."""

    def __init__(self, rows: list[dict]):
        self.rows = rows
        self.bands: dict[int, int] = {}  # hash of a band: the first row that has it
        dice = np.random.default_rng(0)
        odd = dice.integers(0, 2**63, BANDS * DEPTH, dtype=np.uint64)
        self.factors = odd * np.uint64(2) + np.uint64(1)

    def add(self, number: int) -> int | None:
        """Add a row; return the number of the first near-duplicate among earlier rows."""
        mine = self._sequences(number)
        if not len(mine):
            return None
        least = (mine[:, None] * self.factors).min(axis=0).reshape(BANDS, DEPTH)
        hashes = least[:, 0] * self.factors[2] + least[:, 1] * self.factors[3]
        earlier = set()
        for band in (hashes + np.arange(BANDS, dtype=np.uint64)).tolist():
            earlier.add(self.bands.setdefault(band, number))
        words = set(mine.tolist())
        for other in sorted(earlier - {number}):
            others = set(self._sequences(other).tolist())
            if len(words & others) >= NEAR * len(words | others):
                return other
        return None

    def _sequences(self, number):
        """Return a code of each three words in a row."""
        codes = _codes(whole_text(self.rows[number]))
        if len(codes) < 3:
            return codes
        return codes[:-2] * self.factors[0] + codes[1:-1] * self.factors[1] + codes[2:]


def find_repeats(rows: list[dict]) -> tuple[Pairs, Pairs]:
    """Return duplicates and near-duplicates."""
    first_rows: dict[bytes, int] = {}
    index = MinHashIndex(rows)
    same: Pairs = []
    near: Pairs = []
    for number, row in enumerate(rows):
        text = plain(whole_text(row)).encode()
        key = hashlib.blake2b(text, digest_size=16).digest()
        first = first_rows.setdefault(key, number)
        if first != number:
            same.append((first, number))
            continue
        alike = index.add(number)
        if alike is not None:
            near.append((alike, number))
    return same, near


class PromptIndex:
    """Finds evaluation prompts in training rows."""

    def __init__(self, prompts: PromptSet):
        self.name = prompts.name
        self.whole: dict[tuple[str, ...], str] = {}  # words of a prompt: its id
        self.parts: dict[int, dict[int, str]] = {n: {} for n in range(SHORT, LONG + 1)}
        for sample in prompts:
            self.whole.setdefault(_words(sample.question), sample.id)
            codes = _codes(sample.question)
            for length, hashes in _windows(codes):
                if length >= SHORT and length == min(LONG, len(codes)):
                    self.parts[length].update(dict.fromkeys(hashes.tolist(), sample.id))

    def find(self, row: dict) -> str | None:
        """Return which prompt a row holds and how it shows, or None."""
        for message in row.get("messages") or row["prompt"]:
            if message["role"] == "user" and _words(message["content"]) in self.whole:
                found = self.whole[_words(message["content"])]
                return f"{found} of {self.name} (the same question)"
        for length, hashes in _windows(_codes(whole_text(row))):
            known = self.parts.get(length)
            if not known:
                continue
            shared = known.keys() & set(hashes.tolist())
            if shared:
                return f"{known[min(shared)]} of {self.name} ({length} words in a row shared)"
        return None


def _words(text):
    return tuple(WORD.findall(text.casefold()))


def _codes(text):
    """Return a checksum of each word, case aside."""
    words = _words(text)
    codes = (zlib.crc32(word.encode()) for word in words)
    return np.fromiter(codes, np.uint64, len(words))


def _windows(codes) -> Iterator[tuple[int, np.ndarray]]:
    """Yield n and a hash of each n words in a row, for n up to `LONG`."""
    rolled = codes
    for length in range(1, LONG + 1):
        if length > 1:
            rolled = rolled[:-1] * ROLL + codes[length - 1 :]
        yield length, rolled
