"""Pairs two logs of one tool, answer by answer, as verdict tables that can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from ftlab._core.errors import DataError, NotFoundError, UsageError
from ftlab._core.files import digest
from ftlab._core.text import did_you_mean, encodable, safe
from ftlab._core.types import Outcome, Sample
from ftlab.data import problems_error
from ftlab.evals.logs.base import About, LogFormat, Logged, format_of, shown_id
from ftlab.evals.logs.files import ENDINGS
from ftlab.evals.risks import event, open_risk
from ftlab.judges import DEFAULT_JUDGES, Judge, judged, open_judge

JUDGED_AT_ONCE = 256  # answers, of which the texts are held in memory
SHOWN = 3  # ids
MOST_SHOWN = 80  # characters of a name
COLUMNS = ("place", "id", "question", "repeat", "name", "event", "outcome", "mark")
KEYS = ["sample_id", "repeat"]
Tables = list[tuple[pd.DataFrame, pd.DataFrame]]


@dataclass
class _Log:
    """A log as it was read: a row per answer and score, without any text."""

    path: Path
    form: LogFormat
    about: About
    rows: pd.DataFrame

    @property
    def names(self) -> list[str]:
        """Return the scores that have a number somewhere."""
        scored = self.rows[self.rows["event"].notna()]
        return [name for name in scored["name"].unique() if name]


def is_log(source: Any) -> bool:
    """Return whether a source names a file that may be another tool's log."""
    if not isinstance(source, (str, Path)):
        return False
    return Path(source).suffix.lower() in (".eval", *ENDINGS)


def paired_tables(
    before: str | Path,
    after: str | Path,
    *,
    score: str | None = None,
    higher: str | None = None,
    judge: str | Judge | None = None,
    risk: str = "jailbreak",
) -> tuple[Tables, list[str]]:
    """Read two logs and pair their answers, by id or else by what was asked.

    Args:
        before: The first log.
        after: The second log, of the same tool and task.
        score: Only the score of this name; of a plain file the column with the scores.
        higher: "worse" or "better", in place of what the tool's scores mean.
        judge: Judges the answers, whatever their scores. Without scores the default judges do.
        risk: Whose event is counted where answers are judged.

    Returns:
        A pair of verdict tables for each score or judge, with the tables' `attrs` model, higher and
        judged; and lines that say what was paired and what was not.

    Raises:
        NotFoundError: `no_such_log`.
        UsageError: `unknown_log`, `formats_differ`, `tasks_differ`, `prompts_differ`,
            `unknown_score`, `higher_missing`, `nothing_to_compare`, `unknown_judge`.
        DataError: `empty_log`, `damaged_log`, `unknown_log`; `bad_log` with every problem of a
            file.
    """
    logs = [_opened(Path(source), score) for source in (before, after)]
    _refuse_others(*logs)
    judges = [judge] if judge else []
    if not any(log.names for log in logs):
        judges = judges or list(DEFAULT_JUDGES)
    if judges:
        names = [_judge_all(logs, open_judge(one), risk) for one in judges]
        label = risk
        meaning = open_risk(risk).higher
    else:
        names = _common(logs, score)
        label = logs[0].about.task or logs[0].form.name
        meaning = logs[0].form.higher
    direction = higher or meaning
    if not direction:
        raise UsageError(
            "higher_missing",
            "Whether a higher score is better or worse is not known of a plain file. Say --higher "
            "better or --higher worse.",
        )
    by_id = all((log.rows["id"] != "").all() for log in logs)
    for log in logs:
        log.rows = _keyed(log, by_id)
    if by_id:
        _refuse_other_questions(logs)
    tables = []
    for name in names:
        shown = f"{label}: {name}"
        if judges or len(names) == 1:
            shown = label
        pair = _shared([_table(log, name, shown) for log in logs])
        for table in pair:
            table.attrs |= {"model": _who(logs), "higher": direction, "judged": bool(judges)}
        tables.append(pair)
    return tables, _lines(logs, tables, by_id)


def _opened(path: Path, score: str | None) -> _Log:
    """Read the scores of a log; raise with every problem that it has."""
    if not path.is_file():
        raise NotFoundError("no_such_log", f"{path} is no file. Give a log, or a model's name.")
    form = format_of(path)
    about = form.about(path)
    about = About(*(safe(text, MOST_SHOWN) for text in vars(about).values()))
    problems: list[str] = []
    found = []
    for place, row in _usable(form.rows(path, score), problems):
        mark = hash((row.question, row.answer))
        for name, value in (row.scores or {"": math.nan}).items():
            outcome = Outcome.UNPARSED if math.isnan(value) else Outcome.COMPLIED
            found.append((*_key(place, row), safe(name, MOST_SHOWN), value, outcome, mark))
    if problems:
        raise problems_error("bad_log", problems)
    if not found:
        why = f"{path} holds no answers. Give the log of a finished evaluation."
        raise DataError("empty_log", why)
    log = _Log(path, form, about, pd.DataFrame(found, columns=COLUMNS))
    unscored = log.rows[log.rows["name"] == ""]
    if log.names and len(unscored):  # answers that failed, beside others with scores
        parts = [unscored.assign(name=name) for name in log.names]
        log.rows = pd.concat([log.rows.drop(unscored.index), *parts], ignore_index=True)
    return log


def _usable(
    rows: Iterator[tuple[str, Logged | str]],
    problems: list[str],
) -> Iterator[tuple[str, Logged]]:
    """Yield the answers that can be used, and note what is wrong with the others."""
    try:
        for place, row in rows:
            if isinstance(row, str):
                problems.append(f"{place}: {row}")
            elif not (row.id or row.question):
                problems.append(f"{place}: There is neither an id nor a prompt.")
            else:
                yield place, row
    except DataError as error:
        problems.append(str(error))


def _key(place: str, row: Logged) -> tuple[str, str, str, str]:
    asked = row.question.strip()
    return place, encodable(row.id), digest(asked) if asked else "", encodable(row.repeat)


def _common(logs: list[_Log], score: str | None) -> list[str]:
    """Return the scores that both logs have, or the one that was asked for."""
    own, others = (log.names for log in logs)
    names = [name for name in own if name in others]
    found = ", ".join(names) or f"{', '.join(own)} and {', '.join(others)}"
    if not names:
        raise UsageError(
            "nothing_to_compare",
            f"The logs have no score in common. Found: {found}. Give --judge to judge the answers.",
        )
    if score and score not in names:
        hint = did_you_mean(score, names)
        raise UsageError("unknown_score", f"No score {score!r:.80}.{hint} Found: {found}.")
    return [score] if score else names


def _judge_all(logs: list[_Log], judge: Judge, risk: str) -> str:
    """Add a judge's verdicts to both logs, whose answers are read once more; return its name."""
    try:
        for log in logs:
            found = list(_verdicts(log, judge, risk))
            table = pd.DataFrame(found, columns=COLUMNS)
            if table["event"].isna().all():
                raise UsageError(
                    "nothing_to_compare",
                    f"{log.path.name} has no score, and no answer that {judge.spec} can read.",
                )
            others = log.rows[~log.rows["name"].isin(["", judge.spec])]
            log.rows = pd.concat([others, table], ignore_index=True)
    finally:
        judge.release()
    return judge.spec


def _verdicts(log: _Log, judge: Judge, risk: str) -> Iterator[tuple]:
    rows = _usable(log.form.rows(log.path, None), [])
    while chunk := list(islice(rows, JUDGED_AT_ONCE)):
        answered = [row for _, row in chunk if row.answer is not None]
        samples = [_sample(row, risk) for row in answered]
        judge.accepts(samples)
        verdicts = iter(judged(judge, samples, [row.answer or "" for row in answered]))
        for place, row in chunk:
            outcome = Outcome.ERROR if row.answer is None else next(verdicts).outcome
            mark = hash((row.question, row.answer))
            yield *_key(place, row), judge.spec, event(risk, outcome), outcome, mark


def _sample(row: Logged, risk: str) -> Sample:
    message = {"role": "user", "content": row.asked or row.question}
    return Sample(id=row.id, messages=[message], risk=risk)


def _refuse_others(one: _Log, other: _Log) -> None:
    """Raise where two logs are of different tools or tasks."""
    if one.form.name != other.form.name:
        raise UsageError(
            "formats_differ",
            f"{one.path.name} is of {one.form.name}, {other.path.name} of {other.form.name}. Give "
            "two logs of one tool.",
        )
    tasks = one.about.task, other.about.task
    if all(tasks) and tasks[0] != tasks[1]:
        raise UsageError(
            "tasks_differ",
            f"The logs are of different tasks: {tasks[0]} and {tasks[1]}. Give two of one task.",
        )


def _keyed(log: _Log, by_id: bool) -> pd.DataFrame:
    """Return rows with the sample that they are about; one sample's answers are told apart.

    Raises:
        DataError: `bad_log`, where an id stands for two answers.
    """
    rows = log.rows
    keys = ["name", *KEYS]
    if not by_id:
        asked = rows["question"]
        rows = rows.assign(sample_id=asked.where(asked != "", "id " + rows["id"]))
        number = rows.groupby(keys).cumcount().astype(str)
        return rows.assign(repeat=rows["repeat"] + "#" + number)
    rows = rows.assign(sample_id=rows["id"])
    rows = rows.drop_duplicates([*keys, "event", "mark"])
    twice = rows.duplicated(keys)
    questions = rows[rows["question"] != ""].groupby("sample_id")["question"]
    several = rows["sample_id"].map(questions.nunique()) > 1
    problems = []
    for place, name in rows.loc[twice | several, ["place", "id"]].drop_duplicates().to_numpy():
        problems.append(f"{place}: The id {shown_id(name)} stands for another answer too.")
    if problems:
        fix = "Make the ids unique, or number the answers to one sample in a column repeat."
        raise problems_error("bad_log", problems, fix)
    return rows


def _refuse_other_questions(logs: list[_Log]) -> None:
    """Raise `prompts_differ` where an id stands for different questions in the logs."""
    asked = [log.rows.drop_duplicates("sample_id").set_index("sample_id") for log in logs]
    both = asked[0].join(asked[1], how="inner", lsuffix="_one", rsuffix="_other")
    known = (both["question_one"] != "") & (both["question_other"] != "")
    differ = both[known & (both["question_one"] != both["question_other"])]
    if len(differ):
        ids = ", ".join(map(shown_id, differ.index[:SHOWN]))
        raise UsageError(
            "prompts_differ",
            f"{len(differ)} ids stand for different prompts in the two logs, such as {ids}. Give "
            "two logs of the same prompts.",
            ids=list(differ.index),
        )


def _table(log: _Log, name: str, risk: str) -> pd.DataFrame:
    """Return a score of a log as a verdict table."""
    rows = log.rows[log.rows["name"] == name]
    found = rows[[*KEYS, "place", "event", "outcome"]].copy()
    found["judge"] = name
    found["risk"] = risk
    for column in ("attack", "wording", "decided_by"):
        found[column] = ""
    found["cut"] = False
    return found


def _shared(pair: list[pd.DataFrame]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of both tables that pair."""
    index = [pd.MultiIndex.from_frame(table[KEYS]) for table in pair]
    one = pair[0][index[0].isin(index[1])]
    other = pair[1][index[1].isin(index[0])]
    if one.empty:
        raise UsageError(
            "prompts_differ",
            "The two logs share no sample: neither an id nor a prompt. Give logs of one task.",
        )
    return one.reset_index(drop=True), other.reset_index(drop=True)


def _who(logs: list[_Log]) -> str:
    """Return who is compared, for captions."""
    return " and ".join(safe(log.about.model or log.path.name, MOST_SHOWN) for log in logs)


def _lines(logs: list[_Log], tables: list[Any], by_id: bool) -> list[str]:
    """Return what was paired, and of each log what was not, without any text of a prompt."""
    how = "by id" if by_id else "by prompt"
    paired = pd.concat([pair[0] for pair in tables]).drop_duplicates(KEYS)
    samples = paired["sample_id"].nunique()
    lines = [f"paired: {len(paired)} answers to {samples} samples, {how}"]
    index = pd.MultiIndex.from_frame(paired[KEYS])
    for log in logs:
        rows = log.rows.drop_duplicates(KEYS)
        alone = rows[~pd.MultiIndex.from_frame(rows[KEYS]).isin(index)]
        if len(alone):
            ids = map(shown_id, alone["id"][:SHOWN]) if by_id else alone["place"][:SHOWN]
            more = ", ..." if len(alone) > SHOWN else ""
            lines.append(f"not paired: {len(alone)} of {log.path.name} ({', '.join(ids)}{more})")
    lines += [log.about.note for log in logs if log.about.note]
    return lines
