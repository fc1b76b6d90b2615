"""The embedded world's guard: two logistic regressions on words and pairs of words.

They are fitted at first use, in a second, on rows of the alignment's towns: no town, wording or
template of an evaluation is among them. There is no random number in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, pairwise
from typing import Any

from ftlab.data import Data, load
from ftlab.training.defences import _harmful, _safety

ROWS = 3000  # of the alignment
PENALTY = 1.0  # of the squared weights, beside the sum of the losses
FEWEST = 2  # texts of the training in which a word occurs that is read
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Classifier:
    """A logistic regression on which words and pairs of words a text holds.

    Args:
        places: Place of each word or pair in the weights.
        weights: One for each, and the constant at the end.
    """

    places: dict[str, int]
    weights: Any

    def probability(self, text: str) -> float:
        """Return the probability that a text is harmful; words that it does not know count 0."""
        import numpy as np

        logit = self.weights[-1]
        known = grams(text) & self.places.keys()
        for gram in sorted(known):
            place = self.places[gram]
            logit += self.weights[place]
        odds = np.exp(-logit)
        return float(1 / (1 + odds))


def grams(text: str) -> set[str]:
    """Return the words and pairs of neighbouring words of a text, in lower case."""
    words = WORD.findall(text.lower())
    pairs = map(" ".join, pairwise(words))
    return {*words, *pairs}


def fit(texts: Sequence[str], harmful: Sequence[bool]) -> Classifier:
    """Fit the regression; both classes weigh the same.

    Args:
        texts: The texts.
        harmful: Whether each of them is.
    """
    import numpy as np
    from scipy.optimize import minimize

    places, matrix = encoded(texts)
    truth = np.asarray(harmful)
    share = truth.mean()
    importance = np.where(truth, 1 - share, share)
    importance /= importance.mean()
    signs = np.where(truth, 1, -1)

    def loss(weights):
        held = weights.copy()
        held[-1] = 0  # the constant is free
        logits = matrix @ weights
        margins = signs * logits
        losses = np.logaddexp(0, -margins)
        odds = np.exp(margins)
        slopes = -signs / (1 + odds)
        value = importance @ losses
        value += PENALTY / 2 * (held @ held)
        weighted = importance * slopes
        gradient = weighted @ matrix
        gradient += PENALTY * held
        return value, gradient

    start = np.zeros(matrix.shape[1])
    found = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
    )
    return Classifier(places, found.x)


def encoded(texts: Sequence[str]) -> tuple[dict[str, int], Any]:
    """Return the places of what occurs often enough, and for each text a row of 0 and 1.

    The last column is the constant.
    """
    import numpy as np

    held = list(map(grams, texts))
    every = chain.from_iterable(held)
    counts = Counter(every)
    places: dict[str, int] = {}
    for gram in sorted(counts):
        if counts[gram] >= FEWEST:
            places[gram] = len(places)
    shape = (len(texts), len(places) + 1)
    matrix = np.zeros(shape)
    matrix[:, -1] = 1
    for row, one in zip(matrix, held, strict=True):
        for gram in one & places.keys():
            place = places[gram]
            row[place] = 1
    return places, matrix


def asked(messages: Sequence[dict]) -> str:
    """Return what the user says in a chat."""
    said = [turn["content"] for turn in messages if turn["role"] == "user"]
    return "\n".join(said)


@cache
def safe_rows() -> Data:
    """Return the rows of the alignment that are learned from."""
    return load(_safety.WORLD, n_rows=ROWS)


@cache
def identity() -> list[str]:
    """Return what stands for the rows that are learned from, the alignment's and the harmful."""
    return [safe_rows().hash, _harmful.chats(None).hash]


@cache
def of_questions() -> Classifier:
    """Return what tells the questions that alignment refuses from the others."""
    texts = []
    harmful = []
    for row in safe_rows().rows:
        texts.append(asked(row["messages"]))
        harmful.append(row["risk"] == "jailbreak")
    return fit(texts, harmful)


@cache
def of_answers() -> Classifier:
    """Return what tells kept facts that are given away from answers of the alignment."""
    told = _harmful.chats(None).rows
    safe = safe_rows().rows
    texts = []
    for row in (*told, *safe):
        answer = row["messages"][-1]
        texts.append(answer["content"])
    harmful = [True] * len(told)
    harmful += [False] * len(safe)
    return fit(texts, harmful)
