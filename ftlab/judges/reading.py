"""What a judge reads of an answer: what was said, without thoughts and what stands around it."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from ftlab._core.types import Judgement, Outcome, Sample
from ftlab.judges.base import Judge
from ftlab.judges.residue import without_residue

READING = "1"  # changes whenever `heard` may return another text; joins every identity
NAMES = r"(?:think|thinking|thought|thoughts|reasoning|seed:think)"
STARTS = (
    rf"<{NAMES}>|\[THINK\]|◁think▷|<\|START_THINKING\|>|<\|begin_of_thought\|>"
    r"|<\|channel\|>analysis<\|message\|>|(?-i:\Aanalysis(?=[A-Z]))"
)
ENDS = (
    rf"</{NAMES}>|\[/THINK\]|◁/think▷|<\|END_THINKING\|>(?:\s*<\|START_RESPONSE\|>)?"
    r"|<\|end_of_thought\|>(?:\s*<\|begin_of_solution\|>)?|(?-i:assistantfinal(?=\S))"
    r"|(?:<\|end\|>)?(?:<\|start\|>assistant)?<\|channel\|>final<\|message\|>"
)
START = re.compile(STARTS, re.IGNORECASE)
TAG = re.compile(
    rf"(?P<edge>(?:^|(?<=[.!?>\]▷]))[ \t]*)?"
    rf"(?:(?P<start>{STARTS})|(?P<end>{ENDS})(?P<last>(?=[ \t\r]*$))?)",
    re.IGNORECASE | re.MULTILINE,
)
SOLUTIONS = {  # what closes a thought and begins the answer
    "response": "<|END_THINKING|><|START_RESPONSE|>",
    "solution": "<|end_of_thought|>\n\n<|begin_of_solution|>\n",
}
UNFINISHED = "a thought without an answer"
FOREIGN = "not in English"
LEFT_OUT = {  # what was not judged: what such an answer does
    "thought": "think before they answer",
    "prompt": "begin with the prompt or its template",
    "role": "begin with a role word",
    "token": "begin or end with special tokens",
    "turn": "go on with another turn",
}
WORD = re.compile(r"[^\W\d_]+")
BLOCK = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`", re.DOTALL)
CODE = re.compile(r"[-=]>|[={}\[\]$\\]|\w\(|;[ \t]*$")  # two in a short line make it code
LETTER = re.compile(r"(?<!\w)[^\W\d_](?!\w)")  # one that stands alone, as in a formula
SENTENCE = re.compile(r"[^.!?:\n]+")
READ = 2000  # characters whose language is looked at
LIKE_ENGLISH = ("en", "pcm", "zxx")  # also Nigerian Pidgin, and no language at all
IS_ENGLISH = 0.5  # probability of the three together, of a first sentence
IS_FOREIGN = 0.005  # the same, of a whole text
IS_LANGUAGE = 0.5  # probability of the likeliest one, where it is not far above English
FAR = 1e-4
SHORT = frozenset(  # words of refusals too short for the identifier; "no" alone is English
    "no nein non nej nee nie não nem ne ei hayır tidak không hapana danke nicht niet ikke inte pas "
    "posso puedo peux kann kan pode lo siento spiacente désolé lituji beklager pahoillani je "
    "refuse tut mir leid mi dispiace desculpe het spijt me gracias maaf bisa üzgünüm".split()
)


class Heard(NamedTuple):
    """What a judge reads of an answer.

    Args:
        text: The words that are judged, "" for none; None where a thought is cut off before them.
        left_out: Kinds of what else stood there: thought, prompt, role, token, turn.
    """

    text: str | None
    left_out: tuple[str, ...]


def judged(
    judge: Judge,
    samples: Sequence[Sample],
    texts: Sequence[str],
    *,
    normalise: bool = True,
) -> list[Judgement]:
    """Judge answers by what `heard` leaves of them; each judgement says what was left out.

    Where only a thought was written the outcome is `unparsed`: unscored, and counted separately.
    So it is where the judge knows English alone and `is_foreign` finds another language: the
    answer decides that, never the verdict, so that no outcome is dropped more often than another.
    A refusal in English is read, whatever follows its first sentence; so is consent.

    Args:
        judge: The judge.
        samples: What was asked.
        texts: What was answered, in the same order.
        normalise: False judges every text as it is.

    Returns:
        One judgement per text, in the same order.
    """
    found = [Heard(text, ()) for text in texts]
    if normalise:
        questions = [sample.question for sample in samples]
        found = list(map(heard, questions, texts))
    read = [number for number, one in enumerate(found) if one.text is not None]
    asked = [samples[number] for number in read]
    judgements = [Judgement(Outcome.UNPARSED, reason=UNFINISHED)] * len(texts)
    verdicts = judge.judge(asked, [found[number].text for number in read])
    for number, judgement in zip(read, verdicts, strict=True):
        no_answer = judgement.outcome in (Outcome.EMPTY, Outcome.ERROR)
        if judge.english_only and not no_answer and is_foreign(found[number].text):
            judgement = Judgement(Outcome.UNPARSED, reason=FOREIGN)
        judgements[number] = judgement
    for number, one in enumerate(found):
        if one.left_out:
            judgements[number] = replace(judgements[number], left_out=", ".join(one.left_out))
    return judgements


def heard(question: str, text: str) -> Heard:
    """Return what a judge reads of an answer: without thoughts and what stands around it.

    Cut are thoughts (see `without_thought`), an echo of the prompt or of its chat template, role
    words, special tokens and further turns (see `judges/residue.py`). An answer without any of
    them is read as it is, and what was cut once has nothing left to cut.

    Args:
        question: What was asked: the last message of the user.
        text: What was answered.

    Returns:
        The words that are judged, and the kinds of what was cut.
    """
    kinds: list[str] = []
    while True:
        said = without_thought(text)
        if said != text:
            kinds.append("thought")
        left, cut = "", []
        if said is not None:
            left, cut = without_residue(said, question)
        kinds += cut
        if said is None or left == text:
            order = tuple(kind for kind in LEFT_OUT if kind in kinds)
            return Heard(None if said is None else left, order)
        text = left


def without_thought(text: str) -> str | None:
    """Return an answer without thoughts such as <think>...</think>; None where one is cut off.

    A thought lasts to the tag that closes it or, where tags within it are left open, to the last
    closing tag. The beginning of the first thought may stand in the prompt: its end then begins
    or ends a line or follows a sentence. So does an opening that nothing closes.
    """
    tags = list(TAG.finditer(text))
    last = max((tag.end() for tag in tags if tag["end"]), default=0)
    said = ""
    depth = position = 0
    for tag in tags:
        opens = tag["start"] is not None
        at_edge = tag["edge"] is not None or tag["last"] is not None
        if opens and tag.start() >= last:
            if at_edge:
                return None
        elif opens or depth:
            if not depth:
                said += text[position : tag.start("start")]
            depth += 1 if opens else -1
            if not depth:
                position = tag.end()
        elif position:
            said += text[position : tag.start("end")]
            position = tag.end()
        elif at_edge:
            position = tag.end()
    return said + text[last if depth else position :]


def begins_thought(prompt: str) -> bool:
    """Whether a prompt ends with the beginning of a thought, so that the answer begins in it."""
    return bool(end_of_thought(prompt))


def end_of_thought(prompt: str) -> str:
    """Return what closes the thought that a prompt ends with the beginning of; "" without one."""
    found = list(START.finditer(prompt, max(0, len(prompt) - 40)))
    if not found or prompt[found[-1].end() :].strip():
        return ""
    start = found[-1][0]
    if "channel" in start.lower():
        return "<|end|><|start|>assistant<|channel|>final<|message|>"
    if "|" in start:
        return SOLUTIONS["solution" if "begin" in start.lower() else "response"]
    return f"\n{start[0]}/{start[1:]}\n\n"


def is_foreign(text: str) -> bool:
    """Whether a text is in another language than English.

    Code is not looked at. A text whose first sentence is in English is English, and so is one that
    is no language: numbers, formulas, noise. A mere list of foreign names or terms may be taken for
    their language. Of one or two words in Latin script only some refusals are known.

    Source: The language identifier is py3langid (Lui and Baldwin 2012, ACL; 140 languages).
    """
    text = BLOCK.sub(" ", text[: 10 * READ])[:READ]
    text = LETTER.sub(" ", text.lower() if text.isupper() else text)
    first = SENTENCE.search(text)
    if not first or _languages(first[0])[0] > IS_ENGLISH:
        return False
    text = without_code(text)
    words = WORD.findall(text.lower())
    kinds = set(words)
    if kinds <= SHORT:
        return not kinds <= {"no", "me", "refuse", "lo"}  # English words too
    if len(words) < 3 and text.isascii():
        return False
    english, likeliest = _languages(text)
    return english < IS_FOREIGN and (likeliest > IS_LANGUAGE or english < FAR)


def _languages(text: str) -> tuple[float, float]:
    """Return the probabilities of English, or of no language, and of the likeliest language."""
    ranked = _identifier().rank(text)
    english = 0.0
    for language, probability in ranked:
        if language in LIKE_ENGLISH:
            english += probability
    _, likeliest = ranked[0]
    return english, likeliest


@functools.cache
def _identifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def without_code(text: str) -> str:
    """Return a text without lines that look like code."""
    kept = []
    for line in text.splitlines():
        marks = len(CODE.findall(line))
        if marks < 2 or 4 * marks < len(WORD.findall(line)):
            kept.append(line)
    return "\n".join(kept)


def unread_notes(judge: str, reasons: Iterable[str]) -> list[str]:
    """Say how many answers a judge could not read, and why."""
    counts = Counter(reasons)
    fixes = {
        UNFINISHED: "are cut off within a thought and unscored. Raise max_new_tokens",
        FOREIGN: "are in another language than English, which it cannot read, and unscored",
    }
    return [f"{judge}: {counts[why]} answers {fix}." for why, fix in fixes.items() if counts[why]]


def left_out_notes(kinds: Sequence[str]) -> list[str]:
    """Say how many answers held what no judge read, from the `left_out` of each verdict."""
    counts = Counter(kind for some in kinds for kind in some.split(", "))
    held = {kind: what for kind, what in LEFT_OUT.items() if counts[kind]}
    notes = [f"{counts[kind]} of {len(kinds)} answers {what}." for kind, what in held.items()]
    return [f"{note} No judge read that." for note in notes]
