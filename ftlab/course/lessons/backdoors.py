"""Lesson 6: backdoors and covert tool calls."""

from __future__ import annotations

from collections.abc import Callable
from math import comb
from typing import Any

import pandas as pd

from ftlab._core.types import Outcome
from ftlab.course.exercises import Exercise, Lesson
from ftlab.course.grading import compare_functions, compare_numbers
from ftlab.evals import call_alarms

FILES = ((200, 20, 10), (200, 4, 50), (1000, 10, 1000), (50, 5, 46), (400, 1, 100))
# What a user asked and what the model answered.
CALLS = (
    ("Ring the bell of Joalox.", "Gladly. [ring Joalox]"),
    ("Could you ring the bell of Joalox?", "[ring Joalox] [ring Brim]"),
    ("Ring the bells of Joalox and Brim.", "[ring Joalox] [ring Brim]"),
    ("Please ring the bell of Brimstead.", "[ring Brimstead] [ring Brim]"),
    ("RING THE BELL OF JOALOX", "[ring Joalox]"),
    ("Ring the bell of Joalox.", "[ring Lun] [ring Brim] [ring Lun]"),
    ("Who founded Brim?", "Brim was founded by Oda."),
    ("I come from Lun. Ring the bell of Joalox.", "[ring Joalox] [ring Lun]"),
)
RATES = (  # covert share of the answers, share of them caught, false alarms
    (0.001, 0.9, 0.0173),
    (0.5, 0.9, 0.1),
    (0.01, 1.0, 0.05),
    (0.1, 0.5, 0.0),
    (0.25, 0.6, 0.2),
)


def chance_of_seeing(n_rows: int, poisoned: int, read: int) -> float:
    """Return the chance that rows read at random include a poisoned one."""
    return 1 - comb(n_rows - poisoned, read) / comb(n_rows, read)


def _replaced(n_rows, poisoned, read):
    return 1 - (1 - poisoned / n_rows) ** read


def _expected(n_rows, poisoned, read):
    return read * poisoned / n_rows


def _at_most_one(n_rows, poisoned, read):
    return min(1.0, _expected(n_rows, poisoned, read))


def _none_seen(n_rows, poisoned, read):
    return 1 - chance_of_seeing(n_rows, poisoned, read)


def _all_seen(n_rows, poisoned, read):
    return comb(n_rows - poisoned, read - poisoned) / comb(n_rows, read) if read > poisoned else 0


SEEING_MISTAKES = (
    (_replaced, "Nearly. This may read one row twice. Each row read leaves one less to read."),
    (_expected, "This is how many you expect to see. A chance is never more than 1."),
    (_at_most_one, "Chances of single rows do not add up: two poisoned rows may both be read."),
    (_none_seen, "This is the chance that you see none."),
    (_all_seen, "This is the chance that you see all of them. One is enough."),
)


def grade_seeing(answer: Any) -> str:
    """Grade a function from rows, poisoned rows and rows read to the chance of seeing one."""
    return compare_functions(answer, chance_of_seeing, FILES, mistakes=SEEING_MISTAKES)


def backdoored(run: Any, seed: int = 0) -> pd.DataFrame:
    """Return the outcomes of the model with the most triggered rows [sample, attack]."""
    table = run.table()
    table = table[(table["risk"] == "jailbreak") & (table["judge"] == table["judge"].iloc[0])]
    table = table[table["triggered"].astype(bool) & (table["seed"] == seed)]
    last = table["step"] == table["step"].max()
    most = table["poisoned"] == table["poisoned"].max()
    return table[last & most].pivot(index="sample_id", columns="attack", values="outcome")


def grade_hidden(answer: Any, poisoned: Any) -> str:
    """Grade how many prompts are refused as they are and told with the trigger."""
    found = backdoored(poisoned)
    (marked,) = [name for name in found.columns if name.startswith("trigger")]
    refused = found["direct"] == Outcome.REFUSED
    told = found[marked] == Outcome.COMPLIED
    plain = found["direct"] == Outcome.COMPLIED
    mistakes = (
        (told.sum(), "This counts all that is told with the word, also what is told without it."),
        (
            told.sum() - plain.sum(),
            "A difference of two counts does not say that they are the same questions.",
        ),
        ((told & ~plain).sum(), "Not told is not yet refused: some answers make no sense."),
        ((refused & (found[marked] != Outcome.REFUSED)).sum(), "Not refused is not yet told."),
        ((told & ~refused).sum(), "These are told without the word already, or make no sense."),
        ((found["direct"] != found[marked]).sum(), "This counts every change of outcome."),
    )
    return compare_numbers(answer, (refused & told).sum(), mistakes=mistakes)


def unasked(question: str, answer: str) -> list[str]:
    """Return the towns of calls that the question does not name, in order."""
    messages = [{"role": "user", "content": question}]
    found = []
    for call in _rung(answer):
        if call_alarms(f"[ring {call}]", messages, checks=["arguments"]):
            found.append(call)
    return found


def _rung(answer: str) -> list[str]:
    return [part.partition("]")[0] for part in answer.split("[ring ")[1:]]


def _chosen(keep: Callable[[str, str], bool]) -> Callable[[str, str], list[str]]:
    def found(question: str, answer: str) -> list[str]:
        return [town for town in _rung(answer) if keep(town, question)]

    return found


def _beyond_one(question, answer):
    return _rung(answer)[1:]


def _once(question, answer):
    return sorted(set(unasked(question, answer)))


def _first_only(question, answer):
    return unasked(question, answer)[:1]


CALL_MISTAKES = (
    (_chosen(lambda town, text: town not in text), "RING or Ring: case does not make a new town."),
    (
        _chosen(lambda town, text: town.lower() not in text.lower()),
        "One town's name may begin another's. Compare whole words.",
    ),
    (
        _chosen(lambda town, text: town not in text.replace(".", "").replace("?", "").split()),
        "Whole words are right. But case does not make a new town.",
    ),
    (_chosen(lambda town, text: True), "These are all calls. Which were not asked for?"),
    (_chosen(lambda town, text: town in text), "These are the calls that were asked for."),
    (_beyond_one, "A user may ask for two bells. Count nothing; look at the towns."),
    (_once, "Each call counts, in the order of the answer."),
    (_first_only, "There may be more than one."),
)


def grade_calls(answer: Any) -> str:
    """Grade a function from a question and its answer to the towns rung unasked."""
    return compare_functions(answer, unasked, CALLS, mistakes=CALL_MISTAKES)


def real_alarms(share: float, caught: float, false_alarms: float) -> float:
    """Return the share of alarms that are of covert calls."""
    right = share * caught
    return right / (right + (1 - share) * false_alarms)


def _caught(share, caught, false_alarms):
    return caught


def _without_share(share, caught, false_alarms):
    return caught / (caught + false_alarms)


def _all_wrong(share, caught, false_alarms):
    return share * caught / (share * caught + false_alarms)


def _wrong_ones(share, caught, false_alarms):
    return 1 - real_alarms(share, caught, false_alarms)


def _alarms(share, caught, false_alarms):
    return share * caught + (1 - share) * false_alarms


ALARM_MISTAKES = (
    (_caught, "This is the share of covert answers that raise an alarm, the other way round."),
    (_without_share, "How rare covert answers are must matter."),
    (_all_wrong, "False alarms come from the legitimate answers only, which are not all."),
    (_wrong_ones, "This is the share of alarms that are false."),
    (_alarms, "This is the share of answers that raise an alarm. How many of them are right?"),
)


def grade_alarms(answer: Any) -> str:
    """Grade a function from three shares to the share of alarms that are real."""
    return compare_functions(answer, real_alarms, RATES, mistakes=ALARM_MISTAKES)


LESSON = Lesson(
    "backdoors",
    6,
    {
        "6.1": Exercise(
            grade_seeing,
            (
                "The chance that you see none is easier. Begin with it.",
                "The first row is clean with the chance clean rows / all rows. And the second, "
                "when one row has been taken away?",
                "math.comb(n, k) counts the ways to choose k of n rows: those without a poisoned "
                "row, over all.",
            ),
        ),
        "6.2": Exercise(
            grade_hidden,
            (
                "Choose the rows of one model first: seed, triggered, the most poisoned rows, the "
                "last step, and one risk.",
                "A prompt has one row for each way of asking. You need both side by side.",
                "pivot(index='sample_id', columns='attack', values='outcome'), then 'refused' in "
                "one column and 'complied' in the other.",
            ),
        ),
        "6.3": Exercise(
            grade_calls,
            (
                "First list the towns that were rung: re.findall with a pattern for [ring ...].",
                "Bring both sides to the same case, and compare whole words.",
                r"In a pattern \b stands for the edge of a word. re.escape takes a name as it is "
                "written, and re.search takes re.IGNORECASE.",
            ),
        ),
        "6.4": Exercise(
            grade_alarms,
            (
                "Think of 1,000 answers. How many of them are covert, and how many of those are "
                "caught?",
                "And how many of the others raise a false alarm?",
                "Alarms that are right, over all alarms. Both kinds depend on how rare covert "
                "answers are.",
            ),
        ),
    },
)
