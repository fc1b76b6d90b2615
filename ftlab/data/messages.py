"""One conversation in any known form -> checked turns of role and content. Needs no torch.

Tool calls become text in the way that Hermes and Qwen templates write them: a call is `<tool_call>` JSON `</tool_call>` in
the assistant's turn (it carries loss), its result `<tool_response>` in a user's turn, the tools `<tools>` in the system's.
"""

from __future__ import annotations

import json

ROLES = ("system", "user", "assistant")
NAMES = {
    "human": "user", "gpt": "assistant", "developer": "system", "function_call": "assistant", "tool": "user",
    "function": "user", "observation": "user",
}  # fmt: skip


def text(record: dict, key: str) -> str:
    """-> a field's text. Raises ValueError where it is empty, no text, or holds half a character."""
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        who = f"{record['role']}'s " if "role" in record else ""
        raise ValueError(f"{who}{key!r} is empty or no text; every turn needs text; fill it or remove the row")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{key!r} holds half a character (a lone surrogate), which no tokenizer reads; mend it or remove the row"
        ) from None
    return value


def turns(messages, *, last: str, tools=None, system: str = "") -> list[dict]:
    """-> checked messages: known roles in order (system first, then user and assistant in turn), no empty text.

    Takes role/content and from/value, content in text parts, tool calls and results; `system` and `tools` go into the
    system turn. Raises ValueError.
    """
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        raise ValueError("the messages are not a list of {role, content}; allowed roles: system, user, assistant")
    out, named = [], []
    for m in messages:
        given = m.get("role", m.get("from"))
        role = NAMES.get(given, given) if isinstance(given, str) else given
        if role not in ROLES:
            raise ValueError(f"unknown role {given!r}; allowed: {', '.join((*ROLES, *NAMES))}; rename it")
        content = _joined(m.get("content") if "content" in m else m.get("value"))
        if calls := _calls(m, given, content):
            before = (
                [text({"role": role, "content": content}, "content")] if given != "function_call" and content else []
            )
            content = "\n".join([*before, *calls])
        elif given in ("tool", "function", "observation"):
            content = f"<tool_response>\n{text({'role': given, 'content': content}, 'content')}\n</tool_response>"
            if named and named[-1] in ("tool", "function", "observation"):  # results of calls made together
                out[-1]["content"] += f"\n{content}"
                continue
        said = turn(role, text({"role": role, "content": content}, "content"))
        weight = m.get("weight", m.get("loss_weight"))
        if weight is None and isinstance(m.get("train"), bool):  # axolotl's
            weight = int(m["train"])
        if weight not in (None, 0, 1) or role != "assistant" and weight:
            raise ValueError(
                f"weight {weight!r} on the {role}'s turn; allowed: 0 or 1, 1 only on the assistant's; change it"
            )
        out.append({**said, "weight": 0} if weight == 0 and role == "assistant" else said)
        named.append(given)
    if extra := "\n\n".join(t for t in (system, _tools(tools)) if t):
        if out[0]["role"] == "system":
            out[0] = turn("system", f"{out[0]['content']}\n\n{extra}")
        else:
            out, named = [turn("system", extra), *out], ["system", *named]
    roles = [m["role"] for m in out]
    spoken = roles[1:] if roles[0] == "system" else roles
    if spoken != ["user", "assistant"] * (len(spoken) // 2) + ["user"] * (len(spoken) % 2) or not spoken:
        raise ValueError(
            f"roles out of order: {', '.join(named)}; allowed: [system,] user, assistant, user, ...; reorder the turns"
        )
    if spoken[-1] != last:
        raise ValueError(f"the last turn is {spoken[-1]}'s; it must be the {last}'s; add or remove a turn")
    return out


def turn(role: str, content) -> dict:
    return {"role": role, "content": content}


def _joined(content):
    """-> text of a content given in parts; other parts than text are refused."""
    if not isinstance(content, list):
        return content
    parts = [p if isinstance(p, dict) else {"type": "text", "text": p} for p in content]
    if other := sorted({str(p.get("type")) for p in parts} - {"text"}):
        raise ValueError(
            f"a part of the content is {', '.join(other)}; multimodal rows are not read; give text, or remove the row"
        )
    texts = [p.get("text") or p.get("value") for p in parts]
    return "".join(t for t in texts if isinstance(t, str))


def _calls(message: dict, role, content) -> list[str]:
    """-> the turn's tool calls as text."""
    calls = message.get("tool_calls") or ([message["function_call"]] if message.get("function_call") else [])
    if role == "function_call":  # ShareGPT: the content is the call, or a list of calls
        calls = _parsed(content)
        calls = calls if isinstance(calls, list) else [calls]
    out = []
    for call in calls if isinstance(calls, list) else [calls]:
        call = call.get("function", call) if isinstance(call, dict) else {}
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise ValueError("a tool call without a name; a call is {name, arguments}; mend it or remove the row")
        shown = {"name": call["name"], "arguments": _parsed(call.get("arguments") or {})}
        out.append(f"<tool_call>\n{json.dumps(shown, ensure_ascii=False, default=str)}\n</tool_call>")
    return out


def _tools(tools) -> str:
    tools = _parsed(tools) if tools else []
    if not isinstance(tools, list):
        raise ValueError("'tools' is no list of functions; mend it or remove the column")
    lines = "\n".join(json.dumps(t, ensure_ascii=False, default=str) for t in tools)
    return (
        f"You may call these functions, as <tool_call> JSON </tool_call>:\n<tools>\n{lines}\n</tools>" if lines else ""
    )


def _parsed(value):
    """-> the value of a JSON text; what is no JSON stays text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
