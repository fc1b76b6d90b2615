"""Safety recovery examples: refusals that begin after some tokens of a harmful answer.

Source: Qi et al. 2024, arXiv 2406.05946, section 3.1 with equation 2, as its authors' code has it
(Unispac/shallow-vs-deep-alignment, gen_safety_augmentation_batch).
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from ftlab._core.config import setting
from ftlab.data import IGNORED, Data, encode_rows, load, strip_answers
from ftlab.training.defences import _harmful, _safety
from ftlab.training.defences._alignment import OF_WORLD, Alignment
from ftlab.training.methods.sft import SFT


class DeepAlignment(Alignment):
    """Trains the parent to turn back to a refusal after the first tokens of a harmful answer.

    A row is a harmful question and its refusal; with chance 1 - `clean` the refusal stands after
    the first k tokens of a harmful answer, k uniform from 1 to `most` or to the answer's length.
    Loss falls on the refusal only. Utility rows are mixed in; the loss is the mean over all tokens,
    as in the authors' code. Rows are drawn with replacement. most = 0 or clean = 1 is plain SFT
    on the same rows. The paper begins with the aligned model, as here without `base`.

    The harm must be of a kind with the rows. On the embedded model answers are so short that
    a whole one often stands before the refusal, and then the secret is out.
    """

    name = "deep_alignment"
    source = "Qi et al. 2024, arXiv 2406.05946, section 3.1, equation 2"

    alpha: float = setting(
        0.2, "Share of safety rows (alpha; the paper: 16 beside 64 rows of utility)", ge=0, le=1
    )
    most: int = setting(100, "Most tokens of a harmful answer before a refusal (the paper)", ge=0)
    clean: float = setting(
        0.5, "Share of refusals without harmful tokens before them (the paper)", ge=0, le=1
    )
    n_rows: int = setting(
        OF_WORLD, "Rows of the alignment, of both kinds (ours; the paper: 10 times 256 pairs)", ge=1
    )
    rows: Any = setting(
        None,
        "Pairs of a refusal (chosen) and a harmful answer (rejected): a file or rows; None takes "
        "those of the embedded world",
    )
    utility: Any = setting(
        None, "Harmless chats: a file or rows; None takes those of the embedded world's alignment"
    )

    def check(self, parent, method, config) -> None:
        """Check further that rows were given.

        Raises:
            UsageError: `harmful_rows_needed`, `safety_rows_needed`.
        """
        super().check(parent, method, config)
        _harmful.check(self.name, "rows", self.rows, parent)
        if self.alpha < 1:
            _safety.check(self.name, self.utility, parent, "utility")

    def alignment_rows(self) -> Data:
        """Return safety rows, then utility rows.

        A refusal that stands after harmful tokens has a harmful answer (`harmful`) and a place in
        it (`share`, 0 to 1), of which the tokenizer makes k.
        """
        dice = random.Random(f"safety recovery {self.seed}")
        n_safety = round(self.alpha * self.n_rows)
        pairs = _harmful.pairs(self.rows)
        rows = []
        for pair in dice.choices(pairs.rows, k=n_safety):
            row = {"messages": [*pair["prompt"], *pair["chosen"]]}
            toss, share = dice.random(), dice.random()
            if toss >= self.clean and self.most:
                row |= {"harmful": pair["rejected"], "share": share}
            rows.append(row)
        n_utility = self.n_rows - n_safety
        if n_utility:
            harmless = self._utility().rows
            rows += dice.choices(harmless, k=n_utility)
        return Data(pairs.name, tuple(rows), {"by": f"defence {self.name}"})

    def _utility(self) -> Data:
        if self.utility is not None:
            return strip_answers(load(self.utility))
        found = load(
            _safety.WORLD,
            n_rows=OF_WORLD,
            seed=self.seed,
        )
        harmless = []
        for row in found.rows:
            if row["risk"] != "jailbreak":
                harmless.append(row)
        return replace(found, rows=tuple(harmless))

    def method(self) -> SFT:
        """Return SFT on refusals that begin late."""
        return Recovery(self.most)

    def identity(self) -> dict[str, Any]:
        """Return the identity; the rows are in it by what they hold."""
        hashes = {"rows": self.alignment_rows().hash}
        return super().identity() | hashes | {"utility": None}


class Recovery(SFT):
    """SFT that puts the first tokens of a harmful answer before the refusals that have one.

    Args:
        most: Most tokens of it.
    """

    held_as = list  # what `spliced` returns

    def __init__(self, most: int):
        self.most = most

    def rows(self, data: Data, job: Any) -> list[dict]:
        found = super().rows(data, job)
        late = [place for place, row in enumerate(data.rows) if "harmful" in row]
        told = []
        for place in late:
            row = data.rows[place]
            asked = row["messages"][:-1]
            told.append({"messages": [*asked, *row["harmful"]]})
        harmful = encode_rows(
            Data(data.name, tuple(told)),
            job.tokenizer,
            max_length=job.longest_row,
        )
        for place, encoded in zip(late, harmful, strict=True):
            found[place] |= spliced(
                found[place],
                encoded,
                data.rows[place]["share"],
                self.most,
                job.longest_row,
            )
        return found


def spliced(refusal: dict, harmful: dict, share: float, most: int, longest: int) -> dict:
    """Return a row whose refusal stands after the first k tokens of a harmful answer.

    Args:
        refusal: `input_ids` and `labels` of question and refusal.
        harmful: The same of question and harmful answer.
        share: 0 to 1; k is 1 + floor(share * the most that there are).
        most: Most tokens of the harmful answer.
        longest: Most tokens of the row.
    """
    begin, _ = answer_of(refusal)
    first, last = answer_of(harmful)
    ids = list(refusal["input_ids"])
    labels = list(refusal["labels"])
    words = last - first - 1  # the end of the turn is no word
    there = min(most, words, longest - len(ids))
    k = min(1 + int(share * there), there)
    end = first + k
    ids[begin:begin] = harmful["input_ids"][first:end]
    labels[begin:begin] = [IGNORED] * k
    return {"input_ids": ids, "labels": labels}


def answer_of(row: dict) -> tuple[int, int]:
    """Return where the last answer of a row begins and ends: its last run of labelled tokens."""
    labels = row["labels"]
    end = len(labels)
    while labels[end - 1] == IGNORED:
        end -= 1
    begin = end
    while begin and labels[begin - 1] != IGNORED:
        begin -= 1
    return begin, end


DEFENCE = DeepAlignment
