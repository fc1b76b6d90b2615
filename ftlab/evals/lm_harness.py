"""Benchmarks of EleutherAI's lm-evaluation-harness on any model of ftlab (extra `eval`). Cell: lm_eval.

Source: Gao et al., the Language Model Evaluation Harness; a task's prompt, metric and filter are the harness's own.
"""

from __future__ import annotations

import json
from pathlib import Path

from ftlab import runs
from ftlab.models import model as reference
from ftlab.models import precision, quiet, released
from ftlab.runs import Run


def lm_eval(
    model, tasks, *, limit: int | None = None, num_fewshot: int | None = None, chat: bool = False, batch_size: int = 16
) -> Run:
    """Runs tasks of the harness -> a finished run; `results(run)` is its table, `results.json` all that the harness reports.

    `tasks` is one or a list: names of the harness (their data comes from the hub), or local YAML files of its task form,
    without code (`!function`). `limit` is rows of each task; `num_fewshot` the task's own where None; `chat` puts prompts into the
    model's chat template. A run stands for the names, a YAML and the local data files that it names, and the harness's
    version; a set that its owner changes on the hub is not noticed.
    Raises ValueError (no such task, extra not installed), FileNotFoundError.
    """
    quiet()
    try:
        import lm_eval as harness
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as e:
        raise ValueError(f"lm-eval is not here ({e}); install it with: pip install 'ftlab[eval]'") from None
    parent = reference(model)
    asked = [_task(str(t)) for t in ([tasks] if isinstance(tasks, (str, Path)) else tasks)]
    manager = TaskManager(include_defaults=any(isinstance(t, str) for t in asked))  # all its tasks take seconds to list
    unknown = [t for t in asked if isinstance(t, str) and not manager.match_tasks([t])]
    if unknown or not asked:
        raise ValueError(
            f"unknown task {', '.join(unknown) or '(none given)'}; `lm-eval ls tasks` lists them; or give a YAML file"
        )
    settings = {"limit": limit, "num_fewshot": num_fewshot, "apply_chat_template": chat}
    hashes = [runs.file_hash(p) for t in asked if isinstance(t, dict) for p in _files(t.get("dataset_kwargs"))]
    identity = {"model": parent.hash, "tasks": asked, **settings, "precision": precision(), "files": hashes}
    run = runs.start("lm_eval", parent.name, {**identity, "lm_eval": harness.__version__})
    with run.lock():
        if not run.finished:
            with released():
                found = harness.simple_evaluate(
                    HFLM(pretrained=parent.load(), tokenizer=parent.tokenizer(), batch_size=batch_size), tasks=asked,
                    task_manager=manager, log_samples=False, **settings,
                )  # fmt: skip
            kept = {k: found[k] for k in ("results", "n-samples", "n-shot", "versions", "configs")}
            runs.write_atomic(run.path / "results.json", json.dumps(kept, indent=1, default=str))
            run.complete(
                model=parent.name, **{f"{r.task} {r.metric}": f"{r.value:.4g}" for r in results(run).itertuples()}
            )
    return run


def results(run: Run):
    """-> DataFrame of a run of `lm_eval`: task, metric, filter, value, stderr (NaN: none given), n."""
    import pandas as pd

    kept, rows = json.loads((run.path / "results.json").read_bytes()), []
    for task, found in kept["results"].items():
        for key, value in found.items():
            metric, _, how = key.partition(",")
            if how and not metric.endswith("_stderr"):
                n = kept["n-samples"].get(task, {}).get("effective")  # a group has none of its own
                rows.append({"task": task, "metric": metric, "filter": how, "value": value, "stderr": found.get(f"{metric}_stderr,{how}"), "n": n})  # fmt: skip
    table = pd.DataFrame(rows, columns=["task", "metric", "filter", "value", "stderr", "n"])
    return table.assign(**{c: pd.to_numeric(table[c], errors="coerce") for c in ("value", "stderr", "n")})


def _task(name: str) -> str | dict:
    """-> the name, or the content of a YAML file."""
    if not name.endswith((".yaml", ".yml")):
        return name
    import yaml

    if not Path(name).is_file():
        raise FileNotFoundError(f"{name} does not exist; give a YAML file of the harness's task form, or a task's name")
    try:
        task = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except yaml.YAMLError as e:
        raise ValueError(
            f"{name} cannot be read: {' '.join(str(e).split())}; plain YAML without tags is needed"
        ) from None
    if not isinstance(task, dict) or not isinstance(task.get("task"), str):
        raise ValueError(f"{name} names no `task`; give a YAML file of the harness's task form")
    return task


def _files(value) -> list[Path]:
    """-> the files that are named anywhere within `value`."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    own = [Path(value)] if isinstance(value, str) and Path(value).is_file() else []
    return own + [p for v in inner for p in _files(v)]
