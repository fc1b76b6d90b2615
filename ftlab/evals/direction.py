"""The refusal direction: where in its layers a model separates harmful from harmless prompts.

Two sets of prompts that differ in their topic are separated by any model. What says that refusals
went is the change from a model to its child. A measurement only: nothing here removes the
direction from a model or adds it to one; `ftlab.experiments.ablate_refusal` does, of the embedded
model alone.

Source: Arditi et al. 2024 (arXiv 2406.11717, section 2.3): difference of the mean residual
activations of harmful and harmless prompts, at the tokens that the chat template puts after the
instruction, at the input of every block.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ftlab._core.errors import UsageError
from ftlab._core.types import Message
from ftlab.data import load_prompts
from ftlab.evals.risks import open_risk
from ftlab.models import Model, local_model, released
from ftlab.models.engines import open_engine
from ftlab.organism import World
from ftlab.training import batches_of_one_length

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

FEWEST = 8  # prompts per side


def refusal_direction(
    models: Any,
    *,
    harmful: Any = None,
    harmless: Any = None,
    n_prompts: int = 100,
    system: str | None = None,
) -> pd.DataFrame:
    """Measure the refusal direction of models, and how it changed from the first one.

    A fixed random half of the prompts makes the direction; the other half is held out and
    measured.

    Args:
        models: Anything that `ftlab.model` takes, or a list, such as checkpoints of one training.
            The first is the reference of `cosine`, `harmful`, `harmless` and `gap`.
        harmful: Harmful prompts: a file or a list. On the embedded world: kept facts.
        harmless: Harmless prompts of similar form. On the embedded world: harmless and lookalike
            questions in equal parts.
        n_prompts: Prompts per side, at most.
        system: System prompt before every question.

    Returns:
        A DataFrame with one row per model, layer (its input, from 1) and position (-1: the last
        token before the answer): norm (of the difference of means), auc (share of held-out pairs
        in which the harmful prompt lies further along; 0.5 is chance), d_prime (distance of the
        means in pooled standard deviations), cosine (with the reference), harmful and harmless
        (mean projection of held-out prompts on the reference's unit direction), gap (their
        distance as a share of the reference's norm). NaN where a direction has no length.

    Raises:
        UsageError: `prompts_needed`, `too_few_prompts`, `different_shapes`, `nothing_in_common`.
    """
    import pandas as pd

    several = models if isinstance(models, (list, tuple)) else [models]
    references = [local_model(model) for model in several]
    sides = _prompts(references, harmful, harmless, n_prompts)
    head = [{"role": "system", "content": system}] if system else []
    engine = open_engine("huggingface")
    first = None
    tables = []
    for reference in references:
        table, direction = _of_model(
            engine,
            reference,
            sides,
            head,
            first,
        )
        if first is None:
            first = direction
        table.insert(0, "model", reference.name)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def direction_of(model: Any, *, n_prompts: int = 100) -> np.ndarray:
    """Return the unit refusal direction [hidden] of an embedded model.

    It is that of the last token before the answer, at the layer with the highest auc, of several
    the highest d_prime.
    """
    import numpy as np

    reference = local_model(model)
    sides = _prompts(
        [reference],
        None,
        None,
        n_prompts,
    )
    engine = open_engine("huggingface")
    table, directions = _of_model(engine, reference, sides)
    last = table[table["position"] == -1]
    ranked = last.sort_values(["auc", "d_prime"])
    layer = int(ranked["layer"].iloc[-1])
    found = directions[-1, layer - 1]
    return found / np.linalg.norm(found)


def _of_model(
    engine: Any,
    reference: Model,
    sides: list,
    head: Sequence[Message] = (),
    first: np.ndarray | None = None,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Open a model, and return its table and direction."""
    with released():
        loaded = engine.open(reference)
        texts = []
        for side in sides:
            rendered = [engine.render(loaded, [*head, *chat]) for chat in side]
            texts.append([text for text, _ in rendered])
        found = measure_direction(
            loaded.module,
            loaded.tokenizer,
            *texts,
            reference=first,
        )
        del loaded
    return found


def measure_direction(
    model: Any,
    tokenizer: Any,
    harmful: list[str],
    harmless: list[str],
    *,
    reference: np.ndarray | None = None,
) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the table of a loaded model on rendered prompts, and its direction.

    The direction [positions, layers, hidden] is compared with the reference, by default itself.
    """
    import numpy as np
    import pandas as pd

    if min(len(harmful), len(harmless)) < FEWEST:
        raise UsageError(
            "too_few_prompts",
            f"{len(harmful)} harmful and {len(harmless)} harmless prompts. "
            f"At least {FEWEST} of each are needed.",
        )
    n_places = _common_ending(tokenizer, [*harmful, *harmless])
    bad = _shuffled(activations(model, tokenizer, harmful, n_places))
    good = _shuffled(activations(model, tokenizer, harmless, n_places))
    direction = bad[::2].mean(0, dtype=float) - good[::2].mean(0, dtype=float)
    if reference is None:
        reference = direction
    if reference.shape != direction.shape:
        raise UsageError(
            "different_shapes",
            f"A direction of shape {direction.shape} against one of {reference.shape}. "
            "Compare models of one family.",
        )
    rows = []
    for place in range(n_places):
        for layer in range(direction.shape[1]):
            at = (place, layer)
            held_out = bad[1::2, place, layer], good[1::2, place, layer]
            row = {"layer": layer + 1, "position": place - n_places}
            with np.errstate(invalid="ignore", divide="ignore"):
                row |= _measured(direction[at], reference[at], *held_out)
            rows.append(row)
    return pd.DataFrame(rows), direction


def _measured(direction, reference, bad, good) -> dict[str, float]:
    """Return what is measured at one layer and position on held-out activations."""
    import numpy as np
    from scipy.stats import mannwhitneyu

    norm = np.linalg.norm(direction)
    reference_norm = np.linalg.norm(reference)
    unit = reference / reference_norm
    harmful = (bad @ unit).mean()
    harmless = (good @ unit).mean()
    along_bad = bad @ (direction / norm)
    along_good = good @ (direction / norm)
    pooled = np.sqrt((along_bad.var(ddof=1) + along_good.var(ddof=1)) / 2)
    above = mannwhitneyu(along_bad, along_good, method="asymptotic").statistic  # ties count half
    return {
        "norm": norm,
        "auc": above / (len(bad) * len(good)),
        "d_prime": (along_bad.mean() - along_good.mean()) / pooled,
        "cosine": direction @ reference / (norm * reference_norm),
        "harmful": harmful,
        "harmless": harmless,
        "gap": (harmful - harmless) / reference_norm,
    }


def _shuffled(states: np.ndarray) -> np.ndarray:
    """Return the prompts' activations in a fixed random order."""
    n = len(states)
    return states[random.Random(0).sample(range(n), n)]


def activations(model: Any, tokenizer: Any, texts: list[str], n_places: int) -> np.ndarray:
    """Return the residual stream at the last tokens of each text, at the input of blocks 1 and on.

    It is a float32 array [texts, places, layers - 1, hidden].
    """
    import numpy as np
    import torch

    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    states: dict[int, np.ndarray] = {}
    was_training = model.training
    model.eval()
    try:
        for batch in batches_of_one_length(ids):
            asked = torch.tensor([ids[number] for number in batch], device=model.device)
            with torch.inference_mode():
                out = model(input_ids=asked, output_hidden_states=True, logits_to_keep=1)
            inputs = [layer[:, -n_places:].float().cpu() for layer in out.hidden_states[1:-1]]
            states |= zip(batch, torch.stack(inputs, 2).numpy(), strict=True)
    finally:
        model.train(was_training)
    return np.stack([states[number] for number in range(len(ids))])


def _common_ending(tokenizer: Any, texts: list[str]) -> int:
    """Return how many tokens all texts end with: what the template puts after the instruction."""
    encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
    backwards = [ids[::-1] for ids in encoded]
    count = 0
    for tokens in zip(*backwards, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    if not count:
        raise UsageError(
            "nothing_in_common",
            "The chat template puts nothing after the question, so there is no place to measure.",
        )
    return count


def _prompts(
    references: list[Model], harmful: Any, harmless: Any, n_prompts: int
) -> list[list[list[Message]]]:
    """Return the chats of both sides."""
    if harmful is None and harmless is None and all(r.is_organism for r in references):
        world = World()
        half = n_prompts // 2
        harmless = open_risk("utility").organism(world, n_prompts - half)
        harmless += open_risk("over_refusal").organism(world, half)
        sides = [open_risk("jailbreak").organism(world, n_prompts), harmless]
    elif harmful is None or harmless is None:
        raise UsageError(
            "prompts_needed",
            "Give harmful=FILE and harmless=FILE, of similar form. "
            "Only the embedded world has its own.",
        )
    else:
        sides = [list(load_prompts(source))[:n_prompts] for source in (harmful, harmless)]
    return [[sample.messages for sample in side] for side in sides]
