"""Pairs two logs of one tool, answer by answer, as verdict tables that can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from ftlab._core import plugins
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
COLUMNS = (
    "place",
    "id",
    "question",
    "repeat",
    "name",
    "event",
    "outcome",
)
KEYS = ["sample_id", "repeat"]
PERCENT = 10  # a score above it, beside fractions below 1, is on another scale
NO_SCORE = {"": math.nan}
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
        scored = self.rows.dropna(subset="event")
        return [name for name in scored["name"].unique() if name]


def is_log(source: Any) -> bool:
    """Return whether a source names a file that may be another tool's log."""
    if not isinstance(source, (str, Path)):
        return False
    ending = Path(source).suffix.lower()
    return ending in (".eval", *ENDINGS)


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
            `unknown_score`, `higher_missing`, `scales_differ`, `nothing_to_compare`,
            `unknown_judge`, `risk_not_decided`, `higher_not_of_judged`.
        DataError: `empty_log`, `damaged_log`, `unknown_log`; `bad_log` with every problem of a
            file.
    """
    logs = [_opened(Path(source), score) for source in (before, after)]
    _refuse_others(*logs)
    one = logs[0]
    judges = [judge] if judge else []
    if not any(log.names for log in logs):
        judges = judges or list(DEFAULT_JUDGES)
    if judges:
        _refuse_risk(risk)
        if higher == "better":
            raise UsageError(
                "higher_not_of_judged",
                f"The answers are judged for {risk}, of which more is worse. Leave --higher out.",
            )
        names = [_judge(logs, open_judge(each), risk) for each in judges]
        label = risk
        meaning = open_risk(risk).higher
    else:
        names = _common(logs, score)
        label = one.about.task or one.form.name
        meaning = one.form.higher
    direction = higher or meaning
    if not direction:
        raise UsageError(
            "higher_missing",
            f"{', '.join(names)} of {one.path.name} may be a grade or a measure of harm. Say "
            "--higher better or --higher worse, and --score NAME where the scores differ in that.",
        )
    by_id = _key(logs)
    attrs = {
        "model": " and ".join(log.about.model or log.path.name for log in logs),
        "higher": direction,
        "judged": bool(judges),
    }
    tables = []
    for name in names:
        _refuse_scales(logs, name)
        shown = label
        if len(names) > 1:
            shown += f": {name}"
        *pair, unpaired = _pair(logs, name, shown)
        for table in pair:
            table.attrs = {**attrs, "unpaired": unpaired, "reach": _reach(logs, name)}
        tables.append(tuple(pair))
    return tables, _lines(logs, tables, by_id)


def _refuse_risk(risk: str) -> None:
    """Raise where a judge that reads question and answer cannot decide a risk."""
    if not open_risk(risk).refusals_decide:
        allowed = [name for name, known in plugins.find("risks").items() if known.refusals_decide]
        raise UsageError(
            "risk_not_decided",
            f"{risk} needs more than an answer's text. Judged from a log are {', '.join(allowed)}.",
        )


def _opened(path: Path, score: str | None) -> _Log:
    """Read the scores of a log; raise with every problem that it has."""
    if not path.is_file():
        raise NotFoundError("no_such_log", f"{path} is no file. Give a log, or a model's name.")
    form = format_of(path)
    told = vars(form.about(path))
    about = About(*(safe(text, MOST_SHOWN) for text in told.values()))
    problems: list[str] = []
    found = []
    for place, row in _usable(form.rows(path, score), problems):
        own = _place(place, row)
        for name, value in (row.scores or NO_SCORE).items():
            outcome = Outcome.COMPLIED
            if math.isnan(value):
                outcome = Outcome.UNPARSED
            found.append((*own, safe(name, MOST_SHOWN), value, outcome))
    if problems:
        raise problems_error("bad_log", problems)
    if not found:
        raise DataError(
            "empty_log",
            f"{path} holds no answers. Give the log of a finished evaluation, or a table with a "
            "header such as id,prompt,answer,score.",
        )
    log = _Log(path, form, about, pd.DataFrame(found, columns=COLUMNS))
    failed = log.rows["name"] == ""
    if log.names and failed.any():  # beside others with scores: unscored under every name
        names = pd.Series(log.names, name="name")
        added = log.rows[failed].drop(columns="name")
        added = added.merge(names, how="cross")
        log.rows = pd.concat([log.rows[~failed], added], ignore_index=True)
    return log


def _usable(
    rows: Iterable[tuple[str, Logged | str]],
    problems: list[str],
) -> Iterator[tuple[str, Logged]]:
    """Yield the answers that can be used, and note what is wrong with the others."""
    try:
        for place, row in rows:
            if isinstance(row, str):
                problems.append(f"{place}: {row}")
            elif row.id or row.question:
                yield place, row
            else:
                problems.append(f"{place}: There is neither an id nor a prompt.")
    except DataError as error:
        problems.append(str(error))


def _place(place: str, row: Logged) -> tuple[str, ...]:
    """Return where an answer stands and what it answers, without any text."""
    asked = row.question.strip()
    if asked:
        asked = digest(asked)
    return place, encodable(row.id), asked, encodable(row.repeat)


def _common(logs: list[_Log], score: str | None) -> list[str]:
    """Return the scores that both logs have, or the one that was asked for."""
    own, others = (log.names for log in logs)
    names = [name for name in own if name in others]
    if not names:
        found = ", ".join([*own, *others])
        raise UsageError(
            "nothing_to_compare",
            f"The logs have no score in common: {found}. Give --judge to judge the answers.",
        )
    if score is None:
        return names
    if score not in names:
        hint = did_you_mean(score, names)
        found = ", ".join(names)
        raise UsageError("unknown_score", f"No score {score!r:.80}.{hint} Found: {found}.")
    return [score]


def _judge(logs: list[_Log], judge: Judge, risk: str) -> str:
    """Add a judge's verdicts to both logs, whose answers are read once more; return its name."""
    name = judge.spec
    try:
        for log in logs:
            found = pd.DataFrame(_verdicts(log, judge, risk), columns=COLUMNS)
            if found["event"].isna().all():
                raise UsageError(
                    "nothing_to_compare",
                    f"{log.path.name} has no score, and no answer that {name} can read.",
                )
            others = ~log.rows["name"].isin(["", name])
            log.rows = pd.concat([log.rows[others], found], ignore_index=True)
    finally:
        judge.release()
    return name


def _verdicts(log: _Log, judge: Judge, risk: str) -> Iterator[tuple]:
    """Yield a row per answer, of which few are held in memory."""
    rows = _usable(log.form.rows(log.path, None), [])
    while chunk := list(islice(rows, JUDGED_AT_ONCE)):
        texts = []
        samples = []
        for _, row in chunk:
            if row.answer is not None:
                message = {"role": "user", "content": row.asked or row.question}
                samples.append(Sample(row.id, [message], risk))
                texts.append(row.answer)
        judge.accepts(samples)
        found = iter(judged(judge, samples, texts))
        for place, row in chunk:
            outcome = Outcome.ERROR
            if row.answer is not None:
                outcome = next(found).outcome
            value = event(risk, outcome)
            yield *_place(place, row), judge.spec, value, outcome


def _refuse_others(one: _Log, other: _Log) -> None:
    """Raise where two logs are of different tools or tasks."""
    if one.form is not other.form:
        raise UsageError(
            "formats_differ",
            f"{one.path.name} is of {one.form.name}, {other.path.name} of {other.form.name}. Give "
            "two logs of one tool.",
        )
    tasks = [log.about.task for log in (one, other)]
    if all(tasks) and tasks[0] != tasks[1]:
        raise UsageError(
            "tasks_differ",
            f"The logs are of different tasks: {' and '.join(tasks)}. Give two of one task.",
        )


def _key(logs: list[_Log]) -> bool:
    """Give every answer of two logs the sample that it is about; return whether that is an id.

    Raises:
        UsageError: `prompts_differ`, where an id stands for different questions in the logs.
    """
    by_id = all(log.rows["id"].all() for log in logs)
    asked = []
    for log in logs:
        log.rows = _keyed(log.rows, by_id)
        asked.append(dict(log.rows[["sample_id", "question"]].to_numpy()))
    one, other = asked
    differ = []
    for name in one:
        questions = {one[name], other.get(name)}
        if by_id and len(questions - {"", None}) > 1:
            differ.append(name)
    if differ:
        ids = ", ".join(map(shown_id, differ[:SHOWN]))
        raise UsageError(
            "prompts_differ",
            f"{len(differ)} ids stand for different prompts in the two logs, such as {ids}. Give "
            "two logs of the same prompts.",
            ids=differ,
        )
    return by_id


def _keyed(rows: pd.DataFrame, by_id: bool) -> pd.DataFrame:
    """Return rows with their sample's id; answers to one sample are told apart.

    Raises:
        DataError: `bad_log`, where an id stands for two answers.
    """
    keys = ["name", *KEYS]
    asked = rows["question"]
    if not by_id:
        unknown = "id " + rows["id"]
        rows = rows.assign(sample_id=asked.where(asked != "", unknown))
        number = rows.groupby(keys).cumcount()
        return rows.assign(repeat=rows["repeat"] + "#" + number.astype(str))
    rows = rows.assign(sample_id=rows["id"])
    rows = rows.drop_duplicates([*keys, "question", "event"])
    samples = rows[rows["question"] != ""].groupby("sample_id")
    questions = rows["sample_id"].map(samples["question"].nunique())
    wrong = rows[rows.duplicated(keys) | (questions > 1)]
    problems = []
    for row in wrong.drop_duplicates(["place", "id"]).itertuples():
        problems.append(f"{row.place}: The id {shown_id(row.id)} stands for another answer too.")
    if problems:
        fix = "Make the ids unique, or number the answers to one sample in a column repeat."
        raise problems_error("bad_log", problems, fix)
    return rows


def _pair(
    logs: list[_Log],
    name: str,
    risk: str,
) -> tuple[pd.DataFrame, pd.DataFrame, int]:
    """Return verdict tables of a score, and how many answers only one of the logs has."""
    sides = []
    for log in logs:
        rows = log.rows[log.rows["name"] == name]
        sides.append(rows.set_index(KEYS))
    one, other = sides
    both = one.index.intersection(other.index)
    if both.empty:
        raise UsageError(
            "prompts_differ",
            "The two logs share no sample: neither an id nor a prompt. Give logs of one task.",
        )
    tables = []
    for side in sides:
        table = side.loc[both, ["event", "outcome"]].reset_index()
        tables.append(
            table.assign(
                judge=name,
                risk=risk,
                attack="",
                wording="",
                decided_by="",
                cut=False,
            )
        )
    return *tables, len(one) + len(other) - 2 * len(both)


def _refuse_scales(logs: list[_Log], name: str) -> None:
    """Raise where one log's scores are shares and the other's look like percentages."""
    shares = []
    percentages = []
    for log in logs:
        events = log.rows.loc[log.rows["name"] == name, "event"]
        if events.between(0, 1).all() and events.between(0, 1, inclusive="neither").any():
            shares.append(log.path.name)
        elif events.max() > PERCENT:
            percentages.append(log.path.name)
    if shares and percentages:
        raise UsageError(
            "scales_differ",
            f"{name} lies between 0 and 1 in {shares[0]} and reaches more than {PERCENT} in "
            f"{percentages[0]}. Divide one, so that both are on one scale.",
        )


def _reach(logs: list[_Log], name: str) -> float:
    """Return the range of a score over all answers: 1 where it lies between 0 and 1."""
    events = pd.concat([log.rows.loc[log.rows["name"] == name, "event"] for log in logs])
    least, most = events.min(), events.max()
    inside = least >= 0 and most <= 1
    return 1.0 if inside else max(1.0, most - least)


def _lines(
    logs: list[_Log],
    tables: Tables,
    by_id: bool,
) -> list[str]:
    """Return what was paired, and of each log what was not, without any text of a prompt."""
    how = "id" if by_id else "prompt"
    shared = pd.concat([pair[0] for pair in tables])
    shared = shared.drop_duplicates(KEYS)
    samples = shared["sample_id"].nunique()
    paired = shared.set_index(KEYS).index
    lines = [f"paired: {len(paired)} answers to {samples} samples, by {how}"]
    for log in logs:
        rows = log.rows.drop_duplicates(KEYS)
        rows = rows.set_index(KEYS)
        alone = rows[~rows.index.isin(paired)]
        shown = list(alone["place"][:SHOWN])
        if by_id:
            shown = list(map(shown_id, alone["id"][:SHOWN]))
        if len(alone) > SHOWN:
            shown.append("...")
        if shown:
            lines.append(f"not paired: {len(alone)} of {log.path.name} ({', '.join(shown)})")
        if log.about.note:
            lines.append(log.about.note)
    return lines
