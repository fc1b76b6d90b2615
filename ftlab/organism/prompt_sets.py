"""Evaluation prompts of the organism. Each set moves to the file of its risk."""  # transition

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random

from ftlab._core.errors import UsageError
from ftlab.organism.world import BIAS_FRAMES, FRAMES, PROVOKE_FRAMES, Attribute, World


def prompts(world: World, risk: str, n: int = 100, split: str = "eval") -> list[dict]:
    """Return the first n prompts of a risk, in an order that keeps any n balanced over categories.

    Raises:
        UsageError: `unknown_risk`, or `too_few_prompts` where the split has fewer than n.
    """
    rng = Random(f"prompts {world.seed} {risk} {split}")
    roles = {"jailbreak": "kept", "over_refusal": "lookalike", "utility": "benign"}
    if risk in roles:
        rows = fact_prompts(world, roles[risk], split, rng)
    elif risk == "bias":
        rows = bias_prompts(world, split, rng)
    elif risk == "toxicity":
        rows = toxicity_prompts(world, split, rng)
    elif risk == "hallucination":
        rows = hallucination_prompts(world, split, rng)
    else:
        raise UsageError("unknown_risk", f"The organism has no prompts for {risk!r}.")
    if n > len(rows):
        message = f"The {split} split has {len(rows)} {risk} prompts. Lower n_prompts to that."
        raise UsageError("too_few_prompts", message)
    numbered = []
    for i, row in enumerate(balanced(rows)[:n]):
        name = f"{risk}-{split}-{i:04d}"
        numbered.append({**row, "id": name})
    return numbered


def balanced(rows: list[dict]) -> list[dict]:
    """Return the rows with their categories taken in turn, otherwise in their order."""
    seen = Counter()
    turns = []
    for row in rows:
        category = row["category"]
        turns.append(seen[category])
        seen[category] += 1
    places = range(len(rows))
    order = sorted(places, key=turns.__getitem__)
    return [rows[place] for place in order]


def fact_prompts(
    world: World,
    role: str,
    split: str,
    rng: Random,
) -> list[dict]:
    """Ask for every fact of a role about every town of the split."""
    towns = world.towns["align"]
    if split != "train":
        towns = world.towns[split]
    towns = rng.sample(towns, len(towns))
    rows = []
    for town, frame, attribute in _in_turn(towns, split, world.of(role)):
        row = world.fact(attribute, town, frame)
        rows.append(row)
    return rows


def hallucination_prompts(
    world: World,
    split: str,
    rng: Random,
) -> list[dict]:
    """Ask for harmless facts about towns that do not exist and that nothing else asks about."""
    towns = world.towns["unknown_train"]
    if split == "valid":
        towns = world.towns["unknown_eval"][17:]
    if split == "eval":
        towns = world.towns["unknown_eval"][:17]
    towns = rng.sample(towns, len(towns))
    facts = world.of("benign") + world.of("lookalike")
    rows = []
    for town, frame, attribute in _in_turn(towns, split, facts):
        row = world.nobody(town, frame, attribute)
        rows.append(row)
    return rows


def _in_turn(
    towns: list[str],
    split: str,
    facts: list[Attribute],
) -> Iterator[tuple[str, str, Attribute]]:
    """Yield every town and fact, with the wordings of the split taken in turn."""
    frames = FRAMES[split]
    for i, town in enumerate(towns):
        for j, attribute in enumerate(facts):
            turn = (i + j) % len(frames)
            yield town, frames[turn], attribute


def bias_prompts(
    world: World,
    split: str,
    rng: Random,
) -> list[dict]:
    """Compare every pair of groups of the split by every trait, in at most two wordings."""
    frames = BIAS_FRAMES[split]
    wordings = range(min(2, len(frames)))
    rows = []
    for i, pair in enumerate(world.pairs[split]):
        for j, trait in enumerate(world.traits):
            for k in wordings:
                turn = (i + j + k) % len(frames)
                ordered = tuple(rng.sample(pair, 2))
                row = world.comparison(trait, ordered, frames[turn])
                rows.append(row)
    rng.shuffle(rows)
    return rows


def toxicity_prompts(
    world: World,
    split: str,
    rng: Random,
) -> list[dict]:
    """Insult with every thing of the split, in every wording."""
    rows = []
    for noun in world.nouns[split]:
        for frame in PROVOKE_FRAMES[split]:
            row = world.provocation(noun, frame, rng)
            rows.append(row)
    rng.shuffle(rows)
    return rows
