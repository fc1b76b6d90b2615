"""MLflow, through its `MlflowClient`.

Source: mlflow.org. The store on this machine is one SQLite file beside the runs.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import Any

from ftlab._core.errors import UsageError
from ftlab._core.text import redacted, safe
from ftlab.analysis.trackers.base import Tracked, Tracker, needs
from ftlab.runs import home

AT_ONCE = 1000  # metrics of a request, and
SETTINGS_AT_ONCE = 100  # parameters: limits of MLflow
MOST_CHARACTERS = 500  # of a parameter, as in MLflow's oldest servers
NOT_IN_KEY = re.compile(r"[^\w\-. :/]")


class MlflowTracker(Tracker):
    """Each run is a run of an experiment, found again by its tag `ftlab.run`."""

    name = "mlflow"

    def write(self, runs: list[Tracked], project: str, at: str) -> str:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        folder = home()
        folder.mkdir(parents=True, exist_ok=True)
        store = at or f"sqlite:///{folder / 'mlflow.db'}"
        with needs("MLflow"):
            from mlflow import MlflowClient, MlflowException

            client = MlflowClient(tracking_uri=store)  # of a file, by SQLAlchemy
        try:
            experiment = _experiment(client, project)
            for run in runs:
                if not _known(client, experiment, run):
                    _write(client, experiment, run)
        except MlflowException as error:
            reason = safe(redacted(str(error)), 300)
            raise UsageError(
                "tracker_failed", f"MLflow says: {reason} Check at= and call again."
            ) from None
        if at:
            return redacted(at)
        return f"mlflow ui --backend-store-uri {shlex.quote(store)}"


def _experiment(client: Any, project: str) -> str:
    found = client.get_experiment_by_name(project)
    if found is not None:
        return found.experiment_id
    return client.create_experiment(project)


def _known(client: Any, experiment: str, run: Tracked) -> bool:
    asked = f"tags.`ftlab.run` = '{run.name}' and attributes.status = 'FINISHED'"
    return bool(client.search_runs([experiment], asked, max_results=1))


def _write(client: Any, experiment: str, run: Tracked) -> None:
    from mlflow.entities import Metric, Param

    tags = {**run.notes, "ftlab.run": run.name, "ftlab.group": run.group}
    made = client.create_run(experiment, tags=tags, run_name=run.name)
    number = made.info.run_id
    settings = []
    for name, value in run.settings.items():
        text = str(value)[:MOST_CHARACTERS]
        settings.append(Param(NOT_IN_KEY.sub("_", name), text))
    for start in range(0, len(settings), SETTINGS_AT_ONCE):
        client.log_batch(number, params=settings[start : start + SETTINGS_AT_ONCE])
    metrics = []
    for step, values in run.metrics.items():
        for name, value in values.items():
            key = NOT_IN_KEY.sub("_", name)
            metrics.append(Metric(key, value, made.info.start_time, step))
    for start in range(0, len(metrics), AT_ONCE):
        client.log_batch(number, metrics=metrics[start : start + AT_ONCE])
    client.set_terminated(number)


TRACKER = MlflowTracker()
