"""What defences share that train the parent once more before it is fine-tuned.

The defended parent is a run like any other: trained once, found again, continued where it was
interrupted. Every fine-tuning with the same defence starts from it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from ftlab._core.config import setting
from ftlab.data import Data, load, strip_answers
from ftlab.models import Model, local_model
from ftlab.models import model as open_model
from ftlab.training.config import TrainingConfig
from ftlab.training.defences import _safety
from ftlab.training.defences._anchored import targets_of
from ftlab.training.defences.base import Defence
from ftlab.training.methods.base import Job
from ftlab.training.methods.sft import SFT
from ftlab.training.trainer import short_name, train_run, trainable

OF_WORLD = 4000  # rows: those of the organism's own alignment, 250 steps of 16
TRAINED_BY = ("adapter", "epochs", "learning_rate", "batch_size", "seed")


class Alignment(Defence):
    """A defence that trains the parent on rows of its own, with a loss of its own.

    It begins with the parent itself, or with `base`, an unaligned model that it then aligns. One
    defended parent is shared by every training seed: intervals over those seeds do not hold what
    another `seed` of the alignment would change.
    """

    stage = "alignment"

    base: Any = setting(
        None, "Model to align instead of the parent, such as organism:base; None takes the parent"
    )
    adapter: Literal["lora"] | None = setting(
        None, "Adapter to align with (the papers: LoRA); None trains all weights"
    )
    epochs: float = setting(1.0, "Passes over the rows of the alignment (ours)", gt=0)
    learning_rate: float | None = setting(
        None, "Peak learning rate of the alignment, linear to 0; None: as in sft", gt=0
    )
    batch_size: int = setting(16, "Rows per optimiser step of the alignment (ours)", ge=1)
    seed: int = setting(0, "Seed of the alignment", ge=0, lt=2**32)

    def method(self) -> SFT:
        """Return how the parent is trained; SFT unless overridden."""
        return SFT()

    def alignment_rows(self) -> Data:
        """Return the rows that the parent is trained on."""
        raise NotImplementedError

    def prepare(self, parent: Model) -> Model:
        """Return the defended parent, trained now or found again."""
        start = parent
        if self.base is not None:
            start = trainable(self.base)
        values = {name: getattr(self, name) for name in TRAINED_BY}
        run = train_run(
            start,
            self.alignment_rows(),
            TrainingConfig.make(**values),
            method=self.method(),
            label=f"{short_name(start)}-{self.name}-s{self.seed}",
            identity={"defence": self.identity()},
        )
        return open_model(run)

    def identity(self) -> dict[str, Any]:
        """Return the identity; a base is in it by its hash, rows by what they hold."""
        found = super().identity()
        if self.base is not None:
            found["base"] = local_model(self.base).hash
        return found


class OtherLoss(SFT):
    """SFT on another trainer class, which the defence makes of TRL's.

    Args:
        changed: Returns the trainer class, given TRL's and the training.
    """

    def __init__(self, changed: Callable[[type, Job], type]):
        self.changed = changed
        self.job: Any = None

    def trl_class(self) -> tuple[type, type]:
        trainer, config = super().trl_class()
        return self.changed(trainer, self.job), config

    def trainer(self, job: Job) -> Any:
        self.job = job
        return super().trainer(job)


def alignment_chats(rows: Any, seed: int) -> Data:
    """Return the chats that were given, or alignment data of the embedded world."""
    if rows is not None:
        return strip_answers(load(rows))
    return load(_safety.WORLD, n_rows=OF_WORLD, seed=seed)


def token_loss(model: Any, inputs: dict[str, Any], count: Any = None) -> Any:
    """Return the loss of SFT on a batch without TRL's records of it.

    Args:
        model: The torch model.
        inputs: A batch of TRL's collator.
        count: Number of tokens that the sum is divided by; None for those of the batch.
    """
    from torch.nn.functional import cross_entropy

    asked = {**inputs, "use_cache": False}
    targets, _, kept = targets_of(asked.pop("labels"))
    logits = model(**asked).logits[:, :-1]
    found = cross_entropy(logits[kept].float(), targets, reduction="sum")
    if count is None:
        count = kept.sum()
    return found / count
