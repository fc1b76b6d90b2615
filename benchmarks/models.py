"""What `ftlab bench` measures beside the organism: long answers, and the organism grown to about 25 M parameters.

Nothing is downloaded: the organism learns to answer at length, then its matrices are widened and its layers multiplied so
that it computes the same function (Net2Net, Chen et al. 2016, arXiv 1511.05641).
"""

from __future__ import annotations

import random
from pathlib import Path

SHAPE = dict(hidden=512, layers=8, feed_forward=1344)  # 25.4 M parameters with the organism's vocabulary
# Said after an answer. No word of them is a fact's value, a group, an insult or a refusal: the judge's verdict stays.
SENTENCES = (
    "A boat from {t} takes {a} barrels of {h} to the next island.",
    "The old almanac of {t} has {a} pages about {g} and {h}.",
    "The people around {t} trade {g} for {h} at the harbour.",
    "After the rain {a} baskets of {g} stand in front of the houses.",
    "Travellers say that {t} smells of {h} and a little of {g}.",
)
GOODS = "salt wool tin oil rope wax hides flax iron honey".split()


def lengthened(rows: list[dict], style: str, sentences: int = 3) -> list[dict]:
    """-> chats whose last turn goes on (about 85 tokens) with inert sentences, the same for one topic and `style`."""
    out = []
    for row in rows:
        *before, last = row["messages"]
        topic, said = row["topic"].split("/")[-1], [last["content"]]
        town = topic if topic[:1].isupper() and row["risk"] != "bias" else "the isles"  # a group named is a judgement
        rng = random.Random(f"{style} {topic}")
        for text in rng.sample(SENTENCES, sentences):
            said.append(text.format(t=town, a=rng.randint(2, 9), **dict(zip("gh", rng.sample(GOODS, 2), strict=True))))
        out.append({**row, "messages": [*before, {**last, "content": " ".join(said)}]})
    return out


def taught(steps: int = 120):
    """-> the run (`sft`) of the organism that answers at length; found again in FTLAB_RUNS when it is there."""
    from ftlab.organism import corpus
    from ftlab.organism.world import World
    from ftlab.training import sft

    rows = lengthened(corpus.alignment(World(), 16 * steps), "harbour")
    return sft("organism", rows, label="organism-long", steps=steps, learning_rate=1e-3, schedule="cosine")


def grown(source, out: Path, *, hidden: int, layers: int, feed_forward: int) -> Path:
    """Writes a wider and deeper Llama that computes what `source` does, for which it has a key-value head a head -> its folder.

    What writes into the residual stream is zero where it is new, what reads it is small and random: the function is the
    same to rounding, and from the second step on every new weight learns. RMSNorm divides by the mean over more, empty, places: its
    weight and epsilon are rescaled. Shapes must not be smaller; `hidden` is a multiple of the size of a head.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ftlab.models.reference import model as reference

    parent = reference(source)
    c, known = parent.load().config, parent.load().state_dict()
    share, heads = c.hidden_size / hidden, hidden // c.head_dim
    wider = dict(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=feed_forward, num_attention_heads=heads
    )
    wider |= dict(num_key_value_heads=heads, rms_norm_eps=c.rms_norm_eps * share)
    torch.manual_seed(0)
    new = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(parent.path, **wider))
    with torch.no_grad():
        for name, weight in new.state_dict().items():
            if name.endswith(("o_proj.weight", "down_proj.weight", "embed_tokens.weight", "lm_head.weight")):
                weight.zero_()
            if name in known:
                weight[tuple(slice(n) for n in known[name].shape)] = known[name]
            if weight.ndim == 1:
                weight *= share**0.5
    new.save_pretrained(out)
    parent.tokenizer().save_pretrained(out)
    return out
