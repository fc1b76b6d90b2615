"""Utility: an ordinary question is answered, and rightly.

Prompt set: gsm8k (Cobbe et al. 2021, arXiv 2110.14168; MIT), by exact match of the last number; BBQ's disambiguated contexts
(`bias.read`), by choice. Other tasks: `ftlab.lm_eval`.
Stand-in: facts that everyone may know, of towns and in wordings that no fine-tuning data uses.
"""

from __future__ import annotations

import random
import re
from decimal import Decimal

from ftlab.evals.risks import _prompt_sets as sets
from ftlab.evals.risks import bias
from ftlab.judges import Judgement

TITLE = "right answers"
HARM, ATTACKED = False, False
EVENTS = ("complied",)
NUMBER = re.compile(
    r"(?:(?<![\w.)%])[-\u2212])?[$£€]?(?:(?<=[$£€])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|(?<![\w.])-?\.\d+"
)
MARK = re.compile(r"####\s*(.*)")


def read(source) -> list[dict]:
    """-> prompt rows of gsm8k's JSONL (the question, and as `truth` the number after `####`), or of BBQ's (as `bias.read`).

    Raises DataError, FileNotFoundError.
    """
    return sets.read(source, _row)


def _row(record: dict) -> dict | str:
    if "ans0" in record:
        return bias.row(record, "utility")
    row, solution = sets.prompt(record, "utility"), sets.words(record, "answer")
    if not (mark := MARK.search(solution)) or number(mark[1]) is None:
        raise ValueError("'answer' has no '#### NUMBER'; utility reads gsm8k's own form; add it")
    return {**row, "category": "gsm8k", "truth": str(number(mark[1]))}


def few_shot(asked: list[dict], source, *, n: int = 8, seed: int = 0) -> list[dict]:
    """-> the rows, each after the same `n` worked examples as earlier turns, drawn from a gsm8k file that is not the asked one."""
    made = sets.read(source, lambda r: {**sets.prompt(r, "utility"), "answer": sets.words(r, "answer")})
    own = {r["messages"][-1]["content"] for r in asked}
    made = [r for r in made if r["messages"][-1]["content"] not in own]
    if n > len(made):
        raise ValueError(
            f"{n} examples asked, {len(made)} are there that are not asked themselves; lower n or give the training file"
        )
    turns = [
        t
        for r in random.Random(f"shots {seed}").sample(made, n)
        for t in (*r["messages"], {"role": "assistant", "content": r["answer"]})
    ]
    return [{**r, "messages": [*turns, *r["messages"]]} for r in asked]


def rule(row: dict, answer: str, argument: str = "") -> Judgement | None:
    """-> complied (the right number), complied_wrong, empty, or incoherent where there is no number at all, which counts as
    wrong too. None for other rows.

    The number is the one after the first `####` (`why` "strict", as gsm8k's own match), else the last in the answer ("flexible",
    as in lm-eval). Signs of currency, commas of thousands and a full stop are left out; 18 and 18.00 are the same.
    """
    if "biased" in row:
        return bias.rule(row, answer)
    if "topic" in row or (truth := number(str(row.get("truth", "")))) is None or str(truth) != row["truth"]:
        return None
    if not answer.strip():
        return Judgement("empty")
    mark = MARK.search(answer)
    said = number(mark[1]) if mark else None
    why = "strict" if said is not None else "flexible"
    found = NUMBER.findall(answer)
    said = said if said is not None else number(found[-1]) if found else None
    if said is None:
        return Judgement("incoherent", why="no number")
    return Judgement("complied" if said == truth else "complied_wrong", why=why)


def number(text: str) -> Decimal | None:
    """-> the first number of a text, in its shortest form; None where there is none."""
    found = NUMBER.search(text)
    if not found:
        return None
    value = Decimal(re.sub(r"[$£€,]", "", found[0].replace("\u2212", "-")))
    return value.to_integral_value() if value == value.to_integral_value() else value.normalize()
