"""Functions of version 0.3 that became options; they go in the next release."""

from __future__ import annotations

from typing import Any

import pandas as pd

from ftlab.analysis.plots.bars import prepare
from ftlab.analysis.tables import first_step, rates


def by_seed(
    source: Any,
    *,
    by: Any = "risk",
    verdict: str | None = None,
) -> pd.DataFrame:
    """Call `rates(source, per_seed=True)`."""
    return rates(
        source,
        by=by,
        outcome=verdict,
        per_seed=True,
    )


def before_after(
    curve: Any,
    *,
    by: str = "attack",
    step: int = -1,
) -> pd.DataFrame:
    """Call `rates(curve, steps=[0, -1])`, which `plot(kind="bars")` draws."""
    found = rates(curve, by=by, steps=[0, step])
    return prepare(found)


def crossing(
    curve: Any,
    *,
    ratio: float = 1.5,
    by: Any = "risk",
) -> pd.DataFrame:
    """Call `first_step(curve, "ratio >= 1.5")`."""
    return first_step(curve, f"ratio >= {ratio}", by=by)


def no_refusal(
    curve: Any,
    *,
    by: Any = "attack",
    risk: str = "jailbreak",
) -> pd.DataFrame:
    """Call `first_step(curve, "no refusal")`."""
    return first_step(
        curve,
        "no refusal",
        by=by,
        risk=risk,
    )
