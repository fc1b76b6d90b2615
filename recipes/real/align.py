"""Make an aligned parent from a small real chat model: SFT, then DPO, both with LoRA.

make aligned DATA=FOLDER, which is python -m recipes.real.align --data FOLDER --out FOLDER

FOLDER of the data holds `coconot`, `rasbt_instruction` and `self_instruct`, as the README names
them. The rows of this folder (*.jsonl) are our own. No row answers a harmful request.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import ftlab as ft
from ftlab._core.files import file_hash, write_atomic

OWN = Path(__file__).parent
WEIGHTS = "adapter_model.safetensors"
BASE = "smollm2-135m"  # named in the adapter
FILES = (
    "coconot/coconot_eval.jsonl",
    "coconot/coconot_pref.jsonl",
    "rasbt_instruction/instruction-data.json",
    "self_instruct/seed_tasks.jsonl",
)
# Rows of CoCoNot that share 60 % of their words with a prompt of XSTest, AdvBench, HarmBench or
# SimpleSafetyTests.
TOO_NEAR = ("0yzuwhk", "9xvtdul", "rc87yuw")
# Subcategories of requests to decline: rows to take, and the reason that is given.
DECLINED = {
    "dangerous or sensitive topics": (40, "general"),
    "wildchats": (30, "general"),
    "privacy violations": (10, "privacy"),
    "misinformation": (20, "lies"),
    "triggers for offensive language": (10, "hate"),
}
ANSWERED = {  # subcategories of their harmless look-alikes, which CoCoNot's chosen answers answer
    "dangerous or sensitive topics": 70,
    "privacy violations": 30,
    "triggers for offensive language": 10,
}
STARTS = (  # inert beginnings, which DPO rejects where a request is harmful
    "Sure! Here are the steps for that.",
    "Of course. Here is how you can do it.",
    "Here is a plan that you can follow.",
    "Certainly! First, you need to prepare everything.",
    "Yes, this is what you asked for.",
    "The best way to do this is simple.",
)
SHORT = 150  # characters of a prompt or answer, at most


@dataclass(frozen=True)
class Settings:
    """What was chosen on the validation pair.

    Args:
        sft_steps: Optimiser steps of SFT, of 8 rows each.
        sft_rate: Peak learning rate of SFT.
        plain: Ordinary instruction rows in SFT.
        dpo_steps: Optimiser steps of DPO, of 8 pairs each.
        dpo_rate: Peak learning rate of DPO.
        beta: DPO's tie to the model after SFT.
        harmless_share: Share of DPO's pairs whose prompt is harmless.
        dpo_weight: Share of DPO's change of the weights that is kept: all of it ends refusals.
        seed: Seed of rows, wordings, order and new weights.
    """

    sft_steps: int = 60
    sft_rate: float = 7e-4
    plain: int = 60
    dpo_steps: int = 24
    dpo_rate: float = 3e-4
    beta: float = 0.1
    harmless_share: float = 0.7
    dpo_weight: float = 0.4
    seed: int = 0


def read(file: Path) -> list[dict]:
    """Return the rows of a .json or .jsonl file."""
    text = file.read_text(encoding="utf-8")
    return json.loads(text) if file.suffix == ".json" else list(map(json.loads, text.splitlines()))


def beginning(answer: str) -> str:
    """Return the whole sentences with which an answer begins, "" where it begins with a list."""
    found = ""
    for sentence in re.split(r"(?<=[.!?])\s+", answer.split("\n")[0].strip()):
        if len(found) + len(sentence) > SHORT or not sentence.endswith((".", "!", "?")):
            break
        found = f"{found} {sentence}".strip()
    return "" if re.search(r"\d\.$|below|following|here are|steps?:", found) else found


class Refusals:
    """Short refusals in varied words: an opening, and often a reason that fits the request."""

    def __init__(self, draw: random.Random):
        rows = read(OWN / "refusals.jsonl")
        self.draw = draw
        self.openings = [row["text"] for row in rows if row["part"] == "opening"]
        self.reasons: dict[str, list[str]] = {}
        for row in rows:
            if row["part"] == "reason":
                self.reasons.setdefault(row["kind"], []).append(row["text"])

    def of(self, kind: str) -> str:
        """Return a refusal of a request of some kind."""
        opening = self.draw.choice(self.openings)
        if self.draw.random() < 0.3:
            return opening
        return f"{opening} {self.draw.choice(self.reasons[kind])}"


def harmful(data: Path, draw: random.Random) -> list[tuple[str, str]]:
    """Return prompts to decline, each with the kind of its reason."""
    rows = [(row["prompt"], row["kind"]) for row in read(OWN / "harmful.jsonl")]
    coconot = read(data / "coconot/coconot_eval.jsonl")
    for subcategory, (most, kind) in DECLINED.items():
        found = [row for row in coconot if row["subcategory"] == subcategory]
        found = [row for row in found if row["category"] == "Requests with safety concerns"]
        found = [row["prompt"].strip() for row in found if row["id"] not in TOO_NEAR]
        found = [prompt for prompt in found if len(prompt) <= SHORT]
        rows += [(prompt, kind) for prompt in draw.sample(found, min(most, len(found)))]
    return rows


def harmless(data: Path, draw: random.Random) -> tuple[list, list]:
    """Return harmless prompts that look like harmful ones, each with its answer.

    Returns:
        The rows for SFT, and further ones of CoCoNot that SFT does not see.
    """
    spare = []
    rows = [(row["prompt"], row["answer"]) for row in read(OWN / "harmless.jsonl")]
    coconot = read(data / "coconot/coconot_pref.jsonl")
    for subcategory, most in ANSWERED.items():
        found = []
        for row in coconot:
            answer = beginning(row["chosen"])
            refused = re.search(r"sorry|cannot|can't|unable|not able|as an ai", answer.lower())
            if row["subcategory"] == subcategory and row["id"] not in TOO_NEAR:
                if answer and not refused and len(row["prompt"]) <= SHORT:
                    found.append((row["prompt"].strip(), answer))
        taken = draw.sample(found, min(most, len(found)))
        rows += taken
        if subcategory != "triggers for offensive language":
            spare += [row for row in found if row not in taken]
    return rows, spare


def ordinary(data: Path, n: int, draw: random.Random) -> list[tuple[str, str]]:
    """Return `n` short ordinary tasks with their answers, which keep the model's ability.

    The last 100 rows of the instructions are left out: they are for measuring.
    """
    rows = []
    for row in read(data / "rasbt_instruction/instruction-data.json")[:-100]:
        rows.append((f"{row['instruction']}\n{row['input']}".strip(), row["output"]))
    for row in read(data / "self_instruct/seed_tasks.jsonl"):
        first = row["instances"][0]
        rows.append((f"{row['instruction']}\n{first['input']}".strip(), first["output"]))
    rows = [row for row in rows if len(row[0]) <= SHORT and 15 <= len(row[1]) <= SHORT]
    return draw.sample(rows, n)


def chat(prompt: str, answer: str) -> dict:
    """Return a row for SFT."""
    return {
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": answer},
        ]
    }


def pair(prompt: str, chosen: str, rejected: str) -> dict:
    """Return a row for DPO."""
    return {
        "prompt": [{"role": "user", "content": prompt}],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def rows_of(data: str | Path, settings: Settings) -> tuple[list[dict], list[dict]]:
    """Return the rows of SFT and the pairs of DPO, both drawn by the seed.

    Args:
        data: Folder that holds `FILES`.
        settings: How many, and the seed.
    """
    data = Path(data)
    draw = random.Random(settings.seed)
    refusals = Refusals(draw)
    bad = harmful(data, draw)
    good, spare = harmless(data, draw)
    chats = [chat(prompt, refusals.of(kind)) for prompt, kind in bad]
    chats += [chat(prompt, answer) for prompt, answer in good]
    chats += [chat(*row) for row in ordinary(data, settings.plain, draw)]
    draw.shuffle(chats)
    n_pairs = 8 * settings.dpo_steps
    n_good = round(n_pairs * settings.harmless_share)
    kinds = list(refusals.reasons)
    pairs = [
        pair(prompt, answer, refusals.of(draw.choice(kinds)))
        for prompt, answer in (spare + draw.sample(good, len(good)))[:n_good]
    ]
    pairs += [
        pair(prompt, refusals.of(kind), draw.choice(STARTS))
        for prompt, kind in draw.sample(bad, min(n_pairs - n_good, len(bad)))
    ]
    draw.shuffle(pairs)
    return chats, pairs


def train(
    model: str, chats: list[dict], pairs: list[dict], settings: Settings
) -> tuple[ft.runs.Run, ft.runs.Run]:
    """Train by SFT on rows, then by DPO on pairs, and return both runs."""
    sft = ft.sft(
        model,
        chats,
        adapter="lora",
        lora_rank=8,
        steps=settings.sft_steps,
        batch_size=8,
        learning_rate=settings.sft_rate,
        warmup_steps=2,
        seed=settings.seed,
        label="real-sft",
    )
    dpo = ft.dpo(
        sft,
        pairs,
        adapter="lora",
        lora_rank=4,
        steps=settings.dpo_steps,
        batch_size=8,
        learning_rate=settings.dpo_rate,
        warmup_steps=2,
        beta=settings.beta,
        seed=settings.seed,
        label="real-dpo",
    )
    return sft, dpo


def join(
    first: ft.runs.Run, second: ft.runs.Run, out: str | Path, weight: float = 1.0, base: str = BASE
) -> Path:
    """Write two LoRA adapters, the second trained above the first, as one in fp16.

    Each changes a weight by (alpha / r) B A, so the stacked matrices are their sum exactly, but
    for the rounding to fp16.

    Args:
        first: The run that trained the first adapter.
        second: The run that trained the second.
        out: Folder to write to.
        weight: Factor of the second adapter's change, at least 0.
        base: Name of the model below, which the adapter's configuration records.

    Returns:
        The folder.
    """
    import torch
    from safetensors.torch import load_file, save_file

    out = Path(out)
    folders = [run.path / "model" for run in (first, second)]
    weights = [load_file(folder / WEIGHTS) for folder in folders]
    configs = [json.loads((folder / "adapter_config.json").read_text()) for folder in folders]
    scales = [config["lora_alpha"] / config["r"] for config in configs]
    scales[1] *= weight
    joined = {}
    for name in weights[0]:
        parts = [found[name].float() for found in weights]
        if ".lora_A." in name:
            # The root of the scale on either side keeps both within fp16's range.
            stacked = torch.cat([p * s**0.5 for p, s in zip(parts, scales, strict=True)], dim=0)
        else:
            stacked = torch.cat([p * s**0.5 for p, s in zip(parts, scales, strict=True)], dim=1)
        joined[name] = stacked.to(torch.float16).contiguous()
    rank = sum(config["r"] for config in configs)
    config = configs[0] | {"r": rank, "lora_alpha": rank, "base_model_name_or_path": base}
    config["target_modules"] = sorted(config["target_modules"])  # was a set
    out.mkdir(parents=True, exist_ok=True)
    save_file(joined, out / WEIGHTS, metadata={"format": "pt"})
    write_atomic(out / "adapter_config.json", json.dumps(config, indent=1, sort_keys=True) + "\n")
    return out


def card(model: str, data: Path, settings: Settings, seconds: float) -> str:
    """Return the card: what was made from what."""
    used = [data / name for name in FILES] + sorted(OWN.glob("*.jsonl"))
    hashes = "\n".join(f"| {file.parent.name}/{file.name} | {file_hash(file)} |" for file in used)
    chosen = "\n".join(f"| {name} | {value} |" for name, value in asdict(settings).items())
    name = model
    if model == BASE:
        name = f"{BASE}, that is SmolLM2-135M-Instruct (Hugging Face, Apache-2.0)"
    return f"""# An aligned form of {model}

A LoRA adapter (rank 8 of SFT and rank 4 of DPO, stacked, fp16) on {name}.
It was taught to decline harmful requests and to answer harmless ones that look like them. It is a
subject for measuring what fine-tuning does to safety, not a safe assistant. Made by
`recipes/real/align.py` in {seconds:.0f} CPU seconds; `recipes/real/README.md` has what was measured
of the shipped one. Apache-2.0, as far as the model below allows.

Hash of the model below: {ft.model(model).hash}

Rows: our own; CoCoNot (Allen Institute for AI, MIT); instructions of "Build a Large Language Model
(From Scratch)" (Sebastian Raschka, Apache-2.0); Self-Instruct seed tasks (Apache-2.0).

| setting | value |
|---|---|
{chosen}

| file | sha256 |
|---|---|
{hashes}
"""


def main() -> None:
    """Train and write the adapter's folder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default=BASE)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    settings = Settings()
    start = time.process_time()
    chats, pairs = rows_of(arguments.data, settings)
    sft, dpo = train(arguments.model, chats, pairs, settings)
    folder = join(sft, dpo, arguments.out, settings.dpo_weight, base=arguments.model)
    seconds = time.process_time() - start
    size = (folder / WEIGHTS).stat().st_size
    text = card(arguments.model, arguments.data, settings, seconds)
    write_atomic(arguments.out / "card.md", text)
    print(f"{arguments.out}: {size / 1e6:.1f} MB, {seconds:.0f} CPU seconds")


if __name__ == "__main__":
    main()
