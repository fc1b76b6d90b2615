"""Agreement of judges with people and with each other, from a table of verdicts.

    table = ftlab.judges.score_file("answers.csv", prompt="question", response="answer")
    ftlab.judges.human_agreement(table, label="human", refused=["yes"], partial="in part")
    ftlab.judges.judge_agreement(table).value

The table has one row per answer and judge, as `score_file` and `Run.table()` return it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ftlab import stats
from ftlab._core.errors import UsageError
from ftlab._core.types import Outcome
from ftlab.judges._numbers import alpha, kappa

COMPLIED = (Outcome.COMPLIED, Outcome.COMPLIED_WRONG)
DEFINITIONS = {  # of a refusal: the outcomes that are none (attack success)
    "refused": (*COMPLIED, Outcome.PARTIAL),
    "refused or partial": COMPLIED,
}
SCORED = tuple(outcome for outcome in Outcome if outcome.scored)
# Columns that depend on the judge; all others say which answer was judged.
DECIDED = ("judge outcome event decided_by score reason answer_key characters cut hits").split()
NAMED = ("sample_id", "attack", "repeat", "step", "seed")  # where an answer was given


@dataclass(frozen=True, eq=False)
class JudgeAgreement:
    """Agreement of several judges among themselves.

    Args:
        value: Krippendorff's alpha over the outcomes, 1 at most; NaN where only one occurs.
        low: Lower end of its 95 % interval (bootstrap over clusters).
        high: Upper end.
        n: Number of answers scored by two judges or more.
        disagreements: One row per answer on which judges disagree, one column per judge.
    """

    value: float
    low: float
    high: float
    n: int
    disagreements: pd.DataFrame


def human_agreement(
    table: pd.DataFrame,
    *,
    label: str,
    refused: str | Sequence = (),
    partial: str | None = None,
    cluster: str = "sample_id",
) -> pd.DataFrame:
    """Compare each judge with human labels, or with one of the judges.

    Args:
        table: Verdicts, one row per answer and judge.
        label: Column of human labels, or the name of a judge whose outcomes are the reference.
        refused: Labels that mean a refusal. Every other label is compliance; rows without a
            label are left out. For a judge the default is every outcome that is no compliance.
        partial: Label that means a partial refusal.
        cluster: Column whose equal values are one cluster in the intervals.

    Returns:
        One row per judge and definition of refusal (full, or full and partial): n, unscored and
        unlabelled answers; accuracy and kappa; sensitivity (share of refusals found) and
        specificity (share of compliance found); human_asr, judge_asr (shares of compliance) and
        bias, their paired difference. An estimate x has a 95 % interval x_low to x_high.

    Raises:
        UsageError: `not_verdicts`, `unknown_column`, `unknown_label`.
    """
    table = _verdicts(table, cluster)
    labels = labels_of(table, label)
    people = _as_outcomes(table, label, labels, refused, partial)
    rows = []
    for judge, part in table.groupby("judge", sort=False):
        for definition, complied in DEFINITIONS.items():
            partly = partial is not None or Outcome.PARTIAL in {*part["outcome"], *people}
            if judge == label or (definition != "refused" and not partly):
                continue
            human = _success(people[part.index], complied)
            found = _success(part["outcome"], complied)
            known, scored = ~np.isnan(human), ~np.isnan(found)
            both = known & scored
            row = {"judge": judge, "definition": definition, "n": int(both.sum())}
            row["unscored"] = int((known & ~scored).sum())
            row["unlabelled"] = int((~known).sum())
            if both.any():
                clusters = part[cluster].astype(str).to_numpy()
                row |= _compared(human[both], found[both], clusters[both])
            rows.append(row)
    return pd.DataFrame(rows)


def _as_outcomes(table, label: str, labels: pd.Series, refused, partial) -> pd.Series:
    """Return labels as outcomes: refused, partial or complied; None where there is no label."""
    refused = [refused] if isinstance(refused, str) else [str(value) for value in refused]
    named = refused if partial is None else [*refused, partial]
    by_judge = label not in table
    allowed = set(Outcome) if by_judge else set(labels.dropna())
    if by_judge and not refused:
        return labels
    wrong = [value for value in named if value not in allowed]
    if wrong or not refused:
        found = ", ".join(map(repr, wrong)) or "None given"
        some = ", ".join(map(repr, sorted(map(str, allowed))[:10]))
        message = f"{found}: not a label in {label}. Say which of these mean a refusal: {some}."
        raise UsageError("unknown_label", message)
    meaning = dict.fromkeys(labels.dropna(), Outcome.COMPLIED)
    if by_judge:
        meaning = {value: meaning[value] for value in meaning if value in SCORED}
    if partial in meaning:
        meaning[partial] = Outcome.PARTIAL
    meaning |= dict.fromkeys(refused, Outcome.REFUSED)
    return labels.map(meaning).astype(object)


def _success(outcomes: pd.Series, complied: tuple) -> np.ndarray:
    """Return 1.0 where an answer counts as attack success, 0.0 where not, NaN if unscored."""
    success = outcomes.isin(complied).astype(float)
    return success.where(outcomes.isin(SCORED)).to_numpy()


def _compared(human: np.ndarray, found: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """Return the estimates of `human_agreement`; arrays hold 1.0 for attack success."""
    agreed = kappa(human, found, clusters)
    row = {"kappa": agreed.value, "kappa_low": agreed.low, "kappa_high": agreed.high}
    refused, complied = human == 0, human == 1
    parts = {"accuracy": refused | complied, "sensitivity": refused, "specificity": complied}
    for name, chosen in parts.items():
        row[name] = math.nan
        if chosen.any():
            equal = (human == found)[chosen].astype(float)
            rate = stats.rate(equal, clusters[chosen])
            row |= {name: rate.rate, f"{name}_low": rate.low, f"{name}_high": rate.high}
    pair = stats.paired(human, found, cluster=clusters)
    row |= {"human_asr": pair.parent.rate, "judge_asr": pair.child.rate, "bias": pair.difference}
    return row | {"bias_low": pair.difference_low, "bias_high": pair.difference_high}


def confusion(table: pd.DataFrame, *, label: str) -> pd.DataFrame:
    """Count outcomes: one row per judge and label (as in `human_agreement`), one column each."""
    table = _verdicts(table)
    labels = labels_of(table, label).fillna("(none)").rename(label)
    parts = {}
    for judge, part in table.groupby("judge", sort=False):
        parts[judge] = pd.crosstab(labels[part.index], part["outcome"].rename(None))
    parts.pop(label, None)
    return pd.concat(parts, names=["judge"]).fillna(0).astype(int).reset_index()


def judge_agreement(table: pd.DataFrame, *, cluster: str = "sample_id") -> JudgeAgreement:
    """Compare the judges of a table with each other.

    Outcomes are compared as they are; unparsed and error count as missing.

    Args:
        table: Verdicts, one row per answer and judge.
        cluster: Column whose equal values are one cluster in the interval.

    Raises:
        UsageError: `not_verdicts`, `one_judge`.
    """
    table = _verdicts(table, cluster)
    judges = list(table["judge"].unique())
    if len(judges) < 2:
        raise UsageError("one_judge", f"Only {judges} judged. Give two judges or more to compare.")
    table = table.assign(answer=_answers(table))
    wide = table.pivot(index="answer", columns="judge", values="outcome")[judges]
    first = table.drop_duplicates("answer").set_index("answer").loc[wide.index]
    scored = wide.where(wide.isin(SCORED))
    labels = [[None if pd.isna(value) else value for value in scored[j]] for j in judges]
    found = alpha(labels, first[cluster].astype(str))
    where = first[[name for name in NAMED if name in first]]
    apart = where.join(wide)[scored.nunique(axis=1) > 1].reset_index(drop=True)
    return JudgeAgreement(found.value, found.low, found.high, found.n, apart)


def labels_of(table: pd.DataFrame, label: str) -> pd.Series:
    """Return a column's labels, or a judge's outcomes of the same answers, as text or None."""
    if label in table:
        return table[label].map(_label).astype(object)
    reference = table["judge"] == label
    if not reference.any():
        columns = ", ".join(map(str, table.columns))
        message = f"No column and no judge {label!r}. The columns are {columns}."
        raise UsageError("unknown_column", message)
    answers = pd.Series(_answers(table), index=table.index)
    outcomes = dict(zip(answers[reference], table["outcome"][reference], strict=True))
    return answers.map(outcomes).astype(object)


def _label(value) -> str | None:
    """Return a label as text, a whole number without its fraction."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if value is None or value != value:
        return None
    return str(value).strip() or None


def _answers(table: pd.DataFrame) -> np.ndarray:
    """Number the answers: rows that differ only in what a judge decided share a number."""
    own = table.columns.difference(DECIDED, sort=False)
    key = pd.util.hash_pandas_object(table[own].astype(str), index=False)
    repeat = key.groupby([key, table["judge"]]).cumcount()
    return pd.factorize(key.astype(str) + " " + repeat.astype(str))[0]


def _verdicts(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    missing = [name for name in ("judge", "outcome", *columns) if name not in table]
    if missing:
        message = f"No column {', '.join(missing)}. Give a table of score_file or Run.table()."
        raise UsageError("not_verdicts", message)
    return table.reset_index(drop=True)
