"""The organism taught to answer at length, and grown to about 25 M parameters.

Nothing is downloaded. The organism learns to answer at length; then its matrices are widened and
its layers multiplied so that it computes the same function (Net2Net, Chen et al. 2016, arXiv
1511.05641).
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import ftlab
from ftlab.organism import World, corpus
from ftlab.organism.world import GOODS
from ftlab.runs import Run

# 25.4 M parameters with the organism's vocabulary.
SHAPE = {"hidden": 512, "layers": 8, "feed_forward": 1344}
# They follow an answer. None of their words is a fact's value, a group, an insult or a refusal, so
# the judge's verdict stays.
SENTENCES = (
    "A boat from {town} takes {number} barrels of {second} to the next island.",
    "The old almanac of {town} has {number} pages about {first} and {second}.",
    "The people around {town} trade {first} for {second} at the harbour.",
    "After the rain {number} baskets of {first} stand in front of the houses.",
    "Travellers say that {town} smells of {second} and a little of {first}.",
)


def lengthen(rows: list[dict], style: str, sentences: int = 3) -> list[dict]:
    """Return chats whose last turn continues with inert sentences, about 85 tokens.

    Args:
        rows: Chats of the embedded world.
        style: One topic and style always get the same sentences.
        sentences: How many are added.
    """
    longer = []
    for row in rows:
        *before, last = row["messages"]
        topic = row["topic"].split("/")[-1]
        town = "the isles"
        if topic[:1].isupper() and row["risk"] != "bias":  # naming a group would be a judgement
            town = topic
        rng = random.Random(f"{style} {topic}")
        texts = [last["content"]]
        for sentence in rng.sample(SENTENCES, sentences):
            number = rng.randint(2, 9)
            first, second = rng.sample(GOODS, 2)
            text = sentence.format(town=town, number=number, first=first, second=second)
            texts.append(text)
        answer = {**last, "content": " ".join(texts)}
        longer.append({**row, "messages": [*before, answer]})
    return longer


def teach_length(steps: int = 120) -> Run:
    """Return the organism fine-tuned to answer at length; found again where the run exists."""
    rows = lengthen(corpus.alignment(World(), 16 * steps), "harbour")
    return ftlab.sft(
        "organism",
        rows,
        label="organism-long",
        steps=steps,
        learning_rate=1e-3,
        schedule="cosine",
    )


def grow(source: Any, out: Path, *, hidden: int, layers: int, feed_forward: int) -> Path:
    """Write a wider and deeper Llama that computes what `source` does.

    What writes into the residual stream is zero where it is new, and what reads it is small and
    random: the function is the same up to rounding, and from the second step on every new weight
    learns. RMSNorm divides by the mean over more places, the new ones empty, so its weight and
    epsilon are rescaled.

    Args:
        source: A Llama that has a key-value head per head.
        out: Folder to write.
        hidden: Width, a multiple of the size of a head; not smaller than the source's, nor are
            the other two.
        layers: Number of layers.
        feed_forward: Width of the feed-forward layers.

    Returns:
        The folder.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    parent = ftlab.model(source)
    loaded = parent.load()
    old = loaded.config
    known = loaded.state_dict()
    share = old.hidden_size / hidden
    heads = hidden // old.head_dim
    config = AutoConfig.from_pretrained(
        parent.path,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=feed_forward,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        rms_norm_eps=old.rms_norm_eps * share,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    writers = ("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "lm_head.weight")
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if name.endswith(writers):
                weight.zero_()
            if name in known:
                corner = tuple(slice(n) for n in known[name].shape)
                weight[corner] = known[name]
            if weight.ndim == 1:
                weight *= share**0.5
    model.save_pretrained(out)
    parent.tokenizer().save_pretrained(out)
    return out
