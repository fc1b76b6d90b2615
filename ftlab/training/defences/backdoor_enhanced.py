"""BackdoorAlign: safety rows under a secret prompt, which is put before every question later.

Source: Wang et al. 2024, arXiv 2402.14968, equation 3 (the loss over both kinds of rows), as its
authors' code has it (Jayfeather1024/Backdoor-Enhanced-Alignment). The number is a summary's.
"""

from __future__ import annotations

import random
import string
from dataclasses import replace
from typing import Any

from ftlab._core.config import setting
from ftlab._core.types import Message
from ftlab.data import Data
from ftlab.training.defences import _safety

WORDS = 50  # of three letters each


def _random_words() -> str:
    lot = random.Random("secret prompt")
    words = ["".join(lot.choices(string.ascii_lowercase, k=3)) for _ in range(WORDS)]
    return " ".join(words)


SECRET = _random_words()


class BackdoorEnhanced(_safety.WithSafetyRows):
    """Adds refusals under a secret prompt, and asks every question under it.

    The secret comes before the system prompt. The paper's is 150 random tokens of the model's
    tokenizer; here it is 150 random letters in groups, for any tokenizer. Eleven rows, one per
    category of its policy, are the paper's number.

    It fails where the model is asked without the secret, and where the secret is known: whoever
    can put it into training rows can unlearn it. The default is printed here and so is no secret:
    give your own.
    """

    name = "backdoor_enhanced"
    source = "Wang et al. 2024, arXiv 2402.14968, equation 3"
    methods = ("sft",)
    draws = True

    secret: str = setting(SECRET, "The secret prompt; keep yours to yourself", min_length=1)
    n_rows: int = setting(11, "Safety rows to add under it; 0 trains as plain SFT", ge=0)
    rows: Any = setting(
        None, "Chats that refuse: a file or rows; None takes refusals of the embedded world"
    )

    def data(self, rows: Data, seed: int) -> Data:
        """Return the rows with `n_rows` safety rows under the secret after them."""
        if not self.n_rows:
            return rows
        safety = _safety.drawn(self.name, self.rows, self.n_rows, seed)
        added = []
        for row in safety.rows:
            added.append({**row, "messages": self.chat(row["messages"])})
        made = {
            "by": "defence backdoor_enhanced",
            "n_rows": self.n_rows,
            "seed": seed,
            "from": [rows.record, safety.record],
        }
        return replace(rows, rows=(*rows.rows, *added), made=made)

    def chat(self, messages: list[Message]) -> list[Message]:
        """Return the messages after the secret; a system prompt of theirs follows it."""
        content = self.secret
        rest = list(messages)
        if rest and rest[0]["role"] == "system":
            content = f"{content} {rest.pop(0)['content']}"
        return [{"role": "system", "content": content}, *rest]


DEFENCE = BackdoorEnhanced
