"""What a chat template makes of messages: text, where answers stand in it, and what ends them."""

from __future__ import annotations

import contextlib
import json
import re
from datetime import datetime
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any

from ftlab._core.errors import UsageError
from ftlab._core.text import safe
from ftlab._core.types import Message
from ftlab.models.folders import limited

Span = tuple[int, int]  # first character and end
TODAY = datetime(2024, 7, 26)  # in templates that write the date; the default of Llama's
EARLIER = "The chat template renders earlier turns differently later on. Train on single-turn rows."
ANEW = "The chat template writes another text at every call or in every process. Mend it."
MOST_FACTOR = 2**16  # of the numbers that a template multiplies, or raises to a power
ADDRESS = re.compile(r" at 0x[0-9a-f]{4,}", re.I)  # of an object that is printed as it is
MOST_WRITTEN = 10**7  # characters for each turn
HEADER = "The chat template has no generation prompt, so the role's header would be trained."


def render(tokenizer: Any, messages: list[Message], *, ask: bool = False) -> str:
    """Return the text of a chat.

    Args:
        tokenizer: The tokenizer that holds the template.
        messages: The chat.
        ask: Add the generation prompt.

    Raises:
        UsageError: `no_chat_template`, `template_refuses`, `template_is_random`,
            `template_leaves_out`.
    """
    if not tokenizer.chat_template:
        why = f"{tokenizer.name_or_path} has no chat template. Add a chat_template.jinja."
        raise UsageError("no_chat_template", why)
    make_repeatable()
    try:
        with limited("It"):
            text = tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=ask,
            )
        if len(text) > MOST_WRITTEN * len(messages):
            raise ValueError(f"It writes {len(text):,} characters.")
    except Exception as error:  # jinja2's, and the template's own raise_exception
        roles = ", ".join(message["role"] for message in messages)
        why = f"The model's chat template refuses the turns {roles}: {safe(error, 300)}"
        raise UsageError("template_refuses", why) from None
    addresses = set(ADDRESS.findall(text))
    if addresses:
        given = ADDRESS.findall(str(messages))
        addresses.difference_update(given)
    if addresses:
        raise UsageError("template_is_random", ANEW)
    for message in messages:
        if not _holds(text, message):
            raise UsageError(
                "template_leaves_out",
                f"The model's chat template leaves out text of the turn {message['role']}. "
                "Remove it, or mend the template.",
            )
    return text


@cache
def make_repeatable() -> None:
    """Let templates write the same text in every process, also where TRL renders them.

    The date is fixed. What is drawn is an object, which `render` finds in the text. Nothing could
    interrupt a power or product of large numbers.
    """
    from transformers.utils import chat_template_utils

    class Repeatable(chat_template_utils.ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context, operator, left, right):
            if any(isinstance(n, int) and abs(n) > MOST_FACTOR for n in (left, right)):
                raise OverflowError("It counts too high.")
            return super().call_binop(context, operator, left, right)

        def from_string(self, source):
            self.filters["random"] = self.globals["lipsum"] = lambda *_, **__: object()
            return super().from_string(source)

    chat_template_utils.datetime = SimpleNamespace(now=lambda: TODAY)
    chat_template_utils.ImmutableSandboxedEnvironment = Repeatable
    chat_template_utils._compile_jinja_template.cache_clear()


def _holds(text: str, message: Message) -> bool:
    """Whether a chat's text holds a message, which a template may trim, wrap or escape.

    Templates of reasoning models leave the thoughts out with which earlier answers begin.
    """
    content = message["content"].strip()
    if content in text:
        return True
    if message["role"] == "assistant":
        content = content.split()[-1]
    squeezed = "".join(text.split())
    for variant in (content, json.dumps(content, ensure_ascii=False)[1:-1]):
        if "".join(variant.split()) in squeezed:
            return True
    return False


def answer_spans(tokenizer: Any, messages: list[Message]) -> tuple[str, list[Span]]:
    """Return the text of a chat, and first and end character of each answer with its end of turn.

    Answers of weight 0 are left out.

    Raises:
        UsageError: `template_rewrites`, `no_generation_prompt`, and what `render` raises.
    """
    text = render(tokenizer, messages)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, messages[:number], ask=True)
        after = text.rstrip()
        if number < len(messages) - 1:
            after = render(tokenizer, messages[: number + 1]).rstrip()
        if not (text.startswith(before) and text.startswith(after)):
            raise UsageError("template_rewrites", EARLIER)
        added = text[len(before) :].lstrip()
        headed = not added.startswith(message["content"].strip())
        if headed and before == render(tokenizer, messages[:number]):
            raise UsageError("no_generation_prompt", HEADER)
        if message.get("weight", 1):
            spans.append((len(before), len(after)))
    return text, spans


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the special tokens by id."""
    return _special_tokens(tokenizer, len(tokenizer))


@lru_cache(2)
def _special_tokens(tokenizer, _size):
    """Remembered while the tokenizer's size stays the same."""
    added = tokenizer.added_tokens_decoder.items()
    found = {number: token.content for number, token in added if token.special}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return found | dict(named)


def stop_ids(tokenizer: Any, module: Any = None) -> list[int]:
    """Return ids of the tokens that end an answer: EOS, and the template's end of turn if any.

    Args:
        tokenizer: The tokenizer that holds the template.
        module: A torch model, whose own stop tokens are added.
    """
    stops = {tokenizer.eos_token_id} - {None}
    if module is not None:
        own = module.generation_config.eos_token_id or []
        if isinstance(own, int):
            own = [own]
        stops.update(own)
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "Zq"},
    ]
    with contextlib.suppress(UsageError):  # a template that cannot be trained can still be asked
        text, [(first, _)] = answer_spans(tokenizer, chat)
        found = tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        answer_end = text.index("Zq", first) + 2
        ending = []  # tokens after the answer: some templates end the turn, then the chat
        offsets = found["offset_mapping"]
        for token, (start, stop) in zip(found["input_ids"], offsets, strict=True):
            if start >= answer_end and text[start:stop].strip():
                ending.append(token)
        stops.update(special_tokens(tokenizer).keys() & ending[-1:])
        stops.update(tokenizer.added_tokens_decoder.keys() & ending[:1])
    return sorted(stops)
