"""Token ids and loss mask of training rows, and rows made to fit a length.

The mask is found by rendering: what the chat template adds for an assistant turn after its
generation prompt, up to and with the end-of-turn token, is trained, and nothing else. On templates
with `{% generation %}` markers this equals `return_assistant_tokens_mask`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any

from ftlab._core.errors import DataError, UsageError
from ftlab._core.types import Message
from ftlab.data.dataset import Data, bad_rows
from ftlab.data.messages import carries_loss
from ftlab.models import answer_spans, render, special_tokens

IGNORED = -100  # label of a token without loss
BATCH = 64  # chats tokenised together
MAX_LENGTH = 1024  # tokens of a row, where nobody says otherwise
TOO_LONG = ("raise", "drop", "cut")

Encoded = tuple[list[int], list[int]]  # token ids and labels, one of each per token


def encode(messages: list[Message], tokenizer: Any) -> Encoded:
    """Return token ids and labels of one chat.

    Labels are -100 everywhere but on the assistant's tokens and their end of turn. An assistant
    turn with "weight": 0 carries no loss.

    Raises:
        DataError: `special_token`, where the text holds one, which would be read as such and
            could forge a turn; `no_end_of_turn`, where the tuned model would never stop;
            `no_loss`.
        UsageError: The chat template cannot be trained; the code says why.
    """
    (found,) = encode_all([messages], tokenizer)
    if isinstance(found, ValueError):
        raise found
    return found


def encode_all(
    conversations: Iterable[list[Message]], tokenizer: Any
) -> Iterator[Encoded | ValueError]:
    """Yield for each chat what `encode` returns, or the error that it raises."""
    waiting = iter(conversations)
    while batch := list(islice(waiting, BATCH)):
        laid_out = [_laid_out(messages, tokenizer) for messages in batch]
        texts = [found[0] for found in laid_out if not isinstance(found, ValueError)]
        tokens = iter(_tokens(tokenizer, texts) if texts else ())
        for found in laid_out:
            if isinstance(found, ValueError):
                yield found
            else:
                yield _labelled(*next(tokens), found[1], tokenizer)


def encode_rows(
    data: Data,
    tokenizer: Any,
    *,
    max_length: int,
    on_too_long: str = "raise",
    held_as: Callable[[list[int]], Any] = list,
) -> list[dict[str, Any]]:
    """Return `input_ids` and `labels` of all chats.

    Args:
        data: Chats.
        tokenizer: The model's tokenizer.
        max_length: Most tokens of a row.
        on_too_long: What happens to longer rows: "raise", "drop" or "cut"; see `fit_to_length`.
        held_as: What a list of tokens becomes: an array of 32 bits takes a ninth of its memory.

    Raises:
        DataError: `bad_rows`, naming every row that does not fit or cannot be trained.
    """
    data = fit_to_length(data, tokenizer, max_length=max_length, on_too_long=on_too_long)
    rows = []
    problems = []
    found = encode_all((row["messages"] for row in data.rows), tokenizer)
    for number, encoded in enumerate(found, 1):
        if not isinstance(encoded, ValueError) and len(encoded[0]) > max_length:
            encoded = too_long(len(encoded[0]), max_length)
        if isinstance(encoded, ValueError):
            problems.append((f"{data.name}: row {number}", encoded))
        else:
            held = map(held_as, encoded)
            rows.append(dict(zip(("input_ids", "labels"), held, strict=True)))
    if problems:
        raise bad_rows(problems)
    return rows


def fit_to_length(
    data: Data,
    tokenizer: Any,
    *,
    max_length: int,
    on_too_long: str,
) -> Data:
    """Return rows of at most `max_length` tokens; what happened is said on stderr.

    "raise" returns the data as they are: the encoding then names the rows. "drop" leaves longer
    rows out. "cut" removes the oldest exchanges, then the end of the last question. The system
    turn and the answer stay whole, so that the end-of-turn token is there and trained. A row whose
    answer alone is too long, or in which no turn with loss would stay, is dropped.

    Args:
        data: Rows of any kind.
        tokenizer: The model's tokenizer.
        max_length: Most tokens of a row.
        on_too_long: "raise", "drop" or "cut".

    Raises:
        UsageError: `unknown_on_too_long`.
        DataError: `all_too_long`, where no row is left.
    """
    check_on_too_long(on_too_long)
    if on_too_long == "raise":
        return data
    kept, counts = shortened(data.rows, tokenizer, max_length, on_too_long)
    changed = sum(counts.values())
    if not changed:
        return data
    print(
        f"{data.name}: {changed} of {len(data)} rows were longer than {max_length} tokens: "
        f"{counts['cut']} cut, {counts['dropped']} dropped",
        file=sys.stderr,
    )
    if not kept:
        raise all_too_long(data.name, max_length)
    made = {
        "by": "on_too_long",
        "how": on_too_long,
        "max_length": max_length,
        **counts,
        "from": [data.record],
    }
    return Data(data.name, tuple(kept), made)


def check_on_too_long(choice: str) -> None:
    """Raise UsageError `unknown_on_too_long` for anything but raise, drop and cut."""
    if choice not in TOO_LONG:
        why = f"on_too_long = {choice!r}. Allowed: {', '.join(TOO_LONG)}."
        raise UsageError("unknown_on_too_long", why)


def too_long(tokens: int, most: int) -> DataError:
    """Return the error for a row that is too long."""
    fix = "Shorten the row, raise max_length, or set on_too_long to drop or cut."
    return DataError("too_long", f"{tokens} tokens, at most {most} are allowed. {fix}")


def all_too_long(name: str, most: int) -> DataError:
    """Return the error for data of which no row is left."""
    why = f"{name}: every row is longer than {most} tokens. Raise max_length."
    return DataError("all_too_long", why)


def shortened(
    rows: Iterable[dict],
    tokenizer: Any,
    most: int,
    how: str,
) -> tuple[list, dict]:
    """Return rows of at most `most` tokens, and how many were dropped and cut.

    A row that cannot be encoded stays: the encoding says what is wrong with it.
    """
    kept = []
    counts = {"dropped": 0, "cut": 0}
    for row in rows:
        short = row
        with contextlib.suppress(ValueError):
            if token_length(row, tokenizer) > most:
                short = _cut(row, tokenizer, most) if how == "cut" else None
        if short is None:
            counts["dropped"] += 1
        else:
            counts["cut"] += short is not row
            kept.append(short)
    return kept, counts


def token_length(row: dict, tokenizer: Any) -> int:
    """Return the number of tokens of a row, and of a pair that of its longer side.

    Raises:
        UsageError: `no_chat_template`, `template_refuses`.
    """
    texts = [render(tokenizer, messages) for messages in conversations_of(row)]
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return max(map(len, found))


def conversations_of(row: dict) -> list[list[Message]]:
    """Return the conversations that a row of any kind trains on: one, or a pair's two."""
    if "messages" in row:
        return [row["messages"]]
    answers = [name for name in ("chosen", "rejected", "completion") if name in row]
    return [[*row["prompt"], *row[name]] for name in answers]


def _laid_out(messages, tokenizer):
    """Return a chat's text and the spans that carry loss, or the error."""
    thoughts = [m.get("reasoning_content", "") for m in messages if carries_loss(m)]
    texts = [*thoughts, *(message["content"] for message in messages)]
    for token in special_tokens(tokenizer).values():
        if any(token in text for text in texts):
            why = f"The text holds the model's special token {token!r}. Remove it from the row."
            return DataError("special_token", why)
    try:
        text, spans = answer_spans(tokenizer, messages)
    except UsageError as error:
        return error
    if not all(thought.strip() in text for thought in thoughts):
        why = "The chat template leaves a thought out (reasoning_content, thinking)."
        fix = "Remove that field, or write it into the answer as <think>...</think>."
        return DataError("thought_left_out", f"{why} {fix}")
    return text, spans


def _tokens(tokenizer, texts):
    """Return token ids and offsets of each text."""
    found = tokenizer(
        texts,
        add_special_tokens=False,
        return_offsets_mapping=True,
        verbose=False,
    )
    return zip(found["input_ids"], found["offset_mapping"], strict=True)


def _labelled(
    ids,
    offsets,
    spans,
    tokenizer,
):
    """Return ids and labels, or the error."""
    import numpy as np

    if not spans:
        return DataError("no_loss", "No assistant turn carries loss. Remove the row.")
    special = special_tokens(tokenizer)
    labels = np.full(len(ids), IGNORED)
    flat = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(ids))
    start, end = flat.reshape(-1, 2).T
    for first, last in spans:
        # A space may have no width (trimmed offsets) or share a token with the first word.
        inside = np.flatnonzero((first < end) & (start < last))
        if not len(inside) or ids[inside[-1]] not in special:
            why = "No end-of-turn token follows the answer, so the tuned model would not stop."
            return DataError("no_end_of_turn", f"{why} Fix the chat template.")
        labels[inside] = np.asarray(ids)[inside]
    return ids, labels.tolist()


def _cut(row, tokenizer, most):
    """Return a row shortened to `most` tokens, or None where it cannot be."""
    key = "messages" if "messages" in row else "prompt"
    turns = row[key]
    answer = []
    if key == "messages":
        turns, answer = turns[:-1], turns[-1:]
    system = [turn for turn in turns[:1] if turn["role"] == "system"]
    turns = turns[len(system) :]

    def made(kept):
        return {**row, key: [*system, *kept, *answer]}

    while len(turns) > 1 and token_length(made(turns), tokenizer) > most:
        turns = turns[2:]
    last = turns[-1]
    [(_, offsets)] = _tokens(tokenizer, [last["content"]])
    room = len(offsets)  # tokens of the question that stay
    over = token_length(made(turns), tokenizer) - most
    while over > 0:
        room -= over
        if room < 1:
            return None
        end = offsets[room - 1][1]
        content = last["content"][:end]
        if not content.strip():
            return None
        turns = [*turns[:-1], {**last, "content": content}]
        over = token_length(made(turns), tokenizer) - most
    if key == "messages" and not any(map(carries_loss, [*turns, *answer])):
        return None
    return made(turns)
