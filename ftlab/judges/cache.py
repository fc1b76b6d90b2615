"""What a judge that costs something has said once it is not asked again: one JSONL a judge below `FTLAB_RUNS`."""

from __future__ import annotations

from ftlab.judges.base import Judgement
from ftlab.runs import Run, digest, home


def asked(row: dict) -> str:
    """-> the text that was asked: the last turn of the user."""
    return next((m["content"] for m in reversed(row["messages"]) if m["role"] == "user"), "")


def remembered(judge: str, version: str, rows: list[dict], answers: list[str], ask) -> list[Judgement]:
    """-> a judgement an answer; `ask(todo, keep)` is called for what is not known yet.

    `todo` is a list of (key, prompt, answer), each pair once; `keep(key, judgement)` writes a judgement down at once, so
    that an interrupted call goes on where it stopped. Errors are not written: they are asked again. Empty answers
    are `empty` without asking. The file holds keys and judgements, no text that was judged.
    """
    store, file = Run(home() / ".judged"), f"{judge.partition(':')[0]}-{digest([judge, version])}.jsonl"
    store.path.mkdir(parents=True, exist_ok=True)
    known = {r["key"]: Judgement(r["verdict"], r["score"], r["why"]) for r in store.read(file)}
    pairs = [(asked(row), answer) for row, answer in zip(rows, answers, strict=True)]
    keys = [digest(pair) for pair in pairs]
    known |= {k: Judgement("empty") for k, (_, answer) in zip(keys, pairs, strict=True) if not answer.strip()}

    def keep(key: str, judgement: Judgement) -> None:
        known[key] = judgement
        if judgement.verdict != "error":
            store.append(
                file, [{"key": key, "verdict": judgement.verdict, "score": judgement.score, "why": judgement.why}]
            )

    if todo := [(k, *pair) for k, pair in dict(zip(keys, pairs, strict=True)).items() if k not in known]:
        ask(todo, keep)
    return [known[k] for k in keys]
