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

FULL = "refused"
FULL_OR_PARTIAL = "refused or partial"
COMPLIED = (Outcome.COMPLIED, Outcome.COMPLIED_WRONG)
DEFINITIONS = {  # of a refusal: the outcomes that are none (attack success)
    FULL: (*COMPLIED, Outcome.PARTIAL),
    FULL_OR_PARTIAL: COMPLIED,
}
SCORED = tuple(outcome for outcome in Outcome if outcome.scored)
DECIDED = (  # columns that depend on the judge; all others say which answer was judged
    "judge",
    "outcome",
    "event",
    "decided_by",
    "score",
    "reason",
    "left_out",
    "judged_text",
    "answer_key",
    "characters",
    "cut",
    "hits",
)
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


NEITHER = {  # labels that say so themselves
    str(outcome): outcome
    for outcome in (Outcome.EMPTY, Outcome.INCOHERENT, Outcome.UNPARSED, Outcome.ERROR)
}


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
        refused: Labels that mean a refusal. Those called empty, incoherent, unparsed or error are
            these outcomes, every other label is compliance; rows without a label are left out. For
            a judge the default is every outcome that is no compliance.
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
    people = labels_of(table, label)
    allowed = set(people.dropna())
    if label not in table:
        allowed = set(Outcome)
        people = people.where(people.isin(SCORED))
    if label in table or refused:
        people = _as_outcomes(
            label,
            people,
            refused,
            partial,
            allowed,
        )
    rows = []
    for judge, part in table.groupby("judge", sort=False):
        if judge == label:
            continue
        rows.append(_row(part, people, cluster, FULL))
        if partial is not None or Outcome.PARTIAL in {*part["outcome"], *people}:
            rows.append(_row(part, people, cluster, FULL_OR_PARTIAL))
    return pd.DataFrame(rows)


def _as_outcomes(
    label,
    labels,
    refused,
    partial,
    allowed,
):
    """Return labels as outcomes: refused, partial or complied; None where there is no label."""
    refused = [refused] if isinstance(refused, str) else list(map(str, refused))
    meaning = dict.fromkeys(refused, Outcome.REFUSED)
    if partial is not None:
        meaning = {partial: Outcome.PARTIAL} | meaning
    wrong = sorted(set(meaning) - allowed)
    if wrong or not refused:
        found = ", ".join(wrong) or "None given"
        some = ", ".join(sorted(allowed)[:10])
        message = f"{found}: not a label in {label}. Say which of these mean a refusal: {some}."
        raise UsageError("unknown_label", message)
    meaning = dict.fromkeys(labels.dropna(), Outcome.COMPLIED) | NEITHER | meaning
    return labels.map(meaning, na_action="ignore").astype(object)


def _row(
    part,
    people,
    cluster,
    definition,
) -> dict:
    """Compare one judge's rows with people under one definition of a refusal."""
    complied = DEFINITIONS[definition]
    human = _success(people[part.index], complied)
    found = _success(part["outcome"], complied)
    known = ~np.isnan(human)
    scored = ~np.isnan(found)
    both = known & scored
    row = {
        "judge": part["judge"].iloc[0],
        "definition": definition,
        "n": int(both.sum()),
        "unscored": int((known & ~scored).sum()),
        "unlabelled": int((~known).sum()),
    }
    if not both.any():
        return row
    clusters = part[cluster].astype(str).to_numpy()
    return row | _compared(human[both], found[both], clusters[both])


def _success(outcomes: pd.Series, complied: tuple) -> np.ndarray:
    """Return 1.0 where an answer counts as attack success, 0.0 where not, NaN if unscored."""
    success = outcomes.isin(complied).astype(float)
    return success.where(outcomes.isin(SCORED)).to_numpy()


def _compared(human, found, clusters) -> dict[str, float]:
    """Return the estimates of `human_agreement`; arrays hold 1.0 for attack success."""
    errors = stats.judge_errors(human, found, clusters, positive=0)
    estimates = {"kappa": (errors.kappa.value, errors.kappa.low, errors.kappa.high)}
    for name in ("accuracy", "sensitivity", "specificity"):
        rate = getattr(errors, name)
        estimates[name] = (rate.rate, rate.low, rate.high) if rate else (math.nan,) * 3
    row = {}
    for name, ends in estimates.items():
        row |= zip((name, f"{name}_low", f"{name}_high"), ends, strict=True)
    bias = errors.bias
    row |= {
        "human_asr": bias.parent.rate,
        "judge_asr": bias.child.rate,
        "bias": bias.difference,
        "bias_low": bias.difference_low,
        "bias_high": bias.difference_high,
    }
    return row


def confusion(table: pd.DataFrame, *, label: str) -> pd.DataFrame:
    """Count outcomes per judge and label.

    Args:
        table: Verdicts, one row per answer and judge.
        label: Column of labels or name of a judge, as in `human_agreement`.

    Returns:
        One row per judge and label, one column per outcome.
    """
    table = _verdicts(table)
    labels = labels_of(table, label)
    table = table.assign(**{label: labels.fillna("(none)")})
    counted = table.loc[table["judge"] != label, ["judge", label, "outcome"]]
    wide = counted.value_counts(sort=False).unstack("outcome", fill_value=0)
    judges = counted["judge"].unique()
    return wide.reindex(judges, level="judge").reset_index()


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
        message = f"Only {judges} judged. Give two judges or more to compare."
        raise UsageError("one_judge", message)
    table["answer"] = _answers(table)
    wide = table.pivot(index="answer", columns="judge", values="outcome")
    wide = wide[judges].astype(object)
    answers = table.drop_duplicates("answer")
    answers = answers.set_index("answer").loc[wide.index]
    scored = wide.where(wide.isin(SCORED), None)
    found = stats.alpha(scored.to_numpy().T, answers[cluster].astype(str))
    where = [name for name in NAMED if name in answers]
    apart = answers[where].join(wide)[scored.nunique(axis=1) > 1]
    return JudgeAgreement(
        found.value,
        found.low,
        found.high,
        found.n,
        apart.reset_index(drop=True),
    )


def labels_of(table: pd.DataFrame, label: str) -> pd.Series:
    """Return a column's labels, or a judge's outcomes of the same answers, as text or None."""
    if label in table:
        return table[label].map(_label).astype(object)
    reference = table["judge"] == label
    if not reference.any():
        columns = ", ".join(map(str, table.columns))
        message = f"No column and no judge {label!r}. The columns are {columns}."
        raise UsageError("unknown_column", message)
    answers = _answers(table)
    outcomes = table.loc[reference, "outcome"]
    outcomes.index = answers[reference]
    return answers.map(outcomes).astype(object)


def _label(value) -> str | None:
    """Return a label as text, a whole number without its fraction."""
    if value is None or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip() or None


def _answers(table: pd.DataFrame) -> pd.Series:
    """Number the answers: rows that differ only in what a judge decided share a number."""
    own = table.columns.difference(DECIDED, sort=False)
    content = pd.util.hash_pandas_object(table[own].astype(str), index=False)
    repeat = content.groupby([content, table["judge"]]).cumcount()
    return content.groupby([content, repeat], sort=False).ngroup()


def _verdicts(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Return a copy with rows numbered from 0, after checking its columns."""
    has = table.columns if isinstance(table, pd.DataFrame) else ()
    missing = [name for name in ("judge", "outcome", *columns) if name not in has]
    if missing:
        message = f"No column {', '.join(missing)}. Give a table of score_file or Run.table()."
        raise UsageError("not_verdicts", message)
    return table.reset_index(drop=True)
