"""What a chat template makes of messages: text, where answers stand in it, and what ends them."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from typing import Any

from ftlab._core.errors import UsageError
from ftlab._core.types import Message

Span = tuple[int, int]  # first character and end
EARLIER = "The chat template renders earlier turns differently later on. Train on single-turn rows."
HEADER = "The chat template has no generation prompt, so the role's header would be trained."


def render(tokenizer: Any, messages: list[Message], *, ask: bool = False) -> str:
    """Return the text of a chat.

    Args:
        tokenizer: The tokenizer that holds the template.
        messages: The chat.
        ask: Add the generation prompt.

    Raises:
        UsageError: `no_chat_template`, `template_refuses`.
    """
    if not tokenizer.chat_template:
        why = f"{tokenizer.name_or_path} has no chat template. Add a chat_template.jinja."
        raise UsageError("no_chat_template", why)
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=ask,
        )
    except Exception as error:  # jinja2's, and the template's own raise_exception
        roles = ", ".join(message["role"] for message in messages)
        why = f"The model's chat template refuses the turns {roles}: {error}"
        raise UsageError("template_refuses", why) from None


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
        {"role": "assistant", "content": "b"},
    ]
    with contextlib.suppress(UsageError):  # a template that cannot be trained can still be asked
        text, [(_, end)] = answer_spans(tokenizer, chat)
        found = tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        last = None
        for token, (start, _) in zip(found["input_ids"], found["offset_mapping"], strict=True):
            if start < end:
                last = token
        if last in special_tokens(tokenizer):
            stops.add(last)
    return sorted(stops)
