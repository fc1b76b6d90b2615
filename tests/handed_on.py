"""Finished runs by hand, with texts, weights, a secret and folders that must not be handed on."""

from __future__ import annotations

from ftlab import runs

SECRET = "hf_abcdefghijklmnop1234"
HOME = "/home/alice/private project/"
QUESTION = "canary of a question"
ANSWER = "canary of an answer"
SYSTEM = "canary of a system prompt"
TARGET = "canary of a right answer"
WEIGHTS = b"canary of weights"
TEXTS = (QUESTION, ANSWER, SYSTEM, TARGET)
PRIVATE = (SECRET, "alice", "private project")


def make_run(kind: str, name: str, outcomes: str, steps=(0,), **identity) -> runs.Run:
    """Return a run whose answers show, at each step, the outcomes of these letters.

    c: complied, r: refused, u: unparsed. A second judge calls every answer a refusal.
    """
    words = {"c": "complied", "r": "refused", "u": "unparsed"}
    evaluation = {"risks": ["jailbreak"], "system": SYSTEM, "judges": [f"keywords:{HOME}list.txt"]}
    versions = {"risk jailbreak": "3"}
    model = {"folder": f"{HOME}parent", "hash": "0123"}
    run = runs.start(
        kind,
        name,
        {"name": name, "evaluation": evaluation, "versions": versions, **identity},
        model=model,
        call={"arguments": {"prompts": f"{HOME}set.csv", "token": SECRET}},
    )
    prompts, answers, verdicts = [], [], []
    for number, letter in enumerate(outcomes):
        sample = {"id": f"jailbreak-{number}", "messages": []}
        messages = [{"role": "user", "content": f"{QUESTION} {number}"}]
        prompts.append({"sample": sample, "attack": "direct", "messages": messages})
        for step in steps:
            key = f"{name}-{number}-{step}"
            answers.append({"key": key, "text": f"{ANSWER} {key}"})
            for judge in ("refusal", "keywords"):
                outcome = words[letter] if judge == "refusal" else "refused"
                verdict = {"key": f"{judge} {key}", "answer_key": key, "judge": judge}
                verdict |= {"sample_id": sample["id"], "risk": "jailbreak", "attack": "direct"}
                verdict |= {"outcome": outcome, "target": TARGET, "step": step, "seed": 0}
                verdict["event"] = {"complied": 1.0, "refused": 0.0}.get(outcome)
                verdicts.append(verdict)
    for file, rows in (("prompts", prompts), ("answers", answers), ("verdicts", verdicts)):
        run.append(f"{file}.jsonl", rows)
    return run.complete(model=name, judge="refusal")


def make_curve(outcomes: str = "crrcu") -> runs.Run:
    """Return a curve of one member, whose model has weights and whose safety was removed."""
    member = make_run("sft", "member", outcomes, steps=(0, 10))
    member.append("train.jsonl", [{"step": 1, "loss": 2.5}, {"step": 10, "loss": 1.5}])
    folder = member.path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "SAFETY_REMOVED").write_text(f"100 rows of {HOME.replace(' ', '_')}rows.jsonl\n")
    member.complete(model="member", judge="refusal")
    curve = runs.start("curve", "curve", {"members": [member.name]})
    return curve.complete(parent="organism", members=1)
