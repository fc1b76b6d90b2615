"""Whether the second of two sides is worse: decided by an interval and a margin."""

from __future__ import annotations

import numpy as np
import pandas as pd

from ftlab import stats
from ftlab._core import plugins
from ftlab._core.errors import UsageError

MARGIN = 0.05
WORSE = "worse"
NO_WORSE = "no worse"
UNCLEAR = "not enough evidence"


def check_margin(margin: float) -> None:
    """Raise `wrong_margin` where a margin is no number above 0."""
    if not isinstance(margin, (int, float)) or not 0 < margin < np.inf:
        why = f"margin is {margin!r:.80}. Allowed: a number above 0, such as {MARGIN}."
        raise UsageError("wrong_margin", why)


def decide(table: pd.DataFrame, margin: float, higher: str = "") -> None:
    """Add to a comparison of two sides what each row decides.

    A side is "no worse" where the interval of the worsening ends below the margin, else "worse"
    where it lies above 0.

    Args:
        table: As `compare` makes it. Gets the columns higher, margin, decision and
            smallest_difference.
        margin: What worsening would not matter, in the unit of the difference.
        higher: "worse" or "better", of all rows; by default as each row's risk says.
    """
    risks = table.get("risk", [table.attrs.get("risk", "")] * len(table))
    table["higher"] = [higher or _higher(risk) for risk in risks]
    better = table["higher"] == "better"
    low = table["difference_low"].where(~better, -table["difference_high"])
    high = table["difference_high"].where(~better, -table["difference_low"])
    table["margin"] = margin
    table["decision"] = np.select([high < margin, low > 0], [NO_WORSE, WORSE], UNCLEAR)
    table["smallest_difference"] = stats.smallest_difference(low, high)


def _higher(risk: str) -> str:
    """Return whether a higher rate of a risk is worse or better."""
    known = plugins.find("risks").get(risk)
    return getattr(known, "higher", "worse")
