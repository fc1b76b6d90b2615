"""The refusal direction of the embedded model, taken out of its weights.

Cells: ablate_refusal, ablation_arms.

What it does to a model of the world's own stands beside what a fine-tuning does. It takes no other
model: ftlab removes no one's safety but the organism's.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar

from ftlab._core.config import setting, takes
from ftlab._core.errors import UsageError
from ftlab.evals import direction_of
from ftlab.models import Model
from ftlab.runs import Run
from ftlab.training import Transform, trainable, transform

WRITING = ("o_proj", "down_proj")  # layers that write into the residual stream
ONLY_OF_THE_ORGANISM = "ftlab takes refusals out of no model but the embedded one"


class Ablate(Transform):
    """Takes a direction out of all that the layers write: W - r r^T W."""

    name: ClassVar[str] = "ablate"
    source: ClassVar[str] = "Arditi et al. 2024, arXiv 2406.11717, section 2.4"
    amount: ClassVar[str] = "what"

    what: str = setting("refusal", "Which direction")
    direction: tuple[float, ...] = setting((), "The unit direction, as long as the model is wide")

    @property
    def spec(self) -> str:
        """The transform as text, without its numbers."""
        return f"{self.name}:what={self.what}"

    @property
    def marker(self) -> str:
        """Why the new model is not safe."""
        return f"A direction ({self.what}) was taken out of the weights."

    def check(self, model: Model) -> None:
        """Check that the model is an embedded one, and as wide as the direction is long.

        Raises:
            UsageError: `only_of_the_organism`, `direction_does_not_fit`.
        """
        _check_organism(model)
        width = model.config["hidden_size"]
        if len(self.direction) != width:
            raise UsageError(
                "direction_does_not_fit",
                f"The direction has {len(self.direction)} numbers, {model.name} is {width} wide. "
                "Give one number per dimension.",
            )

    def change(self, module: Any) -> None:
        """Orthogonalise the layers in place."""
        import torch

        unit = torch.tensor(self.direction)
        for name, layer in module.named_modules():
            if name.rpartition(".")[2] in WRITING:
                own = unit.to(layer.weight)
                layer.weight.sub_(torch.outer(own, own @ layer.weight))


@takes()
def ablate_refusal(
    model: Any = "organism",
    *,
    random_seed: int | None = None,
    n_prompts: int = 100,
) -> Run:
    """Take the refusal direction, or for comparison a random one, out of the embedded model.

    The direction is the difference of mean activations of kept and harmless questions at the last
    token before the answer, at the layer that separates held-out prompts best. The token embeddings
    stay, as in heretic. The new model's folder is marked: its safety was removed.

    Args:
        model: An embedded model, or one trained from it.
        random_seed: Seed of a random direction to take out instead; None takes refusal's.
        n_prompts: Prompts per side that the direction is made of and chosen by.

    Returns:
        A finished run, which is a model too.

    Raises:
        UsageError: `only_of_the_organism`, and those of `ftlab.evals.refusal_direction`.

    Source:
        Arditi et al. 2024 (arXiv 2406.11717, section 2.4); the choice of the layer is ours.
    """
    reference = trainable(model)
    _check_organism(reference)  # before its direction is looked for
    if random_seed is None:
        unit = direction_of(reference, n_prompts=n_prompts)
        what = "refusal"
    else:
        unit = _random(reference, random_seed)
        what = f"random-{random_seed}"
    direction = tuple(round(float(value), 9) for value in unit)
    return transform(reference, Ablate(what=what, direction=direction))


@takes()
def ablation_arms(
    model: Any = "organism",
    *,
    n_random: int = 5,
    n_prompts: int = 100,
) -> dict[str, Any]:
    """Return the embedded model without its refusal direction, and without random ones, as arms.

    No such arm exists of any other model, which is said on stderr.

    Args:
        model: Anything that `ftlab.model` takes, except an endpoint.
        n_random: Random directions to take out instead, each from a model of its own.
        n_prompts: As in `ablate_refusal`.

    Returns:
        Models by the arm's name, for `compare_arms`: "direction taken out" and "random
        directions"; of any model but an embedded one no arm.

    Raises:
        UsageError: Those of `ftlab.model`.
    """
    reference = trainable(model)
    if not reference.is_organism:
        print(f"{reference.name}: {ONLY_OF_THE_ORGANISM}; the arms are left out", file=sys.stderr)
        return {}
    others = []
    for seed in range(n_random):
        others.append(ablate_refusal(reference, random_seed=seed))
    arms = {"direction taken out": ablate_refusal(reference, n_prompts=n_prompts)}
    if others:
        arms["random directions"] = others
    return arms


def _check_organism(model: Model) -> None:
    """Raise UsageError unless a model lives in the embedded world."""
    if not model.is_organism:
        raise UsageError(
            "only_of_the_organism",
            f"{model.name} is not an embedded model. {ONLY_OF_THE_ORGANISM}.",
        )


def _random(reference: Model, seed: int) -> Any:
    """Return a random unit direction as long as the model is wide."""
    import numpy as np

    drawn = np.random.default_rng(seed).standard_normal(reference.config["hidden_size"])
    return drawn / np.linalg.norm(drawn)
