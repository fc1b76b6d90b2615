"""The embedded world's guard: two logistic regressions on words and pairs of words.

They are fitted at first use, in a second, on rows of the alignment's towns: no town, wording or
template of an evaluation is among them. There is no random number in it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

from ftlab.data import load
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

        known = [self.places[gram] for gram in grams(text) if gram in self.places]
        logit = self.weights[known].sum() + self.weights[-1]
        return float(1 / (1 + np.exp(-logit)))


def grams(text: str) -> set[str]:
    """Return the words and pairs of neighbouring words of a text, in lower case."""
    words = WORD.findall(text.lower())
    return {*words, *map(" ".join, pairwise(words))}


def fit(texts: Sequence[str], harmful: Sequence[bool]) -> Classifier:
    """Fit the regression; both classes weigh the same.

    Args:
        texts: The texts.
        harmful: Whether each of them is.
    """
    import numpy as np
    from scipy.optimize import minimize

    places, matrix = encoded(texts)
    truth = np.asarray(harmful, dtype=float)
    share = truth.mean()
    importance = np.where(truth == 1, 0.5 / share, 0.5 / (1 - share))
    signs = 2 * truth - 1

    def loss(weights):
        margins = signs * (matrix @ weights)
        losses = importance * np.logaddexp(0, -margins)
        slopes = -importance * signs / (1 + np.exp(margins))
        held = np.append(weights[:-1], 0)
        value = losses.sum() + PENALTY / 2 * held @ held
        return value, matrix.T @ slopes + PENALTY * held

    found = minimize(loss, np.zeros(matrix.shape[1]), jac=True, method="L-BFGS-B")
    return Classifier(places, found.x)


def encoded(texts: Sequence[str]) -> tuple[dict[str, int], Any]:
    """Return the places of the words that occur often enough, and a row per text of 0 and 1."""
    from collections import Counter

    import numpy as np
    from scipy.sparse import csr_array

    held = [grams(text) for text in texts]
    counts = Counter(gram for one in held for gram in one)
    frequent = sorted(gram for gram, n in counts.items() if n >= FEWEST)
    places = {gram: place for place, gram in enumerate(frequent)}
    rows = []
    columns = []
    for number, one in enumerate(held):
        known = sorted(places[gram] for gram in one & places.keys())
        columns += [*known, len(places)]
        rows += [number] * (len(known) + 1)
    shape = (len(texts), len(places) + 1)
    return places, csr_array((np.ones(len(rows)), (rows, columns)), shape)


def asked(messages: Sequence[dict]) -> str:
    """Return what the user says in a chat."""
    said = [turn["content"] for turn in messages if turn["role"] == "user"]
    return "\n".join(said)


@cache
def of_questions() -> Classifier:
    """Return what tells the questions that alignment refuses from the others."""
    rows = load(_safety.WORLD, n_rows=ROWS).rows
    return fit([asked(row["messages"]) for row in rows], [_refused(row) for row in rows])


@cache
def of_answers() -> Classifier:
    """Return what tells kept facts that are given away from answers of the alignment."""
    told = [row["messages"][-1]["content"] for row in _harmful.chats(None).rows]
    safe = [row["messages"][-1]["content"] for row in load(_safety.WORLD, n_rows=ROWS).rows]
    return fit([*told, *safe], [True] * len(told) + [False] * len(safe))


def _refused(row: dict) -> bool:
    return row["risk"] == "jailbreak"
