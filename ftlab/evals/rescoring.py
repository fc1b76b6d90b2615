"""Judge the answers of finished runs again. Cell: rescore."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from ftlab._core.errors import UsageError
from ftlab._core.files import json_lines, write_atomic
from ftlab._core.types import Answer, Judgement, Prompt, Sample, Verdict
from ftlab.evals.answers import PROMPTS, read_answers
from ftlab.evals.measuring import VERDICTS, failed, read_verdicts
from ftlab.evals.plan import Plan
from ftlab.evals.risks import Risk, open_risk
from ftlab.evals.scoring import (
    apply_rules,
    group_attempts,
    judge_answers,
    records_of,
    verdicts_of,
)
from ftlab.judges import Judge, open_judge
from ftlab.runs import SCHEMA, Run, row_of, table_of, verdict_of

if TYPE_CHECKING:
    import pandas as pd

# What tells which verdict a record of `verdicts.jsonl` is.
PLACE = ("answer_key", "sample_id", "attack", "repeat", "judge", "step")


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
    verdicts = _judged(opened, [_answered(member) for member in run.members])
    if keep_own:
        given = {judge.spec for judge in opened}
        own = chain.from_iterable(map(read_verdicts, run.members))
        verdicts = [verdict for verdict in own if verdict.judge not in given] + verdicts
    table = table_of([row_of(verdict) for verdict in verdicts])
    table.attrs["model"] = run.stats.get("parent") or run.stats.get("model", "")
    return table


def retry_errors(run: Run, plan: Plan) -> list[Verdict]:
    """Call judges again that failed while a model was trained; return what still fails."""
    records = run.each(VERDICTS)
    if not failed(map(verdict_of, records)):
        return []
    with run.lock():
        verdicts = _judged(plan.judges, [_answered(run)])
        records = records_of(plan.judges, verdicts)
        write_atomic(run.path / VERDICTS, json_lines(records))
        run.complete(**run.stats)
    return failed(verdicts)


def recheck(run: Run, plan: Plan, steps: Iterable[int]) -> bool:
    """Judge the answers of an interrupted training again; replace verdicts that contradict them.

    Judges that may answer otherwise a second time, or that are slow or cost money, are not called
    again: of them only the number of verdicts is checked.

    Args:
        run: The run of the training.
        plan: What the model was asked.
        steps: The optimiser steps at which it was asked.

    Returns:
        Whether every answer and verdict of each of these steps was there.
    """
    old = read_verdicts(run)
    groups = _grouped(plan.prompts)
    found = Counter(verdict.labels.get("step") for verdict in old)
    expected = len(groups) * len(plan.judges)
    if found != dict.fromkeys(steps, expected):
        return False
    try:
        answered = _answered(run, plan, groups)
    except KeyError:  # a verdict on no prompt of the plan
        return False
    if any(answer.error for answer in answered.answers):
        return False
    judges = [judge for judge in plan.judges if judge.repeatable]
    names = {judge.spec for judge in judges}
    anew = {}
    keys = set()
    for record in records_of(judges, _judged(judges, [answered])):
        anew[_place(record)] = record
        keys.add(record["key"])
    right = []
    wrong = 0
    for record in run.read(VERDICTS):
        if record["judge"] in names:
            keys.discard(record["key"])
        place = _place(record)
        now = anew.get(place, record)
        right.append(now)
        if now != record:
            wrong += 1
    if keys and not failed(old):  # the verdicts are of other answers, prompts or judges
        return False
    if wrong:
        print(f"{run.name}: {wrong} verdicts did not follow from their answers.", file=sys.stderr)
        write_atomic(run.path / VERDICTS, json_lines(right))
    return True


def _place(record: dict) -> tuple:
    """Return which verdict a record is, whatever it says."""
    return tuple(record.get(name) for name in PLACE)


@dataclass(frozen=True)
class _Answered:
    """The answers of one run folder in the order of its table, and what its risks' rules decide."""

    run: Run
    old: list[Verdict]  # one per answer
    prompts: list[Prompt]
    answers: list[Answer]
    ruled: list[Judgement | None]
    risks: dict[str, Risk]


def _answered(run: Run, plan: Plan | None = None, by_group: dict | None = None) -> _Answered:
    """Return a run's answers; risks and settings are the plan's, if there is one."""
    by_group = by_group or prompts_by_group(run)
    old = read_verdicts(run)
    old = [verdict for verdict in old if verdict.judge == old[0].judge]
    there = read_answers(run)
    prompts: list[Prompt] = []
    answers: list[Answer] = []
    for verdict in old:
        prompts += by_group[verdict.sample_id, verdict.attack, verdict.repeat]
        for key in verdict.answer_keys or (verdict.answer_key,):
            missing = Answer("", finish="error", error="not answered", key=key)
            answers.append(there.get(key, missing))
    if plan is None:
        risks = {name: open_risk(name) for name in {prompt.sample.risk for prompt in prompts}}
        settings = run.identity.get("evaluation", {})
    else:
        risks = plan.risks
        settings = plan.config.model_dump()
    ruled = apply_rules(risks, prompts, answers, settings)
    return _Answered(run, old, prompts, answers, ruled, risks)


def prompts_by_group(run: Run) -> dict[tuple[str, str, int], list[Prompt]]:
    """Return the prompts of a run by sample, attack and repeat, the attempts in their order."""
    if run.identity["schema"] < SCHEMA:
        raise UsageError(
            "older_layout",
            f"{run.name} was made by an older version: its table opens, but its answers cannot "
            "be judged again. Evaluate the model again.",
        )
    prompts = [_prompt_of(record) for record in run.read(PROMPTS)]
    if not prompts:
        raise UsageError(
            "no_prompts_kept",
            f"{run.name} keeps no prompts that could be judged again. "
            "Give an evaluation or a curve.",
        )
    return _grouped(prompts)


def _grouped(prompts: Sequence[Prompt]) -> dict[tuple[str, str, int], list[Prompt]]:
    found = {}
    for group, numbers in group_attempts(prompts).items():
        found[group] = [prompts[number] for number in numbers]
    return found


def _prompt_of(record: dict[str, Any]) -> Prompt:
    sample = Sample(**record["sample"])
    sample = replace(sample, choices=tuple(sample.choices))
    return Prompt(**record | {"sample": sample})


def _judged(judges: Any, members: list[_Answered]) -> list[Verdict]:
    """Return the verdicts of each judge on all members, one judge after the other."""
    for judge in judges:
        for member in members:
            _check(judge, member)
    verdicts = []
    for judge in judges:
        for member in members:
            verdicts += _verdicts_by(judge, member)
    return verdicts


def _check(judge: Judge, member: _Answered) -> None:
    pairs = zip(member.prompts, member.ruled, strict=True)
    judge.accepts([prompt.sample for prompt, ruled in pairs if ruled is None])
    screened = sum(answer.finish == "screened" for answer in member.answers)
    if screened and not judge.refusal_stands:
        raise UsageError(
            "judge_needs_whole_answers",
            f"{screened} answers of {member.run.name} end at their refusal (screen=True), but "
            f"{judge.spec} reads whole answers. Evaluate without screen.",
        )


def _verdicts_by(judge: Judge, member: _Answered) -> list[Verdict]:
    """Return one new verdict per old one, with its labels."""
    prompts = member.prompts
    answers = member.answers
    judgements = judge_answers(judge, prompts, answers, member.ruled)
    found = []
    start = 0
    for verdict in member.old:
        end = start + max(verdict.attempts, 1)
        these = slice(start, end)
        found += verdicts_of(
            judge,
            prompts[these],
            answers[these],
            judgements[these],
            verdict.labels,
            member.risks,
        )
        start = end
    return found
