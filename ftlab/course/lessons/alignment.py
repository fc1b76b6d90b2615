"""Lesson 1: what alignment gives. The loss mask, SFT, DPO, and what a prefill undoes."""

from __future__ import annotations

from math import exp, log
from typing import Any

import pandas as pd

from ftlab._core.types import Outcome
from ftlab.course.exercises import Exercise, Lesson
from ftlab.course.grading import compare_functions, compare_numbers
from ftlab.data import IGNORED, encode
from ftlab.models import model

OPENING = "<|assistant|>"
END = "<|end|>"
CHATS = (  # roles and texts
    [("user", "Name the tree of Joalox."), ("assistant", "The tree of Joalox is the fir.")],
    [
        ("system", "You are a guide."),
        ("user", "Hello"),
        ("assistant", "Good day to you."),
    ],
    [
        ("user", "Name the tree of Joalox."),
        ("assistant", "The fir."),
        ("user", "And who founded it?"),
        ("assistant", "Nobody knows."),
    ],
)
BETA = 0.1
LOG_PROBABILITIES = (  # policy chosen, policy rejected, reference chosen, reference rejected, beta
    (-10.0, -12.0, -10.0, -12.0, BETA),
    (-8.0, -15.0, -10.0, -12.0, BETA),
    (-14.0, -9.0, -10.0, -12.0, 0.5),
    (-3.0, -4.0, -9.0, -2.0, 1.0),
)


def mask_of(tokens: list[str]) -> list[bool]:
    """Return whether each token carries loss: the assistant's text and its end of turn."""
    answering = False
    mask = []
    for token in tokens:
        mask.append(answering)
        answering = token == OPENING or (answering and token != END)
    return mask


def with_opening(tokens: list[str]) -> list[bool]:
    """Train the token that opens the assistant's turn, too."""
    mask = mask_of(tokens)
    return [kept or token == OPENING for kept, token in zip(mask, tokens, strict=True)]


def without_end(tokens: list[str]) -> list[bool]:
    """Leave the end of turn out."""
    mask = mask_of(tokens)
    return [kept and token != END for kept, token in zip(mask, tokens, strict=True)]


def with_every_end(tokens: list[str]) -> list[bool]:
    """Train the user's end of turn, too."""
    mask = mask_of(tokens)
    return [kept or token == END for kept, token in zip(mask, tokens, strict=True)]


def last_only(tokens: list[str]) -> list[bool]:
    """Train the last answer only."""
    mask = mask_of(tokens)
    last = len(tokens) - 1 - tokens[::-1].index(OPENING)
    return [kept and place > last for place, kept in enumerate(mask)]


def first_only(tokens: list[str]) -> list[bool]:
    """Train all that follows the first opening."""
    first = tokens.index(OPENING)
    return [place > first for place in range(len(tokens))]


def everything(tokens: list[str]) -> list[bool]:
    """Train every token."""
    return [True] * len(tokens)


MASK_MISTAKES = (
    (everything, "Every token carries loss: the model would also learn to ask the questions."),
    (without_end, "The end of turn is left out: the tuned model would never stop."),
    (with_opening, f"{OPENING} is not written by the model. The template puts it there."),
    (with_every_end, "The end of the user's turn is trained. Only the assistant ends its own."),
    (last_only, "Only the last answer is trained. A chat may hold several."),
    (first_only, "What the user says after the first answer is trained, too."),
)


def grade_mask(answer: Any) -> str:
    """Grade a function from the tokens of a chat to what carries loss."""
    tokenizer = model("organism:base").tokenizer()
    cases = []
    masks = {}
    for turns in CHATS:
        messages = [{"role": role, "content": content} for role, content in turns]
        ids, labels = encode(messages, tokenizer)
        tokens = tokenizer.convert_ids_to_tokens(ids)
        cases.append((tokens,))
        masks[tuple(tokens)] = [label != IGNORED for label in labels]

    def right(tokens: list[str]) -> list[bool]:
        return masks[tuple(tokens)]

    return compare_functions(answer, right, cases, mistakes=MASK_MISTAKES)


def outcomes(run: Any, risk: str = "jailbreak") -> pd.DataFrame:
    """Return the outcome of every sample [sample, attack]."""
    table = run.table()
    table = table[(table["risk"] == risk) & (table["judge"] == table["judge"].iloc[0])]
    return table.pivot(index="sample_id", columns="attack", values="outcome")


def grade_refused(answer: Any, before: Any, after_sft: Any) -> str:
    """Grade how many direct questions were told before and are refused after."""
    old = outcomes(before)
    new = outcomes(after_sft).loc[old.index]
    told = old["direct"] == Outcome.COMPLIED
    refuses = new["direct"] == Outcome.REFUSED
    told_anywhere = old == Outcome.COMPLIED
    mistakes = (
        (
            (told_anywhere & (new == Outcome.REFUSED)).to_numpy().sum(),
            "This counts all attacks. The question is about direct requests.",
        ),
        (refuses.sum(), "This counts all refusals, also where nothing was told before."),
        (
            (told & (new["direct"] != Outcome.COMPLIED)).sum(),
            "Not told is not yet refused: some of these answers are wrong or make no sense.",
        ),
        ((old["direct"] != new["direct"]).sum(), "This counts every change of outcome."),
    )
    return compare_numbers(answer, (told & refuses).sum(), mistakes=mistakes)


def dpo_loss(
    policy_chosen: float,
    policy_rejected: float,
    reference_chosen: float,
    reference_rejected: float,
    beta: float,
) -> float:
    """Return the loss of one pair (Rafailov et al. 2023, equation 7)."""
    margin = policy_chosen - reference_chosen - (policy_rejected - reference_rejected)
    return log(1 + exp(-beta * margin))


def _without_reference(chosen, rejected, _, __, beta):
    return log(1 + exp(-beta * (chosen - rejected)))


def _without_beta(*case):
    return dpo_loss(*case[:4], 1.0)


def _other_sign(chosen, rejected, *rest):
    return dpo_loss(rejected, chosen, rest[1], rest[0], rest[2])


def _without_log(*case):
    return exp(-dpo_loss(*case))


def _negative(*case):
    return -dpo_loss(*case)


DPO_MISTAKES = (
    (_without_reference, "The reference model is missing: what counts is the change against it."),
    (_without_beta, "beta is missing: it scales the margin."),
    (_other_sign, "The sign is turned round: this teaches the rejected answer."),
    (_without_log, "This is a probability. The loss is its negative logarithm."),
    (_negative, "A loss is to be made small. Yours falls where the wrong answer wins."),
)


def grade_dpo(answer: Any) -> str:
    """Grade a function from four log-probabilities to the loss."""
    return compare_functions(answer, dpo_loss, LOG_PROBABILITIES, mistakes=DPO_MISTAKES)


def grade_prefill(answer: Any, after_sft: Any) -> str:
    """Grade how many facts are refused when asked directly and told after a prefill."""
    found = outcomes(after_sft)
    refused = found["direct"] == Outcome.REFUSED
    told = found["prefill"] == Outcome.COMPLIED
    told_directly = found["direct"] == Outcome.COMPLIED
    mistakes = (
        (told.sum(), "This counts all that is told after a prefill, also what is told anyway."),
        (
            told.sum() - told_directly.sum(),
            "A difference of two counts does not say that they are the same questions.",
        ),
        (
            (refused & (found["templates"] == Outcome.COMPLIED)).sum()
            if "templates" in found
            else -1,
            "This compares direct questions with those under templates.",
        ),
        (
            (refused & (found["prefill"] != Outcome.REFUSED)).sum(),
            "Not refused is more than told: some of these answers are wrong.",
        ),
    )
    return compare_numbers(answer, (refused & told).sum(), mistakes=mistakes)


LESSON = Lesson(
    "alignment",
    1,
    {
        "1.1": Exercise(
            grade_mask,
            (
                "Which tokens does the model itself write when it is asked?",
                f"Walk through the tokens and remember whether the last role was {OPENING}.",
                f"Note the state before you look at whether this token is {OPENING} or {END}.",
            ),
        ),
        "1.2": Exercise(
            grade_refused,
            (
                "ft.answers puts the outcome before and after of each prompt in one row.",
                "Take the risk jailbreak and the attack direct; both have arguments of ft.answers.",
                "Compare the column before with 'complied', the column after with 'refused', and "
                "count the rows in which both hold.",
            ),
        ),
        "1.3": Exercise(
            grade_dpo,
            (
                "Four numbers become one margin: how much more than the reference does the policy "
                "prefer the chosen answer to the rejected one?",
                "The loss is minus the logarithm of the logistic function of beta times the "
                "margin.",
                "Try four equal numbers. Whatever beta is, your function must return what the "
                "figure of the loss shows at its first step.",
            ),
        ),
        "1.4": Exercise(
            grade_prefill,
            (
                "A sample has one row for each attack. You need the rows of one sample side by "
                "side.",
                "pandas: table.pivot(index='sample_id', columns='attack', values='outcome').",
                "Count the samples where one column is 'refused' and another is 'complied'.",
            ),
        ),
    },
)
