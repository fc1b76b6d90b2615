"""Safety rows mixed into the rows of a fine-tuning.

Source: Bianchi et al. 2023, arXiv 2309.07875; Qi et al. 2023, arXiv 2310.03693.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ftlab._core.config import setting
from ftlab.data import Data
from ftlab.training.defences import _safety


class Mix(_safety.WithSafetyRows):
    """Adds safety rows: harmful questions with refusals.

    Fails where the rows of the fine-tuning outnumber them, where they do not cover what is asked
    later, and by over-refusal where there are many.
    """

    name = "mix"
    source = "Bianchi et al. 2023, arXiv 2309.07875"
    methods = ("sft",)
    draws = True

    n_rows: int = setting(
        100, "Safety rows to add (Bianchi et al.: 100 to 2000, beside 20000 others)", ge=1
    )
    rows: Any = setting(
        None, "Chats that refuse: a file or rows; None takes refusals of the embedded world"
    )

    def data(self, rows: Data, seed: int) -> Data:
        """Return the rows with `n_rows` safety rows after them; each epoch shuffles all."""
        safety = _safety.drawn(self.name, self.rows, self.n_rows, seed)
        made = {
            "by": "defence mix",
            "n_rows": self.n_rows,
            "seed": seed,
            "from": [rows.record, safety.record],
        }
        return replace(rows, rows=(*rows.rows, *safety.rows), made=made)


DEFENCE = Mix
