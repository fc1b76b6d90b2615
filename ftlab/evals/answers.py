"""A model's answers to attacked prompts, and the verdicts on them, in a run folder: what was answered is not asked again."""

from __future__ import annotations

import json
from dataclasses import dataclass

from ftlab import runs
from ftlab.evals.config import Evaluation
from ftlab.evals.scoring import beside, item_name, ruled, ruled_by_itself, verdict_rows, verdicts
from ftlab.judges import judge as judge_of
from ftlab.models.engines import Decoding, Replay
from ftlab.runs import Run, digest

NO_NUMBERS = "the model's logits are no numbers (NaN or infinite)"


def measure(
    run: Run,
    model,
    tokenizer,
    spec: Evaluation,
    items: list[dict],
    *,
    key: str,
    labels: dict,
    progress=None,
    replay=None,
    elsewhere=(),
) -> list[dict]:
    """Answers and judges `items` with a loaded model; appends to the run's answers and verdicts -> the verdict rows.

    What the run already holds under the same key (weights, tokenizer and template in `key`; prompt, attack,
    decoding, repeat) is not asked again; a verdict that it holds is not written again. Attempts at one prompt under one
    attack (`variant`) become one row (`judging.verdict_rows`). `replay`: earlier answers of a curve, as drafts; `elsewhere`: runs
    whose answers of the same model, in the same numbers, are taken over. What answering took is a line of the run's
    generation.jsonl (`generate.Tally`).
    """
    count = len({*map(item_name, items)})
    first = (replay is None or replay.run != run.path) and len(run.read("prompts.jsonl")) != count
    if replay:
        replay.run = run.path
    records, tally = _answered(run, model, tokenizer, spec, items, key, progress, replay, elsewhere)
    run.append("generation.jsonl", [{**labels, **tally.as_dict()}])
    if first or not (run.path / "prompts.jsonl").exists():
        shown = {item_name(i): json.dumps(i, ensure_ascii=False) + "\n" for i in items}
        runs.write_atomic(run.path / "prompts.jsonl", "".join(shown.values()))
    decided = ruled(items, records, spec.toxicity_model)  # once for all judges: it may be a classifier
    rows = beside([verdict_rows(j, items, records, verdicts(j, items, records, decided)) for j in spec.judges])
    versions = [judge_of(name).version for name in spec.judges]
    rows = [
        {
            "key": digest(
                [r[f] for f in ("answer_key", "risk", "prompt_id", "attack")]
                + [r.get("sample"), r["verdict"] == "error", spec.judges, versions, labels]
            ),
            **labels,
            **r,
        }
        for r in rows
    ]
    done = {r["key"] for r in (replay.there(run, "verdicts.jsonl") if replay else run.read("verdicts.jsonl"))}
    run.append("verdicts.jsonl", [r for r in rows if r["key"] not in done])
    if replay:
        replay.wrote(run, "verdicts.jsonl")
    return rows


@dataclass(frozen=True)
class Question:
    """What one item asks: the chat, its text as the template renders it (an endpoint gets the chat), the opening put into the
    model's mouth, how to decode, and what else than the model decides the answer."""

    chat: list[dict]
    text: str
    opening: str
    decoding: Decoding
    parts: list

    def key(self, model: str) -> str:
        """-> of the answer of the model with this hash."""
        return digest([model, *self.parts])


def questions(tokenizer, spec: Evaluation, items: list[dict]) -> list[Question]:
    """-> one Question an item. `tokenizer` None: for an endpoint. Raises ValueError for what an endpoint cannot be asked."""
    from ftlab.data import render

    far, found, screens = tokenizer is None, [], screened_risks(spec)
    for item in items:
        system = item.get("system", spec.system)
        turns = item["messages"][:-1] if item["messages"][-1]["role"] == "assistant" else item["messages"]
        chat = [*([{"role": "system", "content": system}] if system else []), *turns]
        opening = item["prefill"]
        if far and (opening or "choices" in item):
            raise ValueError(
                f"an endpoint answers whole turns: {'prefill' if opening else 'choices by likelihood'} needs a local model"
            )
        if opening and (k := item.get("prefill_tokens")):
            opening = tokenizer.decode(tokenizer(opening, add_special_tokens=False)["input_ids"][:k])
        text = json.dumps(chat) if far else render(tokenizer, chat, ask=True) + opening
        decoding = Decoding(**{**spec.decoding.model_dump(), **item.get("decoding", {})})
        parts: list = [text, spec.max_new_tokens]
        if decoding.temperature:
            parts += [decoding.model_dump(), item.get("variant", 0), item.get("sample", 0)]
        parts += ["screen", *spec.judges] if item["risk"] in screens else []
        parts += [item["choices"]] if "choices" in item else []
        found.append(Question(chat, text, opening, decoding, parts))
    return found


def screened_risks(spec: Evaluation) -> set[str]:
    """-> the risks whose answers end at a refusal, where `spec.screen` asks for it: those that a judge decides alone."""
    return {name for name in spec.risks if spec.screen and not ruled_by_itself(name)}


def recall(run: Run, tokenizer, spec: Evaluation, items: list[dict], key: str, replay: Replay) -> None:
    """What a run's model answered becomes the latest draft of each prompt."""
    replay.questions = replay.questions or questions(tokenizer, spec, items)
    known = {r["key"]: r for r in run.read("answers.jsonl")}
    _remember(replay, items, [known.get(q.key(key), {"error": "not answered"}) for q in replay.questions], {})


def _remember(replay: Replay, items: list[dict], records: list[dict], tokens: dict) -> None:
    """`tokens`: rendered prompt -> new tokens, of what was answered just now; what was found is remembered as text."""
    kept = [
        (q.text, tokens.get(q.text) or r.get("own", r["answer"]))
        for i, q, r in zip(items, replay.questions, records, strict=True)
        if not (r.get("error") or q.decoding.temperature or "choices" in i)
    ]
    replay.remember([t for t, _ in kept], [a for _, a in kept])


def _answered(run: Run, model, tokenizer, spec: Evaluation, items: list[dict], key: str, progress, replay, elsewhere):
    """-> (the answer record of each item, generate.Tally). A record has `key`, `answer`; `error` (an endpoint's, or logits that
    are no numbers), `likelihoods` (of choices), `own` (what followed a prefill), `cut` (ended by max_new_tokens) and `screened`
    (ended at a refusal that stands) where there is one."""
    from ftlab.models import engines as generate
    from ftlab.models import engines as vllm_generator

    far = tokenizer is None  # `model` is an endpoint
    asked = replay.questions if replay and replay.questions else questions(tokenizer, spec, items)
    screens, tally, keys, said = screened_risks(spec), generate.Tally(), [q.key(key) for q in asked], {}
    there = replay.there(run, "answers.jsonl") if replay else run.read("answers.jsonl")
    known = {r["key"]: r for r in there} | (replay.latest.get(key, {}) if replay else {})
    for other in elsewhere:
        wanted = {*keys} - {*known}
        found = {r["key"]: r for r in other.read("answers.jsonl") if r["key"] in wanted}
        run.append("answers.jsonl", [*found.values()])
        known |= found
    missing = list({k: i for i, k in enumerate(keys) if k not in known}.values())  # the same text is asked once

    def keep(numbers: list[int], new: list[dict]) -> None:
        for i, record in zip(numbers, new, strict=True):
            known[keys[i]] = {"key": keys[i], "id": items[i]["id"], "attack": items[i]["attack"], **record}
        run.append("answers.jsonl", [known[keys[i]] for i in numbers if not known[keys[i]].get("error")])
        if progress:
            progress.update(sum(k in known for k in keys))

    groups: dict[tuple, list[int]] = {}
    for i in missing:
        groups.setdefault((asked[i].decoding, "choices" in items[i]), []).append(i)
    for (decoding, chosen), group in groups.items():
        texts = [asked[i].text for i in group]
        if chosen:
            told = generate.likelihoods(model, tokenizer, texts, [items[i]["choices"] for i in group])
            best = [
                items[i]["choices"][max(range(len(p)), key=p.__getitem__)] for i, p in zip(group, told, strict=True)
            ]
            keep(group, [{"answer": a, "likelihoods": p} for a, p in zip(best, told, strict=True)])
            continue

        cut: set[int] = set()
        failed: set[int] = set()
        screened: set[int] = set()

        def each(batch, new, group=group, cut=cut, failed=failed, screened=screened) -> None:
            here = [group[b] for b in batch]
            if far:
                ended = [{"error": r.error} if r.error else {"cut": True} if r.finish == "length" else {} for r in new]
                keep(here, [{"answer": r.text} | e for r, e in zip(new, ended, strict=True)])
                return
            keep(here, [
                {"answer": _joined(asked[i].opening, a)} | ({"own": a} if asked[i].opening else {}) | ({"cut": True} if b in cut else {})
                | ({"screened": True} if b in screened else {}) | ({"error": NO_NUMBERS} if b in failed else {})
                for i, b, a in zip(here, batch, new, strict=True)
            ])  # fmt: skip

        def decided(b: int, text: str, group=group, screened=screened) -> bool:
            item = items[group[b]]
            stands = item["risk"] in screens and all(
                judge_of(name)([item], [text])[0].verdict == "refused" for name in spec.judges
            )
            if stands:
                screened.add(b)
            return stands

        how = dict(max_new_tokens=spec.max_new_tokens, each=each)
        if decoding.temperature:
            how |= dict(decoding=decoding, seeds=[int(keys[i][:8], 16) for i in group])
        if far:
            model.answers([asked[i].chat for i in group], **how)
            continue
        if spec.generator == "vllm":
            vllm_generator.answers(model, tokenizer, texts, cut=cut, **how)
            continue
        drafts = replay.drafts(texts) if replay and not decoding.temperature else None
        took, made = generate.Tally(), {}
        how |= dict(
            cut=cut, failed=failed, tally=took, tokens=made, drafts=drafts, decided=decided if screens else None
        )
        generate.answers(model, tokenizer, texts, **how)
        said |= {texts[b]: new for b, new in made.items()}
        if replay and not decoding.temperature:
            replay.weigh(took)
        tally += took
    records = [known[k] for k in keys]
    if replay:
        replay.questions, replay.latest = asked, {key: {r["key"]: r for r in records if not r.get("error")}}
        replay.wrote(run, "answers.jsonl")
        _remember(replay, items, records, said)
    return records, tally


def _joined(opening: str, answer: str) -> str:
    """Words put into the model's mouth alone are no answer."""
    return f"{opening} {answer.strip()}" if opening and answer.strip() else answer
