"""Turns one conversation of any known form into checked messages. Needs no torch.

Tool calls become text as the templates of Hermes and Qwen write them: a call is `<tool_call>` JSON
`</tool_call>` in the assistant's turn (it carries loss), its result `<tool_response>` in a user's
turn, and the tools stand as `<tools>` in the system's turn. A thought in a field of its own stays
one, under the two names that chat templates look for: reasoning_content and thinking.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

from ftlab._core.errors import DataError
from ftlab._core.types import Message
from ftlab.data.files import is_list_of

TEXTS = {"content", "reasoning_content", "thinking"}
ROLES = ("system", "user", "assistant")
ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "developer": "system",
    "function_call": "assistant",
    "tool": "user",
    "function": "user",
    "observation": "user",
}
RESULTS = ("tool", "function", "observation")  # roles whose content is the result of a call
THOUGHT = re.compile(r"(reasoning|thinking|thoughts?)(_content|_text)?|chain_of_thought|cot", re.I)


def turn(role: str, content: Any) -> Message:
    return {"role": role, "content": content}


def text_in(record: dict, key: str) -> str:
    """Return a field's text.

    Raises:
        DataError: `no_text` where it is empty or no text, `half_character` where it holds a lone
            surrogate, which no tokenizer reads.
    """
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        owner = f"{record['role']}'s " if "role" in record else ""
        why = f"{owner}{key!r} is empty or no text. Fill it or remove the row."
        raise DataError("no_text", why)
    try:
        value.encode()
    except UnicodeEncodeError:
        why = f"{key!r} contains invalid Unicode (a lone surrogate). Fix it or remove the row."
        raise DataError("half_character", why) from None
    return value


def checked(
    messages: Any,
    *,
    last: str,
    tools: Any = None,
    system: str = "",
) -> list[Message]:
    """Return messages with known roles in order and text in every turn.

    Args:
        messages: Messages with role and content, or with from and value. Content may come in
            text parts; tool calls and their results become text.
        last: Role of the last turn: "user" or "assistant".
        tools: Tools that are described in the system turn.
        system: More text for the system turn.

    Raises:
        DataError: The messages cannot be used; the code says why.
    """
    if not messages or not is_list_of(dict, messages):
        why = f"The messages are no list of {{role, content}}. Allowed roles: {', '.join(ROLES)}."
        raise DataError("no_messages", why)
    found: list[Message] = []
    names = []  # of the roles, as the file has them
    for message in messages:
        name = message.get("role", message.get("from"))
        made = _message(message, name)
        if name in RESULTS and names and names[-1] in RESULTS:  # calls that were made together
            found[-1]["content"] += "\n" + made["content"]
            continue
        if last == "assistant":
            made |= _thought(message, made["role"])
        found.append(made)
        names.append(name)
    extra = [part for part in (system, _tools(tools)) if part]
    if extra and found[0]["role"] == "system":
        found[0] = turn("system", "\n\n".join([found[0]["content"], *extra]))
    elif extra:
        found.insert(0, turn("system", "\n\n".join(extra)))
        names.insert(0, "system")
    _check_order(found, names, last)
    return found


def _message(message, name):
    role = name
    if isinstance(name, str):
        role = ALIASES.get(name, name)
    if role not in ROLES:
        allowed = ", ".join((*ROLES, *ALIASES))
        raise DataError("unknown_role", f"Unknown role {name!r}. Allowed: {allowed}.")
    content = _joined(message.get("content", message.get("value")))
    calls = _calls(message, name, content)
    if calls:
        if content and name != "function_call":
            calls.insert(0, text_in(turn(role, content), "content"))
        content = "\n".join(calls)
    elif name in RESULTS:
        result = text_in(turn(name, content), "content")
        content = f"<tool_response>\n{result}\n</tool_response>"
    made = turn(sys.intern(role), content)  # one text for all rows
    text_in(made, "content")
    if _weight(message, role) == 0 and role == "assistant":
        made["weight"] = 0
    return made


def _thought(message, role):
    """Return an answer's thoughts; what stands under several keys counts once."""
    texts = [_joined(message[key]) for key in message if THOUGHT.fullmatch(str(key))]
    kept: dict[str, str] = {}
    for text in texts:
        if isinstance(text, str) and text.strip():
            kept.setdefault(text.strip(), text)
    thought = "\n\n".join(kept.values())
    if not thought or role != "assistant":
        return {}
    return dict.fromkeys(
        ("reasoning_content", "thinking"),
        text_in({"thought": thought}, "thought"),
    )


def _weight(message, role):
    """Return 0 for a turn without loss (axolotl writes `train`), 1 or None for others."""
    weight = message.get("weight", message.get("loss_weight"))
    if weight is None and isinstance(message.get("train"), bool):
        weight = int(message["train"])
    if weight not in (None, 0, 1) or (weight and role != "assistant"):
        why = f"weight {weight!r} on the {role}'s turn. Allowed: 0, or 1 on the assistant's turn."
        raise DataError("wrong_weight", why)
    return weight


def _check_order(messages, names, last):
    roles = [message["role"] for message in messages]
    if roles[0] == "system":
        del roles[0]
    expected = ["user", "assistant"] * len(roles)
    if not roles or roles != expected[: len(roles)]:
        why = f"Roles out of order: {', '.join(names)}."
        raise DataError("wrong_order", f"{why} Allowed: [system,] user, assistant, user, ...")
    if roles[-1] != last:
        why = f"The last turn is the {roles[-1]}'s. It must be the {last}'s."
        raise DataError("wrong_last_turn", why)


def _joined(content):
    """Return the text of a content that is given in parts."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if isinstance(part, dict):
            if part.get("type") != "text":
                why = f"A part of the content is {part.get('type')}. Only text can be read."
                raise DataError("multimodal", why)
            part = part.get("text") or part.get("value")
        if isinstance(part, str):
            texts.append(part)
    return "".join(texts)


def _calls(message, name, content):
    """Return the tool calls of a message, each as text."""
    calls = message.get("tool_calls") or message.get("function_call") or []
    if name == "function_call":  # ShareGPT: the content is a call or a list of calls
        calls = _parsed(content)
    if not isinstance(calls, list):
        calls = [calls]
    return [_call(call) for call in calls]


def _call(call):
    if isinstance(call, dict):
        call = call.get("function", call)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        raise DataError("call_without_name", "A tool call has no name. Expected {name, arguments}.")
    arguments = _parsed(call.get("arguments") or {})
    shown = {"name": call["name"], "arguments": arguments}
    return f"<tool_call>\n{_json(shown)}\n</tool_call>"


def _tools(tools):
    tools = _parsed(tools) or []
    if not isinstance(tools, list):
        raise DataError("wrong_tools", "'tools' is no list of functions. Fix or remove the column.")
    if not tools:
        return ""
    lines = "\n".join(_json(tool) for tool in tools)
    head = "You may call these functions, as <tool_call> JSON </tool_call>:"
    return f"{head}\n<tools>\n{lines}\n</tools>"


def _json(value):
    return json.dumps(value, ensure_ascii=False, default=str)


def _parsed(value):
    """Return the value of a JSON text; any other text stays as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
    except RecursionError:
        raise DataError("broken_json", "A call or a tool is nested too deep. Fix it.") from None


def lstripped(message: Message) -> Message:
    """Return a turn whose text, where it carries loss, begins with a character.

    White space would make one token with the end of the template's header, which a model that is
    asked never sees.
    """
    if not carries_loss(message):
        return message
    found = dict(message)
    for name in TEXTS & message.keys():
        found[name] = message[name].lstrip()
    return found


def carries_loss(message: Message) -> bool:
    """Whether a turn is trained on: the assistant's, unless its weight is 0."""
    return message["role"] == "assistant" and bool(message.get("weight", 1))
