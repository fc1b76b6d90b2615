"""Judge the answers of finished runs again. Cell: rescore."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ftlab._core.errors import UsageError
from ftlab._core.files import json_lines, write_atomic
from ftlab._core.types import Answer, Prompt, Sample, Verdict
from ftlab.evals.answers import read_answers, read_prompts_of
from ftlab.evals.measuring import VERDICTS, failed, read_verdicts, records_of
from ftlab.evals.plan import Plan
from ftlab.evals.risks import open_risk
from ftlab.evals.scoring import (
    apply_rules,
    group_attempts,
    judge_answers,
    verdicts_of,
)
from ftlab.judges import Judge, open_judge
from ftlab.runs import SCHEMA, Run, row_of, table_of

if TYPE_CHECKING:
    import pandas as pd

Group = tuple[str, str, int]  # sample, attack, repeat


def rescore(run: Run, judges: Any, *, keep_own: bool = False) -> pd.DataFrame:
    """Judge the same answers with other judges.

    Args:
        run: A finished evaluation or curve.
        judges: A judge or several, by name or as objects.
        keep_own: Let the verdicts of the run's own judges come first.

    Returns:
        The verdict table of these judges, in the form of `run.table()`. The run is unchanged.

    Raises:
        UsageError: `no_prompts_kept`, `unknown_judge`, `judge_needs_whole_answers`,
            `older_layout`.
    """
    if isinstance(judges, (str, Judge)):
        judges = [judges]
    opened = [open_judge(judge) for judge in judges]
    verdicts = []
    if keep_own:
        verdicts += _of_other_judges(run, {judge.spec for judge in opened})
    for judge in opened:
        for member in run.members:
            verdicts += verdicts_by(judge, member)
    table = table_of([row_of(verdict) for verdict in verdicts])
    table.attrs["model"] = run.stats.get("parent") or run.stats.get("model", "")
    return table


def _of_other_judges(run: Run, judges: set[str]) -> list[Verdict]:
    """Return the verdicts that the run has of other judges than these."""
    found = []
    for member in run.members:
        for verdict in read_verdicts(member):
            if verdict.judge not in judges:
                found.append(verdict)
    return found


def verdicts_by(judge: Judge, run: Run) -> list[Verdict]:
    """Return a judge's verdicts on the answers of one run folder, in the order of its table."""
    prompts = _prompts_by_group(run)
    old = _first_judge_only(read_verdicts(run))
    answers = read_answers(run)
    asked: list[Prompt] = []
    found: list[Answer] = []
    for verdict in old:
        group = (verdict.sample_id, verdict.attack, verdict.repeat)
        asked += prompts[group]
        for key in verdict.answer_keys or (verdict.answer_key,):
            missing = Answer("", finish="error", error="not answered", key=key)
            found.append(answers.get(key, missing))
    _check(judge, asked, found, run)
    judgements = _judged(judge, run, asked, found)
    return _like(old, judge, asked, found, judgements)


def _prompts_by_group(run: Run) -> dict[Group, list[Prompt]]:
    if run.identity["schema"] < SCHEMA:
        raise UsageError(
            "older_layout",
            f"{run.name} was made by an older version: its table opens, but its answers cannot "
            "be judged again. Evaluate the model again.",
        )
    prompts = [_prompt_of(record) for record in read_prompts_of(run)]
    if not prompts:
        raise UsageError(
            "no_prompts_kept",
            f"{run.name} keeps no prompts that could be judged again. "
            "Give an evaluation or a curve.",
        )
    found = {}
    for group, numbers in group_attempts(prompts).items():
        found[group] = [prompts[number] for number in numbers]
    return found


def _prompt_of(record: dict[str, Any]) -> Prompt:
    sample = Sample(**record["sample"])
    sample = replace(sample, choices=tuple(sample.choices))
    return Prompt(**record | {"sample": sample})


def _first_judge_only(verdicts: list[Verdict]) -> list[Verdict]:
    """Return one verdict per answer."""
    first = verdicts[0].judge if verdicts else ""
    return [verdict for verdict in verdicts if verdict.judge == first]


def _check(judge: Judge, prompts: list[Prompt], answers: list[Answer], run: Run) -> None:
    judge.accepts([prompt.sample for prompt in prompts])
    screened = sum(answer.finish == "screened" for answer in answers)
    if screened and not judge.refusal_stands:
        raise UsageError(
            "judge_needs_whole_answers",
            f"{screened} answers of {run.name} end at their refusal (screen=True), but "
            f"{judge.spec} reads whole answers. Evaluate without screen.",
        )


def _judged(judge: Judge, run: Run, prompts: list[Prompt], answers: list[Answer]) -> list:
    names = [prompt.sample.risk for prompt in prompts]
    risks = {name: open_risk(name) for name in dict.fromkeys(names)}
    settings = run.identity.get("evaluation", {})
    ruled = apply_rules(risks, prompts, answers, settings)
    return judge_answers(judge, prompts, answers, ruled)


def _like(
    old: list[Verdict],
    judge: Judge,
    prompts: list[Prompt],
    answers: list[Answer],
    judgements: list,
) -> list[Verdict]:
    """Return one new verdict per old one, with its labels."""
    found = []
    start = 0
    for verdict in old:
        end = start + max(verdict.attempts, 1)
        found += verdicts_of(
            judge,
            prompts[start:end],
            answers[start:end],
            judgements[start:end],
            verdict.labels,
        )
        start = end
    return found


def retry_errors(run: Run, plan: Plan) -> list[Verdict]:
    """Call judges again that failed while a model was trained; return what still fails."""
    if not failed(read_verdicts(run)):
        return []
    with run.lock():
        verdicts = []
        for judge in plan.judges:
            verdicts += verdicts_by(judge, run)
        records = records_of(plan, verdicts)
        write_atomic(run.path / VERDICTS, json_lines(records))
        run.complete(**run.stats)
    return failed(verdicts)
