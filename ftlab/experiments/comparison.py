"""Compare two models, runs, tables or logs of other tools; models are evaluated first."""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any, Literal

from ftlab import analysis, runs, stats
from ftlab._core.config import takes
from ftlab._core.errors import NotFoundError, UsageError
from ftlab.evals import NOT_FOR_USERS, EvaluationConfig, evaluate
from ftlab.evals.logs import is_log, paired_tables
from ftlab.models import model as open_model
from ftlab.runs import Run

if TYPE_CHECKING:
    import pandas as pd

OF_OUTCOMES = (  # columns that say nothing where answers are scored by another tool
    *("refusals_lost", "refusals_lost_low", "refusals_lost_high"),
    *("incoherent_parent", "incoherent_child"),
)


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
    margin: float = 0.05,
    score: str | None = None,
    higher: Literal["better", "worse"] | None = None,
    **settings,
) -> pd.DataFrame:
    """Compare a parent with its child on the same prompts, always paired.

    `compare(curve)` pairs step 0 with every later step, over all seeds. `compare(parent, child)`
    pairs two evaluations, or two models, which are evaluated first. Two curves are paired step by
    step, over the prompts and training seeds that they share. Two logs of another tool (Inspect,
    lm-evaluation-harness, HarmBench, StrongREJECT, or a plain file) are paired by id, or else by
    prompt; repeats of a sample count as one cluster.

    Args:
        before: A curve, or with `after` a model, an evaluation, its table, or a log. Also the name
            of a finished run.
        after: The child: a model, an evaluation or its table; or another curve, or another log.
        by: Columns to group by.
        risk: Only this risk, or these, of what was measured. Of logs, whose event a judge counts.
        attack: Only this attack, or these.
        steps: Of a curve, only these steps.
        cluster: The unit of the interval: sample_id (other prompts) or wording (other wordings).
        judge: Whose verdicts count; by default the first judge's. Of logs, who judges the answers;
            by default their scores count, and where there are none the judges refusal and keywords.
        labels: Sheets of `ftlab.evals.draw` that people filled in, by which the judge's rates are
            corrected. Two models are evaluated, then drawn from, and only then can be labelled.
        prompts: As in `evaluate`; only where models are given.
        margin: Worsening that would not matter, in the unit of the difference (0.05: 5 points).
        score: Of logs, only the score of this name; of a plain file the column that holds it.
        higher: Of logs, what a higher score means, if not what the tool's scores mean.
        {settings}

    Returns:
        See `ftlab.analysis.compare`. Of logs a row per score or judge; `attrs["pairing"]` are lines
        that say what was paired.

    Raises:
        UsageError: `nothing_to_evaluate` where settings are given with finished runs; `one_log`,
            `not_of_logs`, `only_of_logs`, `no_such_log`, `unknown_log`, `formats_differ`,
            `tasks_differ`, `prompts_differ`, `unknown_score`, `higher_missing`; those of
            `ftlab.analysis.compare`.
        DataError: `empty_log`, `damaged_log`; `bad_log` with every problem of a log.
    """
    options = {"by": by, "risk": risk, "attack": attack}
    options |= {"steps": steps, "cluster": cluster, "judge": judge, "labels": labels}
    given = {name: value for name, value in settings.items() if value is not None}
    if prompts is not None:
        given["prompts"] = prompts
    if is_log(before) or is_log(after):
        _refuse_for_logs(before, after, options | given)
        found = paired_tables(
            before,
            after,
            score=score,
            higher=higher,
            judge=judge,
            risk=_one(risk),
        )
        return _of_logs(*found, margin)
    if score or higher:
        raise UsageError(
            "only_of_logs", "score and higher apply to other tools' logs. Leave them out."
        )
    analysis.check_margin(margin)  # before anything is evaluated
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
    options["margin"] = margin
    if measured:
        return analysis.compare(before, after, **options)
    opened = [side if _is_measured(side) else open_model(side) for side in sides]
    evaluated = [side if _is_measured(side) else evaluate(side, **given) for side in opened]
    return analysis.compare(*evaluated, **options)


def _refuse_for_logs(before: Any, after: Any, given: dict[str, Any]) -> None:
    """Raise where only one side is a log, or where something was given that applies to runs."""
    if after is None:
        raise UsageError("one_log", f"{before!s:.80} is one log. Give a second one to compare.")
    if not (is_log(before) and is_log(after)):
        raise UsageError(
            "one_log",
            f"{before!s:.80} and {after!s:.80} are not both logs of another tool. Give two logs.",
        )
    usual = {"by": "risk", "cluster": "sample_id"}
    others = [name for name, value in given.items() if value not in (None, usual.get(name))]
    others = [name for name in others if name not in ("risk", "judge")]
    if others:
        raise UsageError(
            "not_of_logs", f"{', '.join(others)} does not apply to logs. Leave it out."
        )


def _one(risk: str | list[str] | None) -> str:
    """Return the risk whose event is counted where the answers of logs are judged."""
    if isinstance(risk, list) and len(risk) == 1:
        return risk[0]
    return risk or "jailbreak"


def _of_logs(tables: list[tuple], lines: list[str], margin: float) -> pd.DataFrame:
    """Return the comparison of two logs, a row per score or judge."""
    import pandas as pd

    parts = [analysis.compare(*pair, margin=margin) for pair in tables]
    first = parts[0]
    attrs = first.attrs | {"pairing": lines, "asked": ""}
    sides = [pd.concat(side) for side in zip(*tables, strict=True)]
    if any(pair[0].attrs["reach"] > 1 for pair in tables):
        attrs["unit"] = "score"
    if not tables[0][0].attrs["judged"]:
        sides = [side.assign(outcome=side["event"].map("{:g}".format)) for side in sides]
        for part in parts:
            part[list(OF_OUTCOMES)] = math.nan
    found = pd.concat(parts, ignore_index=True) if len(parts) > 1 else first
    found.attrs = attrs
    found._sides = tuple(sides)
    found["p_holm"] = stats.holm(found["p"].tolist())
    return found


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
