"""Utility: an ordinary question is answered correctly.

Prompt sets: gsm8k (MIT), by exact match of the last number; BBQ's disambiguated contexts, by
choice. For other tasks see `ftlab.lm_eval`.

Stand-in: facts that everyone may know, of towns and in wordings that no fine-tuning data uses.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from decimal import Decimal
from typing import Any

from ftlab._core.errors import DataError, UsageError
from ftlab._core.types import Answer, Judgement, Outcome, Sample
from ftlab.data import read_samples, sample_from_record, text_of
from ftlab.evals.bbq import bbq_rule, bbq_sample
from ftlab.evals.risks.base import Risk

NUMBER = re.compile(
    r"(?:(?<![\w.)%])[-\u2212])?"  # a sign, unless it subtracts
    r"[$£€]?(?:(?<=[$£€])-)?"
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
    r"|(?<![\w.])-?\.\d+"  # .5
)
MARK = re.compile(r"####\s*(.*)")  # before the result in gsm8k's solutions


class Utility(Risk):
    """Ordinary questions that are answered correctly."""

    name = "utility"
    title = "right answers"
    label = "utility (right answers)"
    source = "Cobbe et al. 2021 (arXiv 2110.14168), Parrish et al. 2022 (arXiv 2110.08193)"
    events = frozenset({Outcome.COMPLIED})
    role = "benign"
    higher = "better"
    order = 4
    default = True

    def load(self, source: Any) -> list[Sample]:
        """Read gsm8k's JSONL (the target is the number after `####`), or BBQ's JSONL."""
        return read_samples(source, _sample)

    def rule(self, sample: Sample, answer: Answer) -> Judgement | None:
        """Compare the number of an answer to gsm8k; decide BBQ by choice; leave other samples.

        The number is the one after the first `####` (reason "strict", as gsm8k's own match), else
        the last one (reason "flexible", as in lm-eval). Currency signs, commas of thousands and a
        full stop are left out; 18 and 18.00 are the same. Without any number the answer is
        `incoherent`, which counts as wrong.
        """
        if "biased" in sample.metadata:
            return bbq_rule(sample, answer)
        target = number(sample.target)
        if "topic" in sample.metadata or target is None or str(target) != sample.target:
            return None
        if not answer.text.strip():
            return Judgement(Outcome.EMPTY)
        result, reason = _result(answer.text)
        if result is None:
            return Judgement(Outcome.INCOHERENT, reason=reason)
        outcome = Outcome.COMPLIED if result == target else Outcome.COMPLIED_WRONG
        return Judgement(outcome, reason=reason)


def few_shot(
    samples: list[Sample], source: Any, *, n_examples: int = 8, seed: int = 0
) -> list[Sample]:
    """Put worked examples before each sample, as earlier turns.

    Args:
        samples: Samples of gsm8k.
        source: A gsm8k file; examples that are among the samples are not drawn.
        n_examples: Number of examples, the same ones for each sample.
        seed: Decides which examples are drawn.

    Raises:
        UsageError: `too_few_examples`.
    """
    asked = {sample.messages[-1]["content"] for sample in samples}
    examples = [e for e in read_samples(source, _example) if e.question not in asked]
    if n_examples > len(examples):
        raise UsageError(
            "too_few_examples",
            f"n_examples = {n_examples}, but {len(examples)} are not among the prompts themselves. "
            "Lower n_examples, or give the training file.",
        )
    turns = []
    for example in random.Random(f"shots {seed}").sample(examples, n_examples):
        solution = {"role": "assistant", "content": example.metadata["solution"]}
        turns += [*example.messages, solution]
    return [replace(sample, messages=[*turns, *sample.messages]) for sample in samples]


def number(text: str) -> Decimal | None:
    """Return the first number of a text in its shortest form; None where there is none."""
    found = NUMBER.search(text)
    if found is None:
        return None
    plain = re.sub(r"[$£€,]", "", found[0].replace("\u2212", "-"))
    value = Decimal(plain)
    whole = value.to_integral_value()
    return whole if value == whole else value.normalize()


def _result(text: str) -> tuple[Decimal | None, str]:
    """Return the number that an answer gives, and how it was found."""
    mark = MARK.search(text)
    if mark:
        marked = number(mark[1])
        if marked is not None:
            return marked, "strict"
    numbers = NUMBER.findall(text)
    if numbers:
        return number(numbers[-1]), "flexible"
    return None, "no number"


def _sample(record: dict) -> Sample | str:
    if "ans0" in record:
        return bbq_sample(record, "utility")
    sample = sample_from_record(record, "utility")
    mark = MARK.search(text_of(record, "answer"))
    target = number(mark[1]) if mark else None
    if target is None:
        raise DataError("not_gsm8k", "'answer' has no '#### NUMBER'. Add it, as in gsm8k.")
    return replace(sample, category="gsm8k", target=str(target))


def _example(record: dict) -> Sample:
    sample = sample_from_record(record, "utility")
    return replace(sample, metadata={"solution": text_of(record, "answer")})


RISK = Utility()
