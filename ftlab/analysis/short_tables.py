"""Tables for people: percentages with their intervals, no NaN, a few columns."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from ftlab._core.errors import UsageError
from ftlab._core.shown import Shown, as_html

# Columns that tell rows apart, estimates with an interval, and what is shown behind them.
GROUPS = (
    *("set", "model", "refusal", "risk", "attack", "category", "examples"),
    *("judge", "definition", "step", "epoch"),
)
PERCENTAGES = (
    "rate",
    "parent",
    "child",
    "accuracy",
    "sensitivity",
    "specificity",
    "human_asr",
    "judge_asr",
    "share",
)
POINTS = ("difference", "erosion", "erosion_change", "bias", "refusals_lost", "explained")
PLAIN = ("ratio", "kappa")
INCOHERENT = ("incoherent_share", "incoherent_child")
MANY_INCOHERENT = 0.1  # a share from which the rate among the coherent ones stands beside
SHARES = ("reached", "refusal_rate_below", "coherent_rate", *INCOHERENT)
LAST = (
    *("reached", "refusal_rate_below", "p_holm", "erosion_p_holm"),
    *("n", "n_prompts", "n_seeds", "trainings"),
)
HEADINGS = {
    "parent": "before",
    "child": "after",
    "p_holm": "p (Holm)",
    "erosion_change": "change of erosion",
    "erosion_p_holm": "its p (Holm)",
    "n_prompts": "prompts",
    "n_seeds": "seeds",
    "refusal_rate_below": "refusals below",
    "refusals_lost": "refusals lost",
    "incoherent_share": "incoherent",
    "coherent_rate": "among coherent answers",
    "incoherent_child": "incoherent after",
    "cut": "truncated",
    "explained": "changes the rate by",
    "share": "of the distance",
}
OF_TWO_CURVES = {
    "parent": "first",
    "child": "second",
    "incoherent_child": "incoherent, second",
}  # neither comes before the other
EXACT = 1e-9  # how far rounding moves a share of 0 or 1


class Table(Shown):
    """A table of estimates, which Jupyter shows as its `summary`."""

    def _repr_html_(self) -> str:
        try:
            return summary(self)._repr_html_()
        except UsageError:  # no intervals
            shown = self.copy()
        for name in ("rate", "share"):
            if name in shown:
                shown[name] = [_last("reached", value) for value in shown[name]]
        return as_html(shown)


class Summary(Shown):
    """A table for reading; `raw` holds the numbers it was made from."""

    _metadata = ("_numbers",)

    @property
    def raw(self) -> pd.DataFrame:
        """The table that was summarised."""
        return pd.DataFrame(self._numbers)


def summary(table: pd.DataFrame) -> Summary:
    """Return a short table for reading: "58 % [48, 68]" instead of three columns.

    Args:
        table: A table of `rates`, `compare` or `first_step`, or of judges' agreement.

    Returns:
        Text in every cell that holds an estimate; "–" where there is none. A share just above 0 or
        below 1 is "< 1 %" or "> 99 %". The numbers of unscored and of truncated answers, the share
        of incoherent ones and the refusals lost, where they are not the difference. Its `raw` is
        the table.

    Raises:
        UsageError: `nothing_to_summarise` where the table has no estimate with an interval.
    """
    by = _groups_of(table)
    short = table[[name for name in dict.fromkeys([*by, *GROUPS]) if name in table]].copy()
    if "judge" in short and "judge" not in by and short["judge"].nunique() == 1:
        del short["judge"]
    if table.attrs.get("two_runs"):
        del short["step"]
    count = len(short.columns)
    headings = _headings_of(table)
    is_score = table.attrs.get("unit") == "score"  # of another tool, not between 0 and 1
    for name in (*PERCENTAGES, *PLAIN, *POINTS):
        ends = [f"{name}_low", f"{name}_high"]
        if name == "rate":
            ends = ["low", "high"]
        if name == "refusals_lost" and not _lost_apart(table):
            continue
        if name in table and ends[0] in table:
            values = table[[name, *ends]].itertuples(index=False)
            shown = PLAIN[0] if is_score else name
            short[headings.get(name, name)] = [_cell(shown, *value) for value in values]
    if len(short.columns) == count:
        if "reached" not in table:
            raise UsageError(
                "nothing_to_summarise",
                "Pass a table of rates(), compare(), first_step() or of judges' agreement.",
            )
        values = table[["step", "low", "high"]].itertuples(index=False)
        short["step"] = [_steps(*value) for value in values]
    _add_last(short, table, headings)
    found = Summary(short)
    found._numbers = table
    return found


def _add_last(short: pd.DataFrame, table: pd.DataFrame, headings: dict[str, str]) -> None:
    """Add the columns behind the estimates."""
    if "card_low" in table and table["card_low"].notna().any():
        ends = zip(table["card_low"], table["card_high"], strict=True)
        short["if the judge errs as on its card"] = [_range(*pair) for pair in ends]
    for name in _last_of(table):
        short[headings.get(name, name)] = [_last(name, value) for value in table[name]]
    if "decision" in table:
        unit = table["margin"].map(" (margin {:g})".format)
        short["decision"] = table["decision"] + unit + ", higher is " + table["higher"]


def _groups_of(table: Any) -> list[str]:
    if not isinstance(table, pd.DataFrame):
        raise UsageError("nothing_to_summarise", f"{table!r:.80} is no table.")
    return table.attrs.get("by", [])


def _headings_of(table: pd.DataFrame) -> dict[str, str]:
    if table.attrs.get("two_curves"):
        return HEADINGS | OF_TWO_CURVES
    return HEADINGS


def _lost_apart(table: pd.DataFrame) -> bool:
    """Return whether lost refusals became something else than the event, or than its opposite."""
    if "refusals_lost" not in table:
        return False
    lost = table["refusals_lost"].abs()
    rest = (lost - table["difference"].abs()).abs()
    return bool(((lost > EXACT) & (rest > EXACT)).any())


def _last_of(table: pd.DataFrame) -> list[str]:
    """Return the columns at the end; unscored, cut and incoherent answers only where some are."""
    names = [name for name in LAST if name in table]
    rare = [name for name in ("unscored", "cut", *INCOHERENT) if name in table]
    names += [name for name in rare if table[name].fillna(0).any()]
    if "coherent_rate" in table and (table["incoherent_share"] >= MANY_INCOHERENT).any():
        names.append("coherent_rate")
    return names


def _cell(name: str, value: float, low: float, high: float) -> str:
    """Return an estimate with its interval."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return f"≥ {low:.2f}"  # nothing to divide by: a lower bound
    if name in PLAIN:
        return f"{value:.2f} [{low:.2f}, {high:.2f}]".replace("inf", "no bound")
    if name in POINTS:
        return f"{100 * value:+.0f} points [{100 * low:+.0f}, {100 * high:+.0f}]"
    return f"{_percent(value)} % [{_percent(low)}, {_percent(high)}]"


def _range(low: float, high: float) -> str:
    """Return a range of shares that is no interval."""
    if math.isnan(low):
        return "–"
    return f"{_percent(low)} to {_percent(high)} %"


def _percent(share: float) -> str:
    """Return a share in whole per cent; 0 and 100 only where it is exactly that."""
    if EXACT < share < 0.005:
        return "< 1"
    if 0.995 <= share < 1 - EXACT:
        return "> 99"
    return f"{100 * share:.0f}"


def _steps(step: float, low: float, high: float) -> str:
    """Return a step with its interval; infinite: not within the steps measured."""
    if math.isinf(low):
        return "never"
    return f"{step:.3g} [{low:.3g}, {high:.3g}]".replace("inf", "never")


def _last(name: str, value: Any) -> str:
    if math.isnan(value):
        return "–"
    if name in SHARES:
        if 0.9995 <= value < 1 - EXACT:
            return "> 99.9 %"
        return f"{100 * value:.3g} %"
    if name.endswith("p_holm"):
        return f"{value:.3f}" if value >= 0.001 else "< 0.001"
    return f"{value:,.0f}"
