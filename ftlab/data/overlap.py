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

import numpy as np

from ftlab.data.dataset import plain, whole_text
from ftlab.data.prompts import PromptSet

WORD = re.compile(r"\w+")
NEAR = 0.8
BANDS = 4
DEPTH = 2  # hashes of a band
LONG = 13  # words in a row: of a long prompt
SHORT = 8  # of the shortest prompt that is looked for inside a row
OFFSETS = np.arange(BANDS, dtype=np.uint64)  # keeps the bands apart
ROLL = np.uint64(0x9E3779B97F4A7C15)


class MinHashIndex:
    """Finds rows with nearly the same text, in time linear in the text."""

    def __init__(self, rows):
        self.rows = rows
        self.bands = {}  # hash of a band: the first row that has it
        dice = np.random.default_rng(0)
        half = dice.integers(0, 2**63, BANDS * DEPTH, dtype=np.uint64)
        self.factors = half * 2 + 1  # odd, so that no bit is lost

    def add(self, number):
        """Add a row; return the number of the first near-duplicate among earlier rows."""
        mine = self._sequences(number)
        if not len(mine):
            return None
        hashes = mine[:, None] * self.factors
        least = hashes.min(axis=0)
        pairs = least.reshape(BANDS, DEPTH)
        pairs = pairs * self.factors[2:4]
        bands = pairs.sum(axis=1, dtype=np.uint64) + OFFSETS
        earlier = set()
        for band in bands.tolist():
            first = self.bands.setdefault(band, number)
            earlier.add(first)
        earlier.discard(number)
        for other in sorted(earlier):
            if _jaccard(mine, self._sequences(other)) >= NEAR:
                return other
        return None

    def _sequences(self, number):
        """Return a code of each three words in a row."""
        text = whole_text(self.rows[number])
        codes = _codes(text)
        if len(codes) < 3:
            return codes
        first = codes[:-2] * self.factors[0]
        second = codes[1:-1] * self.factors[1]
        return first + second + codes[2:]


def _jaccard(some, others):
    """Return the share of codes that two arrays have in common."""
    one = set(some.tolist())
    other = set(others.tolist())
    common = len(one & other)
    return common / len(one | other)


def find_repeats(rows: list[dict]) -> tuple[list, list]:
    """Return duplicates and near-duplicates, as positions of the earlier and the later row."""
    first_rows = {}  # hash of a text: the first row that has it
    index = MinHashIndex(rows)
    same = []
    near = []
    for number, row in enumerate(rows):
        text = plain(whole_text(row))
        key = hashlib.sha256(text.encode()).digest()
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
        self.whole = {}  # words of a prompt: its id
        self.parts = {}  # number of words: {their hash: id of the prompt}
        for sample in prompts:
            words = _words(sample.question)
            self.whole.setdefault(words, sample.id)
            wanted = min(LONG, len(words))
            if wanted < SHORT:
                continue
            known = self.parts.setdefault(wanted, {})
            codes = _codes(sample.question)
            for length, hashes in _windows(codes):
                if length == wanted:
                    for code in hashes.tolist():
                        known.setdefault(code, sample.id)

    def find(self, row: dict) -> str | None:
        """Return which prompt a row holds and how it shows, or None."""
        for message in row.get("messages") or row["prompt"]:
            if message["role"] != "user":
                continue
            found = self.whole.get(_words(message["content"]))
            if found:
                return f"{found} of {self.name} (the same question)"
        codes = _codes(whole_text(row))
        for length, hashes in _windows(codes):
            known = self.parts.get(length)
            if not known:
                continue
            shared = known.keys() & set(hashes.tolist())
            if shared:
                found = known[min(shared)]
                how = f"{length} words in a row shared"
                return f"{found} of {self.name} ({how})"
        return None


def _words(text):
    return tuple(WORD.findall(text.casefold()))


def _codes(text):
    """Return a checksum of each word, case aside."""
    words = _words(text)
    encoded = map(str.encode, words)
    codes = map(zlib.crc32, encoded)
    return np.fromiter(codes, np.uint64, len(words))


def _windows(codes):
    """Yield n and a hash of each n words in a row, for n up to `LONG`."""
    rolled = codes
    for length in range(1, LONG + 1):
        yield length, rolled
        rolled = rolled[:-1] * ROLL
        rolled += codes[length:]
