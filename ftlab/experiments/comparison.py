"""Compare two models, runs or tables; models are evaluated first."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from ftlab import analysis, runs
from ftlab._core.config import takes
from ftlab._core.errors import NotFoundError, UsageError
from ftlab.evals import NOT_FOR_USERS, EvaluationConfig, evaluate
from ftlab.models import model as open_model
from ftlab.runs import Run

if TYPE_CHECKING:
    import pandas as pd


@takes(EvaluationConfig, omit=NOT_FOR_USERS)
def compare(  # noqa: PLR0913
    before: Any,
    after: Any = None,
    *,
    by: str | list[str] = "risk",
    risk: str | list[str] | None = None,
    attack: str | list[str] | None = None,
    steps: list[int] | None = None,
    cluster: str = "sample_id",
    judge: str | None = None,
    labels: str | list[str] | None = None,
    prompts: Any = None,
    **settings,
) -> pd.DataFrame:
    """Compare a parent with its child on the same prompts, always paired.

    `compare(curve)` pairs step 0 with every later step, over all seeds. `compare(parent, child)`
    pairs two evaluations, or two models, which are evaluated first. Two curves are paired step by
    step, over the prompts and training seeds that they share.

    Args:
        before: A curve, or with `after` a model, an evaluation or its table. Also the name of a
            finished run.
        after: The child: a model, an evaluation or its table; or another curve.
        by: Columns to group by.
        risk: Only this risk, or these, of what was measured.
        attack: Only this attack, or these.
        steps: Of a curve, only these steps.
        cluster: The unit of the interval: sample_id (other prompts) or wording (other wordings).
        judge: Whose verdicts count; by default the first judge's.
        labels: Sheets of `ftlab.evals.draw` that people filled in, by which the judge's rates are
            corrected. Two models are evaluated, then drawn from, and only then can be labelled.
        prompts: As in `evaluate`; only where models are given.
        {settings}

    Returns:
        See `ftlab.analysis.compare`.

    Raises:
        UsageError: `nothing_to_evaluate` where settings are given with finished runs, and those
            of `ftlab.analysis.compare`.
    """
    options = {"by": by, "risk": risk, "attack": attack}
    options |= {"steps": steps, "cluster": cluster, "judge": judge, "labels": labels}
    given = {name: value for name, value in settings.items() if value is not None}
    if prompts is not None:
        given["prompts"] = prompts
    before = _run_of(before)
    after = _run_of(after)
    sides = [before] if after is None else [before, after]
    measured = all(_is_measured(side) for side in sides)
    if after is None and not measured:
        raise UsageError(
            "nothing_to_compare",
            f"{before!s:.80} has nothing to be compared with, or is no run. Pass two models, or a "
            "curve.",
        )
    if given and measured:
        raise UsageError(
            "nothing_to_evaluate",
            f"{', '.join(given)} applies to models only; these runs are measured already.",
        )
    if measured:
        return analysis.compare(before, after, **options)
    opened = [side if _is_measured(side) else open_model(side) for side in sides]
    evaluated = [side if _is_measured(side) else evaluate(side, **given) for side in opened]
    return analysis.compare(*evaluated, **options)


def _run_of(source: Any) -> Any:
    """Return the run of verdicts that a name stands for; anything else as it is."""
    measured = False
    if isinstance(source, str):
        with contextlib.suppress(NotFoundError, UsageError):  # a model, by its name or folder
            measured = _is_measured(runs.find(source))
    return runs.load(source) if measured else source


def _is_measured(source: Any) -> bool:
    """Return whether a source holds verdicts: a table, or a run of an evaluation or a curve."""
    if isinstance(source, Run):
        return any((member.path / "verdicts.jsonl").exists() for member in source.members)
    return hasattr(source, "columns")
