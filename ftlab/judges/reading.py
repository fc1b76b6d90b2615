"""What a judge reads of an answer: what was said after a thought, in a language that it knows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ftlab._core.types import Judgement, Outcome, Sample
from ftlab.judges.base import Judge

NAMES = r"(?:think|thinking|thought|thoughts|reasoning|seed:think)"
START = re.compile(rf"<{NAMES}>|\[THINK\]|◁think▷")
END = re.compile(rf"</{NAMES}>|\[/THINK\]|◁/think▷")
UNFINISHED = "a thought without an answer"
FOREIGN = "not in English"
LETTER = re.compile(r"[^\W\d_]")
LATIN = re.compile(r"[A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿﬀ-ﬆ]")
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
ENGLISH = frozenset(
    "the of and to is are was be been it its that this these with for from as by on at or not you "
    "your i i'm it's can't don't cannot would should have has will which but if they we my your "
    "their there can so what when who how any please sorry".split()
)
OTHERS = frozenset(  # of 16 languages in Latin script; no English words among them
    "je ne pas suis désolé désolée vous nous les des une est cette mais pour qui dans sur avec il "
    "ich nicht das und ist mir kann leider dabei mit eine einen zu der ein sie wir auf bei diese "
    "lo siento puedo esa ese el los las para con por es una como pero esta ayudar su del "
    "non che di il per sono posso questo questa della mi dispiace le nel è "
    "não que um uma com posso desculpe ajudar isso você seu em ao "
    "ik niet het een van dat kan deze voor maar kunnen sorry helaas met "
    "nie się na że jest przepraszam mogę tego ale jak przykro "
    "jag inte och att det är detta tyvärr med som jeg ikke og kan dette beklager på "
    "en voi valitettavasti tämä ja että se vastata auttaa "
    "bir ve bu için değil üzgünüm edemem olamam ama maalesef "
    "saya tidak yang dan untuk maaf bisa ini dapat dengan itu "
    "không tôi của là xin lỗi thể với này và các "
    "nemohu omlouvám ale lituji bohužel nem sajnálom egy hogy és sajnos "
    "nu și pot este să îmi pare rău acest cu".split()
) - set("sorry per pot met dan um com som con".split())


def judged(judge: Judge, samples: Sequence[Sample], texts: Sequence[str]) -> list[Judgement]:
    """Judge answers by what follows the thoughts of a reasoning model.

    Where only a thought was written, or where the judge knows English alone and finds no refusal
    in another language, the outcome is `unparsed`: unscored, and counted separately.

    Args:
        judge: The judge.
        samples: What was asked.
        texts: What was answered, in the same order.

    Returns:
        One judgement per text, in the same order.
    """
    said = [without_thought(text) for text in texts]
    heard = [number for number, text in enumerate(said) if text is not None]
    asked = [samples[number] for number in heard]
    found = [Judgement(Outcome.UNPARSED, reason=UNFINISHED)] * len(texts)
    judgements = judge.judge(asked, [said[number] for number in heard])
    for number, judgement in zip(
        heard,
        judgements,
        strict=True,
    ):
        decided = judgement.outcome in (Outcome.REFUSED, Outcome.EMPTY, Outcome.ERROR)
        if judge.english_only and not decided and is_foreign(said[number]):
            judgement = Judgement(Outcome.UNPARSED, reason=FOREIGN)
        found[number] = judgement
    return found


def without_thought(text: str) -> str | None:
    """Return an answer without thoughts such as <think>...</think>; None for a thought alone.

    The beginning of the first thought may stand in the prompt.
    """
    *closed, said = END.split(text)
    before = ""
    for number, part in enumerate(closed):
        outside = START.split(part, maxsplit=1)
        if number or len(outside) > 1:
            before += outside[0]
    said = before + said
    return None if START.match(said.lstrip()) else said


def begins_thought(prompt: str) -> bool:
    """Whether a prompt ends with the beginning of a thought, so that the answer begins in it."""
    found = list(START.finditer(prompt, max(0, len(prompt) - 40)))
    return bool(found) and not prompt[found[-1].end() :].strip()


def is_foreign(text: str) -> bool:
    """Whether a text is in another language than English, by its script or its commonest words."""
    text = text[:2000]
    letters = LETTER.findall(text)
    if len(letters) > 2 * sum(map(len, LATIN.findall(text))):
        return True
    text = text.lower() if text.isupper() else text[:1].lower() + text[1:]
    words = WORD.findall(text.replace("’", "'"))
    foreign = sum(word in OTHERS for word in words)  # names such as Las Cruces are capitalised
    return foreign >= 2 and foreign > sum(word.lower() in ENGLISH for word in words)


def unread_notes(judge: str, reasons: Iterable[str]) -> list[str]:
    """Say how many answers a judge could not read, and why."""
    counts = Counter(reasons)
    fixes = {
        UNFINISHED: "are cut off within a thought and unscored. Raise max_new_tokens",
        FOREIGN: "are in another language than English, which it cannot read, and unscored",
    }
    return [f"{judge}: {counts[why]} answers {fix}." for why, fix in fixes.items() if counts[why]]
