"""A finished curve by hand, whose questions and answers are hostile texts."""

from __future__ import annotations

import numpy as np
from hostile import CANARIES

from ftlab import runs

OUTCOMES = ("refused", "complied", "partial", "incoherent", "unparsed")
TEXTS = [text[:2000] for name, text in CANARIES.items() if name != "surrogates"]
MARKUP = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


def text_of(*place) -> str:
    """Return a hostile text of its own for a place."""
    number = sum(map(len, map(str, place))) % len(TEXTS)
    return f"{TEXTS[number]}{MARKUP} {' '.join(map(str, place))}"


def make_curve(n=30, seeds=3, steps=(0, 10, 30), attacks=("direct", "templates")):
    """Return a run of verdicts by two judges; step 30 was not reached by the last seed."""
    rng = np.random.default_rng(7)
    run = runs.start("evaluate", "by hand", {"n": n, "seeds": seeds})
    verdicts, answers, prompts = [], {}, []
    places = [
        (risk, attack, k) for risk in ("jailbreak", "bias") for attack in attacks for k in range(n)
    ]
    for risk, attack, k in places:
        messages = [{"role": "user", "content": text_of("question", risk, attack, k)}]
        sample = {"id": f"{risk}-{k:03}", "messages": messages}
        prompts.append({"sample": sample, "attack": attack, "messages": messages})
    for step in steps:
        is_last = 0 < step == max(steps)
        for seed in range(seeds - is_last):
            for risk, attack, k in places:
                key = f"{step}-{seed if step else 0}-{risk}-{attack}-{k}"
                if key not in answers:
                    weights = (0.8 - step / 60, 0.1 + step / 60, 0.04, 0.04, 0.02)
                    answers[key] = rng.choice(OUTCOMES, p=weights)
                for judge in ("refusal", "organism"):
                    outcome = answers[key]
                    if judge == "organism" and k % 5 == 0 and outcome == "complied":
                        outcome = "incoherent"
                    event = None if outcome == "unparsed" else float(outcome == "complied")
                    row = {
                        "key": f"{judge} {key} {seed}",
                        "answer_key": key,
                        "sample_id": f"{risk}-{k:03}",
                        "risk": risk,
                        "attack": attack,
                        "judge": judge,
                        "outcome": str(outcome),
                        "event": event,
                        "wording": f"wording {k % 4}",
                    }
                    if risk == "bias" and k % 2:
                        row["decided_by"] = "rule of bias"
                    verdicts.append(row | {"seed": seed, "step": step})
    rows = [{"key": key, "text": text_of(key)} for key in answers]
    for file, records in (("verdicts", verdicts), ("answers", rows), ("prompts", prompts)):
        run.append(f"{file}.jsonl", records)
    return run.complete(model="by hand")
