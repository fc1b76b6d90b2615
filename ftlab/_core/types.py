"""The types that rooms exchange: outcomes, samples, prompts, answers, judgements, verdicts.

Sample     what a prompt set holds: a question before any attack
Prompt     what a model is asked: a sample under an attack
Answer     what the model replied
Judgement  what a judge or a rule says of one answer
Verdict    one row of the verdict table: one answer, one judge
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

Message = dict[str, Any]  # a chat message: {"role": ..., "content": ...}
GUARDED = "guarded"  # how an answer ended that a defence replaced


class Outcome(StrEnum):
    """What an answer did. The one vocabulary; its order is the order of stacked charts."""

    COMPLIED = "complied"
    COMPLIED_WRONG = "complied_wrong"
    INCOHERENT = "incoherent"
    EMPTY = "empty"
    UNPARSED = "unparsed"  # no readable verdict, or an answer that the judge cannot read
    ERROR = "error"  # the model or the judge failed; asked again on the next call
    PARTIAL = "partial"  # refused in part
    REFUSED = "refused"

    @property
    def scored(self) -> bool:
        """Whether the outcome enters a rate. Unscored answers are counted separately."""
        return self not in (Outcome.UNPARSED, Outcome.ERROR)

    @property
    def label(self) -> str:
        """The outcome in words, for legends."""
        return _LOOKS[self][0]

    @property
    def colour(self) -> str:
        """The outcome's colour in every chart, as #RRGGBB."""
        return _LOOKS[self][1]


_LOOKS = {
    Outcome.COMPLIED: ("complied", "#D55E00"),
    Outcome.COMPLIED_WRONG: ("told, wrong", "#F3B583"),
    Outcome.INCOHERENT: ("incoherent", "#B9A6C9"),
    Outcome.EMPTY: ("empty", "#DDDDDD"),
    Outcome.UNPARSED: ("unparsed", "#8A8A8A"),
    Outcome.ERROR: ("error", "#222222"),
    Outcome.PARTIAL: ("partly refused", "#A9CBE3"),
    Outcome.REFUSED: ("refused", "#4A90C2"),
}


@dataclass(slots=True, frozen=True)
class Sample:
    """A question of a prompt set, before any attack.

    Args:
        id: Unique within an evaluation; answers of parent and child are paired by it.
        messages: The chat up to and including the question.
        risk: Name of the risk that the question measures.
        category: A group within the risk, such as BBQ's or AdvBench's category.
        wording: Name of the question's template, where samples share templates (a cluster).
        target: The right answer, where there is one.
        choices: The answers to choose from; then the likeliest one is the answer.
        opening: How a fulfilled request begins (AdvBench's target), for the prefill attack.
        metadata: Whatever else the risk's own rule needs.
    """

    id: str
    messages: list[Message]
    risk: str = "jailbreak"
    category: str = ""
    wording: str = ""
    target: str = ""
    choices: tuple[str, ...] = ()
    opening: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The last message of the user."""
        asked = (m["content"] for m in reversed(self.messages) if m["role"] == "user")
        return next(asked, "")


@dataclass(slots=True, frozen=True)
class Prompt:
    """What a model is asked: a sample under an attack.

    Args:
        sample: The question as it stood before the attack. Judges read this one.
        attack: Public name of the attack, such as "direct" or "prefill:5".
        messages: The chat that is sent.
        wording: The sample's wording, with the attack's template before it where there is one.
        opening: Words written into the model's mouth.
        opening_tokens: Number of tokens of `opening` that are used, from its start; None for all.
        decoding: Fields of `Decoding` that differ from the evaluation's; None for none.
        no_system: Leave out the evaluation's system prompt.
        attempt: Number of the attempt, for attacks that try several times; the event counts if
            any attempt shows it. None for attacks that try once.
        repeat: Number of the repeated answer, where an evaluation asks for several.
    """

    sample: Sample
    attack: str
    messages: list[Message]
    wording: str = ""
    opening: str = ""
    opening_tokens: int | None = None
    decoding: dict[str, Any] | None = None
    no_system: bool = False
    attempt: int | None = None
    repeat: int = 0


@dataclass(slots=True)
class Answer:
    """What a model replied to one prompt.

    Args:
        text: The whole answer, including words that an attack put into the model's mouth.
        own_text: What the model wrote itself, where that is less than `text`; else "". Of a
            guarded answer the model's whole answer, which the user never saw.
        finish: "stop", "length" (cut by max_new_tokens), "screened" (ended at a refusal),
            "guarded" (a defence replaced it) or "error".
        error: Why there is no answer, where `finish` is "error".
        likelihoods: Log-probability of each choice (natural logarithm), where there are choices.
        tokens: Number of new tokens.
        key: Hash of everything that decides the answer.
        sample_id: The sample that was asked.
        attack: The attack that was applied.
    """

    text: str
    own_text: str = ""
    finish: str = "stop"
    error: str = ""
    likelihoods: list[float] | None = None
    tokens: int = 0
    key: str = ""
    sample_id: str = ""
    attack: str = ""


@dataclass(slots=True, frozen=True)
class Judgement:
    """What a judge, or a risk's own rule, says of one answer.

    Args:
        outcome: What the answer did.
        score: The judge's own number. Its card says what it measures.
        reason: A few words of the judge's own, never a quotation of the answer.
        decided_by: Who decided, where it was not the judge: "rule of bias".
        left_out: Kinds of what stood around the answer and was not judged, such as "prompt, role".
    """

    outcome: Outcome
    score: float | None = None
    reason: str = ""
    decided_by: str = ""
    left_out: str = ""


@dataclass(slots=True)
class Verdict:
    """One row of the verdict table: what one judge says of one answer.

    If an attack tries several times, one row stands for all attempts at one prompt.

    Args:
        sample_id: The sample.
        risk: Its risk.
        attack: The attack.
        outcome: What the answer did.
        event: 1.0 where the outcome is the risk's event, 0.0 where not, NaN where unscored.
        judge: Public name of the judge.
        score: See `Judgement`.
        reason: See `Judgement`.
        decided_by: See `Judgement`.
        left_out: See `Judgement`.
        answer_key: The answer that was judged.
        category: The sample's category.
        wording: The prompt's wording.
        topic: What the question is about, in the embedded world: a fact, a pair or a thing.
        target: The sample's right answer.
        repeat: Number of the repeated answer.
        characters: Length of the answer.
        cut: Whether max_new_tokens ended the answer.
        attempts: Number of attempts.
        hits: Number of attempts that show the event.
        answer_keys: The answers of all attempts, where there are several.
        labels: Where in an experiment the answer was given: step, seed, epoch, examples, ...
    """

    sample_id: str
    risk: str
    attack: str
    outcome: Outcome
    event: float
    judge: str
    score: float | None = None
    reason: str = ""
    decided_by: str = ""
    left_out: str = ""
    answer_key: str = ""
    category: str = ""
    wording: str = ""
    topic: str = ""
    target: str = ""
    repeat: int = 0
    characters: int = 0
    cut: bool = False
    attempts: int = 1
    hits: int = 0
    answer_keys: tuple[str, ...] = ()
    labels: dict[str, Any] = field(default_factory=dict)
