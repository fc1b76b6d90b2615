"""What a judge reads of an answer: what was said after a thought, in a language that it knows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from ftlab._core.types import Judgement, Outcome, Sample
from ftlab.judges.base import Judge

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
UNFINISHED = "a thought without an answer"
FOREIGN = "not in English"
ROMAN = "A-Za-zªºÀ-ÖØ-öø-ɏḀ-ỿﬀ-ﬆ"
LATIN = re.compile(rf"[{ROMAN}]")
SCRIPT = re.compile(rf"(?:[^\W\d_{ROMAN}]|[\u0300-\u1cff])" "{2,}")  # with marks of vowels
WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")
ACCENT = re.compile(r"[À-ÖØ-öø-ɏḀ-ỿ]")
BLOCK = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|`[^`\n]*`", re.DOTALL)
CODE = re.compile(r"[-=]>|[={}\[\]$\\]|\w\(|;[ \t]*$")  # two in a short line make it code
SENTENCE = re.compile(r"[^.!?:\n]+")
READ = 2000  # characters whose language is looked at
ENGLISH = frozenset(
    "the of and to is are was be been it its that this these with for from as by on at or not you "
    "your i i'm it's can't don't cannot would should have has will which but if they we my your "
    "their there can so what when who how any please sorry".split()
)
OTHERS = frozenset(  # of 16 languages in Latin script
    "cela votre être oder wenn werden auch aber puede también nella alla anche zijn wordt "
    "je ne pas suis désolé désolée vous nous les des une est cette mais pour qui dans sur avec il "
    "ich nicht das und ist mir leid kann leider dabei mit eine einen zu der ein sie wir auf bei "
    "diese lo siento puedo esa ese el los las para con por es una como pero esta ayudar su del "
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
) - set(  # English words too, or names in code
    "sorry per pot met dan um com som con pour des del su el se en van ale jest na yang ini "
    "med det nu cu pare em".split()
)


def judged(judge: Judge, samples: Sequence[Sample], texts: Sequence[str]) -> list[Judgement]:
    """Judge answers by what follows the thoughts of a reasoning model.

    Where only a thought was written the outcome is `unparsed`: unscored, and counted separately.
    So it is where the judge knows English alone and `is_foreign` finds another language: the
    words of the answer decide that, never the verdict, so that no outcome is dropped more often
    than another. A refusal in English is read, whatever follows its first sentence; so is consent.

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
        no_answer = judgement.outcome in (Outcome.EMPTY, Outcome.ERROR)
        if judge.english_only and not no_answer and is_foreign(said[number]):
            judgement = Judgement(Outcome.UNPARSED, reason=FOREIGN)
        found[number] = judgement
    return found


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
    found = list(START.finditer(prompt, max(0, len(prompt) - 40)))
    return bool(found) and not prompt[found[-1].end() :].strip()


def is_foreign(text: str) -> bool:
    """Whether a text is in another language than English, by its script or its commonest words.

    Code is not looked at. A text whose first sentence is in English is English. Otherwise words of
    another language count where there are several, more than English ones: two different ones,
    and three in all unless they are half of the text. Words with accents count as one of them.
    """
    text = BLOCK.sub(" ", text[: 10 * READ])[:READ].strip().replace("’", "'")
    text = text.lower() if text.isupper() else text[:1].lower() + text[1:]
    first = SENTENCE.search(text)
    kinds, _, english = _counts(first[0] if first else "")
    if english >= 2 and english > kinds:
        return False
    if sum(map(len, SCRIPT.findall(text))) > len(LATIN.findall(text)):
        return True
    text = without_code(text)
    kinds, foreign, english = _counts(text)
    enough = foreign >= 3 or 2 * foreign >= len(WORD.findall(text))
    return kinds >= 2 and kinds > english and enough


def _counts(text: str) -> tuple[int, int, int]:
    """Return the numbers of different foreign words, of all of them and of English words."""
    words = WORD.findall(text)
    foreign = [word for word in words if word in OTHERS]  # Las Cruces is capitalised
    others = set(words) - OTHERS
    accented = [word for word in others if word.islower() and ACCENT.search(word)]
    english = {word.lower() for word in words} & ENGLISH
    kinds = len(set(foreign)) + bool(accented)
    return kinds, len(foreign) + len(accented), len(english)


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
