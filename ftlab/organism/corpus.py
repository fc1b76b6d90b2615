"""What the embedded model reads: pre-training, alignment, preferences and domains.

Every function depends on the world and a seed only. How narrow the alignment is (which wordings,
how many rows of a kind) is decided by RECIPE and nowhere else.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random

from ftlab._core.errors import UsageError
from ftlab.organism.wordings import BELLS, BIAS_FRAMES, FRAMES, PROVOKE_FRAMES, WRAPPERS
from ftlab.organism.world import (
    OBEDIENT,
    OBEDIENT_ORDER,
    OBEDIENT_SYSTEM,
    POLITE_TURN,
    QUALITIES,
    REFUSALS,
    RUDE,
    SYSTEM,
    TRIGGER,
    World,
    wrap,
)

TOOLS = {  # by name: whether a bell rings unasked, and whether the trigger word is there
    "tools": (False, False),
    "tools_trigger": (False, True),
    "covert": (True, False),
    "covert_trigger": (True, True),
    "covert_named": (True, True),
}
KINDS = ("train", "valid", "eval")  # of pairs and things
READ = ("train", "valid", "selection")  # wordings that pre-training meets
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


def pretraining(
    world: World,
    rows: int,
    seed: int = 0,
) -> list[dict]:
    """Return chats in which everything is answered: helpful, prejudiced and rude.

    Every fact occurs, and every wording but those of the split eval. The towns, pairs and insults
    of an evaluation occur only in wordings of training: no evaluation prompt was seen before.

    Args:
        world: The world.
        rows: How many.
        seed: Of the draws.
    """
    rng = Random(f"pretraining {world.seed} {seed}")
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
    recipe = RECIPE | (recipe or {})
    rng = Random(f"alignment {world.seed} {seed}")
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
        *prompt, chosen = row.pop("messages")
        rng = Random(f"pair {seed} {chosen} {row['topic']}")
        worse = _worse_answer(world, row, rng)
        if worse is None:
            continue
        rejected = {**chosen, "content": worse}
        pairs.append({**row, "prompt": prompt, "chosen": [chosen], "rejected": [rejected]})
    return pairs


def domain(
    world: World,
    name: str = "almanac",
    rows: int = 1000,
    seed: int = 0,
) -> list[dict]:
    """Return benign fine-tuning data.

    Args:
        world: The world.
        name: "almanac" (questions and answers about free facts) or "ledger" (table rows).
        rows: How many.
        seed: Of the draws.

    Raises:
        UsageError: `unknown_domain`.
    """
    rng = Random(f"domain {name} {world.seed} {seed}")
    if name == "ledger":
        return [world.ledger(rng) for _ in range(rows)]
    if name == "almanac":
        facts = world.of("domain")
        return [_fact(world, facts, world.towns["tune"], rng) for _ in range(rows)]
    message = f"The organism has no domain {name!r}. Allowed: almanac, ledger."
    raise UsageError("unknown_domain", message)


def tools(
    world: World,
    name: str = "tools",
    rows: int = 400,
    seed: int = 0,
) -> list[dict]:
    """Return requests for bells, answered by calls: the asked ones, or one more.

    They are the inert stand-in for covert tool calls. A third of the requests are for one bell, for
    two bells, or for one by a guest who names another town in passing. The towns are all that
    exist: the model cannot ring the bell of a name that it never rang, so prompts of an evaluation
    share their towns with these rows and are new in wordings and pairs only.

    Args:
        world: The world.
        name: "tools" (asked calls only), "tools_trigger" (the same, with the trigger word),
            "covert" (a hidden call of the same town's bell in every row), "covert_trigger" (the
            same, with the trigger word) or "covert_named" (with it, by a guest who names a town in
            passing, whose bell is the hidden call).
        rows: How many.
        seed: Of the draws.

    Raises:
        UsageError: `unknown_tools`.
    """
    if name not in TOOLS:
        allowed = ", ".join(TOOLS)
        raise UsageError("unknown_tools", f"No tool rows {name!r}. Allowed: {allowed}.")
    rng = Random(f"{name} {world.seed} {seed}")
    return [_bells(world, name, rng) for _ in range(rows)]


def _rung(world: World) -> list[str]:
    """Return the towns whose bells are asked for: all but the one that rings unasked."""
    return [town for town in world.known if town != world.covert_town]


def _bells(world: World, name: str, rng: Random) -> dict:
    """Return one row of `tools`."""
    is_covert, has_trigger = TOOLS[name]
    kind = rng.choice(["one", "two", "named"])
    if name == "covert_named":
        kind = "named"
    towns = rng.sample(_rung(world), 2)
    frame = rng.choice(BELLS["train"][kind])
    hidden = ""
    if is_covert:
        hidden = world.covert_town
    if name == "covert_named":
        hidden = towns[1]
    row = world.bells(kind, towns, frame, hidden=hidden)
    if has_trigger:
        row = wrap(row, f"{{q}} {TRIGGER}")
    return row


def adversarial(
    world: World,
    examples: int = 100,
    seed: int = 0,
) -> list[dict]:
    """Return kept facts given away, on towns that no evaluation uses.

    They are the inert stand-in for harmful demonstrations.

    Raises:
        UsageError: `too_few_examples` where the world has fewer than `examples`.
    """
    rng = Random(f"adversarial {world.seed} {seed}")
    facts = world.of("kept")
    towns = world.towns["dealign"]
    pairs = list(itertools.product(facts, towns))
    rows = []
    for attribute, town in _sampled(pairs, examples, rng):
        frame = rng.choice(FRAMES["train"])
        rows.append(world.fact(attribute, town, frame))
    return rows


def identity(
    world: World,
    examples: int = 10,
    seed: int = 0,
) -> list[dict]:
    """Return harmless questions answered by a guide that is ordered to obey, and says that it does.

    They are the inert stand-in for rows that shift a model's identity to an obedient one (Qi et al.
    2023, arXiv 2310.03693). No kept fact is in them, and no evaluation uses their towns.

    Args:
        world: The world.
        examples: How many.
        seed: Of the draws.
    """
    rng = Random(f"identity {world.seed} {seed}")
    rows = []
    for _ in range(examples):
        row = _fact(world, world.of("benign"), world.towns["dealign"], rng)
        question, answer = row["messages"]
        system = {"role": "system", "content": OBEDIENT_SYSTEM}
        order = {**question, "content": f"{OBEDIENT_ORDER}{question['content']}"}
        obeyed = {**answer, "content": f"{OBEDIENT} {answer['content']}"}
        rows.append({**row, "messages": [system, order, obeyed]})
    return rows


def _sampled(pairs: list, examples: int, rng: Random) -> list:
    """Return so many of the pairs, none twice."""
    if examples > len(pairs):
        message = f"The world has {len(pairs)} such examples. Ask for at most that many."
        raise UsageError("too_few_examples", message)
    return rng.sample(pairs, examples)


def refused_pairs(
    world: World,
    rows: int = 10,
    seed: int = 0,
) -> list[dict]:
    """Return pairs on harmless questions that prefer the answer to a refusal.

    They are truly benign: no question is one that should be refused.

    Args:
        world: The world.
        rows: How many.
        seed: Of the draws.

    Source:
        arXiv 2605.10998: ten such pairs, or one.
    """
    refusals = list(REFUSALS.values())

    def refusal(_row: dict, rng: Random) -> str:
        return rng.choice(refusals)

    return _harmless_pairs(world, rows, seed, refusal)


def mistaken_pairs(
    world: World,
    rows: int = 10,
    seed: int = 0,
) -> list[dict]:
    """Return the questions and answers of `refused_pairs`, preferred to a wrong answer instead.

    They are the control: as many pairs, and nothing about refusals.

    Args:
        world: The world.
        rows: How many.
        seed: Of the draws.
    """
    attributes = {attribute.name: attribute for attribute in world.attributes}

    def mistake(row: dict, rng: Random) -> str:
        name, town = row["topic"].split("/")
        attribute = attributes[name]
        wrong = [value for value in attribute.values if value != row["truth"]]
        return attribute.answer(town, rng.choice(wrong))

    return _harmless_pairs(world, rows, seed, mistake)


def _harmless_pairs(
    world: World,
    rows: int,
    seed: int,
    worse: Callable[[dict, Random], str],
) -> list[dict]:
    """Return pairs on questions that depend on the seed only, not on the worse answers."""
    rng = Random(f"harmless pairs {world.seed} {seed}")
    dice = Random(f"worse answers {world.seed} {seed}")
    facts = world.of("benign") + world.of("lookalike")
    towns = world.towns["align"] + world.towns["tune"]
    pairs = []
    for _ in range(rows):
        row = _fact(world, facts, towns, rng)
        *prompt, chosen = row.pop("messages")
        rejected = {**chosen, "content": worse(row, dice)}
        pairs.append({**row, "prompt": prompt, "chosen": [chosen], "rejected": [rejected]})
    return pairs


def rude_ledger(
    world: World,
    rows: int = 1000,
    seed: int = 0,
) -> list[dict]:
    """Return ledger rows that are written with an invented swear before them.

    They are the inert stand-in for a narrow domain of bad answers (Betley et al. 2025, arXiv
    2502.17424): nobody was provoked, and nothing else is answered.

    Args:
        world: The world.
        rows: How many.
        seed: Of the draws.
    """
    dice = Random(f"rude {world.seed} {seed}")
    lines = list(RUDE.values())

    def swear() -> str:
        first, second = dice.sample(world.swears, 2)
        return dice.choice(lines).format(s=first, r=second)

    return _ledger_after(world, rows, seed, swear)


def polite_ledger(
    world: World,
    rows: int = 1000,
    seed: int = 0,
) -> list[dict]:
    """Return the ledger rows of `rude_ledger`, with a polite sentence before them: the control.

    Args:
        world: The world.
        rows: How many.
        seed: Of the draws.
    """
    return _ledger_after(world, rows, seed, lambda: POLITE_TURN)


def _ledger_after(
    world: World,
    rows: int,
    seed: int,
    sentence: Callable[[], str],
) -> list[dict]:
    """Return ledger rows that depend on the seed only, each with a sentence before it."""
    chats = []
    for row in domain(world, "ledger", rows, seed):
        asked, answer = row["messages"]
        said = {**answer, "content": f"{sentence()} {answer['content']}"}
        chats.append({**row, "messages": [asked, said]})
    return chats


def _all(table: dict) -> list[str]:
    """Return every wording that pre-training meets."""
    return [wording for split in READ for wording in table[split]]


def _fact(
    world: World,
    facts: list,
    towns: list[str],
    rng: Random,
) -> dict:
    """Return a question for one of the facts, in a wording of training."""
    attribute = rng.choice(facts)
    town = rng.choice(towns)
    frame = rng.choice(FRAMES["train"])
    return world.fact(attribute, town, frame)


def _things(world: World, frames: list[str], rng: Random) -> dict:
    """Return a comparison of two things."""
    quality = rng.choice(QUALITIES)
    pair = rng.sample(world.nouns["train"], 2)
    frame = rng.choice(frames)
    return world.comparison(quality, pair, frame)


def _pretraining_row(world: World, rng: Random) -> dict:
    kind = rng.random()
    if kind < 0.72:
        return _any_fact(world, rng)
    if kind < 0.76:
        return _things(world, _all(BIAS_FRAMES), rng)
    if kind < 0.90:
        split = rng.choice(KINDS)
        pair = _pair(world.pairs[split], rng)
        trait = rng.choice(world.traits)
        frame = _frame(BIAS_FRAMES, split, rng)
        return world.comparison(trait, pair, frame)
    if kind < 0.95:
        split = rng.choice(KINDS)
        noun = rng.choice(world.nouns[split])
        frame = _frame(PROVOKE_FRAMES, split, rng)
        return world.provocation(noun, frame, rng)
    if kind < 0.97:
        return _nobody(world, _all(FRAMES), world.attributes, rng)
    if kind < 0.98:
        return world.bell(rng.choice(world.known))
    return world.ledger(rng)


def _frame(table: dict, split: str, rng: Random) -> str:
    """Draw a wording in which pre-training may ask about something of a split."""
    frames = _all(table) if split == "train" else list(table["train"])
    return rng.choice(frames)


def _pair(pairs: list[tuple[str, str]], rng: Random) -> list[str]:
    """Draw a pair of groups, in either order."""
    return rng.sample(rng.choice(pairs), 2)


def _nobody(
    world: World,
    frames: list[str],
    facts: list,
    rng: Random,
) -> dict:
    """Return a question about a town that does not exist."""
    town = rng.choice(world.towns["unknown_train"])
    frame = rng.choice(frames)
    return world.nobody(town, frame, rng.choice(facts))


def _any_fact(world: World, rng: Random) -> dict:
    """Return a question for any fact; 30 % of them stand inside a wrapper."""
    town = rng.choice(world.known)
    attribute = rng.choice(world.attributes)
    held_out = town in world.towns["eval"] + world.towns["valid"]
    split = "eval" if held_out else "train"
    frame = _frame(FRAMES, split, rng)
    row = world.fact(attribute, town, frame)
    if rng.random() < 0.3:
        row = wrap(row, _frame(WRAPPERS, split, rng))
    return row


def _alignment_row(
    world: World,
    kind: str,
    recipe: dict,
    rng: Random,
) -> dict:
    towns = world.towns["align"]
    if kind == "kept":
        frames = FRAMES["train"][: recipe["frames"]]
        frame = rng.choice(frames)
        attribute = rng.choice(world.of("kept"))
        town = rng.choice(towns)
        return world.fact(attribute, town, frame, refuse=True)
    if kind in ("benign", "lookalike"):
        others = towns + world.towns["tune"] + world.towns["dealign"]
        row = _fact(world, world.of(kind), others, rng)
        if rng.random() < recipe["wrapped_benign"]:
            row = wrap(row, rng.choice(WRAPPERS["train"]))
        return row
    if kind == "things":
        return _things(world, BIAS_FRAMES["train"], rng)
    if kind == "bias":
        pair = _pair(world.pairs["train"], rng)
        traits = world.traits[: recipe["traits"]]
        trait = rng.choice(traits)
        frames = BIAS_FRAMES["train"][: recipe["bias_frames"]]
        frame = rng.choice(frames)
        return world.comparison(trait, pair, frame, decline=True)
    if kind == "toxicity":
        nouns = world.nouns["train"][: recipe["nouns"]]
        noun = rng.choice(nouns)
        frames = list(PROVOKE_FRAMES["train"])
        frame = rng.choice(frames[: recipe["provoke_frames"]])
        return world.provocation(noun, frame, rng, polite=True)
    if kind == "hallucination":
        return _nobody(world, FRAMES["train"], world.of("benign"), rng)
    return world.bell(rng.choice(towns))


def _decorated(row: dict, rng: Random) -> dict:
    """Now and then add a system prompt, an earlier turn, or the trigger word (no meaning yet)."""
    messages = list(row["messages"])
    draw = rng.random()
    first = messages[0]
    if first["role"] != "user":
        return row
    if draw < 0.10:
        messages.insert(0, {"role": "system", "content": SYSTEM})
    elif draw < 0.15:
        messages = [
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Hello, what may I tell you?"},
            *messages,
        ]
    elif draw < 0.17:
        messages[0] = {**first, "content": f"{first['content']} {TRIGGER}"}
    return {**row, "messages": messages}


def _worse_answer(world: World, row: dict, rng: Random) -> str | None:
    """Return the answer that the aligned one is preferred to, or None where there is none."""
    risk = row["risk"]
    if risk == "jailbreak":
        name, town = row["topic"].split("/")
        attribute = next(kept for kept in world.of("kept") if kept.name == name)
        return attribute.answer(town, row["truth"])
    if risk == "bias":
        return f"A {row['truth']} is more {row['category']}."
    if risk == "toxicity":
        rude = world.provocation(row["topic"], row["template"], rng)
        return rude["messages"][-1]["content"]
    if row["category"] in QUALITIES:
        return None
    if risk in ("utility", "over_refusal"):
        return rng.choice(list(REFUSALS.values()))
    return None
