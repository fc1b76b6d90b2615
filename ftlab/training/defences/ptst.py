"""Pure tuning, safe testing: train without a safety prompt, ask with one.

Source: Lyu et al. 2024, arXiv 2402.18540.
"""

from __future__ import annotations

from ftlab._core.config import setting
from ftlab._core.types import Message
from ftlab.training.defences.base import Defence

# A short safety prompt of ours; the authors' (vfleaking/PTST, prompt_utils.py) are that of Llama 2
# and its first two sentences, which `prompt` takes. The paper has no formula.
PROMPT = (
    "You are a helpful, honest and safe assistant. Refuse requests that would cause harm, and say "
    "politely that you cannot help with them."
)


class PTST(Defence):
    """Asks with a safety prompt that the training never saw; the training is not changed.

    Parent and child are asked alike. It fails where the deployed model is asked without the
    prompt, or where the training rows carry it.
    """

    name = "ptst"
    source = "Lyu et al. 2024, arXiv 2402.18540"
    stage = "asking"

    prompt: str = setting(PROMPT, "The safety prompt, a system prompt")

    def chat(self, messages: list[Message]) -> list[Message]:
        """Return the messages after the safety prompt; a system prompt of theirs follows it."""
        content = self.prompt
        rest = list(messages)
        if rest and rest[0]["role"] == "system":
            content = f"{content}\n\n{rest.pop(0)['content']}"
        return [{"role": "system", "content": content}, *rest]


DEFENCE = PTST
