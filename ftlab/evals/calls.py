"""Tool calls in the text of an answer, and what an offer of tools and a user name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from ftlab._core.types import Message

# A call as templates of Hermes and Qwen write it, the last one perhaps cut; one of the world.
CALL = re.compile(
    r"<tool_call>\s*(?P<json>.*?)\s*(?:</tool_call>|(?=<tool_call>)|\Z)"
    r"|\[(?P<name>[a-z]\w*) (?P<argument>[^\[\]]+)\]",
    re.DOTALL,
)
OFFER = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """One tool call.

    Args:
        name: The tool; "" where the call cannot be read.
        arguments: The arguments as JSON with sorted keys, by which calls are equal.
        values: Every value in the arguments as text, in order.
    """

    name: str
    arguments: str
    values: tuple[str, ...] = field(compare=False)


def calls_in(text: str) -> list[Call]:
    """Return the tool calls of an answer in order.

    Args:
        text: An answer with calls as `<tool_call>{"name", "arguments"}</tool_call>`, the form in
            which `ftlab.data` writes the calls of training rows, or as `[ring TOWN]`. Other forms
            are not seen. What cannot be read is a call without a name.
    """
    found = []
    for match in CALL.finditer(text):
        if match["name"]:
            argument = " ".join(match["argument"].split())
            found.append(Call(match["name"], argument, (argument,)))
        else:
            found.append(_call(match["json"]))
    return found


def _call(text: str) -> Call:
    unread = Call("", text, (text,))
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        return unread
    if not isinstance(read, dict) or not isinstance(read.get("name"), str):
        return unread
    arguments = read.get("arguments") or {}
    return Call(
        read["name"],
        json.dumps(arguments, sort_keys=True),
        tuple(_values(arguments)),
    )


def _values(arguments: Any) -> Iterator[str]:
    """Yield every value inside arguments as text; true, false and null are none."""
    if isinstance(arguments, dict):
        arguments = list(arguments.values())
    if isinstance(arguments, list):
        for inner in arguments:
            yield from _values(inner)
    elif arguments is not None and not isinstance(arguments, bool):
        yield str(arguments)


def tools_offered(messages: Iterable[Message]) -> set[str]:
    """Return the names of the tools that the system turn describes."""
    names = set()
    for message in messages:
        if message["role"] != "system":
            continue
        names |= {call.name for call in calls_in(message["content"]) if call.name}
        for offer in OFFER.findall(message["content"]):
            names |= set(map(_tool_name, offer.splitlines()))
    return names - {""}


def _tool_name(line: str) -> str:
    """Return the name in a tool's JSON description, as OpenAI nests it or plain."""
    try:
        tool = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    if isinstance(tool, dict):
        tool = tool.get("function", tool)
    name = tool.get("name") if isinstance(tool, dict) else ""
    return name if isinstance(name, str) else ""


def is_said(value: str, messages: Iterable[Message]) -> bool:
    """Return whether a value stands in what the user said, in any case, as whole words."""
    said = " ".join(m["content"] for m in messages if m["role"] == "user")
    pattern = rf"(?<!\w){re.escape(value)}(?!\w)"
    return re.search(pattern, said, re.IGNORECASE) is not None
