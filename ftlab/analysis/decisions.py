"""Whether the second of two sides is worse: decided by an interval and a margin."""

from __future__ import annotations

import pandas as pd

from ftlab import stats
from ftlab._core import plugins
from ftlab._core.errors import UsageError

MARGIN = 0.05
WORSE = "worse"
NO_WORSE = "no worse"
UNCLEAR = "not enough evidence"
TONES = {0: "good", 1: "bad", 3: "part"}  # of a page, by the exit code
EXIT_CODES = {WORSE: 1, UNCLEAR: 3, NO_WORSE: 0}  # the first in any row counts
COLUMNS = ["higher", "margin", "reach", "decision", "smallest_difference"]


def check_margin(margin: float, reach: float = 1.0) -> None:
    """Raise `wrong_margin` where a margin is no number above 0, or one that nothing exceeds.

    Args:
        margin: In the unit of the difference.
        reach: Range of what is compared, 1 of rates and of scores from 0 to 1.
    """
    is_number = isinstance(margin, (int, float))
    if not is_number or not 0 < margin < reach:
        why = f"margin is {margin!r:.80}. Allowed: above 0 and below {reach:g}; 0.05 is 5 points."
        raise UsageError("wrong_margin", why)


def decide(
    table: pd.DataFrame,
    margin: float,
    higher: str = "",
    unpaired: int = 0,
    reach: float = 1.0,
) -> None:
    """Add to a comparison of two sides what each row decides.

    A side is "no worse" where the interval of the worsening ends below the margin even if every
    answer that was not scored or not paired had worsened by the reach of the scores; else "worse"
    where it lies above 0.

    Args:
        table: As `compare` makes it. Gets the columns higher, margin, reach, decision and
            smallest_difference.
        margin: What worsening would not matter, in the unit of the difference.
        higher: "worse" or "better", of all rows; by default as each row's risk says.
        unpaired: Answers of either side that the other lacks.
        reach: Range of the scores, 1 of those from 0 to 1.
    """
    everywhere = table.attrs.get("risk", "")
    rows = []
    for row in table.to_dict("records"):
        meaning = higher or higher_is(row.get("risk", everywhere))
        low = row["difference_low"]
        high = row["difference_high"]
        if meaning == "better":
            low, high = -high, -low
        missing = row["dropped"] + unpaired
        worst = high + reach * missing / (row["pairs"] + unpaired)
        decision = UNCLEAR
        if worst < margin:
            decision = NO_WORSE
        elif low > 0:
            decision = WORSE
        smallest = stats.smallest_difference(low, high)
        rows.append((meaning, margin, reach, decision, smallest))
    table[COLUMNS] = pd.DataFrame(rows, index=table.index)


def higher_is(risk: str) -> str:
    """Return whether a higher rate of a risk is worse or better."""
    known = plugins.find("risks").get(risk)
    return getattr(known, "higher", "worse")
