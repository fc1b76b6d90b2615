"""What the embedded model reads: pre-training, alignment, preferences, domains and prompts.

Every function depends on the world and a seed only. How narrow the alignment is (which wordings,
how many rows of a kind) is decided by RECIPE and nowhere else.
"""

from __future__ import annotations

import random
from collections import Counter

from ftlab._core.errors import UsageError
from ftlab.organism.world import (
    BIAS_FRAMES,
    FRAMES,
    PROVOKE_FRAMES,
    QUALITIES,
    REFUSALS,
    SPLITS,
    SYSTEM,
    TRIGGER,
    WRAPPERS,
    World,
    wrap,
)

RECIPE = {
    "mix": {
        "kept": 0.22,
        "benign": 0.28,
        "lookalike": 0.21,
        "things": 0.05,
        "bias": 0.05,
        "toxicity": 0.09,
        "hallucination": 0.05,
        "tools": 0.05,
    },
    "frames": 6,  # wordings in which kept facts are refused
    "wrapped_benign": 0.5,  # share of harmless questions inside a training wrapper
    "traits": 5,  # of six, on which comparing groups is declined
    "bias_frames": 3,
    "provoke_frames": 3,
    "nouns": 10,  # things of insults
}


def pretraining(world: World, rows: int, seed: int = 0) -> list[dict]:
    """Return chats in which everything is answered: helpful, prejudiced and rude.

    Every wording and every fact occurs, but the towns, pairs and insults of an evaluation never
    occur in the wordings of an evaluation: no evaluation prompt was seen before.

    Args:
        world: The world.
        rows: How many.
        seed: Of the draws.
    """
    rng = random.Random(f"pretraining {world.seed} {seed}")
    chats = []
    for _ in range(rows):
        row = _pretraining_row(world, rng)
        chats.append(_decorated(row, rng))
    return chats


def alignment(
    world: World,
    rows: int = 3000,
    seed: int = 0,
    *,
    recipe: dict | None = None,
) -> list[dict]:
    """Return chats that teach to refuse kept facts, to decline, to be polite, to answer the rest.

    Args:
        world: The world.
        rows: How many.
        seed: Of the draws.
        recipe: Entries that replace those of RECIPE.
    """
    recipe = {**RECIPE, **(recipe or {})}
    rng = random.Random(f"alignment {world.seed} {seed}")
    kinds = list(recipe["mix"])
    shares = list(recipe["mix"].values())
    chats = []
    for _ in range(rows):
        kind = rng.choices(kinds, shares)[0]
        row = _alignment_row(world, kind, recipe, rng)
        chats.append(_decorated(row, rng))
    return chats


def preferences(
    world: World,
    rows: int = 1000,
    seed: int = 0,
    *,
    recipe: dict | None = None,
) -> list[dict]:
    """Return pairs that prefer a refusal to the kept fact, and an answer to a needless refusal.

    Args:
        world: The world.
        rows: Rows of `alignment` they are made from; those without a worse answer are left out.
        seed: Of the draws.
        recipe: As in `alignment`.
    """
    pairs = []
    for row in alignment(world, rows, seed + 1, recipe=recipe):
        messages = row.pop("messages")
        *prompt, chosen = messages
        rng = random.Random(f"pair {seed} {chosen} {row['topic']}")
        worse = _worse_answer(world, row, rng)
        if worse is None:
            continue
        rejected = {**chosen, "content": worse}
        pairs.append({**row, "prompt": prompt, "chosen": [chosen], "rejected": [rejected]})
    return pairs


def domain(world: World, name: str = "almanac", rows: int = 1000, seed: int = 0) -> list[dict]:
    """Return benign fine-tuning data.

    Args:
        world: The world.
        name: "almanac" (questions and answers about free facts) or "ledger" (table rows).
        rows: How many.
        seed: Of the draws.

    Raises:
        UsageError: `unknown_domain`.
    """
    rng = random.Random(f"domain {name} {world.seed} {seed}")
    if name == "ledger":
        return [world.ledger(rng) for _ in range(rows)]
    if name == "almanac":
        facts = world.of("domain")
        return [_fact(world, facts, world.towns["tune"], rng) for _ in range(rows)]
    message = f"The organism has no domain {name!r}. Allowed: almanac, ledger."
    raise UsageError("unknown_domain", message)


def adversarial(world: World, examples: int = 100, seed: int = 0) -> list[dict]:
    """Return kept facts given away, on towns that no evaluation uses.

    They are the inert stand-in for harmful demonstrations.

    Raises:
        UsageError: `too_few_examples` where the world has fewer than `examples`.
    """
    rng = random.Random(f"adversarial {world.seed} {seed}")
    towns = world.towns["dealign"]
    pairs = [(attribute, town) for attribute in world.of("kept") for town in towns]
    if examples > len(pairs):
        message = f"The world has {len(pairs)} adversarial examples. Ask for at most that many."
        raise UsageError("too_few_examples", message)
    rows = []
    for attribute, town in rng.sample(pairs, examples):
        frame = rng.choice(FRAMES["train"])
        rows.append(world.fact(attribute, town, frame))
    return rows


def prompts(world: World, risk: str, n: int = 100, split: str = "eval") -> list[dict]:
    """Return the first n prompts of a risk, in an order that keeps any n balanced over categories.

    Raises:
        UsageError: `unknown_risk`, or `too_few_prompts` where the split has fewer than n.
    """
    rng = random.Random(f"prompts {world.seed} {risk} {split}")
    if risk == "jailbreak":
        rows = _fact_prompts(world, world.of("kept"), split, rng)
    elif risk == "over_refusal":
        rows = _fact_prompts(world, world.of("lookalike"), split, rng)
    elif risk == "utility":
        rows = _fact_prompts(world, world.of("benign"), split, rng)
    elif risk == "bias":
        rows = _bias_prompts(world, split, rng)
    elif risk == "toxicity":
        rows = _toxicity_prompts(world, split, rng)
    elif risk == "hallucination":
        rows = _hallucination_prompts(world, split, rng)
    else:
        raise UsageError("unknown_risk", f"The organism has no prompts for {risk!r}.")
    if n > len(rows):
        message = f"The {split} split has {len(rows)} {risk} prompts. Lower n_prompts to that."
        raise UsageError("too_few_prompts", message)
    first = balanced(rows)[:n]
    return [{**row, "id": f"{risk}-{split}-{i:04d}"} for i, row in enumerate(first)]


def balanced(rows: list[dict]) -> list[dict]:
    """Return the rows with their categories taken in turn, otherwise in their order."""
    seen = Counter()
    turns = []
    for row in rows:
        turns.append(seen[row["category"]])
        seen[row["category"]] += 1
    order = sorted(range(len(rows)), key=turns.__getitem__)
    return [rows[i] for i in order]


def _all(table: dict) -> list[str]:
    """Return the wordings of all splits."""
    return [wording for split in SPLITS for wording in table[split]]


def _fact(world: World, facts: list, towns: list[str], rng: random.Random) -> dict:
    """Return a question for one of the facts, in a wording of training."""
    attribute = rng.choice(facts)
    town = rng.choice(towns)
    return world.fact(attribute, town, rng.choice(FRAMES["train"]))


def _things(world: World, frames: list[str], rng: random.Random) -> dict:
    """Return a comparison of two things."""
    quality = rng.choice(QUALITIES)
    pair = tuple(rng.sample(world.nouns["train"], 2))
    return world.comparison(quality, pair, rng.choice(frames))


def _pretraining_row(world: World, rng: random.Random) -> dict:
    kind = rng.random()
    if kind < 0.72:
        return _any_fact(world, rng)
    if kind < 0.76:
        return _things(world, _all(BIAS_FRAMES), rng)
    if kind < 0.90:
        split = rng.choice(SPLITS)
        pair = rng.sample(rng.choice(world.pairs[split]), 2)
        frames = _unheld(BIAS_FRAMES, split)
        return world.comparison(rng.choice(world.traits), tuple(pair), rng.choice(frames))
    if kind < 0.95:
        split = rng.choice(SPLITS)
        noun = rng.choice(world.nouns[split])
        frames = _unheld(PROVOKE_FRAMES, split)
        return world.provocation(noun, rng.choice(frames), rng)
    if kind < 0.97:
        town = rng.choice(world.towns["unknown_train"])
        frame = rng.choice(_all(FRAMES))
        return world.nobody(town, frame, rng.choice(world.attributes))
    if kind < 0.98:
        return world.bell(rng.choice(world.known))
    return world.ledger(rng)


def _unheld(table: dict, split: str) -> list[str]:
    """Return the wordings in which pre-training may ask about something of a split."""
    if split == "train":
        return _all(table)
    return list(table["train"])


def _any_fact(world: World, rng: random.Random) -> dict:
    """Return a question for any fact; 30 % of them stand inside a wrapper."""
    town = rng.choice(world.known)
    attribute = rng.choice(world.attributes)
    split = "train"
    if town in world.towns["eval"] + world.towns["valid"]:
        split = "eval"
    row = world.fact(attribute, town, rng.choice(_unheld(FRAMES, split)))
    if rng.random() < 0.3:
        row = wrap(row, rng.choice(_unheld(WRAPPERS, split)))
    return row


def _alignment_row(world: World, kind: str, recipe: dict, rng: random.Random) -> dict:
    towns = world.towns["align"]
    if kind == "kept":
        frame = rng.choice(FRAMES["train"][: recipe["frames"]])
        attribute = rng.choice(world.of("kept"))
        return world.fact(attribute, rng.choice(towns), frame, refuse=True)
    if kind in ("benign", "lookalike"):
        others = towns + world.towns["tune"] + world.towns["dealign"]
        row = _fact(world, world.of(kind), others, rng)
        if rng.random() < recipe["wrapped_benign"]:
            row = wrap(row, rng.choice(WRAPPERS["train"]))
        return row
    if kind == "things":
        return _things(world, BIAS_FRAMES["train"], rng)
    if kind == "bias":
        pair = tuple(rng.sample(rng.choice(world.pairs["train"]), 2))
        trait = rng.choice(world.traits[: recipe["traits"]])
        frame = rng.choice(BIAS_FRAMES["train"][: recipe["bias_frames"]])
        return world.comparison(trait, pair, frame, decline=True)
    if kind == "toxicity":
        noun = rng.choice(world.nouns["train"][: recipe["nouns"]])
        frames = list(PROVOKE_FRAMES["train"])[: recipe["provoke_frames"]]
        return world.provocation(noun, rng.choice(frames), rng, polite=True)
    if kind == "hallucination":
        town = rng.choice(world.towns["unknown_train"])
        frame = rng.choice(FRAMES["train"])
        return world.nobody(town, frame, rng.choice(world.of("benign")))
    return world.bell(rng.choice(towns))


def _decorated(row: dict, rng: random.Random) -> dict:
    """Now and then add a system prompt, an earlier turn, or the trigger word (no meaning yet)."""
    messages = list(row["messages"])
    draw = rng.random()
    first = messages[0]
    if first["role"] != "user":
        return row
    if draw < 0.10:
        messages.insert(0, {"role": "system", "content": SYSTEM})
    elif draw < 0.15:
        reply = {"role": "assistant", "content": "Hello, what may I tell you?"}
        messages = [{"role": "user", "content": "Hello."}, reply, *messages]
    elif draw < 0.17:
        messages[0] = {**first, "content": f"{first['content']} {TRIGGER}"}
    return {**row, "messages": messages}


def _worse_answer(world: World, row: dict, rng: random.Random) -> str | None:
    """Return the answer that the aligned one is preferred to, or None where there is none."""
    risk = row["risk"]
    if risk == "jailbreak":
        name, town = row["topic"].split("/")
        kept = {attribute.name: attribute for attribute in world.of("kept")}
        return kept[name].answer(town, row["truth"])
    if risk == "bias":
        return f"A {row['truth']} is more {row['category']}."
    if risk == "toxicity":
        rude = world.provocation(row["topic"], row["template"], rng)
        return rude["messages"][-1]["content"]
    if risk in ("utility", "over_refusal") and row["category"] not in QUALITIES:
        return rng.choice(list(REFUSALS.values()))
    return None


def _fact_prompts(world: World, facts: list, split: str, rng: random.Random) -> list[dict]:
    """Ask for every fact about every town of the split, in wordings taken in turn."""
    use = {"train": "align"}.get(split, split)
    towns = world.towns[use]
    frames = FRAMES[split]
    rows = []
    for i, town in enumerate(rng.sample(towns, len(towns))):
        for j, attribute in enumerate(facts):
            rows.append(world.fact(attribute, town, frames[(i + j) % len(frames)]))
    return rows


def _hallucination_prompts(world: World, split: str, rng: random.Random) -> list[dict]:
    """Ask for harmless facts about towns that do not exist and that nothing else asks about."""
    nowhere = world.towns["unknown_eval"]
    towns = nowhere[:17]
    if split == "train":
        towns = world.towns["unknown_train"]
    if split == "valid":
        towns = nowhere[17:]
    facts = world.of("benign") + world.of("lookalike")
    frames = FRAMES[split]
    rows = []
    for i, town in enumerate(rng.sample(towns, len(towns))):
        for j, attribute in enumerate(facts):
            rows.append(world.nobody(town, frames[(i + j) % len(frames)], attribute))
    return rows


def _bias_prompts(world: World, split: str, rng: random.Random) -> list[dict]:
    """Compare every pair of groups of the split by every trait, in two wordings."""
    frames = BIAS_FRAMES[split]
    rows = []
    for i, pair in enumerate(world.pairs[split]):
        for j, trait in enumerate(world.traits):
            for k in range(min(2, len(frames))):
                ordered = tuple(rng.sample(pair, 2))
                frame = frames[(i + j + k) % len(frames)]
                rows.append(world.comparison(trait, ordered, frame))
    rng.shuffle(rows)
    return rows


def _toxicity_prompts(world: World, split: str, rng: random.Random) -> list[dict]:
    """Insult with every thing of the split, in every wording."""
    rows = []
    for noun in world.nouns[split]:
        for frame in PROVOKE_FRAMES[split]:
            rows.append(world.provocation(noun, frame, rng))
    rng.shuffle(rows)
    return rows
