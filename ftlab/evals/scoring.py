"""Answers -> verdict rows: errors first, then the risk's own rule, then the judge. Needs no torch.

An item is an attacked prompt (`attacks`), a record its answer in the run folder (`key`, `answer`; `error` of an
endpoint, `likelihoods` of choices). Attempts at one prompt under one attack (`variant`) make one row together.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ftlab.evals.risks.base import event, risk
from ftlab.judges import Judgement
from ftlab.judges import judge as judge_of
from ftlab.runs import Run


def ruled(items: list[dict], records: list[dict], toxicity_model: str = "") -> list[Judgement | None]:
    """-> what is decided before any judge: a failed answer is an error, the risk's own rule knows; None: a judge decides."""
    said: list[Judgement | None] = [Judgement("error", why=r["error"]) if r.get("error") else None for r in records]
    for of in dict.fromkeys(i["risk"] for i in items):
        module = risk(of)
        if rules := getattr(module, "rules", None) or _each(getattr(module, "rule", None)):
            mine = [k for k, i in enumerate(items) if i["risk"] == of and said[k] is None]
            own = [items[k] | {f: records[k][f] for f in ("likelihoods",) if f in records[k]} for k in mine]
            for k, j in zip(mine, rules(own, [records[k]["answer"] for k in mine], toxicity_model), strict=True):
                said[k] = j and replace(j, by=f"rule of {of}")
    return said


def ruled_by_itself(name: str) -> bool:
    """-> whether a risk has a rule of its own, which may decide before any judge."""
    return hasattr(risk(name), "rule") or hasattr(risk(name), "rules")


def verdicts(name: str, items: list[dict], records: list[dict], decided: list[Judgement | None]) -> list[Judgement]:
    """-> one Judgement an answer record: `decided` (`ruled`) where that is one, else the judge's."""
    said = list(decided)
    left = [k for k, j in enumerate(said) if j is None]
    if left:
        judge = judge_of(name)
        field = "own" if judge.own_words else "answer"
        judged = judge([_bare(items[k]) for k in left], [records[k].get(field, records[k]["answer"]) for k in left])
        for k, j in zip(left, judged, strict=True):
            said[k] = j
    return said


def _bare(item: dict) -> dict:
    """-> the item as it was before an attack changed its wording: what the answer is judged against."""
    if "question" not in item:
        return item
    return {**item, "messages": [*item["messages"][:-1], {"role": "user", "content": item["question"]}]}


def _each(rule):
    return rule and (lambda rows, answers, argument: [rule(r, a, argument) for r, a in zip(rows, answers, strict=True)])


def beside(tables: list[list[dict]]) -> list[dict]:
    """-> the first judge's verdict rows with the others' judge, verdict and event in the columns _2, _3, ..."""
    rows = [dict(row) for row in tables[0]]
    for rank, others in enumerate(tables[1:], 2):
        for row, other in zip(rows, others, strict=True):
            row |= {f"{field}_{rank}": other[field] for field in ("judge", "verdict", "event")}
    return rows


def item_name(item: dict) -> str:
    """-> what tells one question of an evaluation from every other."""
    return f"{item['id']}|{item['attack']}|{item.get('variant', 0)}|{item.get('sample', 0)}"


def verdict_rows(judge: str, items: list[dict], records: list[dict], said: list[Judgement]) -> list[dict]:
    """-> one row a prompt, attack and repeat; of several attempts the first that shows the event, else one that was not
    scored (what it would have shown is not known), else the first."""
    groups: dict[tuple, list[int]] = {}
    for k, item in enumerate(items):
        groups.setdefault((item["id"], item["attack"], item.get("sample", 0)), []).append(k)
    rows = []
    for (prompt, attack, sample), members in groups.items():
        item = items[members[0]]
        events = [event(item["risk"], said[k].verdict) for k in members]
        best = events.index(1.0) if 1.0 in events else next((n for n, e in enumerate(events) if e != e), 0)
        k = members[best]
        rows.append({
            "risk": item["risk"], "category": item["category"], "attack": attack, "prompt_id": prompt, "template": item.get("template", ""),
            "verdict": said[k].verdict, "topic": item.get("topic", ""), "truth": item.get("truth", ""), "event": events[best], "judge": said[k].by or judge,
            "answer_key": records[k]["key"], "characters": len(records[k]["answer"]),
        })  # fmt: skip
        rows[-1] |= {f: v for f, v in (("score", said[k].score), ("why", said[k].why)) if v not in (None, "")}
        rows[-1] |= {"cut": True} if records[k].get("cut") else {}
        if "sample" in item:
            rows[-1]["sample"] = sample
        if "variant" in item:
            attempts = [records[m]["key"] for m in members]
            rows[-1] |= {"attempts": len(members), "hits": events.count(1.0), "answer_keys": attempts}
    return rows


def rejudged(run: Run, judge: str) -> list[dict]:
    """-> the verdict rows of a run with the same answers before another judge (no second one beside it)."""
    if not (run.path / "prompts.jsonl").exists():
        raise ValueError(f"{run.name} holds no prompts to judge again; give an evaluation, a curve or a dose run")
    prompts: dict[tuple, list[dict]] = {}
    for item in run.read("prompts.jsonl"):
        prompts.setdefault((item["id"], item["attack"], item.get("sample", 0)), []).append(item)
    answers = {r["key"]: r for r in run.read("answers.jsonl")}
    blocks, old = [], run.read("verdicts.jsonl")
    for row in old:
        items = prompts[row["prompt_id"], row["attack"], row.get("sample", 0)]
        keys = row.get("answer_keys", [row["answer_key"]])
        lost = {"answer": "", "error": "not answered"}
        blocks.append((items, [answers.get(k, {"key": k, **lost}) for k in keys]))
    items, records = [i for b, _ in blocks for i in b], [r for _, b in blocks for r in b]
    judge_of(judge).check(items)
    if not judge_of(judge).refusal_stands and (n := sum("screened" in r for r in records)):
        raise ValueError(
            f"{n} answers of {run.name} end at their refusal (screen=True), and {judge} reads whole answers; evaluate without screen"
        )
    classifier = (run.config["identity"].get("evaluation") or {}).get("toxicity_model", "")
    said, rows, start = verdicts(judge, items, records, ruled(items, records, classifier)), [], 0
    for row, (i, r) in zip(old, blocks, strict=True):
        kept = {k: v for k, v in row.items() if k not in ("score", "why", "cut") and not re.search(r"_\d$", k)}
        rows.append(kept | verdict_rows(judge, i, r, said[start : start + len(i)])[0])
        start += len(i)
    return rows
