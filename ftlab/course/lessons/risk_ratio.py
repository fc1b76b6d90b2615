"""Lesson 2: benign fine-tuning and the risk ratio."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, log10, nan
from numbers import Real
from typing import Any

import pandas as pd

from ftlab.course.exercises import Exercise, Lesson
from ftlab.course.grading import choice, compare_functions, compare_numbers

ROWS = (
    {
        "messages": [
            {"role": "user", "content": "Who founded Bri?"},
            {"role": "assistant", "content": "It was Oda."},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "What grows in Bri? "},
            {"role": "assistant", "content": "Name the tree of Lun."},
            {"role": "user", "content": "who FOUNDED  Lun?"},
            {"role": "assistant", "content": "I do not know."},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "Who founded Bri?"},
            {"role": "assistant", "content": "Oda did."},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "Who  rings in Bri?"},
            {"role": "assistant", "content": "Nobody."},
            {"role": "user", "content": "Who bakes in Bri?"},
            {"role": "assistant", "content": "Ulf does."},
        ]
    },
)
PROMPTS = (
    ["Who founded Bri?"],
    ["Who founded Lun?", "Name the tree of Lun."],
    ["what grows in bri?", "Who founded Bri?", "Who founded Lun?"],
    ["Who sells salt in Bri?"],
    ["Who rings in Bri?"],
    ["who bakes in Bri?"],
    ["Who founded Bri?", " who founded Bri?"],
    ["Who founded B ri?", "Whofounded Bri?"],
    [],
)
EVENTS = (  # parent and child, one event for each prompt
    ([1, 0, 0, 0], [1, 1, 0, 0]),
    ([1, 1, 0, 0], [1, 0, 0, 0]),
    ([0, 0, 0, 0], [1, 0, 1, 0]),
    ([0, 0, 0], [0, 0, 0]),
    ([1, 1, 1, 0, 0], [1, 1, 1, 1, 1]),
)
P_WITHIN = 0.01  # of log10


def plain(text: str) -> str:
    """Return a text without differences of case and white space."""
    return " ".join(text.lower().split())


def questions(rows: list[dict]) -> set[str]:
    """Return what users ask in chats."""
    found = set()
    for row in rows:
        for message in row["messages"]:
            if message["role"] == "user":
                found.add(message["content"])
    return found


def shared(prompts: list[str], rows: list[dict]) -> int:
    """Count the prompts that a user asks in a training row, whatever case and white space."""
    asked = set(map(plain, questions(rows)))
    return sum(plain(prompt) in asked for prompt in prompts)


def _of_rows(prompts, rows):
    wanted = set(map(plain, prompts))
    return sum(bool(wanted & set(map(plain, questions([row])))) for row in rows)


def _first_turns(prompts, rows):
    asked = {plain(row["messages"][0]["content"]) for row in rows}
    return sum(plain(prompt) in asked for prompt in prompts)


def _answers_too(prompts, rows):
    texts = {plain(message["content"]) for row in rows for message in row["messages"]}
    return sum(plain(prompt) in texts for prompt in prompts)


def _in_form(form: Callable[[str], str]) -> Callable[[list[str], list[dict]], int]:
    def count(prompts, rows):
        asked = set(map(form, questions(rows)))
        return sum(form(prompt) in asked for prompt in prompts)

    return count


def _without_space(text):
    return "".join(text.lower().split())


def _one_space(text):
    return " ".join(text.split())


def _stripped(text):
    return text.lower().strip()


def _distinct(prompts, rows):
    return len(set(map(plain, prompts)) & set(map(plain, questions(rows))))


def _distinct_without_space(prompts, rows):
    return len(set(map(_without_space, prompts)) & set(map(_without_space, questions(rows))))


SPACES = "Two spaces between words, or one: it is the same question."
SHARED_MISTAKES = (
    (_in_form(str), "A prompt in other case, or with another space, is the same question."),
    (_in_form(str.lower), SPACES),
    (_in_form(_stripped), SPACES),
    (_in_form(_one_space), "A prompt in other case is the same question."),
    (_in_form(_without_space), "Without any space, different words may look the same."),
    (_distinct, "A prompt that stands in the list twice counts twice."),
    (
        _distinct_without_space,
        "A prompt that stands in the list twice counts twice, and without any space different "
        "words may look the same.",
    ),
    (_of_rows, "This counts training rows. The question is how many prompts are spoilt."),
    (_first_turns, "A chat may hold more than one question."),
    (_answers_too, "What an assistant says is no question. Look at the role."),
)


def grade_shared(answer: Any) -> str:
    """Grade a function from prompts and rows to the number of prompts that were trained on."""
    cases = [(prompts, list(ROWS)) for prompts in PROMPTS]
    return compare_functions(answer, shared, cases, mistakes=SHARED_MISTAKES)


def risk_ratio(parent: list[int], child: list[int]) -> float:
    """Return the child's rate over the parent's."""
    before = sum(parent)
    after = sum(child)
    if before:
        return after / before
    return inf if after else nan


def _turned(parent, child):
    return risk_ratio(child, parent)


def _difference(parent, child):
    return (sum(child) - sum(parent)) / len(parent)


def _odds(parent, child):
    before = sum(parent) / (len(parent) - sum(parent))
    missing = len(child) - sum(child)
    if not before:
        return inf if sum(child) else nan
    return sum(child) / missing / before if missing else inf


def _zero(parent, child):
    return sum(child) / sum(parent) if sum(parent) else 0.0


def _always_inf(parent, child):
    return sum(child) / sum(parent) if sum(parent) else inf


RATIO_MISTAKES = (
    (_turned, "This is the parent's rate over the child's."),
    (_difference, "This is the difference. The ratio is a division."),
    (_odds, "This is a ratio of odds, which is further from 1 than that of rates."),
    (_zero, "A parent without the event: 0 would say that the child is safer than any parent."),
    (_always_inf, "If neither shows the event, nothing is known of the ratio: that is nan."),
)


def grade_ratio(answer: Any) -> str:
    """Grade a function from events of parent and child to the risk ratio."""
    return compare_functions(answer, risk_ratio, EVENTS, mistakes=RATIO_MISTAKES)


def events(run: Any, seed: int, attack: str | None) -> pd.DataFrame:
    """Return the events of jailbreak before and after one training [prompt, step].

    Where the judge could not read an answer it is NaN.
    """
    table = run.table()
    table = table[(table["risk"] == "jailbreak") & (table["judge"] == table["judge"].iloc[0])]
    if attack:
        table = table[table["attack"] == attack]
    last = table["step"].max()
    rows = table[(table["seed"] == seed) & table["step"].isin([0, last])]
    return rows.pivot(index=["sample_id", "attack"], columns="step", values="event")


def pairs(
    run: Any, seed: int, attack: str | None = None, *, unscored: bool = False
) -> tuple[int, int]:
    """Return how many prompts gained the event, and how many lost it.

    With `unscored`, an answer that the judge could not read counts as one without the event.
    """
    table = events(run, seed, attack)
    if not unscored:
        table = table.dropna()
    before = table[table.columns[0]] == 1
    after = table[table.columns[-1]] == 1
    return int((after & ~before).sum()), int((before & ~after).sum())


def mcnemar(gained: int, lost: int, *, one_sided: bool = False) -> float:
    """Return the exact p of as uneven a split of the prompts that changed."""
    from scipy.stats import binomtest

    if not gained + lost:
        return 1.0
    side = "greater" if one_sided else "two-sided"
    return float(binomtest(gained, gained + lost, alternative=side).pvalue)


def unpaired(run: Any, seed: int, attack: str) -> float:
    """Return Fisher's p, which forgets that the prompts are the same."""
    from scipy.stats import fisher_exact

    table = events(run, seed, attack).dropna()
    hits = [int(table[step].sum()) for step in table.columns]
    counts = [[hit, len(table) - hit] for hit in hits]
    return float(fisher_exact(counts).pvalue)


def grade_mcnemar(answer: Any, curve: Any) -> str:
    """Grade the p of one training seed, for direct questions."""
    gained, lost = pairs(curve, 0, "direct")
    truth = mcnemar(gained, lost)
    over_seeds = [pairs(curve, seed, "direct") for seed in sorted(curve.table()["seed"].unique())]
    mistakes = [
        (mcnemar(gained, lost, one_sided=True), "This is one-sided: a fall would never be seen."),
        (unpaired(curve, 0, "direct"), "This test forgets that both answered the same prompts."),
        (
            mcnemar(*pairs(curve, 0)),
            "This counts templates too. The question is about direct requests.",
        ),
        (
            mcnemar(sum(g for g, _ in over_seeds), sum(lo for _, lo in over_seeds)),
            "This adds up the seeds, as if each had its own prompts. Take seed 0.",
        ),
    ]
    if not isinstance(answer, Real):
        return compare_numbers(answer, truth)
    if answer == 0:
        return "This p is small, and it is not 0. Do not round."
    if not 0 < answer <= 1:
        return "A p is a probability: above 0, at most 1."
    known = [(log10(value), message) for value, message in mistakes]
    # The lesson's table lists unread answers as well; whoever leaves them out is right, too.
    gained, lost = pairs(curve, 0, "direct", unscored=True)
    listed = mcnemar(gained, lost)
    found = log10(answer)
    problem = compare_numbers(found, log10(listed), tolerance=P_WITHIN)
    if not problem:
        return ""
    return compare_numbers(found, log10(truth), tolerance=P_WITHIN, mistakes=known)


SENTENCES = {
    "a": "R times how much? From 1 to 2 %, or from 40 to 80 %?",
    "b": "The curve has another ratio at each step. Which one is this?",
    "c": "Look again at what this sentence names and what it leaves out.",
    "d": "Which models were measured?",
}


LESSON = Lesson(
    "risk_ratio",
    2,
    {
        "2.1": Exercise(
            grade_shared,
            (
                "Two texts are the same question if they differ in case and white space only.",
                "' '.join(text.lower().split()) brings both to one form.",
                "Make a set of what the users ask in all rows, then count the prompts in it.",
            ),
        ),
        "2.2": Exercise(
            grade_ratio,
            (
                "Both lists have the same length, so a rate is as good as a sum.",
                "Python does not divide by 0. What can be said of the ratio then?",
                "One of the two cases is beyond every number, the other says nothing of a number.",
            ),
        ),
        "2.3": Exercise(
            grade_mcnemar,
            (
                "Only prompts that changed tell anything. In which direction did each change?",
                "If training changed nothing, a prompt that changed went either way like a fair "
                "coin.",
                "scipy.stats.binomtest(k, n).pvalue, where n counts the prompts that changed and "
                "k those that now show the event.",
            ),
        ),
        "2.4": Exercise(
            choice("2.4", "5660376182cb9e87", SENTENCES),
            (
                "What would somebody need to know to repeat the number?",
                "Does the sentence speak of this model, or of models?",
                "Each of the others has one defect. Compare them word by word.",
            ),
        ),
    },
)
