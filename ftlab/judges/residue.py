"""Text around an answer that is not part of it: the prompt, a chat template, special tokens.

Files of other people's answers hold it, and so does what a model writes past its end. It is
looked for at the edges of an answer only. Where the question is about templates or markup, or asks
for a dialogue, what looks like it is kept.
"""

from __future__ import annotations

import re

WINDOW = 8000  # characters before the question in which its template may stand
FEWEST_WORDS = 4  # of a question whose bare repetition counts as an echo
FEWEST_CHARACTERS = 20  # the same, where words are not divided by spaces
LONGEST_TAIL = 80  # characters of a special token with its role

START = (
    r"<\|(?:im_start|start_header_id|header_start|start_of_role|start|START_OF_TURN_TOKEN)\|>"
    r"|<start_of_turn>"
)
CLOSED = r"(?:\s*<\|(?:end_header_id|header_end|end_of_role|message|im_sep)\|>)?"
END = (
    r"</s>|<eos>|<end_of_turn>|<｜end▁of▁sentence｜>"
    r"|<\|(?:im_end|eot_id|eot|eom_id|end|end_of_turn|END_OF_TURN_TOKEN|endoftext|end_of_text"
    r"|return)\|>"
)
SPECIAL = (
    rf"{END}|<start_of_turn>|<\|[\w -]{{1,40}}\|>|<｜[\w▁ ]{{1,40}}｜>|\[/?INST\]|<</?SYS>>"
    r"|<(?:s|bos|pad|unk|BOS_TOKEN|EOS_TOKEN)>"
)
SYSTEM = (
    rf"(?:{START})\s*(?:system|developer|<\|SYSTEM_TOKEN\|>){CLOSED}|<\|system\|>|<<SYS>>"
    r"|Below is an instruction that describes a task|A chat between a (?:curious )?(?:user|human)"
)
USER = (
    rf"(?:{START})\s*(?:user|human|<\|USER_TOKEN\|>){CLOSED}|<\|(?:user|human)\|>|<｜User｜>"
    r"|\[INST\](?:\s*<<SYS>>.*?<</SYS>>)?|\#\#\#? *Instruction *:"
)
ASSISTANT = (
    rf"(?:{START})\s*(?:assistant|model|<\|CHATBOT_TOKEN\|>){CLOSED}"
    r"|<\|assistant\|>|<｜Assistant｜>"
)
# Words of templates; without a colon they are what is left where special tokens were dropped.
SYSTEM_WORD = r"\#\#\#? *System *:|System *:|(?-i:system)[ \t]*\n"
USER_WORD = (
    r"\#\#\#? *(?:Human|User|Question|Prompt) *:|(?:GPT4 Correct )?(?:User|Human|Question|Q) *:"
    r"|(?-i:user)[ \t]*\n"
)
RESPONSE = r"\#\#\#? *(?:Response|Assistant|Answer|Output) *:"
ASSISTANT_WORD = (
    rf"{RESPONSE}|(?:\*\*)?(?:GPT4 Correct |AI )?Assistant(?:\*\*)? *:(?:\*\*)?"
    r"|(?-i:(?:assistant|model)[ \t]*\n\s*(?=[^a-z\s]|\Z))"
)
ANSWER_WORD = (
    rf"{ASSISTANT_WORD}|(?-i:assistant|model)[ \t]*\n"
    r"|(?:Answer|Response|Output|AI|Bot|Chatbot|GPT|A) *:"
)


def _pattern(text: str) -> re.Pattern:
    return re.compile(text, re.IGNORECASE | re.DOTALL)


ROLE = _pattern(rf"\s*+(?:{ASSISTANT})\s*")
WORD = _pattern(rf"\s*+(?:{ASSISTANT_WORD})\s*")
TOKEN = _pattern(rf"\s*+(?!{SYSTEM}|{USER}|{ASSISTANT}|{START})(?:{SPECIAL})\s*")
TAIL = _pattern(rf"(?:(?:{START})\s*(?:assistant|model|user|human|system)?{CLOSED}|{SPECIAL})\Z")
ANY = _pattern(SPECIAL)
NEXT = _pattern(rf"(?:{END})(?:\s*(?:{END}))*\s*(?:{SYSTEM}|{USER}|<s>|{USER_WORD})")
REPLY = rf"(?:{ASSISTANT}|\[/INST\]|{RESPONSE}|(?-i:ASSISTANT:))"
# Only behind a special token: behind plain words an answer could hide.
TEMPLATE = _pattern(
    rf"\s*+(?=<\||<｜|<start_of_turn>|<<SYS>>|\[INST\])(?:{SYSTEM}|{USER}).{{0,{WINDOW}}}?{REPLY}\s*"
)
# Before and after the question, where a template was written around it.
ASKING = _pattern(rf"\s*(?:{USER_WORD})?\s*")
BEFORE = _pattern(rf"\s*(?:(?:{SYSTEM}|{SYSTEM_WORD}).*)?(?:{USER}|{USER_WORD})?\s*")
AFTER = _pattern(rf"\s*+(?:(?:{END})\s*)*(?:{ASSISTANT}|\[/INST\]|{ANSWER_WORD})\s*")
LINE = _pattern(rf"[ \t]*(?:\n|\Z|{SPECIAL}|(?<=[.?!:])\s)")
STRUCK = re.compile(r"<s>[^<]*</s>")  # HTML of struck text, unless it is the whole answer
# Questions that excuse.
OF_TEMPLATES = _pattern(r"\btokens?\b|\btemplate|chatml|markup|html|<[|/\w]|\[/?INST")
OF_DIALOGUE = _pattern(
    r"\b(?:dialog\w*|conversation|script|chat\w*|interview|transcript|scene|play|story|assistant"
    r"|role-?play)\b"
)


def without_residue(text: str, question: str) -> tuple[str, list[str]]:
    """Return an answer without the text around it, and the kinds of what was cut.

    - "prompt": the answer begins with the question, followed by a line's end or by the template's
      word for the answer, or with a template of special tokens up to where the answer begins.
    - "role": it begins with a role word ("Assistant:", "### Response:").
    - "token": it begins or ends with special tokens.
    - "turn": its end is marked, and another turn of the user follows.

    The middle of an answer is never cut, and an answer around which nothing stands is returned
    as it is. What follows a mark of the end without a new turn stays.

    Args:
        text: The answer.
        question: The last message of the user.
    """
    struck = STRUCK.search(text)
    whole = not struck or struck[0] == text.strip()
    excused = OF_TEMPLATES.search(question)
    text, kinds = _without_head(text, question.strip(), whole, bool(excused))
    if excused:
        return text, kinds
    end = ANY.search(text)
    if end and NEXT.match(text, end.start()):
        before = text[: end.start()]
        if before.count("```") % 2 == 0:  # not in code
            text = before.rstrip()
            kinds.append("turn")
    while whole:
        words = text.rstrip()
        end = TAIL.search(words, max(0, len(words) - LONGEST_TAIL))
        if not end:
            break
        text = words[: end.start()].rstrip()
        kinds.append("token")
    return text, kinds


def _without_head(text: str, question: str, whole: bool, excused: bool) -> tuple[str, list[str]]:
    """Return an answer without what stands before it, and the kinds of that."""
    patterns = [("role", ROLE)]
    if whole:
        patterns.append(("token", TOKEN))
    if not OF_DIALOGUE.search(question):
        patterns.append(("role", WORD))
    templates = [("prompt", TEMPLATE)]
    if excused:
        patterns = templates = []
    kinds: list[str] = []
    start = 0
    while True:
        kind, end = _after(patterns, text, start)
        if end == start:
            kind = "prompt"
            end = _after_question(text, start, question)
        if end == start:
            _, end = _after(templates, text, start)
        if end == start:
            return text[start:], kinds
        kinds.append(kind)
        start = end


def _after(patterns: list[tuple[str, re.Pattern]], text: str, start: int) -> tuple[str, int]:
    """Return the kind and the end of the first pattern that is found at `start`."""
    for kind, pattern in patterns:
        found = pattern.match(text, start)
        if found:
            return kind, found.end()
    return "", start


def _after_question(text: str, start: int, question: str) -> int:
    """Return where an echoed prompt ends that begins at `start`; `start` without one."""
    window = text[start : start + WINDOW + 2 * len(question)]
    words = question.split()
    if not words or words[0] not in window:
        return start
    place = re.search(r"\s*".join(map(re.escape, words)), window)
    if not place:
        return start
    head = window[: place.start()]
    end = start + place.end()
    if not head.strip() and len(words) < FEWEST_WORDS and len(question) < FEWEST_CHARACTERS:
        return start
    reply = AFTER.match(text, end)
    if reply and BEFORE.fullmatch(head):
        return reply.end()
    if ASKING.fullmatch(head) and LINE.match(text, end):
        return len(text) - len(text[end:].lstrip())
    return start
