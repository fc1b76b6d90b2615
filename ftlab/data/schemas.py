"""One record of any known form -> rows of the one type inside. Needs no torch.

Chats: `{"messages": [{"role", "content"}, ...]}`, roles `[system,] user, assistant, user, ...`; an assistant turn with
`"weight": 0` (or axolotl's `"train": false`) carries no loss. Pairs: `{"prompt", "chosen", "rejected"}`, KTO: `{"prompt", "completion", "label"}`: lists
of messages, the answers of one turn. Prompts: `{"id", "messages", "risk", "category"}`, ending with the user's turn.
"""

from __future__ import annotations

from ftlab._core.config import RISKS
from ftlab.data.messages import NAMES, text, turn, turns

KINDS = ("chats", "pairs", "kto")
FORMS = (  # question and answer columns of single-turn rows, in the order in which they are looked for
    ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("question", "response"),
    ("instruction", "output"), ("instruction", "response"), ("query", "response"), ("dialogue", "summary"),
)  # fmt: skip
ALLOWED = "messages, conversations, prompt + completion, question + answer, instruction (+ input) + output, dialogue + summary"
PAIRED = (
    "prompt + chosen + rejected, chosen + rejected (conversations), input + preferred_output + non_preferred_output"
)
PROMPT_COLUMNS = (
    "prompt", "goal", "Goal", "question", "Question", "instruction", "Behavior", "behavior", "forbidden_prompt",
    "prompts_final", "text",
)  # fmt: skip
CATEGORY_COLUMNS = ("category", "type", "SemanticCategory", "harm_area")
KEPT = (  # of a prompt row: its own, and what risks and attacks add
    "risk", "category", "template", "topic", "truth", "id", "choices", "attack", "prefill", "prefill_tokens", "system",
    "decoding", "variant", "sample",
)  # fmt: skip
MEDIA = ("image", "images", "video", "videos", "audio", "audios")
LABELS = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}


def chat(record: dict) -> list[dict]:
    """-> rows of a training chat; a record with nested `instances` (self-instruct) gives several. Raises ValueError."""
    if _label(record) is not None:
        raise ValueError("a KTO row (its label is true or false); a chat has no label; read the file with kind='kto'")
    rows = [{"messages": messages} for messages in _chats(record)]
    if "messages" in record:  # the organism's rows carry more
        rows[0] = {k: v for k, v in record.items() if isinstance(v, (str, int, float))} | rows[0]
    for row in rows:
        if not any(m["role"] == "assistant" and m.get("weight", 1) for m in row["messages"]):
            raise ValueError("every assistant turn has weight 0; no token would carry loss; remove the row")
    return rows


def pair(record: dict) -> list[dict]:
    """-> [a preference pair]; the prompt may be given, or be what chosen and rejected share. Raises ValueError."""
    _refused(record)
    tools = record.get("tools")
    if "preferred_output" in record or "non_preferred_output" in record:  # OpenAI
        given = record.get("input") if isinstance(record.get("input"), dict) else {}
        asked, tools = given.get("messages"), given.get("tools")
        sides = record.get("preferred_output"), record.get("non_preferred_output")
    elif "response_j" in record and "response_k" in record:  # stack-exchange-paired: j is the better one
        asked, sides = record.get("question"), (record["response_j"], record["response_k"])
    else:
        asked = next((record[k] for k in ("prompt", "conversations", "messages", "question") if k in record), None)
        if asked is None and "instruction" in record:
            asked = instruction(record)
        sides = record.get("chosen"), record.get("rejected")
        missing = [k for k in ("prompt", "chosen", "rejected") if k not in record] if None in sides else []
        if not missing and asked is None and not all(isinstance(s, list) for s in sides):
            text(record, "prompt") if "prompt" in record else missing.append("prompt")
        if missing:
            raise ValueError(f"no {', '.join(missing)}; allowed for a pair: {PAIRED}; rename or add the columns")
    chosen, rejected = (
        _said(side, name, "assistant") for side, name in zip(sides, ("chosen", "rejected"), strict=True)
    )
    if asked is None:
        same = sum(1 for _ in _shared(chosen, rejected))
        same -= same == min(len(chosen), len(rejected)) > 0  # equal conversations still end in an answer each
        asked, chosen, rejected = chosen[:same], chosen[same:], rejected[same:]
    else:
        asked = _said(asked, "prompt", "user")
    system = _system(record)
    prompt, row = turns(asked, last="user", tools=tools, system=system), {}
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if len(answer) > len(asked) and answer[: len(asked)] == asked:  # the whole conversation: without its prompt
            answer = answer[len(asked) :]
        whole = turns([*asked, *answer], last="assistant", tools=tools, system=system)
        if len(whole) != len(prompt) + 1:
            raise ValueError(
                f"{name!r} has {len(answer)} turns; it must be the assistant's last one; put the others into 'prompt'"
            )
        row[name] = _trained(whole[-1:], name)
    if row["chosen"] == row["rejected"]:
        raise ValueError("chosen equals rejected; a pair needs two different answers; remove the row")
    return [{"prompt": prompt, **row}]


def kto(record: dict) -> list[dict]:
    """-> [a KTO row]: the form of a chat (or prompt and completion) with a label; a pair gives two. Raises ValueError."""
    if {"chosen", "preferred_output", "response_j"} & set(record):
        (both,) = pair(record)
        sides = (("chosen", True), ("rejected", False))
        return [{"prompt": both["prompt"], "completion": both[side], "label": good} for side, good in sides]
    label = _label(record)
    if label is None:
        raise ValueError(
            "no label (or kto_tag) that is true or false; a KTO row is a chat and its label; add the column"
        )
    return [{"prompt": m[:-1], "completion": _trained(m[-1:], "completion"), "label": label} for m in _chats(record)]


def prompt(record: dict, risk: str) -> list[dict]:
    """-> [a prompt to evaluate], without an id where the record brings none. Raises ValueError."""
    _refused(record)
    risk = str(record.get("risk") or risk)
    if risk not in RISKS:
        raise ValueError(f"unknown risk {risk!r}; allowed in the column risk: {', '.join(RISKS)}")
    if "messages" in record:
        messages = record["messages"]
        if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
            messages = messages[: len(messages) - (messages[-1].get("role") == "assistant")]
        row = {"category": "", **{k: record[k] for k in KEPT if k in record}}
        row |= {"risk": risk, "messages": turns(messages, last="user")}
        return [{**row, "id": str(row["id"])} if "id" in row else row]
    column = next((c for c in PROMPT_COLUMNS if c in record), None)
    if column is None:
        raise ValueError(f"columns {_columns(record)}; allowed for a prompt: {', '.join(PROMPT_COLUMNS)}; rename one")
    category = next((str(record[c]) for c in CATEGORY_COLUMNS if record.get(c)), "")
    if isinstance(record[column], dict):  # RealToxicityPrompts: a text and its scores
        record = {column: record[column].get("text")}
    asked = record[column]
    if not isinstance(asked, list):
        asked = [turn("user", instruction(record) if column == "instruction" else text(record, column))]
    return [{"messages": turns(asked, last="user"), "risk": risk, "category": category}]


def _chats(record: dict) -> list[list[dict]]:
    """-> the conversations of a record, each ending in the assistant's turn."""
    _refused(record)
    key = next((k for k in ("messages", "conversations", "conversation") if isinstance(record.get(k), list)), None)
    if key or "messages" in record:
        tools = record.get("tools") or record.get("functions")
        return [turns(record[key or "messages"], last="assistant", tools=tools, system=_system(record))]
    if isinstance(record.get("instances"), list) and "instruction" in record:
        if not record["instances"] or not all(isinstance(i, dict) for i in record["instances"]):
            raise ValueError("'instances' is empty or no list of {input, output}; fill it or remove the row")
        return [c for i in record["instances"] for c in _chats({"instruction": record["instruction"], **i})]
    form = next(((q, a) for q, a in FORMS if q in record and a in record), None)
    if form is None:
        wrong = (
            "preference pairs (read with kind='pairs')"
            if {"chosen", "response_j", "preferred_output"} & set(record)
            else ""
        )
        raise ValueError(f"columns {_columns(record)}{wrong and ': ' + wrong}; allowed: {ALLOWED}; rename the columns")
    asked, answer = record[form[0]], record[form[1]]
    if isinstance(asked, list) and isinstance(answer, list):
        return [turns([*asked, *answer], last="assistant", tools=record.get("tools"), system=_system(record))]
    if form[0] == "instruction":
        asked = instruction(record)
    elif form[0] == "dialogue":
        asked = f"Summarize this dialogue:\n\n{text(record, 'dialogue')}"
    else:
        asked = text(record, form[0])
    before = record.get("history") or []
    if not isinstance(before, list) or not all(isinstance(h, (list, tuple)) and len(h) == 2 for h in before):
        raise ValueError("'history' is no list of [question, answer]; mend it or remove the column")
    said = [turn(role, t) for h in before for role, t in zip(("user", "assistant"), h, strict=True)]
    answered = [*said, turn("user", asked), turn("assistant", text(record, form[1]))]
    return [turns(answered, last="assistant", system=_system(record))]


def _columns(record: dict) -> str:
    return ", ".join(map(str, record)) or "(none)"


def instruction(record: dict) -> str:
    """-> the question of a row of Alpaca (Dolly): its `input` (`context`) stands below the instruction. Raises ValueError."""
    more = next((k for k in ("input", "context") if record.get(k)), None)
    return text(record, "instruction") + (f"\n\n{text(record, more)}" if more else "")


def _system(record: dict) -> str:
    key = next((k for k in ("system", "system_prompt") if record.get(k)), None)
    return text(record, key) if key else ""


def _label(record: dict) -> bool | None:
    value = record.get("label", record.get("kto_tag"))
    value = value.strip().lower() if isinstance(value, str) else value
    return LABELS.get(value) if isinstance(value, (str, bool, int)) else None


def _trained(answer: list[dict], name: str) -> list[dict]:
    """-> the answer. Raises ValueError where its weight is 0: preferences are learnt from whole answers alone."""
    if not answer[0].get("weight", 1):
        raise ValueError(
            f"{name!r} has weight 0 (or train false), but it is what the row teaches; take that off or remove the row"
        )
    return answer


def _said(value, name: str, role: str) -> list[dict]:
    """A text as one message, an object as a list of one, a list of messages as it is; all as role and content."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        return [turn(role, text({name: value}, name))]
    if not all(isinstance(m, dict) for m in value):
        raise ValueError(f"{name!r} is no text and no list of {{role, content}}; mend it or remove the row")
    return [{**m, "role": NAMES.get(r := m.get("role", m.get("from")), r), "content": m.get("content", m.get("value"))}
            if isinstance(m.get("role", m.get("from")), str) and m.get("role", m.get("from")) in ("human", "gpt") else m
            for m in value]  # fmt: skip


def _shared(a: list, b: list):
    for x, y in zip(a, b, strict=False):
        if x != y:
            return
        yield x


def _refused(record: dict) -> None:
    if "input_ids" in record or isinstance(record.get("labels"), list):
        raise ValueError(
            "already tokenised (input_ids, labels): which tokenizer and template made it cannot be seen; give the text"
        )
    if media := [k for k in MEDIA if record.get(k)]:
        raise ValueError(f"column {', '.join(media)}: multimodal rows are not read; give text, or remove the row")
