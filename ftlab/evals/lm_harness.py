"""Benchmarks of EleutherAI's lm-evaluation-harness on any local model (extra `eval`).

Source: Gao et al., the Language Model Evaluation Harness. A task's prompt, metric and filter are
the harness's own.
"""

from __future__ import annotations

import json
import shutil
import warnings
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ftlab import runs
from ftlab._core.errors import FtlabDeprecationWarning, NotFoundError, UsageError
from ftlab._core.files import file_hash, write_atomic
from ftlab.models import local_model, precision, quiet, released
from ftlab.runs import Run

if TYPE_CHECKING:
    import pandas as pd

KEPT = ("results", "n-samples", "n-shot", "versions", "configs")  # of the harness's report
SAMPLES = "samples"  # folder of a run, in the harness's own form, which `ftlab.compare` pairs
COLUMNS = ["task", "metric", "filter", "value", "stderr", "n"]


def lm_eval(
    model: Any,
    tasks: str | Path | list[str] | list[Path],
    *,
    n_prompts: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    batch_size: int = 16,
    limit: int | None = None,
) -> Run:
    """Run tasks of the harness; `lm_eval_results(run)` is the table.

    A run stands for the names, a YAML file and the local data files that it names, and the
    harness's version. A set that its owner changes on the hub is not noticed.

    Args:
        model: Anything that `ftlab.model` takes, except an endpoint.
        tasks: Names of tasks (their data come from the hub), or local YAML files of the harness's
            task form, without code (`!function`).
        n_prompts: Rows per task; None for all.
        num_fewshot: Worked examples before each question; None for the task's own number.
        chat: Put prompts into the model's chat template.
        batch_size: Rows per batch; it changes no result.
        limit: Old name of `n_prompts`; it warns.

    Returns:
        A finished run; its `results.json` holds what the harness reports, and `samples/` a log a
        task, of which `ftlab.compare` pairs two.

    Raises:
        UsageError: `lm_eval_missing`, `unknown_task`, `bad_task_file`.
        NotFoundError: `no_task_file`.
    """
    quiet()
    if limit is not None:
        warnings.warn("limit= is now n_prompts=.", FtlabDeprecationWarning, stacklevel=2)
    harness, manager_class = _harness()
    reference = local_model(model)
    single = isinstance(tasks, (str, Path))
    asked = [_task(str(task)) for task in ([tasks] if single else tasks)]
    named = [task for task in asked if isinstance(task, str)]
    manager = manager_class(include_defaults=bool(named))  # all its tasks take seconds to list
    unknown = [task for task in named if not manager.match_tasks([task])]
    if unknown or not asked:
        found = ", ".join(unknown) or "(none given)"
        raise UsageError(
            "unknown_task",
            f"Unknown task {found}. `lm-eval ls tasks` lists them; or give a YAML file.",
        )
    settings = {
        "limit": limit if n_prompts is None else n_prompts,
        "num_fewshot": num_fewshot,
        "apply_chat_template": chat,
    }
    local = [task for task in asked if isinstance(task, dict)]
    files = [path for task in local for path in _files(task.get("dataset_kwargs"))]
    identity = {
        "model": reference.hash,
        "tasks": asked,
        **settings,
        "precision": precision(),
        "files": [file_hash(path) for path in files],
        "lm_eval": harness.__version__,
    }
    run = runs.start("lm_eval", reference.name, identity)
    with run.lock():
        if not run.finished:
            run.take_up()
            settings |= {"tasks": asked, "task_manager": manager}
            with released():
                report = harness.simple_evaluate(_wrapped(reference, batch_size), **settings)
            _save_samples(run, report.pop("samples"))
            _complete(run, reference.name, report)
    return run


def lm_eval_results(run: Run) -> pd.DataFrame:
    """Return the table of a run of `lm_eval`.

    Returns:
        A DataFrame with the columns task, metric, filter, value, stderr (NaN: none given) and n.
    """
    import pandas as pd

    report = json.loads((run.path / "results.json").read_bytes())
    rows = []
    for task, found in report["results"].items():
        n_samples = report["n-samples"].get(task, {})  # a group has none of its own
        for key, value in found.items():
            metric, _, how = key.partition(",")
            if not how or metric.endswith("_stderr"):
                continue
            error = found.get(f"{metric}_stderr,{how}")
            rows.append([task, metric, how, value, error, n_samples.get("effective")])
    table = pd.DataFrame(rows, columns=COLUMNS)
    for column in ("value", "stderr", "n"):
        table[column] = pd.to_numeric(table[column], errors="coerce")
    return table


def _harness() -> tuple[Any, Any]:
    """Return the package lm_eval and its class TaskManager."""
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise UsageError(
            "lm_eval_missing", f"No lm-eval ({error}). Install it: pip install 'ftlab[eval]'."
        ) from None
    return lm_eval, TaskManager


def _wrapped(reference: Any, batch_size: int) -> Any:
    """Return a model as the harness asks it."""
    from lm_eval.models.huggingface import HFLM

    tokenizer = reference.tokenizer()
    return HFLM(pretrained=reference.load(), tokenizer=tokenizer, batch_size=batch_size)


def _save_samples(run: Run, samples: dict[str, list]) -> None:
    """Write what each sample scored as the harness itself does, a file a task."""
    from lm_eval.loggers import EvaluationTracker

    shutil.rmtree(run.path / SAMPLES, ignore_errors=True)  # of a call that was killed
    tracker = EvaluationTracker(output_path=str(run.path))
    tracker.general_config_tracker.model_name_sanitized = SAMPLES
    tracker.date_id = datetime.now().isoformat().replace(":", "-")  # as it names its files
    for task, rows in samples.items():
        tracker.save_results_samples(task, rows)


def _complete(run: Run, name: str, report: dict[str, Any]) -> None:
    kept = {key: report[key] for key in KEPT}
    write_atomic(run.path / "results.json", json.dumps(kept, indent=1, default=str))
    rows = lm_eval_results(run).itertuples()
    run.complete(model=name, **{f"{row.task} {row.metric}": f"{row.value:.4g}" for row in rows})


def _task(name: str) -> str | dict[str, Any]:
    """Return a task's name, or the content of its YAML file."""
    if not name.endswith((".yaml", ".yml")):
        return name
    import yaml

    file = Path(name)
    if not file.is_file():
        raise NotFoundError(
            "no_task_file", f"{name} does not exist. Give a file, or a task's name."
        )
    try:
        task = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise UsageError(
            "bad_task_file", f"{name} cannot be read: {reason}. Plain YAML without tags is needed."
        ) from None
    if not isinstance(task, dict) or not isinstance(task.get("task"), str):
        raise UsageError("bad_task_file", f"{name} names no `task`, as the harness's files do.")
    return task


def _files(value: Any) -> list[Path]:
    """Return the files that are named anywhere within a value."""
    if isinstance(value, str):
        return [Path(value)] if Path(value).is_file() else []
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return []
    return [path for each in value for path in _files(each)]
