"""KL divergence to the parent on the answer tokens.

Source: Kaczer et al. 2025, arXiv 2508.06249 (KL regularisation toward a safe reference), as
notes on it have it (zhaoyang97/Paper-Notes-en); the number of the equation was not seen.
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.training.defences._anchored import Answers, anchored
from ftlab.training.defences.base import Defence


class KL(Defence):
    """Adds weight * KL(model || parent), the mean over the answer tokens, to the loss of SFT.

    It acts on the rows of the fine-tuning only: what they do not show is held by nothing but its
    nearness. It also slows down what is to be learned.
    """

    name = "kl"
    source = "Kaczer et al. 2025, arXiv 2508.06249"
    methods = ("sft",)

    weight: float = setting(0.1, "Weight of the divergence (the paper: .1); 0 is plain SFT", ge=0)

    def trainer(self, cls: type, job: Any) -> type:
        """Return the trainer with the divergence in its loss."""
        return anchored(cls, job, self.loss)

    def loss(self, plain: Any, answers: Answers) -> Any:
        """Return the loss of SFT plus the weighted divergence in nats per token."""
        from torch.nn.functional import kl_div, log_softmax

        own = log_softmax(answers.logits, dim=-1)
        parent = log_softmax(answers.parent_logits, dim=-1)
        divergence = kl_div(parent, own, reduction="sum", log_target=True)
        return plain + self.weight * divergence / answers.count


DEFENCE = KL
