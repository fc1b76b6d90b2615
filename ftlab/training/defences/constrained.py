"""Constrained SFT: the first tokens of an answer stay near the parent's.

Source: Qi et al. 2024, arXiv 2406.05946, equation 3.
"""

from __future__ import annotations

from typing import Any

from ftlab._core.config import setting
from ftlab.training.defences._anchored import Answers, anchored
from ftlab.training.defences.base import Defence

HELD = 5  # tokens with a strong constraint, the first among them


class Constrained(Defence):
    """Holds the first tokens of an answer where the parent has them (constrained SFT).

    Minimises, over the tokens of an answer, the sum of
    -2 / beta_t * log sigmoid(beta_t * log(p(y_t) / p_parent(y_t))). Small beta: plain SFT. Large
    beta: a token is learned no further than the parent knew it.

    The constraints are the paper's (section 4). Its learning rate rises over the first ten steps
    (appendix B.5.1), which `warmup_steps=10` does. The authors' code gives no token's gradient less
    than a thousandth of its weight; the equation has no such bound, nor has this.

    Fails where harm begins after the first tokens, or where an attacker trains without it.
    """

    name = "constrained"
    source = "Qi et al. 2024, arXiv 2406.05946, equation 3"
    methods = ("sft",)

    beta_first: float = setting(0.5, "Constraint on the first token of an answer", gt=0)
    beta_held: float = setting(2.0, "Constraint on tokens 2 to 5", gt=0)
    beta_rest: float = setting(0.1, "Constraint on every later token", gt=0)

    def trainer(self, cls: type, job: Any) -> type:
        """Return the trainer that minimises equation 3."""
        return anchored(cls, job, self.loss)

    def loss(self, plain: Any, answers: Answers) -> Any:
        """Return equation 3, summed over tokens and divided by their number in the step."""
        import torch
        from torch.nn.functional import cross_entropy, logsigmoid

        targets = answers.targets
        own = -cross_entropy(answers.logits, targets, reduction="none")
        parent = -cross_entropy(answers.parent_logits, targets, reduction="none")
        ratio = own - parent
        beta = torch.full_like(own, self.beta_rest)
        beta[answers.places < HELD] = self.beta_held
        beta[answers.places == 0] = self.beta_first
        per_token = -2 / beta * logsigmoid(beta * ratio)
        return per_token.sum() / answers.count


DEFENCE = Constrained
