"""Earlier greedy answers as drafts: what a model said a few training steps ago it often says again.

A draft is read together with its prompt, in the same forward pass, which gives the most probable
token at every place. The draft holds up to the first place where that is another token, and the
answer goes on from there (speculative decoding, Leviathan et al. 2023, arXiv 2211.17192, with the
greedy rule). So drafts save steps where they are right and change no answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# Share of the drafted tokens that must hold; below it drafts cost more than they save.
WORTH = 1 / 3
REST = 2  # calls without drafts after one in which fewer held


@dataclass
class Drafts:
    """The latest greedy answer to each text, as tokens without the end of turn, or as text."""

    known: dict[str, list[int] | str] = field(default_factory=dict)
    resting: int = 0  # calls left without drafts

    def find(self, texts: list[str], tokenizer: Any) -> list[list[int]]:
        """Return the draft of each text; [] where there is none, or while drafts do not pay."""
        if self.resting:
            self.resting -= 1
            return [[] for _ in texts]
        drafts = []
        for text in texts:
            answer = self.known.get(text, [])
            if isinstance(answer, str):
                encoded = tokenizer(answer, add_special_tokens=False)
                answer = encoded["input_ids"]
            drafts.append(answer)
        return drafts

    def weigh(self, drafted: int, held: int) -> None:
        """Pause drafts for a few calls where too few tokens held."""
        if held < WORTH * drafted:
            self.resting = REST
