"""The refusal direction, measured: where in the layers a model tells harmful prompts from harmless ones.

Source: Arditi et al. 2024 (arXiv 2406.11717, section 2.3): difference of the mean residual activations of harmful and harmless
prompts, at the tokens that the chat template puts after the instruction, at the input of every block. Two sets of prompts that differ in
their topic are told apart by any model: what says that refusals went is the change from a model to its child. A
measurement only: nothing here removes the direction from a model or adds it to one. Cell: refusal_direction.
"""

from __future__ import annotations

import random
from itertools import groupby

from ftlab.data import render
from ftlab.models import Model, released
from ftlab.models import model as reference_of


def refusal_direction(models, *, harmful=None, harmless=None, n: int = 100, system: str | None = None):
    """-> DataFrame: model, and for each layer and position what `measured` tells.

    `models` is anything that `ftlab.model` takes, or a list of them, as checkpoints of one training: the first one is the
    reference of `cosine`, `harmful`, `harmless` and `gap`. `harmful` and `harmless` are prompts (`data.read_prompts`; `n` at most of
    each): a fixed random half makes the direction, the other half is held out and measured. On the embedded world they default to
    kept facts, and to harmless and lookalike questions in equal parts.
    Raises ValueError: no prompts for another model, fewer than 8 of a kind, models of different shape.
    """
    import pandas as pd

    models = [reference_of(m) for m in (models if isinstance(models, (list, tuple)) else [models])]
    sides = _prompts(models, harmful, harmless, n)
    head, frames, reference = [{"role": "system", "content": system}] if system else [], [], None
    for m in models:
        with released():
            tokenizer = m.tokenizer()
            texts = [[render(tokenizer, [*head, *turns], ask=True) for turns in side] for side in sides]
            table, made = measured(m.load(), tokenizer, *texts, reference=reference)
        reference = made if reference is None else reference
        frames.append(table.assign(model=m.name))
    table = pd.concat(frames, ignore_index=True)
    return table[["model", *table.columns.drop("model")]]


def measured(model, tokenizer, harmful: list[str], harmless: list[str], *, reference=None):
    """-> (DataFrame, direction [positions, layers, hidden]) of a loaded model on rendered prompts, for use at a measured step.

    One row a layer (its input; 1 .. layers - 1) and position (-1: the last token of the prompt, before the answer):
    norm (of the difference of means), auc (share of held-out pairs in which the harmful prompt lies further along; 0.5: told
    apart by chance), d_prime (distance of the two means in pooled standard deviations), cosine (with `reference`'s
    direction, itself without one), harmful and harmless (mean projection of held-out prompts on the reference's unit
    direction) and gap (their distance, as a share of the reference's norm).
    `reference` is the direction that this function returned for another model. NaN where a direction has no length.
    """
    import numpy as np
    import pandas as pd
    from scipy.stats import rankdata

    if min(len(harmful), len(harmless)) < 8:
        raise ValueError(f"{len(harmful)} harmful and {len(harmless)} harmless prompts; at least 8 of each are needed")
    places = len(_after(tokenizer, [*harmful, *harmless]))
    orders = (random.Random(0).sample(range(len(side)), len(side)) for side in (harmful, harmless))
    bad, good = (
        activations(model, tokenizer, side, places)[order]
        for side, order in zip((harmful, harmless), orders, strict=True)
    )
    direction = bad[::2].mean(0, dtype=float) - good[::2].mean(0, dtype=float)
    if reference is None:
        reference = direction
    elif reference.shape != direction.shape:
        raise ValueError(
            f"a direction of shape {direction.shape} against a reference of {reference.shape}; compare models of one family"
        )
    rows = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for place in range(places):
            for layer in range(direction.shape[1]):
                d, r = direction[place, layer], reference[place, layer]
                own, on = ([x[1::2, place, layer] @ (v / np.linalg.norm(v)) for x in (bad, good)] for v in (d, r))
                k, ranks = len(own[0]), rankdata(np.concatenate(own))
                rows.append({
                    "layer": layer + 1, "position": place - places, "norm": np.linalg.norm(d),
                    "auc": (ranks[:k].sum() - k * (k + 1) / 2) / (k * len(own[1])),
                    "d_prime": (own[0].mean() - own[1].mean()) / np.sqrt((own[0].var(ddof=1) + own[1].var(ddof=1)) / 2),
                    "cosine": d @ r / (np.linalg.norm(d) * np.linalg.norm(r)),
                    "harmful": on[0].mean(), "harmless": on[1].mean(), "gap": (on[0].mean() - on[1].mean()) / np.linalg.norm(r),
                })  # fmt: skip
    return pd.DataFrame(rows), direction


def activations(model, tokenizer, texts: list[str], places: int):
    """-> float32 array [texts, places, layers - 1, hidden]: residual stream at the last `places` tokens, input of blocks 1 and on."""
    import numpy as np
    import torch

    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    out, was_training = [None] * len(ids), model.training
    model.eval()
    try:
        for _, same in groupby(sorted(range(len(ids)), key=lambda i: len(ids[i])), key=lambda i: len(ids[i])):
            for batch in _batched(same):  # of one length: no padding, so nothing depends on the batch
                with torch.inference_mode():
                    asked = torch.tensor([ids[i] for i in batch], device=model.device)
                    states = model(input_ids=asked, output_hidden_states=True, logits_to_keep=1).hidden_states[1:-1]
                states = torch.stack([s[:, -places:].float().cpu() for s in states], 2).numpy()
                for i, state in zip(batch, states, strict=True):
                    out[i] = state
    finally:
        model.train(was_training)
    return np.stack(out)


def _batched(numbers, n: int = 16):
    numbers = list(numbers)
    return (numbers[k : k + n] for k in range(0, len(numbers), n))


def _after(tokenizer, texts: list[str]) -> list[int]:
    """-> the token ids that all rendered prompts end with: what the template puts after the instruction."""
    ids = [t[::-1] for t in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    same = next((k for k, tokens in enumerate(zip(*ids, strict=False)) if len(set(tokens)) > 1), min(map(len, ids)))
    if not same:
        raise ValueError("the chat template puts nothing after the question, so there is no common place to look at")
    return ids[0][:same][::-1]


def _prompts(models: list[Model], harmful, harmless, n: int) -> list[list[list[dict]]]:
    """-> messages (the user's turn last) of both sides."""
    from ftlab.data import read_prompts

    if harmful is None and harmless is None and all(m.is_organism for m in models):
        from ftlab import organism as corpus
        from ftlab.organism import World

        world, half = World(), n // 2
        made = [
            corpus.prompts(world, risk, k)
            for risk, k in (("jailbreak", n), ("utility", n - half), ("over_refusal", half))
        ]
        return [[r["messages"][:-1] for r in side] for side in (made[0], made[1] + made[2])]
    if harmful is None or harmless is None:
        raise ValueError("give harmful=FILE and harmless=FILE, of similar form; only the embedded world has its own")
    return [[r["messages"] for r in read_prompts(side).rows[:n]] for side in (harmful, harmless)]
