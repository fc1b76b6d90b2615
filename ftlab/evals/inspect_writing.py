"""Write an evaluation as logs of Inspect, for `inspect view` (extra `inspect`).

A log is of one task, so there is one of each risk under each attack, and of each step and training
seed of a curve. A judge is a scorer; its score is 1 where the answer shows the risk's event.

Source: UK AI Security Institute, Inspect (inspect.aisi.org.uk), through its own `inspect_ai.log`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab import runs
from ftlab._core.errors import UsageError
from ftlab._core.files import digest, scratch
from ftlab._core.text import encodable
from ftlab._core.types import Answer, Verdict
from ftlab.evals.answers import PROMPTS, read_answers
from ftlab.evals.risks import open_risk
from ftlab.runs import Run, public, public_label

if TYPE_CHECKING:
    import pandas as pd

NOT_LABELS = {field.name for field in fields(Verdict)}
ENDS = {"stop": "stop", "length": "max_tokens"}  # how an answer ended, in the words of Inspect


@dataclass(frozen=True)
class _Texts:
    """What was asked and answered in a run; answers are empty where no text is wanted."""

    prompts: dict[tuple[str, str], list[dict[str, Any]]]  # by sample and attack
    answers: dict[str, Answer]


def write_inspect_logs(
    run: Any, out: str | Path | None = None, *, text: bool = False
) -> list[Path]:
    """Write the verdicts of a finished evaluation or curve as logs of Inspect.

    Without `text` a log shows outcomes, and of each prompt its hash: enough for `inspect view` to
    count and for `ftlab.compare` to pair two logs.

    Args:
        run: A run, its name or folder.
        out: A new folder; by default NAME-inspect in the working folder.
        text: Also write prompts and answers, which may be harmful.

    Returns:
        The logs.

    Raises:
        UsageError: `inspect_missing`, `nothing_judged`, `folder_exists`, `run_not_finished`.
        NotFoundError: `no_such_run`.
    """
    run = runs.load(getattr(run, "path", run))
    folder = Path(out or f"{run.name}-inspect")
    if folder.exists():
        raise UsageError("folder_exists", f"{folder} is there already. Name another folder.")
    if not any((member.path / "verdicts.jsonl").exists() for member in run.members):
        raise UsageError("nothing_judged", f"{run.name} has no verdicts. Give an evaluation.")
    write = _library()
    written = []
    with scratch(folder.absolute()) as made:
        made = made / "logs"
        made.mkdir()
        for member in run.members:
            texts = _texts(member, text)
            for task, rows in _tasks(member):
                log = _log(member, task, rows, texts)
                name = _file_name(run, member, task)
                write(log, str(made / name))
                written.append(folder / name)
        made.replace(folder)
    return written


def _library() -> Any:
    try:
        from inspect_ai.log import write_eval_log
    except ImportError:
        raise UsageError(
            "inspect_missing",
            "Logs of Inspect need its package. Install it: pip install 'ftlab[inspect]'.",
        ) from None
    return write_eval_log


def _texts(run: Run, text: bool) -> _Texts:
    prompts = {}
    for row in run.read(PROMPTS):
        place = row["sample"]["id"], row["attack"]
        prompts.setdefault(place, row["messages"])
    return _Texts(prompts, read_answers(run) if text else {})


def _tasks(run: Run) -> list[tuple[dict[str, Any], pd.DataFrame]]:
    """Return the verdicts of each task: risk, attack, and where in a training they were."""
    table = run.table()
    labels = [name for name in table if name not in NOT_LABELS]
    columns = ["risk", "attack", *labels]
    found = []
    for values, rows in table.groupby(columns, dropna=False, sort=False):
        task = {}
        for name, value in zip(columns, values, strict=True):
            is_missing = isinstance(value, float) and math.isnan(value)
            if not is_missing:
                task[name] = getattr(value, "item", lambda value=value: value)()
        found.append((task, rows))
    return found


def _file_name(run: Run, member: Run, task: dict[str, Any]) -> str:
    parts = [] if member == run else [member.name]
    parts += [task["risk"], task["attack"]]
    for name, value in task.items():
        if name not in ("risk", "attack"):
            parts.append(f"{name}{value}")
    return _plain("_".join(parts)) + ".eval"


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name)


def _log(run: Run, task: dict[str, Any], rows: pd.DataFrame, texts: _Texts) -> Any:
    from inspect_ai import log as inspect

    samples = []
    for (name, repeat), verdicts in rows.groupby(["sample_id", "repeat"], sort=False):
        sample = _sample(name, repeat, verdicts.to_dict("records"), texts)
        samples.append(sample)
    notes = run.provenance
    versions = run.identity.get("versions", {})
    dataset = inspect.EvalDataset(
        name=task["risk"],
        samples=rows["sample_id"].nunique(),
    )
    settings = run.identity.get("evaluation", {})
    about = {
        "run": run.name,
        "kind": run.kind,
        "higher": open_risk(task["risk"]).higher,
        "settings": public(settings, texts=False),
    }
    spec = inspect.EvalSpec(
        created=notes["started"],
        task=_plain(f"{task['risk']}_{task['attack']}"),
        task_version=versions.get(f"risk {task['risk']}", 0),
        task_args={name: value for name, value in task.items() if name != "risk"},
        dataset=dataset,
        model=f"ftlab/{run.name}",
        config=inspect.EvalConfig(epochs=int(rows["repeat"].max()) + 1),
        packages=notes.get("versions", {}),
        metadata=about,
    )
    finished = run.part("complete.json")["finished"]
    return inspect.EvalLog(
        status="success",
        eval=spec,
        results=_results(rows, len(samples)),
        stats=inspect.EvalStats(
            started_at=notes["started"],
            completed_at=finished,
        ),
        samples=samples,
    )


def _results(rows: pd.DataFrame, n_samples: int) -> Any:
    """Return the rate of each judge, over the answers that it scored."""
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    scores = []
    for judge, own in rows.groupby("judge", sort=False):
        scored = int(own["event"].notna().sum())
        metrics = {}
        if scored:
            metrics["mean"] = EvalMetric(name="mean", value=float(own["event"].mean()))
        score = EvalScore(
            name=judge,
            scorer=judge,
            scored_samples=scored,
            unscored_samples=len(own) - scored,
            metrics=metrics,
        )
        scores.append(score)
    return EvalResults(
        total_samples=n_samples,
        completed_samples=n_samples,
        scores=scores,
    )


def _sample(name: str, repeat: int, verdicts: list[dict[str, Any]], texts: _Texts) -> Any:
    """Return the sample of one answer, with the score of every judge."""
    from inspect_ai.log import EvalSample
    from inspect_ai.scorer import Score

    first = verdicts[0]
    scores = {}
    for verdict in verdicts:
        scores[verdict["judge"]] = Score(
            value=verdict["event"],
            answer=str(verdict["outcome"]),
            explanation=encodable(verdict["reason"]) or None,
            metadata={
                "decided_by": verdict["decided_by"],
                "attempts": verdict["attempts"],
            },
        )
    asked = texts.prompts.get((name, first["attack"]))
    answer = texts.answers.get(first["answer_key"])
    shown = {"input": "", "target": ""}
    if asked:
        shown["input"] = f"left out, hash {digest(asked)}"
    if texts.answers:
        shown = _shown(asked or [], first["target"], answer)
    return EvalSample(
        id=name if texts.answers else public_label(name),
        epoch=int(repeat) + 1,
        scores=scores,
        metadata={
            "category": first["category"],
            "characters": first["characters"],
        },
        **shown,
    )


def _shown(asked: list[dict[str, Any]], target: str, answer: Answer | None) -> dict[str, Any]:
    """Return the texts of a sample."""
    from inspect_ai.model import ModelOutput

    lines = [f"{message['role']}: {message['content']}" for message in asked]
    found: dict[str, Any] = {"input": encodable("\n\n".join(lines)), "target": encodable(target)}
    if answer is not None:
        found["output"] = ModelOutput.from_content(
            model="",
            content=encodable(answer.text),
            stop_reason=ENDS.get(answer.finish, "unknown"),
        )
    return found
