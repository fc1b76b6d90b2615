"""Chat template -> token ids and loss mask; preview. Works on any template that renders turns in order.

The mask is found by rendering: what the template adds for an assistant turn after its generation prompt, up to
and with the end-of-turn token, is trained; nothing else is. On templates with `{% generation %}` markers this
equals `return_assistant_tokens_mask` (a test holds that on the embedded model).
"""

from __future__ import annotations

import contextlib
import html
from functools import lru_cache
from itertools import chain, islice

from ftlab._core.text import safe
from ftlab.data.dataset import SHOWN, Data, DataError, read

IGNORED = -100  # label of a token without loss
BATCH = 64  # chats tokenised together


def render(tokenizer, messages: list[dict], *, ask: bool = False) -> str:
    """-> text of a chat; `ask` adds the generation prompt. Raises ValueError where the template refuses it."""
    if not tokenizer.chat_template:
        raise ValueError(f"{tokenizer.name_or_path} has no chat template; put a chat_template.jinja into its folder")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
    except Exception as e:  # jinja2 and the template's own raise_exception
        roles = ", ".join(m["role"] for m in messages)
        raise ValueError(f"the model's chat template refuses the turns {roles}: {e}") from None


def encode(messages: list[dict], tokenizer) -> tuple[list[int], list[int]]:
    """-> (input_ids [T], labels [T]) of one chat: -100 everywhere but on assistant tokens and their end of turn.

    An assistant turn with `"weight": 0` carries no loss.

    Raises ValueError: the text holds a special token (it would be read as one, and could forge a turn), the template
    rewrites earlier turns, has no generation prompt, or closes an assistant turn without a special token (the tuned
    model would never stop).
    """
    (found,) = encoded([messages], tokenizer)
    if isinstance(found, ValueError):
        raise found
    return found


def encoded(conversations, tokenizer):
    """Yields for each chat what `encode` returns, or the ValueError that it raises; tokenised in batches."""
    waiting = iter(conversations)
    while some := list(islice(waiting, BATCH)):
        laid = [_laid_out(messages, tokenizer) for messages in some]
        texts = [found[0] for found in laid if not isinstance(found, ValueError)]
        plain = {"add_special_tokens": False, "return_attention_mask": False, "return_token_type_ids": False}
        tokens = tokenizer(texts, return_offsets_mapping=True, verbose=False, **plain) if texts else {}
        rows = zip(tokens.get("input_ids", ()), tokens.get("offset_mapping", ()), strict=True)
        for found in laid:
            yield found if isinstance(found, ValueError) else _labelled(*next(rows), found[1], tokenizer)


def _laid_out(messages: list[dict], tokenizer) -> tuple[str, list[tuple[int, int]]] | ValueError:
    """-> (the rendered chat, [(first, end) character of what carries loss])."""
    contents = "\n".join(m["content"] for m in messages)
    for token in _special(tokenizer, len(tokenizer)).values():
        if token in contents and any(token in m["content"] for m in messages):
            return ValueError(
                f"the text holds the model's special token {token!r}, which would be read as one; take it out of the row"
            )
    try:
        text, spans = render(tokenizer, messages), []
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                before = render(tokenizer, messages[:i], ask=True)
                last = i == len(messages) - 1
                after = (text if last else render(tokenizer, messages[: i + 1])).rstrip()
                if not text.startswith(before) or not text.startswith(after):
                    raise ValueError(
                        "the chat template renders earlier turns differently later on; train on single-turn rows"
                    )
                headed = not text[len(before) :].lstrip().startswith(message["content"].strip())
                if headed and before == render(tokenizer, messages[:i]):
                    raise ValueError(
                        "the chat template has no generation prompt: the role's header would be trained; mend the chat template"
                    )
                if message.get("weight", 1):  # OpenAI's field: 0 = read, not trained
                    spans.append((len(before), len(after)))
    except ValueError as e:
        return e
    return text, spans


def _labelled(ids: list[int], offsets: list[tuple], spans: list[tuple], tokenizer) -> tuple | ValueError:
    import numpy as np

    special, own, labels = _special(tokenizer, len(tokenizer)), np.asarray(ids), np.full(len(ids), IGNORED)
    start, end = np.fromiter(chain.from_iterable(offsets), np.int64, 2 * len(ids)).reshape(-1, 2).T
    for a, b in spans:  # a space may have no width (trimmed offsets), or share a token with the answer's first word
        inside = np.flatnonzero((a < end) & (start < b))
        if not len(inside) or ids[inside[-1]] not in special:
            return ValueError(
                "no end-of-turn token after the assistant's text: the tuned model would not stop; mend the chat template"
            )
        labels[inside] = own[inside]
    if not spans:
        return ValueError("no assistant turn carries loss; nothing would be learnt from the row; remove it")
    return ids, labels.tolist()


@lru_cache(2)
def _special(tokenizer, _size: int) -> dict[int, str]:
    """-> special tokens by id; remembered while the tokenizer's size stays the same."""
    added = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))


def stop_ids(tokenizer) -> list[int]:
    """-> token ids that end an answer: the tokenizer's EOS and the template's own end of turn, where it has one."""
    stops = {tokenizer.eos_token_id} - {None}
    with contextlib.suppress(ValueError):  # a template without an end-of-turn token cannot be trained, but can be asked
        _, labels = encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer)
        stops.add([t for t in labels if t != IGNORED][-1])
    return sorted(stops)


def encode_rows(data: Data, tokenizer, *, max_length: int, on_too_long: str = "raise") -> list[dict]:
    """-> `[{"input_ids", "labels"}]` of all rows. Raises DataError naming every row that does not fit or has no loss.

    `on_too_long` "drop" or "cut" treats longer rows as `fitted` does, and prints what it did.
    """
    out, problems = [], []
    rows = fitted(data, tokenizer, max_length=max_length, on_too_long=on_too_long).rows
    for number, found in enumerate(encoded((row["messages"] for row in rows), tokenizer), 1):
        if not isinstance(found, ValueError) and len(found[0]) > max_length:
            found = ValueError(too_long(len(found[0]), max_length))
        if isinstance(found, ValueError):
            problems.append(f"{data.name}: row {number}: {found}")
        else:
            out.append(dict(zip(("input_ids", "labels"), found, strict=True)))
    if problems:
        more = f"\n... and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise DataError("\n".join(problems[:SHOWN]) + more)
    return out


def too_long(tokens: int, most: int) -> str:
    return f"{tokens} tokens; at most {most}; shorten the row, raise max_length, or choose on_too_long drop or cut"


def chats(row: dict) -> list[list[dict]]:
    """-> the conversations that a row of any kind trains on: one, or a pair's two."""
    if "messages" in row:
        return [row["messages"]]
    return [[*row["prompt"], *row[k]] for k in ("chosen", "rejected", "completion") if k in row]


def fitted(data: Data, tokenizer, *, max_length: int, on_too_long: str) -> Data:
    """-> chats, pairs or KTO rows of at most `max_length` tokens; `made` counts {"dropped", "cut"}, and a line says it.

    "raise" returns the data as it is (the caller's check then names the rows). "drop" leaves longer rows out. "cut" takes
    away the oldest exchanges, then the end of the last question; the system turn and the answer stay whole, so that the
    end-of-turn token is there and trained; a row whose answer alone is too long, or of which no turn with loss stays, is
    dropped. A row that cannot be encoded is left for the check. Raises ValueError (unknown choice), DataError (no row left).
    """
    if on_too_long not in ("raise", "drop", "cut"):
        raise ValueError(f"on_too_long = {on_too_long!r}; allowed: raise, drop, cut")
    if on_too_long == "raise":
        return data
    kept, counts = shortened(data.rows, tokenizer, max_length=max_length, cut=on_too_long == "cut")
    if not any(counts.values()):
        return data
    print(
        f"{data.name}: {sum(counts.values())} of {len(data)} rows were longer than {max_length} tokens: "
        f"{counts['cut']} cut, {counts['dropped']} dropped"
    )
    if not kept:
        raise DataError(f"{data.name}: every row is longer than {max_length} tokens; raise max_length")
    made = {
        "by": "on_too_long",
        "how": on_too_long,
        "max_length": max_length,
        **counts,
        "from": [{"name": data.name, "hash": data.hash}],
    }
    return Data(data.name, tuple(kept), made | ({"made": data.made} if data.made else {}))


def shortened(rows, tokenizer, *, max_length: int, cut: bool) -> tuple[list[dict], dict]:
    """-> (rows of at most `max_length` tokens, {"dropped": n, "cut": n}); rules in `fitted`."""
    kept, counts = [], {"dropped": 0, "cut": 0}
    for row in rows:
        short = row
        with contextlib.suppress(ValueError):
            if length(row, tokenizer) > max_length:
                short = _cut(row, tokenizer, max_length) if cut else None
        counts["dropped"] += short is None
        counts["cut"] += short is not None and short is not row
        kept += [short] if short is not None else []
    return kept, counts


def length(row: dict, tokenizer) -> int:
    """-> tokens of a row, of the longer side where it is a pair. Raises ValueError where a template refuses it."""
    return max(
        len(tokenizer(render(tokenizer, c), add_special_tokens=False, verbose=False)["input_ids"]) for c in chats(row)
    )


def _cut(row: dict, tokenizer, most: int) -> dict | None:
    """-> the row shortened to `most` tokens, or None where its answer alone is too long or no turn with loss stays."""
    key = "messages" if "messages" in row else "prompt"
    answer = row[key][-1:] if key == "messages" else []
    turns = row[key][: len(row[key]) - len(answer)]
    system = turns[:1] if turns[0]["role"] == "system" else []
    turns = turns[len(system) :]

    def made(turns):
        return {**row, key: [*system, *turns, *answer]}

    while len(turns) > 1 and length(made(turns), tokenizer) > most:
        turns = turns[2:]
    words = tokenizer(turns[-1]["content"], add_special_tokens=False, return_offsets_mapping=True, verbose=False)[
        "offset_mapping"
    ]
    room = len(words)
    while (over := length(made(turns), tokenizer) - most) > 0:
        room -= over  # tokens of the question that stay
        if room < 1:
            return None
        text = turns[-1]["content"][: words[room - 1][1]]
        if not text.strip():
            return None
        turns = [*turns[:-1], {**turns[-1], "content": text}]
    learnt = key == "prompt" or any(m["role"] == "assistant" and m.get("weight", 1) for m in [*turns, *answer])
    return made(turns) if learnt else None


class Preview:
    """Rows with their loss mask: trained tokens coloured in Jupyter, between « and » in a terminal."""

    def __init__(self, rows: list[list[tuple[str, bool]]]):
        self.rows = [[(safe(t, 10_000), on) for t, on in row] for row in rows]  # a row is [(text, trained)]

    def __repr__(self) -> str:
        return "\n".join("".join(f"«{t}»" if on else t for t, on in row) for row in self.rows)

    def _repr_html_(self) -> str:
        style = {True: "background:#cfe8cf;color:#000", False: "color:#777"}
        body = "".join(
            "<p>" + "".join(f'<span style="{style[on]}">{html.escape(t)}</span>' for t, on in row) + "</p>"
            for row in self.rows
        )
        return (
            f'<div style="font-family:monospace;white-space:pre-wrap">{body}<small>green: trained (loss)</small></div>'
        )


def preview(data, model, *, rows: int = 3) -> Preview:
    """-> the first rows as the model will read them, with the tokens that carry loss marked.

    `data` is anything that `read` takes; `model` anything that `ftlab.model` takes.
    """
    given = read(data).rows[:rows]  # before the slow part: a file that cannot be read is told at once
    from ftlab.models import model as reference

    tokenizer, shown = reference(model).tokenizer(), []
    for row in given:
        runs: list[list] = []  # [token ids, trained]
        for token, label in zip(*encode(row["messages"], tokenizer), strict=True):
            if runs and runs[-1][1] == (label != IGNORED):
                runs[-1][0].append(token)
            else:
                runs.append([[token], label != IGNORED])
        shown.append([(tokenizer.decode(ids), on) for ids, on in runs])
    return Preview(shown)
