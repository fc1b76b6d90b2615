"""Turns one record of any known form into rows of one form. Needs no torch.

    chats    {"messages": [{"role", "content"}, ...]}, roles [system,] user, assistant, user, ...
             An assistant turn with "weight": 0 (axolotl: "train": false) carries no loss.
    pairs    {"prompt", "chosen", "rejected"}, lists of messages; the answers have one turn
    kto      {"prompt", "completion", "label"}, likewise

All names of columns that a file may use stand here, in the order in which they are looked for.
"""

from __future__ import annotations

import re
from itertools import product, takewhile
from typing import Any

from ftlab._core.errors import DataError
from ftlab.data.files import is_list_of
from ftlab.data.messages import ALIASES, carries_loss, checked, lstripped, text_in, turn

QUESTIONS = ("prompt", "question", "instruction", "query", "input")
ANSWERS = ("completion", "response", "answer", "output")
FORMS = (  # columns of question and answer
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("question", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("query", "response"),
    ("dialogue", "summary"),
    *product(QUESTIONS, ANSWERS),
)
CHAT_COLUMNS = ("messages", "conversations", "conversation")
MORE_COLUMNS = ("input", "context")  # of Alpaca and Dolly, below the question
SYSTEM_COLUMNS = ("system", "system_prompt")
PAIR_COLUMNS = {"chosen", "preferred_output", "response_j"}  # each is a mark of a pair
PAIR_PROMPTS = ("prompt", "conversations", "messages", "question", "instruction", "query")
PROMPT_COLUMNS = (  # of prompt sets
    "prompt",
    "goal",
    "Goal",
    "question",
    "Question",
    "instruction",
    "Instruction",
    "Behavior",
    "behavior",
    "forbidden_prompt",
    "prompts_final",
    "text",
)
CATEGORY_COLUMNS = (
    "harm_area",
    "SemanticCategory",
    "category",
    "Category",
    "types_of_harm",
    "type",
)
OPENING_COLUMNS = ("target", "Target")  # how a fulfilled request begins
ID_COLUMNS = ("BehaviorID", "id", "Index")
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
LABELS = {
    True: True,
    False: False,
    "true": True,
    "false": False,
    "1": True,
    "0": False,
    "1.0": True,
    "0.0": False,
}
ALLOWED = (
    f"messages, conversations, or a question ({', '.join(QUESTIONS)}) with an answer "
    f"({', '.join(ANSWERS)}), or dialogue with summary"
)


def chat(record: dict) -> list[dict]:
    """Return the training chats of a record; self-instruct's nested `instances` are several.

    Raises:
        DataError: The record is no chat; the code says why.
    """
    if _label(record) is not None:
        raise DataError("kto_row", "The row has a label, which a chat has not. Use kind='kto'.")
    rows = [{"messages": messages} for messages in _conversations(record)]
    if "messages" in record:  # rows of the embedded world carry more
        more = {key: v for key, v in record.items() if isinstance(v, (str, int, float))}
        rows[0] = more | rows[0]
    for row in rows:
        if not any(map(carries_loss, row["messages"])):
            raise DataError("no_loss", "Every assistant turn has weight 0. Remove the row.")
    return rows


def pair(record: dict) -> list[dict]:
    """Return the preference pair of a record.

    Without a prompt of its own, the prompt is what chosen and rejected share at their beginning.

    Raises:
        DataError: The record is no pair; the code says why.
    """
    refuse_other_data(record)
    asked, chosen, rejected, tools = _sides(record)
    chosen = _as_messages(chosen, "chosen", "assistant")
    rejected = _as_messages(rejected, "rejected", "assistant")
    shared = _shared_turns(chosen, rejected)
    if asked is not None:
        asked = _as_messages(asked, "prompt", "user")
    if asked is None or _begins_with(chosen[:shared], asked):
        asked = chosen[:shared]
    else:
        shared = 0
    more = {"tools": tools, "system": system_text(record)}
    row = {"prompt": checked(asked, last="user", **more)}
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        answer = side[shared:]
        if len(answer) > len(asked) and answer[: len(asked)] == asked:
            answer = answer[len(asked) :]  # it was the whole conversation
        whole = checked([*asked, *answer], last="assistant", **more)
        if len(whole) != len(row["prompt"]) + 1:
            why = f"{name!r} has {len(answer)} turns. It must be the assistant's last turn alone."
            raise DataError("several_answers", why)
        row[name] = _answer(whole, name)
    if lstripped(row["chosen"][0]) == lstripped(row["rejected"][0]):
        raise DataError("equal_answers", "chosen equals rejected. Remove the row.")
    return [row]


def kto(record: dict) -> list[dict]:
    """Return the KTO row of a labelled chat, or the two rows of a pair.

    Raises:
        DataError: The record is neither; the code says why.
    """
    if PAIR_COLUMNS & set(record):
        row = pair(record)[0]
        asked = row["prompt"]
        return [
            {"prompt": asked, "completion": row["chosen"], "label": True},
            {"prompt": asked, "completion": row["rejected"], "label": False},
        ]
    label = _label(record)
    if label is None:
        why = "There is no label (or kto_tag) that is true or false. Add the column."
        raise DataError("no_label", why)
    rows = []
    for messages in _conversations(record):
        answer = _answer(messages, "completion")
        rows.append(
            {
                "prompt": messages[:-1],
                "completion": answer,
                "label": label,
            }
        )
    return rows


def question_text(record: dict, column: str) -> str:
    """Return the question in a column, with input and context below it, as in Alpaca and Dolly.

    Raises:
        DataError: `no_text`, `half_character`.
    """
    more = [name for name in MORE_COLUMNS if name != column and record.get(name)]
    more = [name for name in more if isinstance(record[name], (str, list, dict))]
    return "\n\n".join(text_in(record, name) for name in (column, *more))


OF_THE_WORLD = ("id", "risk", "topic", "template", "truth", "category", "prefill", "choices")
NO_WORD = re.compile(r"[\d_/\\@#=]|\w\.\w|^\W*$|^(true|false|none|null|nan)$", re.I)
LABEL = re.compile(  # ends of the names of columns that say what a row is or where it is from
    r"(id|key|tag|label|category|class|type|kind|topic|subject|domain|task|source|dataset|split"
    r"|lang|language|model|author|user|name|title|url|file|path|license|status|level|date)s?$", re.I
)  # fmt: skip


class Noting(dict):
    """A record that notes which of its columns were looked at."""

    def __init__(self, record: dict):
        super().__init__(record)
        self.looked_at: set[Any] = set()

    def __getitem__(self, name):
        self.looked_at.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.looked_at.add(name)
        return super().get(name, default)

    def unread(self) -> list[tuple[str, str]]:
        """Return the columns with sentences, lists, objects or words that nobody looked at.

        A word, which may be a label, stands beside the name of its column; elsewhere stands "".
        """
        found = []
        for name, value in self.items():
            if not value or name in (*self.looked_at, *OF_THE_WORLD):
                continue
            if isinstance(value, (list, dict)) or " " in str(value).strip():
                found.append((str(name), ""))
            elif isinstance(value, str) and not (NO_WORD.search(value) or LABEL.search(str(name))):
                found.append((str(name), value))
        return found


def first_of(record: dict, names: tuple[str, ...]) -> str | None:
    """Return the first of the names under which the record holds something."""
    for name in names:
        if record.get(name) not in (None, ""):
            return name
    return None


def unknown_columns(record: dict, allowed: str) -> DataError:
    """Return the error for a record without a column that is known."""
    found = ", ".join(map(str, record)) or "(none)"
    why = f"The columns are {found}. Allowed: {allowed}. Rename the columns."
    return DataError("unknown_columns", why)


def refuse_other_data(record: dict) -> None:
    """Raise DataError `tokenised` or `multimodal` for rows that hold more than text."""
    if "input_ids" in record or isinstance(record.get("labels"), list):
        raise DataError("tokenised", "The row is already tokenised. Give the text.")
    media = [name for name in MEDIA if record.get(name)]
    if media:
        why = f"The row holds {', '.join(media)}. Only text can be read."
        raise DataError("multimodal", why)


def _conversations(record):
    """Return the conversations of a record, each ending with the assistant's turn."""
    refuse_other_data(record)
    system = system_text(record)
    given = [key for key in CHAT_COLUMNS if isinstance(record.get(key), list)]
    if given or "messages" in record:
        messages = record[given[0] if given else "messages"]
        tools = record.get("tools") or record.get("functions")
        return [checked(messages, last="assistant", tools=tools, system=system)]
    if isinstance(record.get("instances"), list) and "instruction" in record:
        return _instances(record)
    for column, answer in FORMS:
        if column in record and answer in record:
            return [_single_turn(record, column, answer, system)]
    allowed = ALLOWED
    if PAIR_COLUMNS & set(record):
        allowed += " (pairs: use kind='pairs')"
    raise unknown_columns(record, allowed)


def _single_turn(record, column, answer_column, system):
    asked = record[column]
    answer = record[answer_column]
    if isinstance(asked, list) and isinstance(answer, list):
        tools = record.get("tools")
        return checked(
            [*asked, *answer],
            last="assistant",
            tools=tools,
            system=system,
        )
    asked = question_text(record, column)
    if column == "dialogue":
        asked = f"Summarize this dialogue:\n\n{asked}"
    messages = _history(record)
    messages.append(turn("user", asked))
    messages.append(turn("assistant", text_in(record, answer_column)))
    return checked(messages, last="assistant", system=system)


def _instances(record):
    instances = record["instances"]
    if not instances or not is_list_of(dict, instances):
        why = "'instances' is empty or no list of {input, output}. Fill it or remove the row."
        raise DataError("wrong_instances", why)
    found = []
    for instance in instances:
        found += _conversations({"instruction": record["instruction"], **instance})
    return found


def _history(record):
    history = record.get("history") or []
    if not isinstance(history, list) or not all(map(_is_exchange, history)):
        why = "'history' is no list of [question, answer]. Fix it or remove the column."
        raise DataError("wrong_history", why)
    messages = []
    for question, answer in history:
        messages += [turn("user", question), turn("assistant", answer)]
    return messages


def _is_exchange(value):
    return isinstance(value, (list, tuple)) and len(value) == 2


def _sides(record):
    """Return prompt (or None), chosen, rejected and tools as the record has them."""
    tools = record.get("tools")
    if "preferred_output" in record or "non_preferred_output" in record:  # OpenAI
        given = record.get("input")
        if not isinstance(given, dict):
            given = {}
        chosen = record.get("preferred_output")
        rejected = record.get("non_preferred_output")
        return given.get("messages"), chosen, rejected, given.get("tools")
    if "response_j" in record and "response_k" in record:  # stack-exchange-paired: j is better
        asked = question_text(record, "question") if "question" in record else None
        return asked, record["response_j"], record["response_k"], tools
    column = next((name for name in PAIR_PROMPTS if record.get(name) is not None), None)
    asked = record.get(column)
    if isinstance(asked, str):
        asked = question_text(record, column)
    chosen = record.get("chosen")
    rejected = record.get("rejected")
    missing = [name for name in ("chosen", "rejected") if record.get(name) is None]
    if asked is None and not (isinstance(chosen, list) and isinstance(rejected, list)):
        missing.insert(0, "prompt")
    if missing:
        why = f"There is no {', '.join(missing)}. A pair has prompt, chosen and rejected"
        more = "chosen and rejected conversations, or OpenAI's preferred_output."
        raise DataError(
            "missing_column",
            f"{why}, or {more}",
            columns=missing,
        )
    return asked, chosen, rejected, tools


def _shared_turns(chosen, rejected):
    """Return how many turns two conversations share; an answer stays for each."""
    turns = zip(chosen[:-1], rejected[:-1], strict=False)
    return len(list(takewhile(lambda turns: turns[0] == turns[1], turns)))


def _begins_with(shared, asked):
    """Whether turns begin with those of a prompt, a system turn before them aside."""
    found = [(turn.get("role"), turn.get("content")) for turn in shared]
    wanted = [(turn.get("role"), turn.get("content")) for turn in asked]
    if found and wanted and found[0][0] == "system" != wanted[0][0]:
        del found[0]
    return bool(wanted) and found[: len(wanted)] == wanted


def _as_messages(value, name, role):
    """Return a text as one message, an object as a list of one, and messages with our roles."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return [turn(role, text_in({name: value}, name))]
    if not is_list_of(dict, value):
        why = f"{name!r} is no text and no list of {{role, content}}. Fix it or remove the row."
        raise DataError("no_messages", why)
    messages = []
    for message in value:
        role = message.get("role", message.get("from"))
        if role in ("human", "gpt"):
            content = message.get("content", message.get("value"))
            message = {**message, "role": ALIASES[role], "content": content}
        messages.append(message)
    return messages


def _answer(messages, name):
    """Return the last turn; preferences are learned from whole answers, so it carries loss."""
    if not carries_loss(messages[-1]):
        raise DataError("no_loss", f"{name!r} has weight 0, but the row teaches it. Remove that.")
    return messages[-1:]


def system_text(record: dict) -> str:
    """Return the text of a record's system column, "" where there is none."""
    key = next((name for name in SYSTEM_COLUMNS if record.get(name)), None)
    return text_in(record, key) if key else ""


def _label(record: dict) -> bool | None:
    return flag_of(record.get("label", record.get("kto_tag")))


def flag_of(value: Any) -> bool | None:
    """Return what a label says: true, false, or None for anything else."""
    if isinstance(value, str):
        value = value.strip().lower()
    if not isinstance(value, (str, int, float)):
        return None
    return LABELS.get(value)
