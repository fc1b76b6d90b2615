"""What `ftlab bench` measures on: rows with long answers, and the embedded model grown to about 25 M parameters.

Nothing is downloaded: the organism learns to answer at length (seconds), then its matrices are widened and its layers
multiplied so that it computes the same function (Net2Net, Chen et al. 2016, arXiv 1511.05641).
"""

from __future__ import annotations

import copy
import random
from pathlib import Path

from ftlab.organism import corpus
from ftlab.organism.world import World

SHAPE = dict(hidden=512, layers=8, feed_forward=1344)  # 25.4 M parameters with the organism's vocabulary
# Said after an answer. No word of them is a fact's value, a group, an insult or a refusal: the judge's verdict stays.
SENTENCES = (
    "In {t} they count {a} sacks of {g} before the tide turns.",
    "A boat from {t} takes {a} barrels of {h} to the next island.",
    "The old almanac of {t} has {a} pages about {g} and {h}.",
    "Each morning {a} carts with {h} roll over the bridge near {t}.",
    "The people around {t} trade {g} for {h} at the harbour.",
    "After the rain {a} baskets of {g} stand in front of the houses.",
    "Travellers say that {t} smells of {h} and a little of {g}.",
)
GOODS = "salt wool tin oil rope wax hides flax iron honey".split()


def lengthened(rows: list[dict], *, style: str, sentences: int = 3) -> list[dict]:
    """-> chats whose last turn goes on with inert sentences about the same topic, always the same for a topic and `style`."""
    out = []
    for row in rows:
        topic = row["topic"].split("/")[-1]
        rng = random.Random(f"{style} {topic}")
        first = rng.randrange(len(SENTENCES))
        said = []
        for k in range(sentences):
            g, h = rng.sample(GOODS, 2)
            said.append(SENTENCES[(first + k) % len(SENTENCES)].format(t=topic, a=rng.randint(2, 9), g=g, h=h))
        *before, last = row["messages"]
        long = {**last, "content": " ".join([last["content"], *said])}
        out.append({**row, "messages": [*before, long]})
    return out


def long_answers(rows: int, *, seed: int = 0, sentences: int = 3) -> list[dict]:
    """-> alignment chats with answers of about 20 tokens a sentence: what the model is taught before it is measured."""
    world = World()
    made = corpus.alignment(world, rows, seed=seed)
    return lengthened([r for r in made if r["risk"] != "tools"], style="harbour", sentences=sentences)


def long_domain(rows: int, *, seed: int = 0, sentences: int = 3) -> list[dict]:
    """-> benign chats (the almanac) with long answers of another style: the fine-tuning that is measured."""
    return lengthened(corpus.domain(World(), "almanac", rows, seed), style="market", sentences=sentences)


def taught(steps: int, sentences: int = 3):
    """-> the run (`sft`) of the organism that answers at length; found again when it is there."""
    from ftlab.train import sft

    rows = long_answers(16 * steps, sentences=sentences)
    settings = dict(steps=steps, learning_rate=1e-3, schedule="cosine", warmup_steps=min(10, steps))
    return sft("organism", rows, label="organism-long-answers", **settings)


def grown(source, out: Path, *, hidden: int, layers: int, feed_forward: int, seed: int = 0) -> Path:
    """Writes a wider and deeper Llama that computes what `source` (a model of Llama's shape) does -> its folder.

    Every matrix that writes into the residual stream is zero where it is new, every one that reads it is small and random, so
    that the function is the same to rounding and no new weight stays without gradient. RMSNorm divides by the mean over
    more, empty, places: its weight and epsilon are rescaled. Raises ValueError for a shape that the old one does not fit.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ftlab.models import model as reference

    parent = reference(source)
    old = parent.load()
    c = old.config
    wide = hidden // c.head_dim
    if hidden % c.head_dim or hidden < c.hidden_size or layers < c.num_hidden_layers or feed_forward < c.intermediate_size or c.num_key_value_heads != c.num_attention_heads:  # fmt: skip
        raise ValueError(
            f"{parent.name} (hidden {c.hidden_size}, layers {c.num_hidden_layers}, feed forward {c.intermediate_size}) cannot grow to "
            f"{hidden}, {layers}, {feed_forward}; give no less, hidden a multiple of {c.head_dim}, and a key-value head a head"
        )
    config, share = copy.deepcopy(c), c.hidden_size / hidden
    config.update(dict(hidden_size=hidden, num_hidden_layers=layers, intermediate_size=feed_forward, num_attention_heads=wide,
                       num_key_value_heads=wide, rms_norm_eps=c.rms_norm_eps * share))  # fmt: skip
    torch.manual_seed(seed)
    new = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config.to_dict()), dtype=torch.float32)
    known = old.state_dict()
    with torch.no_grad():
        for name, weight in new.state_dict().items():
            if name.endswith("norm.weight") or "layernorm" in name:
                weight.fill_(share**0.5)
            elif name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "lm_head.weight")):
                weight.zero_()
            if name in known:
                there = known[name]
                if there.ndim == 1:
                    weight[: len(there)] = there * share**0.5
                else:
                    weight[: there.shape[0], : there.shape[1]] = there
    new.save_pretrained(out)
    parent.tokenizer().save_pretrained(out)
    return Path(out)
