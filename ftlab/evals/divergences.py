"""How far a child's first words are from its parent's on harmless prompts. Cell: divergence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ftlab import stats
from ftlab._core.config import takes
from ftlab._core.errors import UsageError
from ftlab.data import load_prompts
from ftlab.evals.risks import open_risk
from ftlab.models import Model, local_model, released
from ftlab.models.engines import open_engine
from ftlab.organism import World
from ftlab.runs import Run
from ftlab.training import batches_of_one_length

if TYPE_CHECKING:
    import pandas as pd


@takes()
def divergence(
    parent: Any,
    children: Any,
    *,
    prompts: Any = None,
    n_prompts: int = 100,
    system: str | None = None,
) -> pd.DataFrame:
    """Measure the Kullback-Leibler divergence of children from their parent at the first token.

    Of every prompt the distributions of the answer's first token are compared, over the whole
    vocabulary: KL(parent || child), in nats.

    Args:
        parent: Anything that `ftlab.model` takes, except an endpoint.
        children: A model, a list of models, or models by name, each name an arm: a model, a curve,
            or a list with one model per training seed.
        prompts: Harmless prompts: a file or a list. On the embedded model: utility's.
        n_prompts: Prompts at most, the first of them.
        system: System prompt before every question.

    Returns:
        One row per child or name: model, kl (mean over prompts and seeds), low and high (95 %, for
        other prompts), same_top (share of prompts with the same most likely token), n_prompts,
        n_seeds, method.

    Raises:
        UsageError: `prompts_needed`, `vocabularies_differ`, and those of `ftlab.model`.

    Source:
        The axis of heretic (github.com/p-e-w/heretic, README): first-token divergence on harmless
        prompts.
    """
    import numpy as np
    import pandas as pd

    reference = local_model(parent)
    chats = _chats(reference, prompts, n_prompts)
    if system:
        chats = [[{"role": "system", "content": system}, *chat] for chat in chats]
    expected = _first_tokens(reference, chats)
    rows = []
    for name, models in _arms(children).items():
        distances = []
        same = []
        for model in models:
            found = _first_tokens(model, chats)
            if found.shape != expected.shape:
                raise UsageError(
                    "vocabularies_differ",
                    f"{model.name} has {found.shape[1]} tokens, {reference.name} "
                    f"{expected.shape[1]}. Give children of one parent.",
                )
            distances.append((np.exp(expected) * (expected - found)).sum(1))
            same.append(found.argmax(1) == expected.argmax(1))
        table = np.maximum(np.stack(distances), 0)  # rounding leaves a little below 0
        mean = stats.paired_scores(np.zeros_like(table), table)
        rows.append(
            {
                "model": name,
                "kl": mean.difference,
                "low": max(mean.difference_low, 0.0),
                "high": mean.difference_high,
                "same_top": np.stack(same).mean(),
                "n_prompts": len(chats),
                "n_seeds": len(models),
                "method": mean.method,
            }
        )
    return pd.DataFrame(rows)


def _arms(children: Any) -> dict[str, list[Model]]:
    """Return lists of models by name."""
    if isinstance(children, Mapping):
        named = dict(children)
    else:
        several = children if isinstance(children, (list, tuple)) else [children]
        opened = [local_model(child) for child in several]
        named = {child.name: child for child in opened}
    found = {}
    for name, models in named.items():
        if isinstance(models, Run):
            models = models.members
        several = models if isinstance(models, (list, tuple)) else [models]
        found[name] = [local_model(model) for model in several]
    return found


def _chats(reference: Model, prompts: Any, n_prompts: int) -> list[list[dict]]:
    if prompts is not None:
        samples = list(load_prompts(prompts))[:n_prompts]
    elif reference.is_organism:
        samples = open_risk("utility").organism(World(), n_prompts)
    else:
        raise UsageError(
            "prompts_needed",
            "Give prompts=FILE with harmless prompts. Only the embedded world has its own.",
        )
    return [list(sample.messages) for sample in samples]


def _first_tokens(reference: Model, chats: list[list[dict]]) -> Any:
    """Return the log-probabilities [prompts, vocabulary] of the first token of each answer."""
    import numpy as np
    import torch

    engine = open_engine("huggingface")
    with released():
        loaded = engine.open(reference)
        texts = [engine.render(loaded, chat)[0] for chat in chats]
        ids = loaded.tokenizer(texts, add_special_tokens=False)["input_ids"]
        found: dict[int, Any] = {}
        for batch in batches_of_one_length(ids):
            asked = torch.tensor([ids[number] for number in batch], device=loaded.module.device)
            with torch.inference_mode():
                logits = loaded.module(input_ids=asked, logits_to_keep=1).logits[:, -1]
            shares = logits.double().log_softmax(-1).cpu().numpy()
            found |= zip(batch, shares, strict=True)
        del loaded
    return np.stack([found[number] for number in range(len(ids))])
