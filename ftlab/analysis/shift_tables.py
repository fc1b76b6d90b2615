"""Whether what separates a child from its parent has changed, risk by risk."""

from __future__ import annotations

import pandas as pd

from ftlab import stats
from ftlab._core.errors import UsageError
from ftlab.analysis import verdicts

Sides = tuple[pd.DataFrame, pd.DataFrame]  # verdicts on parent and child


def shifts(before: Sides, after: Sides) -> pd.DataFrame:
    """Compare each risk's difference of child and parent with what it was, always paired.

    Args:
        before: Verdict tables of parent and child; each seed of a child once. The parent may have
            answered once for all seeds.
        after: Those of the same models after both were changed, on the same prompts.

    Returns:
        One row per risk, in the order of the parent's: risk, shift (difference after less
        difference before) with shift_low and shift_high (95 %), p, n_prompts (scored in all four),
        n_seeds. By the first judge's verdicts.

    Raises:
        UsageError: As `compare`, and `tables_do_not_pair`.
    """
    tables = []
    for side in (*before, *after):
        prepared = verdicts.prepare(side)
        tables.append(verdicts.of_judge(prepared))
    rows = []
    for group, _ in verdicts.groups(tables[0], ["risk"]):
        chosen = [verdicts.select(table, **group) for table in tables]
        _check_pairs(chosen)
        events = []
        for own in chosen:
            cube, clusters = verdicts.cube_of(own.assign(step=0), [0])
            events.append(cube[:, 0])
        parent, child, parent_after, child_after = events
        found = stats.shift(
            (parent, child),
            (parent_after, child_after),
            cluster=clusters,
        )
        row = {
            "shift": found.shift,
            "shift_low": found.low,
            "shift_high": found.high,
            "p": found.p,
            "n_prompts": found.n_prompts,
            "n_seeds": found.n_seeds,
        }
        rows.append(group | row)
    return pd.DataFrame(rows)


def _check_pairs(tables: list[pd.DataFrame]) -> None:
    """Raise UsageError where a side has other prompts, or other seeds than it had before."""
    prompts = [set(table["item"]) for table in tables]
    parent, child, parent_after, child_after = [set(table["seed"]) for table in tables]
    same_seeds = parent == parent_after and child == child_after
    if not same_seeds or any(items != prompts[0] for items in prompts):
        raise UsageError(
            "tables_do_not_pair",
            "The four tables have other prompts or seeds. Give the same models' verdicts, before "
            "and after, on the same prompts.",
        )
